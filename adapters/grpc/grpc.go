// Package sqlreqgrpc gives each call of a gRPC server its transaction.
package sqlreqgrpc

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/status"

	"github.com/sqlreq/sqlreq"
)

// UnaryServerInterceptor makes each call a Registry.Do: with a transaction of its own,
// which the first statement begins and which is committed before the reply is sent, with
// hooks, and run again after a conflict as reg.Retry says (When, which asks for an HTTP
// request, is not heeded):
//
//	srv := grpc.NewServer(
//		grpc.ChainUnaryInterceptor(recovery, sqlreqgrpc.UnaryServerInterceptor(reg)),
//		grpc.ChainStreamInterceptor(recoveryOfStreams, sqlreqgrpc.StreamServerInterceptor(reg)))
//
// An error of the handler rolls back and keeps its code. A COMMIT that failed is
// codes.Internal if its work, or a part of it, may be committed (sqlreq.MayHaveCommitted),
// otherwise codes.Unavailable: then a repeat is safe. It need not succeed: a constraint that is
// checked at COMMIT is refused each time. Give repeats a limit, or look at the constraint in a
// BeforeCommit function and return codes.FailedPrecondition; an interceptor outside finds the
// *sqlreq.CommitError. A database that cannot be had, and a conflict that outlasts its
// attempts, are codes.Unavailable if the handler returns the error as it is, and a context that
// has ended before COMMIT codes.DeadlineExceeded or codes.Canceled. These have no text of the
// driver's; an interceptor outside finds the error by Unwrap. What fails is logged to
// reg.Logger: at error level if the code is one of the server's faults, for debugging otherwise.
//
// Header and trailer that the handler sets are those of the last attempt alone, and are sent
// when the transaction has ended; after a COMMIT that failed there are none. So
// grpc.SendHeader waits, and grpc.SetSendCompressor returns an error. The message is the
// same in each attempt: a handler that changes it must not be run again.
//
// A response that protobuf cannot encode (text that is not UTF-8) is codes.Internal and rolls
// back. One that is larger than grpc.MaxSendMsgSize, or that an interceptor outside replaces, is
// refused by gRPC when the work is committed.
//
// Behind grpc.Server.ServeHTTP and Registry.Middleware, or another unit of work, the call
// is a part of that; an error rolls all of it back, by sqlreq.RollbackOnly, and so does a
// deadline of the call that has passed when the handler returns.
//
// It panics if reg is nil. Interceptors before it stay outside. It may be used by several
// servers.
func UnaryServerInterceptor(reg *sqlreq.Registry) grpc.UnaryServerInterceptor {
	check(reg)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if isLive(ctx) {
			return servePart(ctx, req, handler)
		}
		c := &call{reg: reg, method: info.FullMethod}
		return c.serve(ctx, req, handler)
	}
}

// StreamServerInterceptor is for streams. A stream is no unit of work, since what it sends
// has arrived before a COMMIT at its end: in a stream on a grpc.Server of its own nothing is
// open, and a Key returns sqlreq.ErrNoRegistry, which says so. Call Registry.Do for each
// message. Behind grpc.Server.ServeHTTP and Registry.Middleware the stream is in the
// request's unit of work, and an error, or a panic, rolls it back.
//
// It panics if reg is nil.
func StreamServerInterceptor(reg *sqlreq.Registry) grpc.StreamServerInterceptor {
	check(reg)
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		err = errPanicked
		defer func() { rollback(stream.Context(), err) }()
		err = handler(srv, stream)
		if err == nil && isLive(stream.Context()) {
			err = ended(stream.Context())
		}
		return noSuccess(err)
	}
}

func check(reg *sqlreq.Registry) {
	if reg == nil {
		panic("sqlreqgrpc: the *Registry is nil; look at the error that New returned")
	}
}

// isLive reports whether ctx is that of a request, or a Do, that has not ended.
func isLive(ctx context.Context) bool { return sqlreq.Fail(ctx, nil) == nil }

var errPanicked = errors.New("sqlreqgrpc: a handler panicked")

// servePart serves a call in a unit of work.
func servePart(ctx context.Context, req any, handler grpc.UnaryHandler) (resp any, err error) {
	err = errPanicked
	defer func() { rollback(ctx, err) }()
	resp, err = handler(ctx, req)
	if err == nil {
		err = sendable(resp)
	}
	if err == nil {
		err = ended(ctx)
	}
	return resp, noSuccess(err)
}

