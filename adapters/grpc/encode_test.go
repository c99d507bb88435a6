package sqlreqgrpc

import (
	"context"
	"net"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// A response that protobuf cannot encode fails the call: its work is not there.
func TestResponseThatCannotBeEncoded(t *testing.T) {
	for name, behind := range map[string]bool{"a server of its own": false, "ServeHTTP": true} {
		t.Run(name, func(t *testing.T) {
			u := newUp(t)
			text := "done"
			srv := grpc.NewServer(grpc.UnaryInterceptor(UnaryServerInterceptor(u.Reg)))
			srv.RegisterService(textService(u.Site, &text), nil)
			addr, creds := serve(t, srv, u, behind)
			conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			var got health.HealthCheckRequest
			if err := conn.Invoke(t.Context(), "/text/Get", &health.HealthCheckRequest{}, &got); err != nil || got.Service != "done" {
				t.Errorf("got %q %v, want done", got.Service, err)
			}
			u.rows(t, 1)
			text = "\xff"
			wantCode(t, conn.Invoke(t.Context(), "/text/Get", &health.HealthCheckRequest{}, &got), codes.Internal)
			u.rows(t, 1)
		})
	}
}

// serve serves srv, behind ServeHTTP and Middleware if it is asked to.
func serve(t *testing.T, srv *grpc.Server, u *up, behind bool) (string, credentials.TransportCredentials) {
	if behind {
		s := sqlreqtest.ServeHTTP2(t, u.Reg.Middleware(srv))
		return s.Listener.Addr().String(), credentials.NewTLS(s.Client().Transport.(*http.Transport).TLSClientConfig)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return l.Addr().String(), insecure.NewCredentials()
}

// textService is a service with a message of protobuf that has a text, and protobuf's codec. It adds a row.
func textService(s *adaptertest.Site, text *string) *grpc.ServiceDesc {
	get := func(ctx context.Context, _ any) (any, error) {
		return &health.HealthCheckRequest{Service: *text}, s.Insert(ctx)
	}
	return &grpc.ServiceDesc{ServiceName: "text", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Get",
		Handler: func(_ any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			req := new(health.HealthCheckRequest)
			if err := dec(req); err != nil {
				return nil, err
			}
			return interceptor(ctx, req, &grpc.UnaryServerInfo{FullMethod: "/text/Get"}, get)
		},
	}}}
}
