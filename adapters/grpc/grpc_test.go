package sqlreqgrpc

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
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

var errPlain = errors.New("on purpose")

// service is what the handlers do: each adds a row and then what it is asked to.
type service struct {
	s         *adaptertest.Site
	attempts  atomic.Int32
	onServer  bool // of its own: streams have no unit of work
	afterwork func(ctx context.Context) error
}

func (v *service) work(ctx context.Context, what string) error {
	attempt := v.attempts.Add(1)
	if err := v.s.Insert(ctx); err != nil {
		return err
	}
	switch what {
	case "invalid":
		return status.Error(codes.InvalidArgument, "on purpose")
	case "plain":
		return errPlain
	case "panic":
		panic("on purpose")
	case "commit":
		return v.s.BreakCommit(ctx)
	case "gone":
		v.s.Entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	case "gone, nil":
		v.s.Entered <- struct{}{}
		<-ctx.Done()
	case "conflict":
		if attempt == 1 {
			return sqlreqtest.Conflict{}
		}
	case "conflict for ever":
		return sqlreqtest.Conflict{}
	case "reports", "reports, invalid":
		if _, err := adaptertest.Reports.ExecContext(ctx, sqlreqtest.InsertWork); err != nil {
			return err
		}
		if what == "reports, invalid" {
			return status.Error(codes.InvalidArgument, "on purpose")
		}
	case "after":
		return v.afterwork(ctx)
	}
	return nil
}

func (v *service) unary(ctx context.Context, req *request) (*response, error) {
	if err := v.work(ctx, req.Do); err != nil {
		return nil, err
	}
	return &response{"done"}, nil
}

// stream sends a message, more than sqlreq holds if it is asked to, does its work and
// fails if it is asked to. On a server of its own each message is a Do.
func (v *service) stream(req *request, out grpc.ServerStream) error {
	what, isLarge := strings.CutPrefix(req.Do, "large ")
	if err := out.SendMsg(&response{"first"}); err != nil {
		return err
	}
	if isLarge {
		if err := out.SendMsg(&response{strings.Repeat("x", adaptertest.Large)}); err != nil {
			return err
		}
	}
	if !v.onServer {
		return v.work(out.Context(), what)
	}
	if err := v.s.Insert(out.Context()); !errors.Is(err, sqlreq.ErrNoRegistry) || !strings.Contains(err.Error(), "Registry.Do") {
		return errors.Join(errors.New("a Key in a stream works, or does not say what to do"), err)
	}
	return v.s.Reg.Do(out.Context(), func(ctx context.Context) error { return v.work(ctx, what) })
}

var desc = grpc.ServiceDesc{
	ServiceName: "s",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Unary",
		Handler: func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			req := new(request)
			if err := dec(req); err != nil {
				return nil, err
			}
			handler := func(ctx context.Context, req any) (any, error) { return srv.(*service).unary(ctx, req.(*request)) }
			if interceptor == nil {
				return handler(ctx, req)
			}
			return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/s/Unary"}, handler)
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName:    "Stream",
		ServerStreams: true,
		Handler: func(srv any, stream grpc.ServerStream) error {
			req := new(request)
			if err := stream.RecvMsg(req); err != nil {
				return err
			}
			return srv.(*service).stream(req, stream)
		},
	}},
}

// up is a service at work.
type up struct {
	*adaptertest.Site
	v    *service
	conn *grpc.ClientConn
	seen atomic.Pointer[error] // the error that an interceptor outside has seen
}

// recovering is a recovering interceptor outside, which notes the error too.
func (u *up) recovering(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = status.Errorf(codes.Internal, "%v", v)
		}
		u.seen.Store(&err)
	}()
	return handler(ctx, req)
}

func recoveringStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = status.Errorf(codes.Internal, "%v", v)
		}
	}()
	return handler(srv, stream)
}

func newUp(t *testing.T) *up {
	s := adaptertest.NewSite(t)
	return &up{Site: s, v: &service{s: s}}
}

func (u *up) newServer(inside ...grpc.UnaryServerInterceptor) *grpc.Server {
	chain := append([]grpc.UnaryServerInterceptor{u.recovering, UnaryServerInterceptor(u.Reg)}, inside...)
	srv := grpc.NewServer(grpc.ForceServerCodec(codec{}), grpc.ChainUnaryInterceptor(chain...),
		grpc.ChainStreamInterceptor(recoveringStream, StreamServerInterceptor(u.Reg)))
	srv.RegisterService(&desc, u.v)
	return srv
}

func (u *up) dial(t *testing.T, addr string, creds credentials.TransportCredentials) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	u.conn = conn
}

