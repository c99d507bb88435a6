package conformance

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sqlreq/sqlreq"
)

var checks = []check{
	{"G1", "the work is there when a success arrives", committed},
	{"G1", "COMMIT fails: no complete success, of no kind of response", commitFails},
	{"G1", "COMMIT refused, through Key and *sql.Tx, with and without Guard: refused for sure, AfterRollback runs", refused},
	{"G1", "connection lost before COMMIT: outcome said to be unknown, no hook runs", lost},
	{"G2", "5,000 rows of an open query arrive, with Flush in between", streamed},
	{"G2", "after Commit a new transaction, which fails alone", commitAndGoOn},
	{"G3", "a request that uses no database waits for none", unused},
	{"G4", "error, panic, Goexit, status, CommitIf, abort, defer tx.Rollback: nothing stays", failures},
	{"G4", "a constraint error that the handler ignored, through Key and *sql.Tx, with and without Guard: success and hooks only if the work is there", swallowed},
	{"G4", "a client that leaves before COMMIT, between statements", leavesBetween},
	{"G4", "a client that leaves during a SELECT, or an INSERT, through Key and *sql.Tx, with and without Guard: a rollback is told only if nothing stayed", leavesDuring},
	{"G4", "a wait for the pool in vain is a 503", poolIsEmpty},
	{"G4", "a read-only GET is answered, and persists nothing", readOnly},
	{"G5", "no connection is held while a client sends or receives", slowClient},
	{"G6", "two keys and a nested application: one transaction, one outcome", oneTransaction},
	{"G7", "after the request its context begins nothing", finished},
	{"G8", "hooks run after the outcome that they are for, before the answer", hooks},
	{"G8", "Savepoint: a part fails, with its hooks, and the rest is committed", savepoint},
	{"G9", "two requests in conflict in a statement, through Key and *sql.Tx: both succeed, the body is read again", conflict},
	{"G9", "a conflict in COMMIT, through Key and *sql.Tx, with and without Guard: the request runs again", lateConflict},
	{"G9", "8 clients × 15 increments with Retry: 120 of 120", increments},
	{"G10", "Hijack commits first", hijack},
	{"G11", "a statement ends the transaction, through Key and *sql.Tx, with and without Guard: found out, no hook runs", ended},
	{"G11", "DDL in a request that fails, and in one that does not, through Key and *sql.Tx, with and without Guard", ddl},
	{"G11", "Guard finds out that the transaction had ended", guard},
	{"Do", "an independent unit of work survives the request's rollback", independent},
	{"Tx", "Binding.Tx: requests in a test's transaction leave nothing behind", testTransaction},
}

func committed(r *run) verdict {
	reg, events := r.registry()
	srv := r.serve(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mustInsert(req.Context(), "x")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "created")
	})))
	for n, protocol := range []int{1, 2} {
		a := post(client(srv, protocol), srv.URL, "")
		r.want(a, http.StatusCreated)
		r.rows(n + 1)
	}
	if got, want := events.outcomes(), "Committed Committed"; got != want {
		r.Errorf("events %s, want %s", got, want)
	}
	return yes
}

