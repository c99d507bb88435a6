package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	slowReaders = 100
	slowRate    = 1 << 10 // bytes a second
	patience    = time.Second
	others      = 8 // other clients
	window      = 1500 * time.Millisecond
	// socketBuffer keeps the answer from fitting into the buffers of the two
	// systems: a slow connection takes in what its round trip needs.
	socketBuffer = 4 << 10
)

// slowClients reads the database beside 100 clients that read an answer of
// 32 KiB, made from the database too, at 1 KiB/s.
func slowClients() []Benchmark {
	var all []Benchmark
	for _, c := range contenders {
		all = append(all, Benchmark{"SlowClients", "sqlite", fmt.Sprintf("slow=%d", slowReaders), c.name, func(b *testing.B) {
			s := openSQLite(b)
			j := read()
			verify(b, s, j, c.handler(s, j), "/")
			slow := j
			slow.answer = page32KiB
			mux := http.NewServeMux()
			mux.Handle("/slow", c.handler(s, slow))
			mux.Handle("/", c.handler(s, j))
			besideSlow(b, mux)
		}})
	}
	return all
}

// besideSlow measures for a fixed time: whoever waits for a connection waits
// for as long as the slow ones read.
func besideSlow(b *testing.B, h http.Handler) {
	url := serve(b, h, func(l net.Listener) net.Listener { return smallBuffers{l} })
	client := newClient(b, others)
	if _, err := get(b.Context(), client, url); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	var took []time.Duration
	late := 0
	for range b.N {
		more, n := oneWindow(b, client, url)
		took, late = append(took, more...), late+n
	}
	b.StopTimer()
	report(b, took)
	b.ReportMetric(float64(len(took)-late)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric(100*float64(late)/float64(len(took)), "late-%")
}

func oneWindow(b *testing.B, client *http.Client, url string) (took []time.Duration, late int) {
	ctx, cancel := context.WithCancel(b.Context())
	var reading, asked sync.WaitGroup
	for range slowReaders {
		asked.Add(1)
		reading.Go(func() { readSlowly(ctx, url[len("http://"):], asked.Done) })
	}
	asked.Wait()
	var mu sync.Mutex
	var all sync.WaitGroup
	var broken atomic.Pointer[error]
	end := time.Now().Add(window)
	for range others {
		all.Go(func() {
			for time.Now().Before(end) {
				ctx, cancel := context.WithTimeout(b.Context(), patience)
				start := time.Now()
				_, err := get(ctx, client, url)
				cancel()
				d := time.Since(start)
				mu.Lock()
				took = append(took, d)
				if err != nil {
					late++
					if !errors.Is(err, context.DeadlineExceeded) {
						broken.Store(&err)
					}
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	cancel()
	reading.Wait()
	if err := broken.Load(); err != nil {
		b.Fatal(*err)
	}
	return took, late
}

// readSlowly asks for the slow answer and reads it until ctx ends. Whoever
// waits in the queue for the first byte waits, too. asked is called when the
// request is sent.
func readSlowly(ctx context.Context, addr string, asked func()) {
	d := net.Dialer{Control: smallWindow}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		asked()
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_, _ = io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: bench\r\n\r\n")
	asked()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	p := make([]byte, slowRate)
	for {
		if _, err := io.ReadFull(conn, p); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// smallBuffers gives the server's connections small buffers.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetWriteBuffer(socketBuffer)
	}
	return conn, err
}
