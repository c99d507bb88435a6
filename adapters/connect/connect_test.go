package sqlreqconnect

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

type (
	request  struct{ Do string }
	response struct{ Text string }
)

// codec is JSON of plain structs: the tests need no generated code.
type codec struct{}

func (codec) Name() string                    { return "json" }
func (codec) Marshal(v any) ([]byte, error)   { return json.Marshal(v) }
func (codec) Unmarshal(b []byte, v any) error { return json.Unmarshal(b, v) }

// protocols are those of connect, by name.
var protocols = map[string]connect.ClientOption{
	"connect":  connect.WithClientOptions(),
	"gRPC":     connect.WithGRPC(),
	"gRPC-Web": connect.WithGRPCWeb(),
}

var errPlain = errors.New("on purpose")

// service is what the handlers do: each adds a row and then what it is asked to.
type service struct {
	s         *adaptertest.Site
	conflicts atomic.Int32
}

func (v *service) work(ctx context.Context, what string) error {
	if err := v.s.Insert(ctx); err != nil {
		return err
	}
	switch what {
	case "invalid":
		return connect.NewError(connect.CodeInvalidArgument, errPlain)
	case "plain":
		return errPlain
	case "zero":
		return connect.NewError(0, errPlain)
	case "panic":
		panic("on purpose")
	case "commit":
		return v.s.BreakCommit(ctx)
	case "gone":
		v.s.Entered <- struct{}{}
		<-ctx.Done()
	case "deadline":
		ctx.Value(deadline{}).(func())()
	case "conflict":
		if v.conflicts.Add(1) == 1 {
			return connect.NewError(connect.CodeAborted, sqlreqtest.Conflict{})
		}
	case "reports":
		_, err := adaptertest.Reports.ExecContext(ctx, sqlreqtest.InsertWork)
		return err
	case "reports, invalid":
		_, err := adaptertest.Reports.ExecContext(ctx, sqlreqtest.InsertWork)
		return errors.Join(err, connect.NewError(connect.CodeInvalidArgument, errPlain))
	}
	return nil
}

func (v *service) unary(ctx context.Context, req *connect.Request[request]) (*connect.Response[response], error) {
	if err := v.work(ctx, req.Msg.Do); err != nil {
		return nil, err
	}
	return connect.NewResponse(&response{"done"}), nil
}

// stream sends a message, then more than sqlreq holds if it is asked for, and then fails
// if it is asked to.
func (v *service) stream(ctx context.Context, req *connect.Request[request], out *connect.ServerStream[response]) error {
	what, isLarge := strings.CutPrefix(req.Msg.Do, "large ")
	if err := out.Send(&response{"first"}); err != nil {
		return err
	}
	if isLarge {
		if err := out.Send(&response{strings.Repeat("x", adaptertest.Large)}); err != nil {
			return err
		}
	}
	return v.work(ctx, what)
}

// up is a service at work.
type up struct {
	*adaptertest.Site
	url string
	c   *http.Client
}

// start serves the service over HTTP/2, in wrap.
func start(t *testing.T, s *adaptertest.Site, wrap func(http.Handler) http.Handler, opts ...connect.HandlerOption) *up {
	v := &service{s: s}
	opts = append(opts, connect.WithCodec(codec{}))
	mux := http.NewServeMux()
	mux.Handle("/s/Unary", wrap(connect.NewUnaryHandler("/s/Unary", v.unary, opts...)))
	mux.Handle("/s/Stream", wrap(connect.NewServerStreamHandler("/s/Stream", v.stream, opts...)))
	srv := sqlreqtest.ServeHTTP2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { s.Returned <- struct{}{} }()
		mux.ServeHTTP(w, r)
	}))
	return &up{s, srv.URL, srv.Client()}
}

// startPlain is start with the interceptor, inside of Middleware.
func startPlain(t *testing.T) *up {
	s := adaptertest.NewSite(t)
	return start(t, s, s.Reg.Middleware, connect.WithInterceptors(Interceptor()))
}