func commitFails(r *run) verdict {
	if !r.canBreakCommit() {
		return without("the suite knows no way to make COMMIT fail")
	}
	reg, _ := r.registry()
	reg.HoldLimit = 1 << 10
	large := strings.Repeat("x", 64<<10)
	responses := map[string]func(http.ResponseWriter){
		"nothing written":        func(http.ResponseWriter) {},
		"held":                   func(w http.ResponseWriter) { _, _ = io.WriteString(w, "created") },
		"no content":             func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
		"redirect":               func(w http.ResponseWriter) { w.Header().Set("Location", "/"); w.WriteHeader(http.StatusSeeOther) },
		"streamed":               func(w http.ResponseWriter) { _, _ = io.WriteString(w, large) },
		"flushed":                func(w http.ResponseWriter) { _, _ = io.WriteString(w, "created"); w.(http.Flusher).Flush() },
		"streamed with a length": func(w http.ResponseWriter) { setLength(w, large); _, _ = io.WriteString(w, large) },
		"flushed when complete": func(w http.ResponseWriter) {
			setLength(w, "created")
			_, _ = io.WriteString(w, "created")
			w.(http.Flusher).Flush()
		},
	}
	srv := r.serve(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mustInsert(req.Context(), "x")
		if err := r.breakCommit(req.Context()); err != nil {
			r.Error(err)
		}
		w.Header().Set("X-Secret", "1")
		responses[req.Header.Get("X-Response")](w)
	})))
	for name := range responses {
		for _, protocol := range []int{1, 2} {
			for _, method := range []string{http.MethodPost, http.MethodHead} {
				req, err := http.NewRequest(method, srv.URL, nil)
				if err != nil {
					r.Fatal(err)
				}
				req.Header.Set("X-Response", name)
				c := client(srv, protocol)
				c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				a := do(c, req)
				if a.complete() {
					r.Errorf("%s %s on HTTP/%d: got %v, a complete success", method, name, protocol, a)
				}
				if a.status >= 400 && a.header.Get("X-Secret") != "" {
					r.Errorf("%s %s on HTTP/%d: a header of the handler's in the error answer", method, name, protocol)
				}
			}
		}
	}
	r.rows(0)
	switch {
	case r.dialect.Refuse != nil:
		return but("no deferred constraints; here COMMIT is refused because another transaction has inserted the same key")
	case r.dialect.Deferred == "":
		return but("no deferred constraints; here COMMIT fails because its connection was killed")
	}
	return yes
}

func setLength(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
}

// hooked registers both kinds of hooks, which write down that they ran.
func hooked(r *run, ctx context.Context, ran *[]string) {
	err := errors.Join(
		sqlreq.AfterCommit(ctx, func(context.Context) { *ran = append(*ran, "commit") }),
		sqlreq.AfterRollback(ctx, func(context.Context) { *ran = append(*ran, "rollback") }))
	if err != nil {
		r.Error(err)
	}
}

func lost(r *run) verdict {
	if r.dialect.Kill == nil {
		return without("no connection that could be lost")
	}
	reg, events := r.registry()
	var ran []string
	srv := r.serve(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/next" {
			return
		}
		hooked(r, req.Context(), &ran)
		r.mustInsert(req.Context(), "x")
		if err := r.kill(req.Context()); err != nil {
			r.Error(err)
		}
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusInternalServerError)
	r.rows(0)
	if got, want := events.outcomes(), "CommitFailed"; got != want || !events.ambiguous() {
		r.Errorf("events %s, ambiguous %v, want %s, ambiguous", got, events.ambiguous(), want)
	}
	if len(ran) != 0 {
		r.Errorf("hooks %v, want none", ran)
	}
	r.want(post(srv.Client(), srv.URL+"/next", ""), http.StatusOK)
	return yes
}

func streamed(r *run) verdict {
	const batches, batch = 20, 250
	values := make([]string, batch)
	for i := range values {
		values[i] = fmt.Sprintf("('%0100d')", i)
	}
	insert := "INSERT INTO sqlreq_work (note) VALUES " + strings.Join(values, ", ")
	reg, _ := r.registry()
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		ctx := req.Context()
		for range batches {
			if _, err := main.ExecContext(ctx, insert); err != nil {
				return err
			}
		}
		rows, err := main.QueryContext(ctx, "SELECT note FROM sqlreq_work ORDER BY id")
		if err != nil {
			return err
		}
		defer rows.Close()
		for n := 0; rows.Next(); n++ {
			var note string
			if err := rows.Scan(&note); err != nil {
				return err
			}
			fmt.Fprintln(w, note)
			if n%100 == 0 {
				w.(http.Flusher).Flush()
			}
		}
		return rows.Err()
	})))
	a := post(srv.Client(), srv.URL, "")
	r.want(a, http.StatusOK)
	if got := strings.Count(a.body, "\n"); got != batches*batch {
		r.Errorf("%d rows arrived, want %d", got, batches*batch)
	}
	r.rows(batches * batch)
	return yes
}

