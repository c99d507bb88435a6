// G7. Finished is finished: whatever a program keeps of a request that is over, and goes
// on using beside later ones, reaches none of them. Memory of a response is used again,
// that of an attempt is not: what a handler has left running may have pointers into it.

package guarantees_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/held"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// oldKinds are the requests of this test: idle never asks for the header, and header
// has no transaction either.
var oldKinds = []string{"idle", "header", "insert", "savepoint", "stream", "failed", "retry", "panic"}

const (
	oldClients = 3  // of each protocol, at once
	oldLater   = 28 // requests of each
	oldRounds  = 8  // of uses of what was kept, in the middle of each later request
)

// oldRequest is what a program keeps of an attempt at a request.
type oldRequest struct {
	who      string
	body     string // of the request
	attempt  int32
	w        http.ResponseWriter
	r        *http.Request
	header   http.Header // nil: the handler never asked for it
	contexts map[string]context.Context
	tx       *sql.Tx
	stmt     *sql.Stmt
}

// oldWorld serves requests, some of which are kept.
type oldWorld struct {
	t       *testing.T
	db      *sql.DB
	kept    chan *oldRequest
	between chan struct{} // a round of uses is over
	stop    chan struct{}
}

type oldValue struct{}

// oldMark is what a middleware outside puts into the context of a request.
type oldMark struct {
	who      string
	attempts atomic.Int32
}

func newOldWorld(t *testing.T) (o *oldWorld, h http.Handler) {
	o = &oldWorld{t: t, db: sqlreqtest.OpenDB(t), kept: make(chan *oldRequest, 100), between: make(chan struct{}), stop: make(chan struct{})}
	o.db.SetMaxOpenConns(1) // so that writers of SQLite take turns
	mux := http.NewServeMux()
	mux.Handle("/", wireRegistry(t, false, sqlreq.Binding{DB: o.db}).Middleware(sqlreq.HandlerFunc(o.serve)))
	again := wireRegistry(t, false, sqlreq.Binding{DB: o.db})
	again.Retry = sqlreqtest.Retries(3)
	mux.Handle("/retry", again.Middleware(sqlreq.HandlerFunc(o.serve)))
	return o, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), oldValue{}, &oldMark{who: r.Header.Get("Who")})
		mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// oldBody is the body of a request, and of a good response to it.
func oldBody(kind, who string) string {
	if kind == "stream" {
		return strings.Repeat(who+" ", wireLimit/4)
	}
	return strings.Repeat(who+" ", 50)
}

func (o *oldWorld) serve(w http.ResponseWriter, r *http.Request) error {
	kind, mark := path.Base(r.URL.Path), r.Context().Value(oldValue{}).(*oldMark)
	body := oldBody(kind, mark.who)
	x := &oldRequest{who: mark.who, body: body, attempt: mark.attempts.Add(1), w: w, r: r}
	x.contexts = map[string]context.Context{"request": r.Context(), "without its end": context.WithoutCancel(r.Context())}
	if kind != "idle" {
		w.Header().Set("X-Who", x.who)
		x.header = w.Header()
	}
	if kind != "idle" && kind != "header" {
		o.work(x, kind == "savepoint")
	}
	_, _ = io.WriteString(w, body[:len(body)/2])
	if r.Header.Get("Keep") == "" {
		for range oldRounds {
			<-o.between
		}
	} else {
		o.kept <- x
	}
	_, _ = w.Write([]byte(body[len(body)/2:]))
	switch {
	case kind == "failed":
		return sqlreqtest.ErrTest
	case kind == "retry" && x.attempt == 1:
		return sqlreqtest.Conflict{}
	case kind == "panic":
		panic(http.ErrAbortHandler)
	}
	return nil
}

