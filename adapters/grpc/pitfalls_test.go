package sqlreqgrpc

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// What a client is told when sqlreq itself fails: a code by which it knows whether to
// repeat, and nothing of the driver's text, which an interceptor outside finds.
func TestCodes(t *testing.T) {
	driversText := errors.New("drivers-text")
	tests := map[string]struct {
		db   *fakedb.DB
		what string
		code codes.Code
		is   func(error) bool
		log  string // level
	}{
		"COMMIT refused":    {&fakedb.DB{Commit: func() error { return sqlreqtest.Conflict{} }}, "", codes.Unavailable, isCommitError, "ERROR"},
		"COMMIT unanswered": {&fakedb.DB{Commit: func() error { return driver.ErrBadConn }}, "", codes.Internal, sqlreq.MayHaveCommitted, "ERROR"},
		"COMMIT ambiguous":  {&fakedb.DB{Commit: func() error { return driversText }}, "", codes.Internal, sqlreq.MayHaveCommitted, "ERROR"},
		"no database":       {&fakedb.DB{Connect: func(context.Context) error { return driver.ErrBadConn }}, "", codes.Unavailable, func(err error) bool { return errors.Is(err, driver.ErrBadConn) }, "ERROR"},
		"a conflict":        {&fakedb.DB{Stmt: func(context.Context, string) error { return sqlreqtest.Conflict{} }}, "", codes.Unavailable, sqlreq.IsRetryable, "ERROR"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			u := newUp(t)
			u.Reg = sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: test.db.Open(t)})
			u.Log.Watch(u.Reg)
			onServer(t, u, nil)
			_, err := u.unary(t.Context(), test.what)
			wantCode(t, err, test.code)
			for _, text := range []string{"drivers-text", "bad connection", "serialize"} {
				if strings.Contains(err.Error(), text) {
					t.Errorf("the client was told %v", err)
				}
			}
			if seen := *u.seen.Load(); !test.is(seen) || seen.Error() == "" {
				t.Errorf("the interceptor outside has seen %v", seen)
			}
			if lines := u.Log.Records(); len(lines) != 1 || lines[0]["level"] != test.log || lines[0]["code"] != test.code.String() || lines[0]["method"] != "/s/Unary" {
				t.Errorf("got log %v, want one line at %s", lines, test.log)
			}
		})
	}
}

// A COMMIT that the server refuses, here for a foreign key that is checked there, is Unavailable, because a repeat is safe,
// not because it will succeed: each one is refused as the first. Where another database was committed before, or nobody
// knows, it is Internal.
func TestCommitRefused(t *testing.T) {
	tests := map[string]struct {
		work    func(ctx context.Context, u *up) error
		code    codes.Code
		reports int // rows that stay in the other database
	}{
		"nothing is committed": {func(ctx context.Context, u *up) error { return u.BreakCommit(ctx) }, codes.Unavailable, 0},
		"of two databases none is committed": {func(ctx context.Context, u *up) error {
			_, err := adaptertest.Reports.ExecContext(ctx, sqlreqtest.InsertWork)
			return errors.Join(err, u.BreakCommit(ctx))
		}, codes.Unavailable, 0},
		"of two databases one is committed": {func(ctx context.Context, u *up) error {
			_, err := adaptertest.Reports.ExecContext(ctx, sqlreqtest.InsertWork)
			// One with a function before COMMIT is committed last.
			return errors.Join(err, u.BreakCommit(ctx), sqlreq.BeforeCommit(ctx, func(context.Context) error { return nil }))
		}, codes.Internal, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			u := newUp(t)
			u.v.afterwork = func(ctx context.Context) error { return test.work(ctx, u) }
			onServer(t, u, nil)
			for attempt := 1; attempt <= 2; attempt++ {
				_, err := u.unary(t.Context(), "after")
				if wantCode(t, err, test.code); strings.Contains(err.Error(), "FOREIGN KEY") {
					t.Errorf("the client was told %v", err)
				}
				seen := *u.seen.Load()
				if got := sqlreq.MayHaveCommitted(seen); got != (test.code == codes.Internal) || !strings.Contains(seen.Error(), "FOREIGN KEY") {
					t.Errorf("the interceptor outside has seen %v, MayHaveCommitted %t", seen, got)
				}
				u.rows(t, 0)
				if n := sqlreqtest.Count(t, u.ReportsDB, "work"); n != attempt*test.reports {
					t.Errorf("attempt %d: got %d rows in reports, want %d", attempt, n, attempt*test.reports)
				}
			}
		})
	}
}