// onServer serves by a grpc.Server of its own.
func onServer(t *testing.T, u *up, _ func(http.Handler) http.Handler) {
	u.v.onServer = true
	srv := u.newServer()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	u.dial(t, l.Addr().String(), insecure.NewCredentials())
}

// behindHTTP serves by ServeHTTP, in wrap.
func behindHTTP(t *testing.T, u *up, wrap func(http.Handler) http.Handler) {
	srv := sqlreqtest.ServeHTTP2(t, wrap(u.newServer()))
	u.dial(t, srv.Listener.Addr().String(), credentials.NewTLS(srv.Client().Transport.(*http.Transport).TLSClientConfig))
}

var modes = map[string]func(*testing.T, *up, func(http.Handler) http.Handler){"a server of its own": onServer, "ServeHTTP": behindHTTP}

// each runs a test in each mode.
func each(t *testing.T, test func(t *testing.T, u *up)) {
	for name, start := range modes {
		t.Run(name, func(t *testing.T) {
			u := newUp(t)
			start(t, u, u.Reg.Middleware)
			test(t, u)
		})
	}
}

func (u *up) unary(ctx context.Context, what string, opts ...grpc.CallOption) (string, error) {
	var res response
	err := u.conn.Invoke(ctx, "/s/Unary", &request{what}, &res, opts...)
	return res.Text, err
}

// stream returns how many messages have come.
func (u *up) stream(ctx context.Context, what string) (n int, err error) {
	in, err := u.conn.NewStream(ctx, &desc.Streams[0], "/s/Stream")
	if err != nil {
		return 0, err
	}
	if err := errors.Join(in.SendMsg(&request{what}), in.CloseSend()); err != nil {
		return 0, err
	}
	for {
		var res response
		if err := in.RecvMsg(&res); err != nil {
			if err.Error() == "EOF" {
				return n, nil
			}
			return n, err
		}
		n++
	}
}

// rows waits until the pool is idle (a client may be told of its own leaving before the
// handler has returned), and looks.
func (u *up) rows(t *testing.T, want int) {
	t.Helper()
	sqlreqtest.Until(func() bool { return u.DB.Stats().InUse == 0 && u.ReportsDB.Stats().InUse == 0 })
	u.WantRows(t, want)
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("got %v, want code %v", err, want)
	}
}

func TestCells(t *testing.T) {
	adaptertest.Run(t, map[string]func(*testing.T){
		"ok": func(t *testing.T) {
			each(t, func(t *testing.T, u *up) {
				if got, err := u.unary(t.Context(), ""); err != nil || got != "done" {
					t.Errorf("got %q %v", got, err)
				}
				u.rows(t, 1)
				if n, err := u.stream(t.Context(), ""); err != nil || n != 1 {
					t.Errorf("got %d messages, %v", n, err)
				}
				u.rows(t, 2)
				u.WantNoErrorLine(t)
			})
		},
		"4xx returned": func(t *testing.T) { fails(t, "invalid", codes.InvalidArgument) },
		"5xx":          func(t *testing.T) { fails(t, "plain", codes.Unknown) },
		"4xx written": func(t *testing.T) { // by a middleware of net/http
			u := newUp(t)
			behindHTTP(t, u, func(http.Handler) http.Handler {
				return u.Reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if err := u.Insert(r.Context()); err != nil {
						t.Error(err)
					}
					w.WriteHeader(http.StatusUnauthorized)
				}))
			})
			_, err := u.unary(t.Context(), "")
			wantCode(t, err, codes.Unauthenticated)
			u.rows(t, 0)
		},
		"late error": func(t *testing.T) {
			each(t, func(t *testing.T, u *up) {
				for _, what := range []string{"invalid", "large invalid"} {
					n, err := u.stream(t.Context(), what)
					wantCode(t, err, codes.InvalidArgument)
					if n == 0 {
						t.Errorf("%s: no message came before the error", what)
					}
				}
				u.rows(t, 0)
			})
		},
		"panic": func(t *testing.T) {
			each(t, func(t *testing.T, u *up) {
				_, err := u.unary(t.Context(), "panic")
				wantCode(t, err, codes.Internal)
				_, err = u.stream(t.Context(), "large panic")
				wantCode(t, err, codes.Internal)
				u.rows(t, 0)
			})
		},
		"failed COMMIT": func(t *testing.T) {
			each(t, func(t *testing.T, u *up) {
				if got, err := u.unary(t.Context(), "commit"); err == nil {
					t.Errorf("got %q, want an error", got)
				}
				if n, err := u.stream(t.Context(), "large commit"); err == nil {
					t.Errorf("stream: got %d messages and no error", n)
				}
				u.rows(t, 0)
			})
		},
		"client gone": func(t *testing.T) {
			each(t, func(t *testing.T, u *up) {
				for _, what := range []string{"gone", "gone, nil"} {
					ctx, leave := context.WithCancel(t.Context())
					go func() {
						<-u.Entered
						leave()
					}()
					_, err := u.unary(ctx, what)
					wantCode(t, err, codes.Canceled)
					u.rows(t, 0)
				}
				u.WantNoErrorLine(t)
			})
		},
		"stream over HoldLimit": func(t *testing.T) {
			each(t, func(t *testing.T, u *up) {
				if n, err := u.stream(t.Context(), "large "); err != nil || n != 2 {
					t.Errorf("got %d messages, %v", n, err)
				}
				u.rows(t, 1)
			})
		},
		"Retry":  retries,
		"nested": nested,
		"once": func(t *testing.T) {
			u := newUp(t)
			behindHTTP(t, u, func(h http.Handler) http.Handler { return u.Reg.Middleware(u.Once.Handler(h)) })
			withKey := func(key string) context.Context {
				return metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", key)
			}
			for range 2 {
				if got, err := u.unary(withKey("a"), ""); err != nil || got != "done" {
					t.Errorf("got %q %v", got, err)
				}
				u.rows(t, 1)
			}
			for range 2 {
				_, err := u.unary(withKey("b"), "invalid")
				wantCode(t, err, codes.InvalidArgument)
				u.rows(t, 1)
			}
		},
	}, nil)
}

