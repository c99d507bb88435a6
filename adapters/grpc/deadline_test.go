package sqlreqgrpc

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// stream is one with another context.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

// A call behind ServeHTTP whose deadline passes before its handler returns has failed, also
// where the handler does not look at its context. The request's context has no deadline.
func TestDeadlineInARequest(t *testing.T) {
	u := newUp(t)
	for name, call := range map[string]func(ctx context.Context, work func() error) error{
		"unary": func(ctx context.Context, work func() error) error {
			_, err := UnaryServerInterceptor(u.Reg)(ctx, nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) {
				return nil, work()
			})
			return err
		},
		"stream": func(ctx context.Context, work func() error) error {
			return StreamServerInterceptor(u.Reg)(nil, stream{ctx: ctx}, nil, func(any, grpc.ServerStream) error { return work() })
		},
	} {
		err := u.Reg.Do(t.Context(), func(ctx context.Context) error {
			child, pass := sqlreqtest.Deadline(ctx)
			err := call(child, func() error {
				if err := u.Insert(ctx); err != nil {
					return err
				}
				pass()
				return nil
			})
			wantCode(t, err, codes.DeadlineExceeded)
			return nil
		})
		if err == nil {
			t.Errorf("%s: the work is committed", name)
		}
		u.rows(t, 0)
	}
}