// unary calls, and waits until the server's handler has returned.
func (u *up) unary(ctx context.Context, protocol, what string, header ...string) (string, error) {
	client := connect.NewClient[request, response](u.c, u.url+"/s/Unary", connect.WithCodec(codec{}), protocols[protocol])
	req := connect.NewRequest(&request{what})
	for i := 0; i < len(header); i += 2 {
		req.Header().Set(header[i], header[i+1])
	}
	res, err := client.CallUnary(ctx, req)
	<-u.Returned
	if err != nil {
		return "", err
	}
	return res.Msg.Text, nil
}

// stream calls, and returns how many messages have come.
func (u *up) stream(ctx context.Context, protocol, what string) (n int, err error) {
	client := connect.NewClient[request, response](u.c, u.url+"/s/Stream", connect.WithCodec(codec{}), protocols[protocol])
	in, err := client.CallServerStream(ctx, connect.NewRequest(&request{what}))
	if err == nil {
		for in.Receive() {
			n++
		}
		err = errors.Join(in.Err(), in.Close())
	}
	<-u.Returned
	return n, err
}

// each runs a test by each protocol.
func each(t *testing.T, test func(t *testing.T, protocol string)) {
	for protocol := range protocols {
		t.Run(protocol, func(t *testing.T) { test(t, protocol) })
	}
}

func wantCode(t *testing.T, err error, want connect.Code) {
	t.Helper()
	if err == nil || connect.CodeOf(err) != want {
		t.Errorf("got %v, want code %v", err, want)
	}
}

func TestCells(t *testing.T) {
	adaptertest.Run(t, map[string]func(*testing.T){
		"ok": func(t *testing.T) {
			each(t, func(t *testing.T, protocol string) {
				u := startPlain(t)
				if got, err := u.unary(t.Context(), protocol, ""); err != nil || got != "done" {
					t.Errorf("got %q %v", got, err)
				}
				if n, err := u.stream(t.Context(), protocol, ""); err != nil || n != 1 {
					t.Errorf("got %d messages, %v", n, err)
				}
				u.WantRows(t, 2)
				u.WantNoErrorLine(t)
			})
		},
		"4xx returned": func(t *testing.T) { fails(t, "invalid", connect.CodeInvalidArgument) },
		"5xx":          func(t *testing.T) { fails(t, "plain", connect.CodeUnknown) },
		"4xx written":  errorWriter,
		"late error": func(t *testing.T) {
			each(t, func(t *testing.T, protocol string) {
				u := startPlain(t)
				for _, what := range []string{"invalid", "large invalid"} {
					n, err := u.stream(t.Context(), protocol, what)
					wantCode(t, err, connect.CodeInvalidArgument)
					if n == 0 {
						t.Errorf("%s: no message came before the error", what)
					}
				}
				u.WantRows(t, 0)
			})
		},
		"panic":         panics,
		"failed COMMIT": commitFails,
		"client gone": func(t *testing.T) {
			each(t, func(t *testing.T, protocol string) {
				u := startPlain(t)
				ctx, leave := context.WithCancel(t.Context())
				go func() {
					<-u.Entered
					leave()
				}()
				_, err := u.unary(ctx, protocol, "gone")
				wantCode(t, err, connect.CodeCanceled)
				u.WantRows(t, 0)
			})
		},
		"stream over HoldLimit": func(t *testing.T) {
			each(t, func(t *testing.T, protocol string) {
				u := startPlain(t)
				if n, err := u.stream(t.Context(), protocol, "large "); err != nil || n != 2 {
					t.Errorf("got %d messages, %v", n, err)
				}
				u.WantRows(t, 1)
			})
		},
		"Retry": func(t *testing.T) {
			s := adaptertest.NewSite(t)
			s.Reg.Retry = sqlreqtest.Retries(3)
			u := start(t, s, s.Reg.Middleware, connect.WithInterceptors(Interceptor()))
			if got, err := u.unary(t.Context(), "connect", "conflict"); err != nil || got != "done" {
				t.Errorf("got %q %v, want the second attempt's answer", got, err)
			}
			u.WantRows(t, 1)
			for _, protocol := range []string{"gRPC", "gRPC-Web"} { // they have flushed the error
				u := start(t, s, s.Reg.Middleware, connect.WithInterceptors(Interceptor()))
				_, err := u.unary(t.Context(), protocol, "conflict")
				wantCode(t, err, connect.CodeAborted)
				u.WantRows(t, 1)
			}
		},
		"nested": func(t *testing.T) {
			each(t, func(t *testing.T, protocol string) {
				s := adaptertest.NewSite(t)
				wrap := func(h http.Handler) http.Handler { return s.Reg.Middleware(s.Reg.With(adaptertest.Reports)(h)) }
				u := start(t, s, wrap, connect.WithInterceptors(Interceptor(), Interceptor()))
				if _, err := u.unary(t.Context(), protocol, "reports"); err != nil {
					t.Error(err)
				}
				_, err := u.unary(t.Context(), protocol, "reports, invalid")
				wantCode(t, err, connect.CodeInvalidArgument)
				u.WantRows(t, 1)
				if n := sqlreqtest.Count(t, s.ReportsDB, "work"); n != 1 {
					t.Errorf("got %d rows in reports, want 1", n)
				}
			})
		},
		"once": func(t *testing.T) {
			each(t, func(t *testing.T, protocol string) {
				s := adaptertest.NewSite(t)
				u := start(t, s, func(h http.Handler) http.Handler { return s.Reg.Middleware(s.Once.Handler(h)) }, connect.WithInterceptors(Interceptor()))
				for range 2 {
					if got, err := u.unary(t.Context(), protocol, "", "Idempotency-Key", "a"); err != nil || got != "done" {
						t.Errorf("got %q %v", got, err)
					}
					u.WantRows(t, 1)
				}
				for range 2 {
					_, err := u.unary(t.Context(), protocol, "invalid", "Idempotency-Key", "b")
					wantCode(t, err, connect.CodeInvalidArgument)
					u.WantRows(t, 1)
				}
			})
		},
	}, nil)
}