func fails(t *testing.T, what string, code codes.Code) {
	each(t, func(t *testing.T, u *up) {
		_, err := u.unary(t.Context(), what)
		wantCode(t, err, code)
		if status.Convert(err).Message() != "on purpose" {
			t.Errorf("got %v, want the handler's own text", err)
		}
		u.rows(t, 0)
		_, err = u.stream(t.Context(), what)
		wantCode(t, err, code)
		u.rows(t, 0)
		if code == codes.InvalidArgument {
			u.WantNoErrorLine(t)
		}
	})
}

func retries(t *testing.T) {
	u := newUp(t)
	u.Reg.Retry = sqlreqtest.Retries(3)
	onServer(t, u, nil)
	if got, err := u.unary(t.Context(), "conflict"); err != nil || got != "done" {
		t.Errorf("got %q %v, want the second attempt's answer", got, err)
	}
	u.rows(t, 1)
	u.v.attempts.Store(0)
	_, err := u.unary(t.Context(), "conflict for ever")
	wantCode(t, err, codes.Unavailable)
	if n := u.v.attempts.Load(); n != 3 || strings.Contains(err.Error(), "serialize") {
		t.Errorf("got %v after %d attempts, want 3 and nothing of the driver's text", err, n)
	}
	u.rows(t, 1)

	u = newUp(t) // a part has left
	u.Reg.Retry = sqlreqtest.Retries(3)
	behindHTTP(t, u, u.Reg.Middleware)
	if _, err := u.unary(t.Context(), "conflict"); err == nil {
		t.Error("ServeHTTP: got nil, want the conflict")
	}
	u.rows(t, 0)
}

func nested(t *testing.T) {
	for name, start := range modes {
		t.Run(name, func(t *testing.T) {
			u := newUp(t)
			start(t, u, func(h http.Handler) http.Handler { return u.Reg.Middleware(u.Reg.With(adaptertest.Reports)(h)) })
			if _, err := u.unary(t.Context(), "reports"); err != nil {
				t.Error(err)
			}
			_, err := u.unary(t.Context(), "reports, invalid")
			wantCode(t, err, codes.InvalidArgument)
			u.rows(t, 1)
			if n := sqlreqtest.Count(t, u.ReportsDB, "work"); n != 1 {
				t.Errorf("got %d rows in reports, want 1", n)
			}
		})
	}
	// The interceptor twice: the inner one is a part of the outer one's unit of work.
	u := newUp(t)
	inner := UnaryServerInterceptor(u.Reg)
	outer := UnaryServerInterceptor(u.Reg)
	for _, what := range []string{"", "invalid"} {
		_, _ = outer(t.Context(), &request{what}, &grpc.UnaryServerInfo{}, func(ctx context.Context, req any) (any, error) {
			_, _ = inner(ctx, req, &grpc.UnaryServerInfo{}, func(ctx context.Context, req any) (any, error) {
				return u.v.unary(ctx, req.(*request))
			})
			return nil, nil // makes nothing of it
		})
	}
	u.rows(t, 1)
	if got := u.Log.Events(); got != "main Committed 1, main RolledBack 1" {
		t.Errorf("got events %q, want two transactions", got)
	}
}