// work adds a row, and keeps what can be kept of the transaction.
func (o *oldWorld) work(x *oldRequest, inSavepoint bool) {
	hook := func(ctx context.Context) { x.contexts["hook"] = ctx }
	ctx := x.r.Context()
	insert := func(ctx context.Context) (err error) {
		x.contexts["use"] = ctx
		_, err = sqlreqtest.Main.ExecContext(ctx, "INSERT INTO work (note) VALUES (?)", x.who)
		return err
	}
	err := errors.Join(sqlreq.AfterCommit(ctx, hook), sqlreq.AfterRollback(ctx, hook))
	if inSavepoint {
		err = errors.Join(err, sqlreq.Savepoint(ctx, insert))
	} else {
		err = errors.Join(err, insert(ctx))
	}
	var errTx, errStmt error
	x.tx, errTx = sqlreq.Tx(ctx)
	x.stmt, errStmt = sqlreqtest.Main.PrepareContext(ctx, sqlreqtest.InsertWork)
	if err = errors.Join(err, errTx, errStmt); err != nil {
		o.t.Errorf("%s: %v", x.who, err)
	}
}

// useOn uses what was kept until the test is over, round after round.
func (o *oldWorld) useOn(x *oldRequest, use func(*testing.T)) {
	<-x.r.Context().Done() // net/http has taken the response back
	for {
		use(o.t)
		select {
		case o.between <- struct{}{}:
		case <-o.stop:
			return
		}
	}
}

// useResponse uses the request and its response.
func (x *oldRequest) useResponse(t *testing.T) {
	rc := http.NewResponseController(x.w)
	for name, call := range map[string]func() (int64, error){
		"Write":            func() (int64, error) { n, err := x.w.Write([]byte("old")); return int64(n), err },
		"WriteString":      func() (int64, error) { n, err := io.WriteString(x.w, "old"); return int64(n), err },
		"ReadFrom":         func() (int64, error) { return x.w.(io.ReaderFrom).ReadFrom(strings.NewReader("old")) },
		"Flush":            func() (int64, error) { return 0, rc.Flush() },
		"Hijack":           func() (int64, error) { _, _, err := rc.Hijack(); return 0, err },
		"SetReadDeadline":  func() (int64, error) { return 0, rc.SetReadDeadline(time.Unix(1, 0)) },
		"SetWriteDeadline": func() (int64, error) { return 0, rc.SetWriteDeadline(time.Unix(1, 0)) },
		"EnableFullDuplex": func() (int64, error) { return 0, rc.EnableFullDuplex() },
	} {
		if n, err := call(); n != 0 || !errors.Is(err, held.ErrReturned) {
			t.Errorf("%s, attempt %d: %s: got %d, %v, want %v", x.who, x.attempt, name, n, err, held.ErrReturned)
		}
	}
	x.w.WriteHeader(http.StatusTeapot)
	x.w.Header().Set("X-Old", x.who)
	if x.header != nil {
		x.header.Set("X-Old-Map", x.who)
	}
	rest := make([]byte, 10)
	n, _ := x.r.Body.Read(rest) // over HTTP/2 what has arrived can still be read
	if x.r.Header.Get("Who") != x.who || x.r.Method != "POST" || !strings.Contains(x.body, string(rest[:n])) {
		t.Errorf("%s, attempt %d: got the %s of %q, and of a body %q", x.who, x.attempt, x.r.Method, x.r.Header.Get("Who"), rest[:n])
	}
}

// useWork uses the contexts, and what was begun.
func (x *oldRequest) useWork(t *testing.T) {
	for name, ctx := range x.contexts {
		sqlreqtest.Finished(t, ctx)
		for call, err := range map[string]error{
			"BeforeCommit": sqlreq.BeforeCommit(ctx, func(context.Context) error { return nil }),
			"RollbackOnly": sqlreq.RollbackOnly(ctx, nil),
		} {
			if !errors.Is(err, sqlreq.ErrFinished) {
				t.Errorf("%s, attempt %d, context of the %s: %s: got %v, want ErrFinished", x.who, x.attempt, name, call, err)
			}
		}
		if mark := ctx.Value(oldValue{}).(*oldMark); mark.who != x.who || sqlreq.Begun(ctx) {
			t.Errorf("%s, attempt %d: the context of the %s is that of %s, begun: %t", x.who, x.attempt, name, mark.who, sqlreq.Begun(ctx))
		}
	}
	if ctx := x.contexts["request"]; ctx.Err() != context.Canceled {
		t.Errorf("%s, attempt %d: Err of the context: %v", x.who, x.attempt, ctx.Err())
	}
	<-x.contexts["request"].Done()
	if x.tx == nil {
		return
	}
	_, errExec := x.tx.Exec(sqlreqtest.InsertWork)
	for i, err := range []error{errExec, x.tx.Commit(), x.tx.Rollback()} {
		if !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("%s, attempt %d: use %d of the *sql.Tx: got %v, want ErrTxDone", x.who, x.attempt, i+1, err)
		}
	}
	if _, err := x.stmt.Exec(); err == nil {
		t.Errorf("%s, attempt %d: the prepared statement still runs", x.who, x.attempt)
	}
}

