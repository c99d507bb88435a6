package guarantees

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// journal is what happened on several fake databases, and in the test, in order:
// "key STATEMENT", or what Add was given.
type journal struct {
	// On is called for each line of a database; its error is the driver's answer.
	On func(ctx context.Context, line string) error

	fakes map[sqlreq.Key]*fakedb.DB

	mu    sync.Mutex
	lines []string
}

// newJournal returns a journal of a database for each key, and their bindings.
func newJournal(t testing.TB, keys ...sqlreq.Key) (*journal, []sqlreq.Binding) {
	j := &journal{fakes: map[sqlreq.Key]*fakedb.DB{}}
	var bindings []sqlreq.Binding
	for _, k := range keys {
		f := &fakedb.DB{Step: func(ctx context.Context, stmt string) error {
			line := string(k) + " " + stmt
			j.Add(line)
			if j.On != nil {
				return j.On(ctx, line)
			}
			return nil
		}}
		j.fakes[k] = f
		bindings = append(bindings, sqlreq.Binding{Key: k, DB: f.Open(t)})
	}
	return j, bindings
}

// Add adds a line.
func (j *journal) Add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

// Func returns a BeforeCommit function that adds a line and returns err.
func (j *journal) Func(line string, err error) func(context.Context) error {
	return func(context.Context) error { j.Add(line); return err }
}

// Hook returns a hook that adds a line.
func (j *journal) Hook(line string) func(context.Context) {
	return func(context.Context) { j.Add(line) }
}

// Fails makes the driver answer one line with err.
func (j *journal) Fails(line string, err error) {
	j.On = func(_ context.Context, got string) error {
		if got == line {
			return err
		}
		return nil
	}
}

// Take returns the lines, and forgets them.
func (j *journal) Take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

// CheckLines fails the test if something else happened since the last Take.
func (j *journal) CheckLines(t testing.TB, want ...string) {
	t.Helper()
	if got := j.Take(); !slices.Equal(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// Check is CheckLines, and fails the test too if a transaction is open.
func (j *journal) Check(t testing.TB, want ...string) {
	t.Helper()
	j.CheckLines(t, want...)
	for k, f := range j.fakes {
		if c := f.Counts(); c.Open != 0 || c.Dirty != 0 {
			t.Errorf("key %q: got %d open transactions and %d dirty connections, want none", k, c.Open, c.Dirty)
		}
	}
}

// unitRun is how a unit of work has ended.
type unitRun struct {
	err    error // of Do, or what ErrorHandler was given
	status int   // of the response; 0 in a Do
	panics any
	done   bool // it has returned
}

// asUnits runs test for each kind of a unit of work: a request, and a Do.
func asUnits(t *testing.T, test func(t *testing.T, run func(*sqlreq.Registry, func(context.Context) error) unitRun)) {
	t.Run("request", func(t *testing.T) { test(t, asRequest) })
	t.Run("Do", func(t *testing.T) { test(t, asDo) })
}

func asDo(reg *sqlreq.Registry, fn func(context.Context) error) (u unitRun) {
	u.panics = sqlreqtest.Panicked(func() {
		u.err = reg.Do(context.Background(), fn)
		u.done = true
	})
	return u
}

func asRequest(reg *sqlreq.Registry, fn func(context.Context) error) (u unitRun) {
	reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		u.err = err
		w.WriteHeader(sqlreq.StatusCode(err))
	}
	a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		return fn(r.Context())
	})), httptest.NewRequest("POST", "/", nil))
	u.status, u.panics, u.done = a.Code, a.Panicked, a.Returned
	return u
}

// ok fails the test if the unit failed.
func (u unitRun) ok(t testing.TB) {
	t.Helper()
	if u.err != nil || u.panics != nil || !u.done || u.status >= 400 {
		t.Errorf("got %+v, want success", u)
	}
}

// before registers a BeforeCommit function.
func before(t testing.TB, ctx context.Context, k sqlreq.Key, fn func(context.Context) error) {
	t.Helper()
	if err := k.BeforeCommit(ctx, fn); err != nil {
		t.Errorf("BeforeCommit: %v", err)
	}
}

// refused fails the test if err is not an error with that text.
func refused(t testing.TB, what string, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got %v, want an error with %q", what, err, text)
	}
}
