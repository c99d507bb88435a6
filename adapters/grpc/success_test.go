package sqlreqgrpc

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// okError is an error whose code is that of a success.
type okError struct{}

func (okError) Error() string              { return "on purpose" }
func (okError) GRPCStatus() *status.Status { return status.New(codes.OK, "fine") }

// An error rolls back, so what the client is told is no success, whatever its code.
func TestErrorWithTheCodeOfASuccess(t *testing.T) {
	for name, start := range modes {
		for _, fails := range []error{okError{}, fmt.Errorf("wrapped: %w", okError{})} {
			t.Run(name+", "+fails.Error(), func(t *testing.T) {
				u := newUp(t)
				u.v.afterwork = func(context.Context) error { return fails }
				start(t, u, u.Reg.Middleware)
				_, err := u.unary(t.Context(), "after")
				wantCode(t, err, codes.Unknown)
				u.rows(t, 0)
				_, err = u.stream(t.Context(), "after")
				wantCode(t, err, codes.Unknown)
				u.rows(t, 0)
			})
		}
	}
}
