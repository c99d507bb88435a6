// G1. Complete means committed: a response larger than HoldLimit streams and cannot
// complete before COMMIT. If COMMIT then fails, or the handler fails, the connection
// is aborted, so that the client sees a broken transfer, never a short success. To
// abort: put the write deadline in the past (so that a middleware outside that
// recovers cannot complete the response), then panic(http.ErrAbortHandler). For
// HTTP/1.0, where the end of the connection may be the end of the
// response, hijack, SetLinger(0), close: the client sees a reset.

package guarantees_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/matrix"
)

// wirePoints is how far a response has got when its handler fails.
var wirePoints = []struct {
	name    string
	respond func(w http.ResponseWriter)
	out     bool // the header has left
}{
	{"before the header", func(w http.ResponseWriter) {}, false},
	{"after the header", func(w http.ResponseWriter) { w.WriteHeader(201) }, false},
	{"after a write", func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireSmall) }, false},
	{"when complete", func(w http.ResponseWriter) {
		wireSetLength(w, len(wireSmall))
		_, _ = io.WriteString(w, wireSmall)
		wireFlush(w)
	}, false},
	{"after a flush", func(w http.ResponseWriter) { wireFlush(w) }, true},
	{"after a flushed write", func(w http.ResponseWriter) {
		_, _ = io.WriteString(w, wireSmall)
		wireFlush(w)
	}, true},
	{"in the middle of a stream", func(w http.ResponseWriter) { wirePieces(w, wireLarge, 1000) }, true},
	{"at the end of a stream with length", func(w http.ResponseWriter) {
		wireSetLength(w, len(wireLarge))
		wirePieces(w, wireLarge, 1000)
		wireFlush(w)
	}, true},
	{"after copying", func(w http.ResponseWriter) {
		wireSetLength(w, len(wireLarge))
		_, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)})
	}, true},
	{"with trailers", func(w http.ResponseWriter) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, wireLarge)
		w.Header().Set("X-Sum", "abc")
	}, true},
}

var wireFailures = []struct {
	name  string
	fail  func(r *http.Request) error
	panic bool // nobody answers but the middlewares outside
}{
	{"error", func(*http.Request) error { return sqlreqtest.ErrTest }, false},
	{"Fail", func(r *http.Request) error { return errors.Join(sqlreq.Fail(r.Context(), sqlreqtest.ErrTest)) }, false},
	{"Rollback behind sqlreq's back", func(r *http.Request) error {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			return err
		}
		_ = tx.Rollback()
		return nil
	}, false},
	{"panic", func(*http.Request) error { panic(sqlreqtest.ErrTest) }, true},
	{"ErrAbortHandler", func(*http.Request) error { panic(http.ErrAbortHandler) }, true},
	{"Goexit", func(*http.Request) error { runtime.Goexit(); return nil }, true},
}

func TestG1FailedHandlerIsNoSuccessAtAnyPoint(t *testing.T) {
	h := sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
			t.Error(err)
		}
		point, failure, _ := strings.Cut(r.URL.Path[1:], "/")
		p, _ := strconv.Atoi(point)
		f, _ := strconv.Atoi(failure)
		w.Header().Set("X-Case", "1")
		wirePoints[p].respond(w)
		return wireFailures[f].fail(r)
	})
	wireEach(t, func(t *testing.T, proto wireProtocol) {
		for _, recovers := range []bool{false, true} {
			t.Run(fmt.Sprintf("recover=%t", recovers), func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				app := wireRegistry(t, false, sqlreq.Binding{DB: db}).Middleware(h)
				if recovers {
					app = wireRecover(app)
				}
				ask := proto.start(t, app)
				for p, point := range wirePoints {
					for f, failure := range wireFailures {
						got := ask("GET", fmt.Sprintf("/%d/%d", p, f))
						switch {
						case got.err != nil && (point.out || failure.panic):
						case got.err == nil && !point.out && got.status == 500 && got.header.Get("X-Case") == "":
						case got.err == nil && !point.out && failure.name == "Goexit" && recovers:
						default:
							t.Errorf("%s %s: got %v, want an error, without a trace of the handler's", failure.name, point.name, got)
						}
					}
				}
				if rows := sqlreqtest.Count(t, db, "work"); rows != 0 {
					t.Errorf("%d rows stayed", rows)
				}
				wireIdle(t, db)
			})
		}
	})
}

func TestG1HTTP10WithoutLengthEndsInReset(t *testing.T) {
	reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	ask := wireHTTP10.start(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		_, _ = io.WriteString(w, wireLarge)
		return sqlreqtest.ErrTest
	})))
	const wsaeConnReset = syscall.Errno(10054) // what Windows says
	if got := ask("GET", "/"); !errors.Is(got.err, syscall.ECONNRESET) && !(runtime.GOOS == "windows" && errors.Is(got.err, wsaeConnReset)) {
		t.Errorf("got %v, want a connection reset: the end of the connection would be that of the response", got)
	}
}