// How a refusal that no repeat will change is told by a code of its own: by a function before COMMIT that looks first, or by
// an interceptor outside.
func TestCommitRefusedByACodeOfItsOwn(t *testing.T) {
	for name, test := range map[string]struct {
		look    bool
		outside grpc.UnaryServerInterceptor
	}{
		"looked at before COMMIT": {look: true},
		"by an interceptor outside": {outside: func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			resp, err := handler(ctx, req)
			var commit *sqlreq.CommitError
			if errors.As(err, &commit) && !sqlreq.MayHaveCommitted(err) && !sqlreq.IsRetryable(err) {
				return nil, status.Error(codes.FailedPrecondition, "refused")
			}
			return resp, err
		}},
	} {
		u := newUp(t)
		handler := func(ctx context.Context, _ any) (any, error) {
			if test.look {
				err := sqlreq.BeforeCommit(ctx, func(ctx context.Context) error {
					var orphans int
					err := sqlreq.DefaultKey.QueryRowContext(ctx, `SELECT COUNT(*) FROM pragma_foreign_key_check('child')`).Scan(&orphans)
					if err == nil && orphans > 0 {
						return status.Error(codes.FailedPrecondition, "refused")
					}
					return err
				})
				if err != nil {
					return nil, err
				}
			}
			return nil, u.BreakCommit(ctx)
		}
		inside := UnaryServerInterceptor(u.Reg)
		chain := func(ctx context.Context, req any) (any, error) {
			return inside(ctx, req, &grpc.UnaryServerInfo{}, handler)
		}
		var err error
		if test.outside != nil {
			_, err = test.outside(t.Context(), nil, nil, chain)
		} else {
			_, err = chain(t.Context(), nil)
		}
		if wantCode(t, err, codes.FailedPrecondition); status.Convert(err).Message() != "refused" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A handler's own code stays, also where a conflict is the reason; a plain error is a
// fault of the server's.
func TestOwnCodes(t *testing.T) {
	for _, test := range []struct {
		err   error
		code  codes.Code
		level string
	}{
		{&failure{status.New(codes.Aborted, "try again"), sqlreqtest.Conflict{}}, codes.Aborted, "DEBUG"},
		{errPlain, codes.Unknown, "ERROR"},
	} {
		u := newUp(t)
		u.v.afterwork = func(context.Context) error {
			return test.err
		}
		onServer(t, u, nil)
		_, err := u.unary(t.Context(), "after")
		wantCode(t, err, test.code)
		if lines := u.Log.Records(); len(lines) != 1 || lines[0]["level"] != test.level {
			t.Errorf("got log %v, want one line at %s", lines, test.level)
		}
	}
}

func isCommitError(err error) bool {
	var c *sqlreq.CommitError
	return errors.As(err, &c) && !sqlreq.MayHaveCommitted(err)
}

// A call whose deadline passes before COMMIT, though the handler returned nil.
func TestContextEnded(t *testing.T) {
	s := adaptertest.NewSite(t)
	for name, test := range map[string]struct {
		end  func(ctx context.Context) (context.Context, func())
		code codes.Code
	}{
		"deadline": {func(ctx context.Context) (context.Context, func()) { return sqlreqtest.Deadline(ctx) }, codes.DeadlineExceeded},
		"canceled": {func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancel(ctx)
			return ctx, cancel
		}, codes.Canceled},
	} {
		for _, returned := range []bool{false, true} {
			ctx, end := test.end(t.Context())
			_, err := UnaryServerInterceptor(s.Reg)(ctx, nil, &grpc.UnaryServerInfo{}, func(ctx context.Context, _ any) (any, error) {
				if err := s.Insert(ctx); err != nil {
					return nil, err
				}
				end()
				if returned {
					return nil, ctx.Err()
				}
				return nil, nil
			})
			wantCode(t, err, test.code)
			if err == nil {
				t.Errorf("%s: got nil", name)
			}
		}
		s.WantRows(t, 0)
	}
}