func commitAndGoOn(r *run) verdict {
	reg, events := r.registry()
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		ctx := req.Context()
		r.mustInsert(ctx, "stays")
		if err := sqlreq.Commit(ctx); err != nil {
			return err
		}
		r.mustInsert(ctx, "goes")
		return errors.New("the rest fails")
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusInternalServerError)
	r.rows(1)
	if got, want := events.outcomes(), "Committed RolledBack"; got != want {
		r.Errorf("events %s, want %s", got, want)
	}
	return yes
}

// oneConnection limits the pool, and returns how to lift the limit.
func (r *run) oneConnection() (restore func()) {
	limit := r.db.Stats().MaxOpenConnections
	r.db.SetMaxOpenConns(1)
	return func() { r.db.SetMaxOpenConns(limit) }
}

func unused(r *run) verdict {
	defer r.oneConnection()()
	conn, err := r.db.Conn(context.Background())
	if err != nil {
		r.Fatal(err)
	}
	defer conn.Close()
	reg, events := r.registry()
	srv := r.serve(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, "static")
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
	if got := events.outcomes(); got != "" {
		r.Errorf("events %s, want none", got)
	}
	return yes
}

func failures(r *run) verdict {
	cases := []struct {
		name    string
		status  int // 0: no answer
		handler func(http.ResponseWriter, *http.Request) error
	}{
		{"error", 500, func(http.ResponseWriter, *http.Request) error { return errors.New("failed") }},
		{"status", 409, func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(409); return nil }},
		{"late status", 422, func(w http.ResponseWriter, _ *http.Request) error {
			_, _ = io.WriteString(w, "so far")
			w.WriteHeader(422)
			return nil
		}},
		{"Fail", 500, func(_ http.ResponseWriter, req *http.Request) error {
			return sqlreq.Fail(req.Context(), errors.New("failed"))
		}},
		{"panic", 0, func(http.ResponseWriter, *http.Request) error { panic("a bug") }},
		{"abort", 0, func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }},
		{"Goexit", 0, func(http.ResponseWriter, *http.Request) error { runtime.Goexit(); return nil }},
		{"CommitIf", 202, func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(202); return nil }},
		{"tx.Rollback", 500, func(w http.ResponseWriter, req *http.Request) error {
			tx, err := sqlreq.Tx(req.Context())
			if err != nil {
				return err
			}
			return tx.Rollback()
		}},
	}
	for _, c := range cases {
		reg, _ := r.registry()
		if c.name == "CommitIf" {
			reg.CommitIf = func(status int, _ http.Header) bool { return status != 202 }
		}
		srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
			r.mustInsert(req.Context(), c.name)
			return c.handler(w, req)
		})))
		a := post(client(srv, 1), srv.URL, "")
		if c.status == 0 && a.complete() || c.status != 0 && a.status != c.status {
			r.Errorf("%s: got %v, want %d", c.name, a, c.status)
		}
		r.eventually(c.name+": connection given back", func() bool { return r.db.Stats().InUse == 0 })
		r.rows(0)
	}
	return yes
}

// leaves sends a request whose client leaves when the handler says so, and
// returns when it has been dealt with.
func (r *run) leaves(reg *sqlreq.Registry, handler func(ctx context.Context, leave func())) {
	over := make(chan struct{})
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	inner := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		handler(req.Context(), leave)
	}))
	srv := r.serve(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer close(over)
		inner.ServeHTTP(w, req)
	}))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL, nil)
	if err != nil {
		r.Fatal(err)
	}
	if a := do(client(srv, 1), req); a.complete() {
		r.Errorf("got %v, a complete success", a)
	}
	select {
	case <-over:
	case <-time.After(patience):
		r.Fatalf("the handler has not returned within %v", patience)
	}
}

func leavesBetween(r *run) verdict {
	reg, events := r.registry()
	r.leaves(reg, func(ctx context.Context, leave func()) {
		r.mustInsert(ctx, "x")
		leave()
		<-ctx.Done()
	})
	r.rows(0)
	if got, want := events.outcomes(), "RolledBack"; got != want {
		r.Errorf("events %s, want %s", got, want)
	}
	return yes
}