// wireRemeasured is a middleware's writer that changes the body, and so takes its
// length out of the header, as compressing ones do.
type wireRemeasured struct{ http.ResponseWriter }

func (w wireRemeasured) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w wireRemeasured) WriteHeader(status int) {
	w.Header().Del("Content-Length")
	w.ResponseWriter.WriteHeader(status)
}

// The length that the handler has declared is not that of the response where a
// middleware outside takes it out: then the end of the connection is its end.
func TestG1HTTP10WhoseLengthIsTakenOutEndsInReset(t *testing.T) {
	reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	app := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		wireSetLength(w, len(wireLarge))
		w.WriteHeader(200)
		_, _ = io.WriteString(w, wireLarge)
		return sqlreqtest.ErrTest
	}))
	for _, proto := range []wireProtocol{wireHTTP10, wireTLS10} {
		ask := proto.start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			app.ServeHTTP(wireRemeasured{w}, r)
		}))
		if got := ask("GET", "/"); got.err == nil {
			t.Errorf("%s: got %v, want a broken transfer", proto.name, got)
		}
	}
}

// wireOpaque is a middleware's writer that cannot be looked through, but passes
// on what websocket and streaming handlers ask for.
type wireOpaque struct {
	http.ResponseWriter
	http.Flusher
	http.Hijacker
}

func TestG1AbortNeedsNoUnwrap(t *testing.T) {
	for _, length := range []int{-1, len(wireLarge)} {
		app := wireRecover(wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if length >= 0 {
				wireSetLength(w, length)
			}
			_, _ = io.WriteString(w, wireLarge)
			return sqlreqtest.ErrTest
		})))
		ask := wireHTTP11.start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			app.ServeHTTP(wireOpaque{w, w.(http.Flusher), w.(http.Hijacker)}, r)
		}))
		if got := ask("GET", "/"); got.err == nil {
			t.Errorf("Content-Length %d: got %v, want a broken transfer", length, got)
		}
	}
}

func TestG1AbortIsErrAbortHandler(t *testing.T) {
	cases := map[string]struct {
		body string
		want any
	}{"held": {wireSmall, nil}, "streaming": {wireLarge, http.ErrAbortHandler}}
	for name, c := range cases {
		func() {
			defer func() {
				if got := recover(); got != c.want {
					t.Errorf("%s: got the panic %v, want %v", name, got, c.want)
				}
			}()
			wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				_, _ = io.WriteString(w, c.body)
				return sqlreqtest.ErrTest
			})).ServeHTTP(wireRecorder(), httptest.NewRequest("GET", "/", nil))
		}()
	}
}

func matrixPanics() { panic("boom") }

// TestG1PanicIsLoggedWhereTheGoroutineExits: nobody else learns of it then.
func TestG1PanicIsLoggedWhereTheGoroutineExits(t *testing.T) {
	stream := func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireLarge) }
	tests := map[string]struct {
		h       sqlreq.HandlerFunc
		onError func(http.ResponseWriter, *http.Request, error)
		logged  bool
	}{
		"panic":           {h: func(w http.ResponseWriter, _ *http.Request) error { stream(w); matrixPanics(); return nil }, logged: true},
		"ErrAbortHandler": {h: func(w http.ResponseWriter, _ *http.Request) error { stream(w); panic(http.ErrAbortHandler) }},
		"Goexit":          {h: func(w http.ResponseWriter, _ *http.Request) error { stream(w); runtime.Goexit(); return nil }},
		"in the ErrorHandler": {
			h:       func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest },
			onError: func(w http.ResponseWriter, _ *http.Request, _ error) { stream(w); matrixPanics() },
			logged:  true,
		},
	}
	for name, test := range tests {
		for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
			t.Run(name+" "+p.name, func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
				reg.ErrorHandler = test.onError
				var rec sqlreqtest.Recorder
				rec.Watch(reg)
				ended := make(chan struct{})
				h := matrix.Recoverer(true)(matrix.Wrapper(false)(reg.Middleware(test.h)))
				got := p.start(t, lateOnce(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer close(ended)
					h.ServeHTTP(w, r)
				})))("GET", "/")
				<-ended
				if got.err == nil {
					t.Errorf("got %v, want a broken transfer", got)
				}
				logs := rec.Records()
				if !test.logged && len(logs) != 0 {
					t.Errorf("got the log %v, want none", logs)
				}
				if test.logged && (len(logs) != 1 || logs[0]["level"] != "ERROR" || logs[0]["panic"] != "boom" || logs[0]["path"] != "/" || !strings.Contains(logs[0]["stack"], "matrixPanics")) {
					t.Errorf("got the log %v, want the panic and its stack", logs)
				}
				wireIdle(t, db)
			})
		}
	}
}
