package ports

import (
	"context"
	"database/sql"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/integration/ports/sales"
	after "github.com/sqlreq/sqlreq/integration/ports/sales/after"
	before "github.com/sqlreq/sqlreq/integration/ports/sales/before"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// salesEdition is an edition at work.
type salesEdition struct {
	name string
	*httptest.Server
	db   *sql.DB
	ends chan context.Context // of requests with "?watch=1", when they arrive
	read chan struct{}        // told when a handler reads the body of one
}

// startSales starts the editions. COMMIT fails if there is a product "no commit", the audit of a user "no audit" fails.
func startSales(t *testing.T) []*salesEdition {
	var all []*salesEdition
	for _, name := range []string{"before", "after"} {
		e := &salesEdition{name: name, ends: make(chan context.Context, 1), read: make(chan struct{}, 1)}
		e.db = openDB(t, sales.Schema+`
			INSERT INTO users (name, email) VALUES ('Ann', 'ann@example.org');
			CREATE TRIGGER no_audit BEFORE INSERT ON audits WHEN NEW.object = 'no audit' BEGIN SELECT RAISE(ABORT, 'on purpose'); END;
			CREATE TRIGGER no_commit AFTER INSERT ON products WHEN NEW.name = 'no commit'
				BEGIN INSERT INTO orphans (parent) VALUES (404); END;`)
		e.db.SetMaxOpenConns(1)
		program := after.New
		if name == "before" {
			program = before.New
		}
		h, err := program(e.db)
		if err != nil {
			t.Fatal(err)
		}
		e.Server = sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery != "" {
				e.ends <- r.Context()
				r.Body = watched{r.Body, e.read}
			}
			h.ServeHTTP(w, r)
		}))
		all = append(all, e)
	}
	return all
}

// watched is a body that tells when it is read.
type watched struct {
	io.ReadCloser
	read chan<- struct{}
}

func (w watched) Read(p []byte) (int, error) {
	select {
	case w.read <- struct{}{}:
	default:
	}
	return w.ReadCloser.Read(p)
}

func plain(line, body string) request { return request{line: line, body: body} }

var salesRequests = []request{
	plain("POST /users", `{"name":"Bob","email":"bob@example.org"}`),
	plain("POST /users", `{"name":"Bob","email":"bob@example.org"}`),
	plain("POST /users", `{`),
	plain("GET /users/2", ""),
	plain("GET /users/404", ""),
	plain("GET /users/x", ""),
	plain("POST /tran", `{"user":{"name":"Cid","email":"cid@example.org"},"product":{"name":"Comics"}}`),
	plain("POST /tran", `{"user":{"name":"Cid","email":"cid@example.org"},"product":{"name":"Comics"}}`),
	plain("POST /tran", `{"user":{"name":"Dan","email":"dan@example.org"},"product":{}}`),
	plain("POST /tran", `x`),
	plain("POST /users/1/products", "one\ntwo\nthree\n"),
	plain("POST /users/404/products", "one\n"),
	plain("POST /users/1/products", ""),
	plain("POST /users/1/products", strings.Repeat(strings.Repeat("long ", 100)+"\n", 10)),
	plain("POST /users", `{"name":"no audit","email":"x@example.org"}`),
	plain("POST /tran", `{"user":{"name":"Eve","email":"eve@example.org"},"product":{"name":"no commit"}}`),
	plain("GET /users/1", ""),
	plain("PUT /users/1", ""),
	plain("GET /nothing", ""),
}

func TestSalesNormalAnswers(t *testing.T) {
	all := startSales(t)
	sameAnswers(t, []*httptest.Server{all[0].Server, all[1].Server}, []string{"before", "after"}, salesRequests)
}

// TestSalesFaults: what goes wrong before the port, and right after it.
func TestSalesFaults(t *testing.T) {
	const users, products = `SELECT COUNT(*) FROM users`, `SELECT COUNT(*) FROM products`
	for _, fault := range []struct {
		name, line, body string
		before, after    int // the status
		query            string
		left, leftAfter  int // what it finds
	}{
		{"the second of two stores fails, and the first stays", "POST /users", `{"name":"no audit","email":"x"}`, 500, 500, users, 2, 1},
		{"a store without a transaction is left out in one", "POST /tran", `{"user":{"name":"x","email":"x"},"product":{"name":"x"}}`,
			200, 200, `SELECT COUNT(*) FROM audits`, 0, 1},
		{"a 201 is sent before a COMMIT that fails", "POST /users/1/products", "x\nno commit\n", 201, 500, products, 0, 0},
		{"the work of a 400 is committed", "POST /users/1/products", "x\n\n", 400, 400, products, 1, 0},
	} {
		for _, e := range startSales(t) {
			got := send(t, e.Server, plain(fault.line, fault.body))
			idle(e.db)
			status, left := fault.after, fault.leftAfter
			if e.name == "before" {
				status, left = fault.before, fault.left
			}
			if n := number(t, e.db, fault.query); got.status != status || n != left {
				t.Errorf("%s: %s: got %v and %d rows, want %d and %d", fault.name, e.name, got, n, status, left)
			}
		}
	}
}