// Header and trailer are those of the last attempt; a COMMIT that failed has none.
func TestHeaderAndTrailer(t *testing.T) {
	for _, test := range []struct {
		what string // of work, in the second attempt
		want []string
	}{
		{"", []string{"2"}},
		{"invalid", []string{"2"}},
		{"commit", nil},
	} {
		u := newUp(t)
		u.Reg.Retry = sqlreqtest.Retries(2)
		attempt := 0
		u.v.afterwork = func(ctx context.Context) error {
			attempt++
			md := metadata.Pairs("attempt", map[int]string{1: "1", 2: "2"}[attempt])
			errs := errors.Join(grpc.SetHeader(ctx, md), grpc.SetTrailer(ctx, md), grpc.SendHeader(ctx, metadata.Pairs("sent", "yes")))
			if errs != nil {
				t.Errorf("%q: %v", test.what, errs)
			}
			if grpc.SendHeader(ctx, md) == nil || grpc.SetHeader(ctx, md) == nil {
				t.Errorf("%q: SendHeader and SetHeader behind it: got nil", test.what)
			}
			if attempt == 1 {
				return sqlreqtest.Conflict{}
			}
			u.v.attempts.Store(9)
			return u.v.work(ctx, test.what)
		}
		onServer(t, u, nil)
		var header, trailer metadata.MD
		_, err := u.unary(t.Context(), "after", grpc.Header(&header), grpc.Trailer(&trailer))
		if (err == nil) != (test.what == "") {
			t.Errorf("%q: got %v", test.what, err)
		}
		// gRPC sends an error and its trailer together with the header, if there is one.
		got, sent := header.Get("attempt"), header.Get("sent")
		if len(got) != len(test.want) || len(got) == 1 && (got[0] != "2" || len(sent) != 1) {
			t.Errorf("%q: got header %v, want attempt %v", test.what, header, test.want)
		}
		if got := trailer.Get("attempt"); len(got) != len(test.want) || len(got) == 1 && got[0] != "2" {
			t.Errorf("%q: got trailer %v, want attempt %v", test.what, trailer, test.want)
		}
	}
}

// The reply is sent after COMMIT, and after the hooks.
func TestCommitBeforeTheReply(t *testing.T) {
	u := newUp(t)
	u.v.afterwork = func(ctx context.Context) error {
		u.Log.Hooks(t, ctx, sqlreq.DefaultKey, "")
		return sqlreq.BeforeCommit(ctx, func(ctx context.Context) error { return u.Insert(ctx) })
	}
	onServer(t, u, nil)
	if _, err := u.unary(t.Context(), "after"); err != nil || u.Log.Words() != "commit" {
		t.Errorf("got %v, hooks %q, want commit before the reply", err, u.Log.Words())
	}
	u.rows(t, 2)
}

// An error that is told by Fail, or by a function before COMMIT, keeps its code.
func TestErrorsThatAreNotReturned(t *testing.T) {
	refused := status.Error(codes.FailedPrecondition, "on purpose")
	for name, tell := range map[string]func(context.Context) error{
		"Fail":         func(ctx context.Context) error { return sqlreq.Fail(ctx, refused) },
		"RollbackOnly": func(ctx context.Context) error { return sqlreq.RollbackOnly(ctx, refused) },
		"BeforeCommit": func(ctx context.Context) error {
			return sqlreq.BeforeCommit(ctx, func(context.Context) error { return refused })
		},
	} {
		u := newUp(t)
		u.v.afterwork = tell
		onServer(t, u, nil)
		_, err := u.unary(t.Context(), "after")
		if wantCode(t, err, codes.FailedPrecondition); status.Convert(err).Message() != "on purpose" {
			t.Errorf("%s: got %v", name, err)
		}
		u.rows(t, 0)
	}
}

// A transaction that was ended behind sqlreq's back: nobody knows what is committed.
func TestTxEnded(t *testing.T) {
	u := newUp(t)
	u.v.afterwork = func(ctx context.Context) error {
		tx, err := sqlreq.Tx(ctx)
		if err != nil {
			return err
		}
		return tx.Commit()
	}
	onServer(t, u, nil)
	_, err := u.unary(t.Context(), "after")
	wantCode(t, err, codes.Internal)
	if lines := u.Log.Records(); len(lines) != 1 || lines[0]["level"] != "ERROR" || !strings.Contains(lines[0]["msg"], "may be committed") {
		t.Errorf("got log %v", lines)
	}
}

func TestNilRegistry(t *testing.T) {
	for name, f := range map[string]func(){
		"unary":  func() { UnaryServerInterceptor(nil) },
		"stream": func() { StreamServerInterceptor(nil) },
	} {
		func() {
			defer func() {
				if v, _ := recover().(string); !strings.Contains(v, "New returned") {
					t.Errorf("%s: got panic %q", name, v)
				}
			}()
			f()
		}()
	}
}

// A handler that waits has the deadline of its call.
func TestDeadlineOfTheCall(t *testing.T) {
	u := newUp(t)
	u.v.afterwork = func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the handler's context has no deadline")
		}
		return nil
	}
	onServer(t, u, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := u.unary(ctx, "after"); err != nil {
		t.Error(err)
	}
}
