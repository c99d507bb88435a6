package held

import (
	"math"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// End is how the goroutine of a handler is to end.
type End uint8

const (
	Return End = iota
	Panic      // with http.ErrAbortHandler; a panic of the handler's own goes on
	Exit       // by runtime.Goexit, whatever the goroutine does now
)

// Abort makes sure that a response whose header is out cannot be taken for a
// complete one, whatever a middleware outside does, and says how the goroutine is
// to end then.
func (w *Writer) Abort() End {
	closes := w.endsWithConnection()
	_, _ = w.takeLastByte()
	rc := http.NewResponseController(w.rw)
	// Where the end of the connection is the end of the response, only a reset
	// tells the client that something is missing. A middleware outside without
	// Unwrap may hide SetWriteDeadline, but not Hijack.
	if !closes && rc.SetWriteDeadline(time.Unix(1, 0)) == nil {
		return Panic
	}
	if conn, _, err := rc.Hijack(); err == nil {
		reset(conn)
		return Panic
	}
	if rc.SetWriteDeadline(time.Unix(1, 0)) == nil {
		return Panic
	}
	// A writer that buffers, like http.TimeoutHandler's, may send all of it: then
	// it is too short.
	w.rw.Header().Set("Content-Length", strconv.FormatInt(math.MaxInt64, 10))
	return endFor(outermost())
}

// endsWithConnection reports whether the end of the connection may be the end of the
// response. That the handler has declared a length says nothing: a middleware
// outside that changes the body takes it out of the header.
func (w *Writer) endsWithConnection() bool { return !w.req.ProtoAtLeast(1, 1) }

func reset(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn() // TLS would say goodbye
	}
	if t, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = conn.Close()
}

// endFor says how a goroutine is to end whose outermost function has that name,
// where neither a deadline can be set nor the connection be hijacked.
func endFor(function string) End {
	switch {
	case function == "net/http.(*conn).serve",
		function == "net/http.(*http2serverConn).runHandler",
		function == "net/http/internal/http2.(*serverConn).runHandler",
		function == "golang.org/x/net/http2.(*serverConn).runHandler":
		// A panic may be recovered by a middleware outside, and the server would
		// complete the response. Nobody can recover this.
		return Exit
	case strings.HasPrefix(function, "net/http.(*timeoutHandler).ServeHTTP.func"):
		return Return // the Content-Length does it; without a return it would wait for its limit
	case function == "net/http/fcgi.(*child).serveRequest":
		return Return // the protocol cannot break a response off, and a panic ends the process
	}
	return Panic
}

// outermost returns the name of the function that the goroutine was started with.
func outermost() (function string) {
	var pcs [64]uintptr
	for skip := 0; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for more := n > 0; more; {
			var f runtime.Frame
			if f, more = frames.Next(); f.Function != "runtime.goexit" {
				function = f.Function
			}
		}
		if n < len(pcs) {
			return function
		}
	}
}
