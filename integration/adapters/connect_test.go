package adapters

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	sqlreqconnect "github.com/sqlreq/sqlreq/adapters/connect"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

type (
	request  struct{ Do []step }
	response struct{ Text string }
)

// codec is JSON of plain structs: the tests need no generated code.
type codec struct{}

func (codec) Name() string                    { return "json" }
func (codec) Marshal(v any) ([]byte, error)   { return json.Marshal(v) }
func (codec) Unmarshal(b []byte, v any) error { return json.Unmarshal(b, v) }

// packing counts the answers that are packed.
type packing struct {
	http.RoundTripper
	packed atomic.Int32
}

func (p *packing) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := p.RoundTripper.RoundTrip(r)
	if err == nil {
		for _, name := range []string{"Content-Encoding", "Grpc-Encoding", "Connect-Content-Encoding"} {
			if res.Header.Get(name) == "gzip" {
				p.packed.Add(1)
			}
		}
	}
	return res, err
}

// connect packs its messages itself: by each protocol a call that is answered is
// committed, and of one that fails nothing stays.
func TestCompressionOfConnect(t *testing.T) {
	for protocol, option := range map[string]connect.ClientOption{
		"connect": connect.WithClientOptions(), "gRPC": connect.WithGRPC(), "gRPC-Web": connect.WithGRPCWeb(),
	} {
		t.Run(protocol, func(t *testing.T) {
			s := adaptertest.NewSite(t)
			mux := http.NewServeMux()
			opts := []connect.HandlerOption{connect.WithCodec(codec{}), connect.WithInterceptors(sqlreqconnect.Interceptor())}
			mux.Handle("/s/Unary", connect.NewUnaryHandler("/s/Unary", func(ctx context.Context, req *connect.Request[request]) (*connect.Response[response], error) {
				res := new(response)
				r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "/", nil)
				err := run(s, req.Msg.Do, r, func(_ int, body []byte) error { res.Text = string(body); return nil })
				return connect.NewResponse(res), err
			}, opts...))
			mux.Handle("/s/Stream", connect.NewServerStreamHandler("/s/Stream", func(ctx context.Context, req *connect.Request[request], out *connect.ServerStream[response]) error {
				r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "/", nil)
				return run(s, req.Msg.Do, r, func(_ int, body []byte) error { return out.Send(&response{string(body)}) })
			}, opts...))
			srv := sqlreqtest.ServeHTTP2(t, s.Reg.Middleware(mux))
			c := &packing{RoundTripper: srv.Client().Transport}
			unary := connect.NewClient[request, response](&http.Client{Transport: c}, srv.URL+"/s/Unary", connect.WithCodec(codec{}), connect.WithSendGzip(), option)
			streaming := connect.NewClient[request, response](&http.Client{Transport: c}, srv.URL+"/s/Stream", connect.WithCodec(codec{}), connect.WithSendGzip(), option)
			rows := 0
			for _, r := range routes {
				res, err := unary.CallUnary(t.Context(), connect.NewRequest(&request{r.steps}))
				if fails := r.status != 200 && r.status != 201; fails != (err != nil) {
					t.Errorf("%s: got %v", r.path, err)
				} else if !fails {
					rows++
					if len(res.Msg.Text) < len("done") {
						t.Errorf("%s: got %q", r.path, res.Msg.Text)
					}
				}
				sqlreqtest.Until(func() bool { return s.DB.Stats().InUse == 0 })
				s.WantRows(t, rows)
				err = receiveAll(t, streaming, r.steps)
				if fails := r.status != 200 && r.status != 201; fails != (err != nil) {
					t.Errorf("%s, stream: got %v", r.path, err)
				} else if !fails {
					rows++
				}
				sqlreqtest.Until(func() bool { return s.DB.Stats().InUse == 0 })
				s.WantRows(t, rows)
			}
			if c.packed.Load() == 0 {
				t.Error("no answer was packed")
			}
		})
	}
}

func receiveAll(t *testing.T, client *connect.Client[request, response], steps []step) error {
	in, err := client.CallServerStream(t.Context(), connect.NewRequest(&request{steps}))
	if err != nil {
		return err
	}
	for in.Receive() {
	}
	if err := in.Err(); err != nil {
		in.Close()
		return err
	}
	return in.Close()
}