// ask sends a request, and returns what is wrong with the answer, if anything.
func (o *oldWorld) ask(srv *httptest.Server, kind, who string, keep bool) error {
	req, err := http.NewRequest("POST", srv.URL+"/"+kind, strings.NewReader(oldBody(kind, who)))
	if err != nil {
		return err
	}
	req.Header.Set("Who", who)
	if keep {
		req.Header.Set("Keep", "1")
	}
	res, err := srv.Client().Do(req)
	if err != nil || kind == "panic" {
		if err == nil {
			_ = res.Body.Close()
			return fmt.Errorf("got %d, want no answer", res.StatusCode)
		}
		if kind == "panic" {
			return nil
		}
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	status, body, header := 200, oldBody(kind, who), who
	switch kind {
	case "failed":
		status, body, header = 500, "Internal Server Error\n", ""
	case "idle":
		header = ""
	}
	if err != nil || res.StatusCode != status || string(got) != body || res.Header.Get("X-Who") != header || res.Header.Get("X-Old")+res.Header.Get("X-Old-Map") != "" {
		return fmt.Errorf("got %d %v, %d bytes, %.200q, %v", res.StatusCode, res.Header, len(got), got, err)
	}
	return nil
}

// TestG7OldRequestsReachNoOther: handlers leave goroutines that go on using all they
// were given, while requests of all kinds of other clients are answered, on the same
// connections.
func TestG7OldRequestsReachNoOther(t *testing.T) {
	o, h := newOldWorld(t)
	servers := map[string]*httptest.Server{"HTTP/1.1": sqlreqtest.Serve(t, h), "HTTP/2": sqlreqtest.ServeHTTP2(t, h)}
	var want []string // rows
	for proto, srv := range servers {
		for _, kind := range oldKinds {
			who := fmt.Sprint("old-", kind, "-", proto)
			if err := o.ask(srv, kind, who, true); err != nil {
				t.Errorf("%s: %v", who, err)
			}
			want = append(want, oldRow(kind, who)...)
		}
	}
	var users, clients sync.WaitGroup
	for range len(servers) * (len(oldKinds) + 1) { // of a Retry both attempts
		x := <-o.kept
		users.Go(func() { o.useOn(x, x.useResponse) })
		users.Go(func() { o.useOn(x, x.useWork) })
	}
	for proto, srv := range servers {
		for client := range oldClients {
			for n := range oldLater {
				kind, who := oldKinds[(n+client)%len(oldKinds)], fmt.Sprint("later-", proto, "-", client, "-", n)
				want = append(want, oldRow(kind, who)...)
			}
			clients.Go(func() {
				for n := range oldLater {
					kind, who := oldKinds[(n+client)%len(oldKinds)], fmt.Sprint("later-", proto, "-", client, "-", n)
					if err := o.ask(srv, kind, who, false); err != nil {
						t.Errorf("%s (%s): %v", who, kind, err)
					}
				}
			})
		}
	}
	clients.Wait()
	close(o.stop)
	users.Wait()
	wireIdle(t, o.db)
	got := strings.Fields(sqlreqtest.Notes(t, o.db))
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got the rows %v, want %v", got, want)
	}
}

// oldRow returns the row that a request leaves behind, if any.
func oldRow(kind, who string) []string {
	switch kind {
	case "insert", "savepoint", "stream", "retry":
		return []string{who}
	}
	return nil
}
