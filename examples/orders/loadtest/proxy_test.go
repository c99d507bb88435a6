//go:build linux

package loadtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy is the one address of a database whose server changes.
type proxy struct {
	net.Listener

	mu     sync.Mutex
	server string // the address of the server
	conns  map[net.Conn]bool
}

func newProxy(t testing.TB, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, server: server, conns: make(map[net.Conn]bool)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := p.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.moveTo("")
		wg.Wait()
	})
	return p
}

// moveTo gives connections that come from now on to another server, and ends those that are there.
func (p *proxy) moveTo(server string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server = server
	for c := range p.conns {
		c.Close()
	}
}

// keep notes a connection, which moveTo ends; not if the proxy has moved since its server was looked up.
func (p *proxy) keep(c net.Conn, server string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != server {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// serve connects a client with the server. Where there is none the connection ends, as at a
// load balancer without a backend.
func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	address := p.server
	p.mu.Unlock()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	for _, c := range []net.Conn{client, server} {
		if !p.keep(c, address) {
			return
		}
		defer p.drop(c)
	}
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		_, _ = io.Copy(client, server)
		client.Close()
	}()
	_, _ = io.Copy(server, client)
	server.Close()
	<-answers
}