func poolIsEmpty(r *run) verdict {
	defer r.oneConnection()()
	conn, err := r.db.Conn(context.Background())
	if err != nil {
		r.Fatal(err)
	}
	defer conn.Close()
	reg, _ := r.registry()
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), time.Millisecond)
		defer cancel()
		return r.insert(ctx, "x")
	})))
	a := post(srv.Client(), srv.URL, "")
	r.want(a, http.StatusServiceUnavailable)
	if a.header.Get("Retry-After") == "" {
		r.Error("no Retry-After")
	}
	return yes
}

func readOnly(r *run) verdict {
	for _, w := range r.ways() {
		reg, events := r.registry(sqlreq.Binding{DB: r.db, TxOptions: sqlreq.ReadOnlySafeMethods, Guard: w.guard})
		var refused error
		var ran []string
		srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) error {
			hooked(r, req.Context(), &ran)
			var n int
			if err := w.query(req.Context(), "SELECT n FROM sqlreq_counter").Scan(&n); err != nil || req.URL.Path == "/reads" {
				return err
			}
			refused = w.exec(req.Context(), insertX)
			return nil
		})))
		get := func(path string) {
			r.Helper()
			res, err := srv.Client().Get(srv.URL + path)
			if err != nil {
				r.Fatal(err)
			}
			res.Body.Close()
			r.want(answer{status: res.StatusCode}, http.StatusOK)
		}
		get("/reads")
		if got := fmt.Sprint(events.outcomes(), ran); got != "Committed[commit]" {
			r.Errorf("%s: a GET that reads: %s", w.name, got)
		}
		get("/writes")
		r.rows(0)
		if got := refused != nil; got != r.facts.refusesToWrite {
			r.Errorf("%s: writing was refused: %v (%v), want %v", w.name, got, refused, r.facts.refusesToWrite)
		}
		r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
		if n := r.stored(); n != 1 {
			r.Errorf("%s: a POST has stored %d rows, want one", w.name, n)
		}
	}
	switch {
	case r.facts.refusesFlag:
		return but("the driver refuses read-only transactions, so that BEGIN is sent without the flag; what is written is rolled back at the end")
	case !r.facts.refusesToWrite:
		return but("the database accepts the write; it is rolled back at the end")
	}
	return yes
}

// watched is a request body or a response that says when it is used.
type watched struct {
	http.ResponseWriter
	io.ReadCloser
	used func()
}

func (w watched) Write(p []byte) (int, error) {
	w.used()
	return w.ResponseWriter.Write(p)
}

func (w watched) Read(p []byte) (int, error) {
	w.used()
	return w.ReadCloser.Read(p)
}

func slowClient(r *run) verdict {
	reg, _ := r.registry()
	handler := reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, req *http.Request, tx *sql.Tx) error {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(req.Context(), "INSERT INTO sqlreq_work (note) VALUES ('x')"); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	}))
	var uses atomic.Int32
	srv := r.serve(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		used := func() {
			uses.Add(1)
			if n := r.db.Stats().InUse; n != 0 {
				r.Errorf("%d connections in use while the client was waited for", n)
			}
		}
		req.Body = watched{ReadCloser: req.Body, used: used}
		handler.ServeHTTP(watched{ResponseWriter: w, used: used}, req)
	}))
	a := post(srv.Client(), srv.URL, strings.Repeat("x", 20<<10))
	r.want(a, http.StatusOK)
	if len(a.body) != 20<<10 || uses.Load() < 2 {
		r.Errorf("%d bytes came back, in %d reads and writes", len(a.body), uses.Load())
	}
	r.rows(1)
	return yes
}