// ended returns an error if the call is over: by its deadline, which the context of the unit
// of work does not have, the client has been told that it failed.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(contextError(err)).Err()
	}
	return nil
}

// sendable returns the error of a message that cannot be encoded: text that is not UTF-8, a
// required field that is missing. gRPC itself would find out behind COMMIT. What is no
// message of protobuf is the business of a codec that nobody knows here.
func sendable(resp any) error {
	if _, ok := resp.(interface{ ProtoMessage() }); !ok {
		return nil
	}
	data, err := encoding.GetCodecV2(proto.Name).Marshal(resp)
	if err != nil {
		return status.Errorf(codes.Internal, "the response cannot be encoded: %v", err)
	}
	data.Free()
	return nil
}

// noSuccess returns an error whose code is that of a success, codes.OK, with another one:
// what it is about was rolled back.
func noSuccess(err error) error {
	if err != nil && status.Code(err) == codes.OK {
		return &failure{status.New(codes.Unknown, err.Error()), err}
	}
	return err
}

// rollback makes the unit of work roll back if err is an error. What sqlreq returns says
// that there is none, or that it is over.
func rollback(ctx context.Context, err error) {
	if err != nil {
		_ = sqlreq.RollbackOnly(ctx, err)
	}
}

// call is a unary call that is a unit of work of its own.
type call struct {
	reg    *sqlreq.Registry
	method string
}

func (c *call) serve(ctx context.Context, req any, handler grpc.UnaryHandler) (resp any, err error) {
	var out *transport // of the last attempt
	var handlerErr error
	err = c.reg.Do(ctx, func(ctx context.Context) error {
		out = newTransport(ctx)
		if out != nil {
			ctx = grpc.NewContextWithServerTransportStream(ctx, out)
		}
		resp, handlerErr = handler(ctx, req)
		if handlerErr == nil {
			handlerErr = sendable(resp)
		}
		return handlerErr
	})
	if err == nil {
		return resp, out.send()
	}
	answer := c.answer(err, handlerErr)
	c.log(ctx, status.Code(answer), err)
	if handlerErr != nil {
		_ = out.send() // the call has failed already
	}
	return nil, answer
}

// answer returns what the client is told. err is that of Do.
func (c *call) answer(err, handlerErr error) error {
	var commit *sqlreq.CommitError
	told := err // by Fail, or a function before COMMIT
	if handlerErr != nil {
		told = handlerErr // Do may have added that a rollback was none
	}
	_, hasCode := status.FromError(told)
	switch {
	case errors.As(err, &commit) && sqlreq.MayHaveCommitted(err):
		return &failure{status.New(codes.Internal, "the work, or a part of it, may be committed"), err}
	case errors.As(err, &commit):
		return &failure{status.New(codes.Unavailable, "the work could not be committed"), err}
	case hasCode:
		return noSuccess(told)
	case errors.Is(told, context.DeadlineExceeded), errors.Is(told, context.Canceled):
		return &failure{status.FromContextError(contextError(told)), err}
	case sqlreq.StatusCode(err) == 503:
		return &failure{status.New(codes.Unavailable, "the database is not available"), err}
	case handlerErr == nil && sqlreq.MayHaveCommitted(err):
		return &failure{status.New(codes.Internal, "the work, or a part of it, may be committed"), err}
	}
	return told
}

// contextError returns the error of a context without the text around it.
func contextError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return context.Canceled
}

// failure is an error of sqlreq's as gRPC has it.
type failure struct {
	status *status.Status
	err    error
}

// Error has the text of the cause: it is for logs, the client gets the status.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.err }

// GRPCStatus is what the client gets.
func (f *failure) GRPCStatus() *status.Status { return f.status }

// log logs a call that failed: nobody else does, in a Do.
func (c *call) log(ctx context.Context, code codes.Code, err error) {
	logger := c.reg.Logger
	if logger == nil {
		logger = slog.Default()
	}
	level := slog.LevelDebug
	text := "sqlreq: call failed"
	switch code {
	case codes.Unknown, codes.Internal, codes.Unavailable, codes.DataLoss, codes.DeadlineExceeded:
		level = slog.LevelError
	}
	if sqlreq.MayHaveCommitted(err) {
		level = max(level, slog.LevelWarn)
		text = "sqlreq: call failed, and its work, or a part of it, may be committed"
	}
	logger.LogAttrs(context.WithoutCancel(ctx), level, text,
		slog.String("method", c.method), slog.String("code", code.String()), slog.Any("err", err))
}