func fails(t *testing.T, what string, code connect.Code) {
	each(t, func(t *testing.T, protocol string) {
		u := startPlain(t)
		_, err := u.unary(t.Context(), protocol, what)
		wantCode(t, err, code)
		if !strings.Contains(err.Error(), "on purpose") {
			t.Errorf("got %v, want the handler's own text", err)
		}
		_, err = u.stream(t.Context(), protocol, what)
		wantCode(t, err, code)
		u.WantRows(t, 0)
		u.WantNoErrorLine(t)
		if got := u.Log.Events(); got != "main RolledBack 1, main RolledBack 1" {
			t.Errorf("got events %q", got)
		}
	})
}

// errorWriter is that of connect, for a middleware of net/http: its status by connect's
// protocol rolls back.
func errorWriter(t *testing.T) {
	s := adaptertest.NewSite(t)
	errs := connect.NewErrorWriter()
	u := start(t, s, func(http.Handler) http.Handler {
		return s.Reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := s.Insert(r.Context()); err != nil {
				t.Error(err)
			}
			_ = errs.Write(w, r, connect.NewError(connect.CodeUnauthenticated, errPlain))
		}))
	})
	_, err := u.unary(t.Context(), "connect", "")
	wantCode(t, err, connect.CodeUnauthenticated)
	u.WantRows(t, 0)
}

// A panic rolls back, with a recovering interceptor on either side, or none.
func panics(t *testing.T) {
	recovering := connect.WithRecover(func(context.Context, connect.Spec, http.Header, any) error {
		return connect.NewError(connect.CodeInternal, errPlain)
	})
	mine := connect.WithInterceptors(Interceptor())
	for name, opts := range map[string][]connect.HandlerOption{
		"none": {mine}, "outside": {recovering, mine}, "inside": {mine, recovering},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, protocol string) {
				s := adaptertest.NewSite(t)
				u := start(t, s, s.Reg.Middleware, opts...)
				for _, what := range []string{"panic", "large panic"} {
					var err error
					if what == "panic" {
						_, err = u.unary(t.Context(), protocol, what)
						if name != "none" {
							wantCode(t, err, connect.CodeInternal)
						}
					} else {
						_, err = u.stream(t.Context(), protocol, what)
					}
					if err == nil {
						t.Errorf("%s: got nil", what)
					}
				}
				u.WantRows(t, 0)
			})
		})
	}
}