func oneTransaction(r *run) verdict {
	const other sqlreq.Key = "other"
	child, childEvents := r.registry(sqlreq.Binding{Key: "child", DB: r.db})
	reg, events := r.registry(sqlreq.Binding{DB: r.db}, sqlreq.Binding{Key: other, DB: r.db})
	mux := http.NewServeMux()
	mux.Handle("/child/", child.Mount("/child", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var n int
		for _, k := range []sqlreq.Key{other, "child"} {
			if err := k.QueryRowContext(req.Context(), "SELECT count(*) FROM sqlreq_work").Scan(&n); err != nil || n != 1 {
				r.Errorf("key %s sees %d rows of the transaction, %v", k, n, err)
			}
		}
		_, _ = io.WriteString(w, "done")
	})))
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		r.mustInsert(req.Context(), "x")
		mux.ServeHTTP(w, req)
		if req.URL.RawQuery == "fail" {
			return errors.New("the outermost fails")
		}
		return nil
	})))
	r.want(post(srv.Client(), srv.URL+"/child/?fail", ""), http.StatusInternalServerError)
	r.rows(0)
	r.want(post(srv.Client(), srv.URL+"/child/", ""), http.StatusOK)
	r.rows(1)
	if got, want := events.outcomes()+childEvents.outcomes(), "RolledBack Committed"; got != want {
		r.Errorf("events %s, want %s", got, want)
	}
	return yes
}

func finished(r *run) verdict {
	reg, _ := r.registry()
	var kept context.Context
	var tx *sql.Tx
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) (err error) {
		kept = context.WithoutCancel(req.Context())
		tx, err = sqlreq.Tx(kept)
		return err
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
	if err := r.insert(kept, "x"); !errors.Is(err, sqlreq.ErrFinished) {
		r.Errorf("a statement: got %v, want %v", err, sqlreq.ErrFinished)
	}
	if _, err := sqlreq.Tx(kept); !errors.Is(err, sqlreq.ErrFinished) {
		r.Errorf("Tx: got %v, want %v", err, sqlreq.ErrFinished)
	}
	if _, err := tx.Exec("INSERT INTO sqlreq_work (note) VALUES ('x')"); !errors.Is(err, sql.ErrTxDone) {
		r.Errorf("the transaction: got %v, want %v", err, sql.ErrTxDone)
	}
	r.rows(0)
	return yes
}

func hooks(r *run) verdict {
	reg, _ := r.registry()
	var ran []string
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		ctx := req.Context()
		hooked(r, ctx, &ran)
		r.mustInsert(ctx, "x")
		err := sqlreq.AfterCommit(ctx, func(context.Context) { ran = append(ran, fmt.Sprint(r.count(), " rows")) })
		if err == nil && req.URL.Path == "/fail" {
			err = errors.New("failed")
		}
		return err
	})))
	r.want(post(srv.Client(), srv.URL+"/fail", ""), http.StatusInternalServerError)
	r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
	if want := []string{"rollback", "commit", "1 rows"}; !slices.Equal(ran, want) {
		r.Errorf("hooks %q, want %q", ran, want)
	}
	return yes
}

func savepoint(r *run) verdict {
	if r.facts.noSavepoints {
		return withoutSavepoints(r)
	}
	reg, _ := r.registry()
	var ran []string
	part := errors.New("a part fails")
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		r.mustInsert(req.Context(), "stays")
		err := sqlreq.Savepoint(req.Context(), func(ctx context.Context) error {
			r.mustInsert(ctx, "goes")
			hooked(r, ctx, &ran)
			if _, err := main.ExecContext(ctx, "INSERT INTO sqlreq_counter (id, n) VALUES (1, 0)"); err == nil {
				r.Error("a duplicate key was accepted")
			}
			return part
		})
		if err != part {
			r.Errorf("got %v, want %v", err, part)
		}
		return sqlreq.Savepoint(req.Context(), func(ctx context.Context) error { return r.insert(ctx, "stays too") })
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
	r.rows(2)
	if len(ran) != 0 {
		r.Errorf("hooks %v, want none", ran)
	}
	return yes
}

