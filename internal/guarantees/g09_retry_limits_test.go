// G9 A retry is invisible to the client. Never after anything was committed (an
// AfterCommit function that ran has told the world so), never on a part of the body,
// never for a client that has gone; and nobody is told to come again (Retry-After)
// where the program, or a part that is committed, forbids it.

package guarantees

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// A read-only transaction commits nothing, but its AfterCommit function has run.
func TestG9HookThatRanRulesOutARetry(t *testing.T) {
	work := func(t *testing.T, ctx context.Context, hooks *int) error {
		sqlreqtest.Exec(t, ctx, sqlreqtest.Main, "SELECT")
		if err := sqlreq.AfterCommit(ctx, func(context.Context) { *hooks++ }); err != nil {
			t.Error(err)
		}
		if err := sqlreq.Commit(ctx); err != nil {
			t.Error(err)
		}
		return sqlreqtest.Conflict{}
	}
	tests := map[string]func(t *testing.T, reg *sqlreq.Registry, hooks *int){
		"request": func(t *testing.T, reg *sqlreq.Registry, hooks *int) {
			rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				return work(t, r.Context(), hooks)
			})))
			if rec.Code != 500 {
				t.Errorf("got %d, want 500", rec.Code)
			}
		},
		"Do": func(t *testing.T, reg *sqlreq.Registry, hooks *int) {
			err := reg.Do(t.Context(), func(ctx context.Context) error { return work(t, ctx, hooks) })
			if !errors.Is(err, sqlreqtest.Conflict{}) {
				t.Errorf("got %v, want the conflict", err)
			}
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			d := &fakedb.DB{}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t), TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnly)})
			reg.Retry = sqlreqtest.Retries(3)
			hooks := 0
			run(t, reg, &hooks)
			if hooks != 1 {
				t.Errorf("the hook ran %d times, want once", hooks)
			}
			d.Check(t, "BEGIN READ ONLY", "SELECT", "ROLLBACK")
		})
	}
}

func TestG9RetryAfterOnlyWhereItHelps(t *testing.T) {
	commit := func(r *http.Request) error { return sqlreq.Commit(r.Context()) }
	nothing := func(*http.Request) error { return nil }
	never := func(*http.Request) bool { return false }
	tests := map[string]struct {
		retry      sqlreq.Retry
		before     func(*http.Request) error
		code       int
		retryAfter string
	}{
		"no Retry":                       {sqlreq.Retry{}, nothing, 503, "1"},
		"attempts exhausted":             {sqlreqtest.Retries(2), nothing, 503, "1"},
		"When says no":                   {sqlreq.Retry{Attempts: 2, When: never}, nothing, 500, ""},
		"something committed":            {sqlreqtest.Retries(2), commit, 500, ""},
		"something committed, no Retry":  {sqlreq.Retry{}, commit, 500, ""},
		"something committed, When: no":  {sqlreq.Retry{Attempts: 2, When: never}, commit, 500, ""},
		"one attempt, When is not asked": {sqlreq.Retry{Attempts: 1, When: never}, nothing, 503, "1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
			reg.Retry = tt.retry
			log := &sqlreqtest.Recorder{}
			reg.Logger = log.Logger()
			rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if err := tt.before(r); err != nil {
					t.Error(err)
				}
				return sqlreqtest.Conflict{}
			})))
			if got := rec.Header().Get("Retry-After"); rec.Code != tt.code || got != tt.retryAfter {
				t.Errorf("got %d with Retry-After %q, want %d with %q", rec.Code, got, tt.code, tt.retryAfter)
			}
			// Who reads the line of a 503 learns what would have helped.
			line := log.Records()[0]["err"]
			if got := strings.HasSuffix(line, "see Registry.Retry"); got != (tt.code == 503) || !strings.HasPrefix(line, sqlreqtest.Conflict{}.Error()) {
				t.Errorf("the log says %q", line)
			}
		})
	}
}

// crossing is a body whose second Read gives more than the limit of what may be
// kept, as soon as the program is asked whether the error is a conflict.
type crossing struct {
	reads   int
	reading chan struct{} // closed by the second Read
	asked   atomic.Bool
	delay   int // loops after that
}

func (c *crossing) Close() error { return nil }

func (c *crossing) Read(p []byte) (int, error) {
	switch c.reads++; c.reads {
	case 1:
		return copy(p, "ab"), nil
	case 2:
		close(c.reading)
		for n := 0; !c.asked.Load(); n++ {
			if n > 1000 { // nobody else may have a processor
				runtime.Gosched()
			}
		}
		for range c.delay {
			c.asked.Load()
		}
		return copy(p, "cdef"), nil
	}
	return 0, io.EOF
}

// A Read that the first attempt has left behind takes the rest of the body while
// the next attempt is being prepared: that one reads everything, or does not begin.
func TestG9NoAttemptOnAPartOfTheBody(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	reg.Retry = sqlreqtest.Retries(2)
	reg.Retry.BodyLimit = 4
	for round := range manyRounds() {
		body := &crossing{reading: make(chan struct{}), delay: round % 500}
		reg.Retry.Retryable = func(err error) bool {
			body.asked.Store(true)
			return errors.Is(err, sqlreqtest.Conflict{})
		}
		var late sync.WaitGroup
		runs := 0
		h := reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			if runs++; runs == 2 {
				if b, err := io.ReadAll(r.Body); string(b) != "abcdef" || err != nil {
					t.Errorf("round %d: the second attempt read %q, %v; want the whole body", round, b, err)
				}
				return nil
			}
			_, _ = io.ReadFull(r.Body, make([]byte, 2))
			late.Go(func() { _, _ = r.Body.Read(make([]byte, 4)) })
			<-body.reading
			return sqlreqtest.Conflict{}
		}))
		r := httptest.NewRequest("POST", "/", nil)
		r.Body = body
		h.ServeHTTP(httptest.NewRecorder(), r)
		late.Wait()
	}
}

// The time of the next attempt has come and the client has gone, both at once.
func TestG9NoAttemptForAClientThatHasGone(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
			reg.Retry = sqlreqtest.Retries(2)
			waits := false
			reg.Retry.Backoff = func(int) time.Duration { waits = true; return time.Second }
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			client := sqlreqtest.Asked{Context: ctx, OnDone: func() {
				if waits {
					cancel()
					time.Sleep(2 * time.Second) // by the clock of the bubble: the backoff is over as well
				}
			}}
			runs := 0
			reg.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
				runs++
				return sqlreqtest.Conflict{}
			})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(client))
			if runs != 1 || !waits {
				t.Errorf("ran %d times (waited: %t), want once and a wait", runs, waits)
			}
		})
	}
}
