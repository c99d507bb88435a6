package sqlreqconnect

import (
	"context"
	"testing"

	"connectrpc.com/connect"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// deadline is an interceptor whose deadline passes when the handler has returned without an
// error. It stands for that of the client, which connect puts into the call's context.
type deadline struct{}

func (deadline) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, pass := sqlreqtest.Deadline(ctx)
		return next(context.WithValue(ctx, deadline{}, pass), req)
	}
}

func (deadline) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (deadline) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, pass := sqlreqtest.Deadline(ctx)
		return next(context.WithValue(ctx, deadline{}, pass), conn)
	}
}

// A call whose deadline passes before its handler returns has failed, also where the handler
// does not look at its context.
func TestDeadlineOfTheCall(t *testing.T) {
	each(t, func(t *testing.T, protocol string) {
		s := adaptertest.NewSite(t)
		u := start(t, s, s.Reg.Middleware, connect.WithInterceptors(deadline{}, Interceptor()))
		_, err := u.unary(t.Context(), protocol, "deadline")
		wantCode(t, err, connect.CodeDeadlineExceeded)
		_, err = u.stream(t.Context(), protocol, "deadline")
		wantCode(t, err, connect.CodeDeadlineExceeded)
		u.WantRows(t, 0)
	})
}