// TestSalesLargeAnswer: an answer that is larger than what sqlreq holds is broken off when COMMIT fails, through the
// middlewares of the framework.
func TestSalesLargeAnswer(t *testing.T) {
	body := strings.Repeat(strings.Repeat("x", 1000)+"\n", 100) + "no commit\n"
	for _, e := range startSales(t) {
		got, err := try(plain("POST /users/1/products", "").new(t, e.URL, strings.NewReader(body)))
		if complete := err == nil; complete != (e.name == "before") || got.status == 201 && complete && e.name == "after" {
			t.Errorf("%s: got %d, %d bytes and %v", e.name, got.status, len(got.body), err)
		}
		idle(e.db)
		if n := number(t, e.db, `SELECT COUNT(*) FROM products`); n != 0 {
			t.Errorf("%s: got %d products, want none", e.name, n)
		}
		if e.name == "before" {
			continue
		}
		// Where the writer can neither set a deadline nor be taken over, the panic is all that breaks it off.
		r := plain("POST /users/1/products", "").new(t, "", strings.NewReader(body))
		if v := sqlreqtest.Panicked(func() { e.Config.Handler.ServeHTTP(httptest.NewRecorder(), r) }); v != http.ErrAbortHandler {
			t.Errorf("the middleware that recovers has passed %v on, want http.ErrAbortHandler", v)
		}
	}
}

// TestSalesUnavailable: a request that waits for the pool until its time is over is answered with 503, without the text of
// an error. Before the port its BEGIN has no context, and would wait on.
func TestSalesUnavailable(t *testing.T) {
	e := startSales(t)[1]
	conn, err := e.db.Conn(t.Context()) // the only one
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, expire := sqlreqtest.Deadline(t.Context())
	rec := httptest.NewRecorder()
	done := make(chan struct{})
	waits := e.db.Stats().WaitCount
	go func() {
		e.Config.Handler.ServeHTTP(rec, plain("GET /users/1", "").new(t, "", nil).WithContext(ctx))
		close(done)
	}()
	sqlreqtest.Pool(e.db, waits+1)
	expire()
	<-done
	if rec.Code != 503 || rec.Body.String() != `{"code":"Service Unavailable","message":"the server has failed"}` {
		t.Errorf("got %d %s", rec.Code, rec.Body)
	}
}

// TestSalesSlowBody: before the port the only connection is taken while a client sends, and other requests wait for the
// client. After it none is.
func TestSalesSlowBody(t *testing.T) {
	for _, e := range startSales(t) {
		arrives, body := io.Pipe()
		slow, other := make(chan answer, 1), make(chan answer, 1)
		go func() { a, _ := try(plain("POST /tran?watch=1", "").new(t, e.URL, arrives)); slow <- a }()
		if _, err := io.WriteString(body, `{"user":`); err != nil {
			t.Fatal(err)
		}
		<-e.ends
		<-e.read // the handler waits for the rest
		get := func() { a, _ := try(plain("GET /users/1", "").new(t, e.URL, nil)); other <- a }
		waits := e.db.Stats().WaitCount
		if e.name == "before" {
			go get()
			sqlreqtest.Pool(e.db, waits+1)
			select {
			case a := <-other:
				t.Errorf("before: answered %v though the connection is taken", a)
			default:
			}
		} else {
			get()
			if a := <-other; a.status != 200 {
				t.Errorf("after: got %v", a)
			}
		}
		_, _ = io.WriteString(body, `{"name":"x","email":"x"},"product":{"name":"x"}}`)
		body.Close()
		if a := <-slow; a.status != 200 {
			t.Errorf("%s: got %v", e.name, a)
		}
		if e.name == "before" {
			<-other
		}
		if n := e.db.Stats().WaitCount - waits; e.name == "after" && n != 0 {
			t.Errorf("after: %d requests have waited", n)
		}
	}
}

// TestSalesNoDatabase: before the port a request waits for a connection that it does not need, also when its client has
// left: BEGIN has no context there. After it the request is answered.
func TestSalesNoDatabase(t *testing.T) {
	for _, e := range startSales(t) {
		conn, err := e.db.Conn(t.Context()) // the only one
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		done := make(chan answer, 1)
		waits := e.db.Stats().WaitCount
		go func() {
			a, _ := try(plain("POST /users/1/products?watch=1", "").new(t, e.URL, nil).WithContext(ctx))
			done <- a
		}()
		request := <-e.ends
		if e.name == "after" {
			if a := <-done; a.status != 201 {
				t.Errorf("after: got %v", a)
			}
		} else {
			sqlreqtest.Pool(e.db, waits+1)
			leave()
			<-request.Done() // the server knows
			if s := e.db.Stats(); s.WaitCount != waits+1 || s.InUse != 1 {
				t.Errorf("before: got %+v", s)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if e.name == "before" {
			<-done
		}
		idle(e.db)
		if n := e.db.Stats().WaitCount - waits; e.name == "after" && n != 0 {
			t.Errorf("after: waited %d times", n)
		}
	}
}