// withoutSavepoints checks that a Savepoint is an error that says so, that its function
// does not run, and that the transaction goes on.
func withoutSavepoints(r *run) verdict {
	reg, _ := r.registry()
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		r.mustInsert(req.Context(), "stays")
		for name, savepoint := range map[string]func(context.Context, func(context.Context) error) error{"Savepoint": sqlreq.Savepoint, "Atomic": reg.Atomic} {
			err := savepoint(req.Context(), func(context.Context) error { r.Errorf("%s: its function ran", name); return nil })
			if err == nil || !strings.Contains(err.Error(), "has no savepoints") {
				r.Errorf("%s: got %v", name, err)
			}
		}
		return r.insert(req.Context(), "stays too")
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
	r.rows(2)
	return but("no savepoints: Savepoint and Atomic are errors, and the transaction goes on")
}

// increment adds to the counter what was read of it before; meet is called in between.
func (r *run) increment(ctx context.Context, w way, by int, meet func()) error {
	var n int
	if err := w.query(ctx, "SELECT n FROM sqlreq_counter WHERE id = 1").Scan(&n); err != nil {
		return err
	}
	meet()
	return w.exec(ctx, "UPDATE sqlreq_counter SET n = "+r.dialect.Placeholder(1)+" WHERE id = 1", n+by)
}

func (r *run) counter(want int) {
	r.Helper()
	var got int
	if err := r.db.QueryRow("SELECT n FROM sqlreq_counter WHERE id = 1").Scan(&got); err != nil {
		r.Fatal(err)
	}
	if got != want {
		r.Errorf("the counter is %d, want %d", got, want)
	}
}

func (r *run) conflicting(guard bool) (*sqlreq.Registry, *events) {
	reg, events := r.registry(sqlreq.Binding{DB: r.db, Guard: guard, TxOptions: func(context.Context, *http.Request) *sql.TxOptions {
		return &r.dialect.Conflict
	}})
	reg.Retry = sqlreq.Retry{Attempts: 1000, Within: patience}
	return reg, events
}

func conflict(r *run) verdict {
	for _, w := range r.ways() {
		if w.name == "*sql.Tx, Guard" {
			continue // where the conflict ends the transaction nobody can tell what ran after it: see G11
		}
		conflictBy(r, w)
	}
	return yes
}

func conflictBy(r *run, w way) {
	r.exec("UPDATE sqlreq_counter SET n = 0")
	reg, events := r.conflicting(w.guard)
	var arrived sync.WaitGroup
	arrived.Add(2)
	var seen sync.Map // requests by their query, at the first attempt
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) error {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return err
		}
		by, err := strconv.Atoi(string(body))
		if err != nil {
			return err
		}
		err = r.increment(req.Context(), w, by, func() {
			if _, again := seen.LoadOrStore(req.URL.RawQuery, true); !again {
				arrived.Done()
			}
			arrived.Wait()
		})
		if err != nil && !sqlreq.IsRetryable(err) {
			r.strange.Store(fmt.Sprintf("%T: %v", err, err))
		}
		return err
	})))
	answers := make(chan answer)
	for _, by := range []string{"1", "10"} {
		go func() { answers <- post(srv.Client(), srv.URL+"?"+by, by) }()
	}
	for range 2 {
		r.want(<-answers, http.StatusOK)
	}
	r.counter(11)
	if got := events.outcomes(); !strings.Contains(got, "RolledBack") || strings.Contains(got, "CommitFailed") {
		r.Errorf("%s: events %s, want one RolledBack at least: there was no conflict in a statement", w.name, got)
	}
}

func increments(r *run) verdict {
	const clients, each = 8, 15
	reg, events := r.conflicting(false)
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) error {
		return r.increment(req.Context(), way{exec: byKey, query: queryByKey}, 1, func() {})
	})))
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
			}
		})
	}
	wg.Wait()
	r.counter(clients * each)
	events.Lock()
	defer events.Unlock()
	r.Logf("%d transactions for %d requests", len(events.all), clients*each)
	return yes
}

