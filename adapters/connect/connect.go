// Package sqlreqconnect makes the errors of connect's handlers roll back.
package sqlreqconnect

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/sqlreq/sqlreq"
)

// Interceptor returns an interceptor for the handlers of a service that is inside of
// Registry.Middleware. By gRPC and gRPC-Web, and for streams, an error is sent in a
// response whose status is 200, for which sqlreq would commit; with the interceptor it
// rolls back, and keeps its code:
//
//	path, h := pingv1connect.NewPingServiceHandler(server, connect.WithInterceptors(sqlreqconnect.Interceptor()))
//	mux.Handle(path, reg.Middleware(h))
//
// A panic rolls back too, also where another interceptor, on either side, makes an error
// of it. Put it last, nearest to the handler, or an error that an interceptor inside of
// it has made nothing of is not seen. It does nothing for clients, and without a registry.
//
// A deadline of the call that has passed when the handler returns is an error too. By gRPC and
// gRPC-Web connect refuses a response that protobuf cannot encode when the work is committed.
//
// Registry.Retry runs unary calls by connect's own protocol again; by the others, and for
// streams, a part of the response has left by then. A COMMIT that fails is a 500, or 503,
// without connect's error: CodeUnknown, or CodeUnavailable; or a broken response, which is
// CodeInternal. The end of a stream by connect's own protocol, and of every call by gRPC-Web,
// is a message in the body, which may arrive before COMMIT. The clients of connect-go look
// for the end of the response behind it; for others, call sqlreq.Commit before the handler
// returns. What connect fails in when the handler has returned (a response larger than
// WithSendMaxBytes, by gRPC) it does not see.
func Interceptor() connect.Interceptor { return interceptor{} }

type interceptor struct{}

// WrapUnary is for connect.
func (interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		if req.Spec().IsClient {
			return next(ctx, req)
		}
		err = errPanicked
		defer func() { rollback(ctx, err) }()
		res, err = next(ctx, req)
		if err == nil {
			err = ended(ctx)
		}
		return res, noSuccess(err)
	}
}

// WrapStreamingClient is for connect.
func (interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is for connect.
func (interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		err = errPanicked
		defer func() { rollback(ctx, err) }()
		err = next(ctx, conn)
		if err == nil {
			err = ended(ctx)
		}
		return noSuccess(err)
	}
}

// ended returns an error if the call is over: by its deadline, which the request's context
// does not have, the client has been told that it failed.
func ended(ctx context.Context) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	default:
		return connect.NewError(connect.CodeCanceled, err)
	}
}

var errPanicked = errors.New("sqlreqconnect: a handler panicked")

// noSuccess returns an error whose code is 0, by which gRPC means a success, with another
// one: what it is about was rolled back.
func noSuccess(err error) error {
	if err != nil && connect.CodeOf(err) == 0 {
		return connect.NewError(connect.CodeUnknown, err)
	}
	return err
}

// rollback makes the request roll back if err is one. What sqlreq returns says that there
// is no request, or that it is over: there is nothing to roll back.
func rollback(ctx context.Context, err error) {
	if err != nil {
		_ = sqlreq.RollbackOnly(ctx, err)
	}
}
