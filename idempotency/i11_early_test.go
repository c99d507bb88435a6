package idempotency_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// impatient answers 200 by itself as soon as it is told by ready, and leaves next running
// until it returns.
func impatient(next http.Handler, ready, done chan struct{}) http.Handler {
	return handle(func(w http.ResponseWriter, r *http.Request) {
		go func() {
			defer func() { done <- struct{}{} }()
			next.ServeHTTP(w, r)
		}()
		<-ready
	})
}

// The request ends while the handler of its key runs in a goroutine that nobody has
// waited for: whatever is answered, there is no COMMIT without the answer's record.
func TestI11HandlerThatNobodyWaitsFor(t *testing.T) {
	all := func(int, http.Header) bool { return true }
	for name, c := range map[string]struct {
		handler       func(ctx context.Context)
		commitIf      func(int, http.Header) bool
		want          int
		work, records int    // afterwards
		again         string // the answer to a repeat, with a layer that waits
	}{
		"it works":                 {func(ctx context.Context) { insertWork(t, ctx) }, nil, 500, 0, 0, "200 done"},
		"CommitIf says yes":        {func(ctx context.Context) { insertWork(t, ctx) }, all, 500, 0, 0, "200 done"},
		"it does nothing":          {func(context.Context) {}, nil, 500, 0, 0, "200 done"},
		"after an explicit Commit": {func(ctx context.Context) { insertWork(t, ctx); must(t, sqlreq.Commit(ctx)); insertWork(t, ctx) }, nil, 500, 1, 1, "409"},
		"nothing after the Commit": {func(ctx context.Context) { insertWork(t, ctx); must(t, sqlreq.Commit(ctx)) }, nil, 200, 1, 1, "409"},
		"after a Rollback":         {func(ctx context.Context) { must(t, sqlreq.Rollback(ctx)); insertWork(t, ctx) }, nil, 500, 0, 0, "200 done"},
		"nothing after a Rollback": {func(ctx context.Context) { must(t, sqlreq.Rollback(ctx)) }, nil, 200, 0, 0, "200 done"},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.CommitIf = c.commitIf
			ready, goOn, done := make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
			once := newOnce()
			h := once.Handler(handle(func(w http.ResponseWriter, r *http.Request) {
				c.handler(r.Context())
				close(ready)
				<-goOn
				fmt.Fprint(w, "late")
			}))
			srv := sqlreqtest.Serve(t, reg.Middleware(impatient(h, ready, done)))
			if got := post(t, srv.URL, "k", "x"); got.status != c.want {
				t.Errorf("got %v, want %d", got, c.want)
			}
			close(goOn)
			<-done
			rows(t, db, c.work, c.records)
			good := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, handle(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") }))
			if got := post(t, good.URL, "k", "x"); !strings.HasPrefix(got.String(), c.again) {
				t.Errorf("a repeat: got %v, want %s", got, c.again)
			}
			sqlreqtest.Idle(t, db)
		})
	}
}

// http.TimeoutHandler in between, a CommitIf that commits its 503, and a handler that
// comes to its end in every state of the request's.
func TestI11TimeoutHandlerAndCommitIf(t *testing.T) {
	for name, wait := range map[string]func(context.Context) error{
		"in the handler": func(context.Context) error { return nil },
		"in the INSERT":  func(context.Context) error { time.Sleep(2 * time.Second); return nil }, // takes no notice of its context
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d fakedb.DB
				d.Stmt = func(ctx context.Context, q string) error {
					if strings.HasPrefix(q, "INSERT INTO idempotency_keys") {
						return wait(ctx)
					}
					return nil
				}
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
				reg.CommitIf = func(int, http.Header) bool { return true }
				once := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
					_, _ = main.ExecContext(r.Context(), sqlreqtest.InsertWork)
					time.Sleep(2 * time.Second) // by the clock of the bubble
				}))
				rec := ask(t.Context(), reg.Middleware(http.TimeoutHandler(once, time.Second, "")))
				if rec.Code != 503 || d.Count("COMMIT") != 0 || d.Count("ROLLBACK") != 1 {
					t.Errorf("got %d, %q", rec.Code, d.Log())
				}
				time.Sleep(time.Minute)
				d.CheckClean(t)
			})
		})
	}
}