func hijack(r *run) verdict {
	reg, _ := r.registry()
	srv := r.serve(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mustInsert(req.Context(), "x")
		if req.URL.Path == "/fail" {
			if err := r.breakCommit(req.Context()); err != nil {
				r.Error(err)
			}
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		_, _ = bufio.NewReader(conn).ReadString('\n')
	})))
	upgrade := func(path string) answer {
		req, err := http.NewRequest(http.MethodGet, srv.URL+path, nil)
		if err != nil {
			r.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		res, err := client(srv, 1).Do(req)
		if err != nil {
			return answer{err: err}
		}
		res.Body.Close()
		return answer{status: res.StatusCode}
	}
	r.want(upgrade("/"), http.StatusSwitchingProtocols)
	r.rows(1)
	if r.canBreakCommit() {
		if a := upgrade("/fail"); a.status < 500 {
			r.Errorf("got %v, want an error", a)
		}
		r.rows(1)
	}
	return yes
}

func guard(r *run) verdict {
	if r.facts.noGuard != nil {
		if !strings.Contains(r.facts.noGuard.Error(), "no Guard can be had") {
			r.Error(r.facts.noGuard)
		}
		return without("no Guard: New says so")
	}
	reg, events := r.registry(sqlreq.Binding{DB: r.db, Guard: true})
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		tx, err := sqlreq.Tx(req.Context())
		if err != nil || req.URL.Path != "/ended" {
			return err
		}
		_, err = tx.ExecContext(req.Context(), "ROLLBACK") // as the server might
		return err
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
	r.want(post(srv.Client(), srv.URL+"/ended", ""), http.StatusInternalServerError)
	if got, want := events.outcomes(), "Committed CommitFailed"; got != want || !events.ambiguous() {
		r.Errorf("events %s, ambiguous %v, want %s, ambiguous", got, events.ambiguous(), want)
	}
	return yes
}

func independent(r *run) verdict {
	reg, _ := r.registry()
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		if _, err := sqlreq.Tx(req.Context()); err != nil {
			return err
		}
		// Before the request's own first write: SQLite has one writer at a time.
		err := reg.Do(req.Context(), func(ctx context.Context) error { return r.insert(ctx, "audit") })
		if err != nil {
			return err
		}
		r.mustInsert(req.Context(), "goes")
		return errors.New("failed")
	})))
	r.want(post(srv.Client(), srv.URL, ""), http.StatusInternalServerError)
	r.rows(1)
	return yes
}

func testTransaction(r *run) verdict {
	tx, err := r.db.Begin()
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if r.facts.noSavepoints {
		if _, err := sqlreq.New(sqlreq.Binding{Tx: tx}); err == nil || !strings.Contains(err.Error(), "Binding.Tx needs savepoints") {
			r.Errorf("New: got %v", err)
		}
		return without("no savepoints: New says so")
	}
	reg, _ := r.registry(sqlreq.Binding{Tx: tx})
	srv := r.serve(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		r.mustInsert(req.Context(), "x")
		switch req.URL.Path {
		case "/fail":
			return errors.New("failed")
		case "/ignores":
			if byKey(req.Context(), duplicate) == nil {
				r.Error("a duplicate key was accepted")
			}
			return sqlreq.Rollback(req.Context())
		case "/part":
			err := sqlreq.Savepoint(req.Context(), func(ctx context.Context) error { return byKey(ctx, duplicate) })
			if err == nil {
				r.Error("a duplicate key was accepted in a Savepoint")
			}
			return sqlreq.Rollback(req.Context())
		}
		return nil
	})))
	r.want(post(srv.Client(), srv.URL+"/ignores", ""), http.StatusOK)
	r.want(post(srv.Client(), srv.URL+"/part", ""), http.StatusOK)
	r.want(post(srv.Client(), srv.URL, ""), http.StatusOK)
	r.want(post(srv.Client(), srv.URL+"/fail", ""), http.StatusInternalServerError)
	var n int
	if err := tx.QueryRow("SELECT count(*) FROM sqlreq_work").Scan(&n); err != nil || n != 1 {
		r.Errorf("%d rows in the test's transaction (%v), want 1", n, err)
	}
	if err := tx.Rollback(); err != nil {
		r.Error(err)
	}
	r.rows(0)
	return yes
}
