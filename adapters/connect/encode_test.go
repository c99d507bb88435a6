package sqlreqconnect

import (
	"context"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// A response that protobuf cannot encode fails the call: its work is not there.
func TestResponseThatCannotBeEncoded(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		s := adaptertest.NewSite(t)
		text := "done"
		srv := sqlreqtest.ServeHTTP2(t, s.Reg.Middleware(connect.NewUnaryHandler("/text/Get",
			func(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[wrapperspb.StringValue], error) {
				return connect.NewResponse(wrapperspb.String(text)), s.Insert(ctx)
			}, connect.WithInterceptors(Interceptor()))))
		client := connect.NewClient[emptypb.Empty, wrapperspb.StringValue](srv.Client(), srv.URL+"/text/Get", protocols[protocol])
		if got, err := client.CallUnary(t.Context(), connect.NewRequest(&emptypb.Empty{})); err != nil || got.Msg.Value != "done" {
			t.Errorf("got %v %v, want done", got, err)
		}
		s.WantRows(t, 1)
		text = "\xff"
		_, err := client.CallUnary(t.Context(), connect.NewRequest(&emptypb.Empty{}))
		wantCode(t, err, connect.CodeInternal)
		s.WantRows(t, 1)
	})
}