// A redirect that is to be repeated elsewhere rolls the record's database back, and
// needs no record: what is open in others is committed.
func TestI3RedirectCommitsOtherDatabases(t *testing.T) {
	db, other := open(t), open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "other", DB: other})
	srv := serve(t, reg, newOnce(), handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.InsertWork)
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	if got := post(t, srv.URL, "k", "x"); got.status != 307 {
		t.Errorf("got %v, want 307", got)
	}
	rows(t, db, 0, 0)
	if n := sqlreqtest.Count(t, other, "work"); n != 1 {
		t.Errorf("got %d rows in the other database, want 1", n)
	}
}

// A layer that waits commits as ever, and so does one that answers after the handler.
func TestI11LayerThatWaits(t *testing.T) {
	db := open(t)
	h := newOnce().Handler(new(work))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		done := make(chan struct{})
		go func() { h.ServeHTTP(w, r); close(done) }()
		<-done
		insertWork(t, r.Context())
	})))
	want(t, post(t, srv.URL, "k", "x"), "201 order 1")
	want(t, post(t, srv.URL, "k", "x"), "201 order 1 (replayed)")
	rows(t, db, 3, 1)
}

// No Content-Type and a Flush: net/http finds it out by what there is of the body then.
func TestI2TypeThatWasFoundOut(t *testing.T) {
	flush := func(w http.ResponseWriter) { w.(http.Flusher).Flush() }
	for name, c := range map[string]struct {
		h    func(w http.ResponseWriter)
		want string
	}{
		"a Flush in the middle": {func(w http.ResponseWriter) { fmt.Fprint(w, "<"); flush(w); fmt.Fprint(w, "html>") }, "text/plain; charset=utf-8"},
		"two":                   {func(w http.ResponseWriter) { fmt.Fprint(w, "<"); flush(w); fmt.Fprint(w, "html>"); flush(w) }, "text/plain; charset=utf-8"},
		"a status, then a Flush in the middle": {func(w http.ResponseWriter) {
			w.WriteHeader(202)
			fmt.Fprint(w, "%PDF-")
			flush(w)
			fmt.Fprint(w, "x")
		}, "application/pdf"},
		"a Flush first":   {func(w http.ResponseWriter) { flush(w); fmt.Fprint(w, "<html>") }, ""},
		"a Flush at last": {func(w http.ResponseWriter) { fmt.Fprint(w, "<"); fmt.Fprint(w, "html>"); flush(w) }, "text/html; charset=utf-8"},
		"no Flush":        {func(w http.ResponseWriter) { fmt.Fprint(w, "<"); fmt.Fprint(w, "html>") }, "text/html; charset=utf-8"},
		"with an encoding": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "x")
			fmt.Fprint(w, "<html>")
			flush(w)
		}, ""},
		"with a type": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/x")
			fmt.Fprint(w, "<html>")
			flush(w)
		}, "text/x"},
	} {
		t.Run(name, func(t *testing.T) {
			first, again, calls := twice(t, newOnce(), handle(func(w http.ResponseWriter, _ *http.Request) { c.h(w) }))
			if calls != 1 || !again.replayed || first.body != again.body || first.status != again.status {
				t.Errorf("got %v, then %v", first, again)
			}
			if a, b := first.header.Get("Content-Type"), again.header.Get("Content-Type"); a != c.want || b != c.want {
				t.Errorf("got the types %q, then %q, want %q", a, b, c.want)
			}
		})
	}
}