// A COMMIT that fails is an error of the call.
func commitFails(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		u := startPlain(t)
		if got, err := u.unary(t.Context(), protocol, "commit"); err == nil {
			t.Errorf("got %q, want an error", got)
		}
		for _, what := range []string{"commit", "large commit"} {
			if n, err := u.stream(t.Context(), protocol, what); err == nil {
				t.Errorf("stream, %s: got %d messages and no error", what, n)
			}
		}
		u.WantRows(t, 0)
	})
}

// What the interceptor is for: without it each error by gRPC commits.
func TestWithoutInterceptor(t *testing.T) {
	s := adaptertest.NewSite(t)
	u := start(t, s, s.Reg.Middleware)
	_, err := u.unary(t.Context(), "gRPC", "invalid")
	wantCode(t, err, connect.CodeInvalidArgument)
	u.WantRows(t, 1)
}

// Without a registry, and for a client, it changes nothing.
func TestElsewhere(t *testing.T) {
	next := func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { return nil, errPlain }
	if _, err := Interceptor().WrapUnary(next)(t.Context(), connect.NewRequest(&request{})); err != errPlain {
		t.Errorf("got %v, want the error as it was", err)
	}
	s := adaptertest.NewSite(t)
	err := s.Reg.Do(t.Context(), func(ctx context.Context) error { // a client in a unit of work, whose call fails
		u := startPlain(t)
		client := connect.NewClient[request, response](u.c, u.url+"/s/Unary", connect.WithCodec(codec{}), connect.WithInterceptors(Interceptor()))
		_, err := client.CallUnary(ctx, connect.NewRequest(&request{"invalid"}))
		wantCode(t, err, connect.CodeInvalidArgument)
		return s.Insert(ctx)
	})
	if err != nil {
		t.Error(err)
	}
	s.WantRows(t, 1)
}

// The hooks of a refused call do not run.
func TestHooks(t *testing.T) {
	s := adaptertest.NewSite(t)
	h := connect.NewUnaryHandler("/s/Unary", func(ctx context.Context, _ *connect.Request[request]) (*connect.Response[response], error) {
		s.Log.Hooks(t, ctx, sqlreq.DefaultKey, "")
		return nil, connect.NewError(connect.CodeNotFound, errPlain)
	}, connect.WithCodec(codec{}), connect.WithInterceptors(Interceptor()))
	srv := sqlreqtest.ServeHTTP2(t, s.Reg.Middleware(h))
	client := connect.NewClient[request, response](srv.Client(), srv.URL+"/s/Unary", connect.WithCodec(codec{}), connect.WithGRPC())
	_, err := client.CallUnary(t.Context(), connect.NewRequest(&request{}))
	wantCode(t, err, connect.CodeNotFound)
	if got := s.Log.Words(); got != "rollback" {
		t.Errorf("got hooks %q, want rollback", got)
	}
}

// What the comment of Interceptor says it does not see: by gRPC a response larger than
// WithSendMaxBytes is refused when the handler has returned, in a 200. By connect's own
// protocol the refusal has a status, which rolls back.
func TestSendMaxBytes(t *testing.T) {
	for protocol, rows := range map[string]int{"connect": 0, "gRPC": 1} {
		s := adaptertest.NewSite(t)
		u := start(t, s, s.Reg.Middleware, connect.WithInterceptors(Interceptor()), connect.WithSendMaxBytes(4))
		_, err := u.unary(t.Context(), protocol, "")
		wantCode(t, err, connect.CodeResourceExhausted)
		u.WantRows(t, rows)
	}
}

// An error rolls back, so what the client is told is no success, whatever its code.
func TestErrorWithTheCodeOfASuccess(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		u := startPlain(t)
		_, err := u.unary(t.Context(), protocol, "zero")
		wantCode(t, err, connect.CodeUnknown)
		_, err = u.stream(t.Context(), protocol, "zero")
		wantCode(t, err, connect.CodeUnknown)
		u.WantRows(t, 0)
	})
}