// A trailer is sent at a repeat if, and only if, it was sent the first time: net/http sends
// one that was not declared only where it knows of it when the header leaves, or where the
// answer has no length.
func TestI2TrailersThatAreNotDeclared(t *testing.T) {
	set := func(w http.ResponseWriter) { w.Header().Set(http.TrailerPrefix+"X-Sum", "1") }
	flush := func(w http.ResponseWriter) { w.(http.Flusher).Flush() }
	write := func(n int) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat("x", n)) }
	}
	for name, c := range map[string]struct {
		steps []func(http.ResponseWriter)
		sent  bool
	}{
		"before a short answer":    {[]func(http.ResponseWriter){set, write(3)}, true},
		"after a short answer":     {[]func(http.ResponseWriter){write(3), set}, false},
		"after a page":             {[]func(http.ResponseWriter){write(10_000), set}, true},
		"after a large answer":     {[]func(http.ResponseWriter){write(100_000), set}, true},
		"after a Flush":            {[]func(http.ResponseWriter){write(3), flush, write(3), set}, true},
		"after a Flush of nothing": {[]func(http.ResponseWriter){flush, write(3), set}, true},
		"before a Flush":           {[]func(http.ResponseWriter){write(3), set, flush}, true},
		"with no body":             {[]func(http.ResponseWriter){set}, true},
		"after the status":         {[]func(http.ResponseWriter){func(w http.ResponseWriter) { w.WriteHeader(201) }, set, write(3)}, false},
		"set twice":                {[]func(http.ResponseWriter){set, write(3), func(w http.ResponseWriter) { w.Header().Set(http.TrailerPrefix+"X-Sum", "2") }}, true},
		"declared": {[]func(http.ResponseWriter){
			func(w http.ResponseWriter) { w.Header().Set("Trailer", "X-Sum") }, write(3), func(w http.ResponseWriter) { w.Header().Set("X-Sum", "1") },
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			first, again, _ := twice(t, newOnce(), handle(func(w http.ResponseWriter, _ *http.Request) {
				for _, step := range c.steps {
					step(w)
				}
			}))
			if (first.trailer.Get("X-Sum") != "") != c.sent || first.trailer.Get("X-Sum") != again.trailer.Get("X-Sum") || first.body != again.body {
				t.Errorf("got the trailers %v, then %v", first.trailer, again.trailer)
			}
		})
	}
}

// A boundary of more than 70 characters is none (RFC 2046): looking for it would take
// a time that grows with its square.
func TestI5LongBoundary(t *testing.T) {
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), new(work))
	for i, n := range []int{70, 71, 200_000} {
		key, boundary := fmt.Sprint("k", i), strings.Repeat("a", n)
		form := func() reply { // a body that looks like the begin of the boundary all along
			return post(t, srv.URL, key, "--"+strings.Repeat("a", 60_000), "Content-Type", "multipart/form-data; boundary="+boundary)
		}
		want(t, form(), fmt.Sprint("201 order ", i+1))
		want(t, form(), fmt.Sprint("201 order ", i+1, " (replayed)"))
	}
	// With one that is too long the body counts as it is.
	one, two := strings.Repeat("a", 71), strings.Repeat("b", 71)
	want(t, post(t, srv.URL, "k", "--"+one, "Content-Type", "multipart/form-data; boundary="+one), "201 order 4")
	if got := post(t, srv.URL, "k", "--"+two, "Content-Type", "multipart/form-data; boundary="+two); got.status != 422 {
		t.Errorf("got %v, want 422", got)
	}
	want(t, post(t, srv.URL, "l", "--"+one[1:], "Content-Type", "multipart/form-data; boundary="+one[1:]), "201 order 5")
	want(t, post(t, srv.URL, "l", "--"+two[1:], "Content-Type", "multipart/form-data; boundary="+two[1:]), "201 order 5 (replayed)")
}

// A Hijack that was refused is no answer: the handler still runs.
func TestI11NobodyWaitsAfterARefusedHijack(t *testing.T) {
	db := open(t)
	ready, goOn, done := make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	h := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
			t.Error("hijacked")
		}
		close(ready)
		<-goOn
	}))
	srv := sqlreqtest.Serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(impatient(
		handle(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(refusingHijack{w}, r) }), ready, done)))
	want(t, post(t, srv.URL, "k", "x"), "500 Internal Server Error")
	rows(t, db, 0, 0)
	close(goOn)
	<-done
}
