package idempotency_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func byUser(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }

func TestI6ScopesAreApart(t *testing.T) {
	db := open(t)
	once := newOnce()
	once.Scope = byUser
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, new(work))
	for i, scope := range []string{"ann", "ANN", "Ann", "ann.", "", "ä", "a", strings.Repeat("x", 255)} {
		want(t, post(t, srv.URL, "k", "x", "X-User", scope), fmt.Sprint("201 order ", i+1))
		want(t, post(t, srv.URL, "k", "x", "X-User", scope), fmt.Sprint("201 order ", i+1, " (replayed)"))
	}
	for i, key := range []string{"K", "k1", `"k "`, `" k"`} {
		want(t, post(t, srv.URL, key, "x", "X-User", "ann"), fmt.Sprint("201 order ", i+9))
	}
	rows(t, db, 12, 12)
}

func TestI6ScopeThatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		scope string
		err   error
		want  int
	}{
		"too long":       {strings.Repeat("x", 256), nil, 500},
		"no UTF-8":       {"\xff", nil, 500},
		"NUL":            {"a\x00b", nil, 500},
		"an error":       {"", errors.New("test"), 500},
		"a status error": {"", sqlreq.Errorf(401, "who are you?"), 401},
	} {
		t.Run(name, func(t *testing.T) {
			var d fakedb.DB
			once := newOnce()
			once.Scope = func(*http.Request) (string, error) { return c.scope, c.err }
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}), once, new(work))
			if got := post(t, srv.URL, "k", "x"); got.status != c.want {
				t.Errorf("got %v, want %d", got, c.want)
			}
			d.Check(t)
		})
	}
}

func TestI7Syntax(t *testing.T) {
	var d fakedb.DB
	for _, required := range []bool{false, true} {
		once := newOnce()
		once.Required = required
		srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}), once, new(work))
		for _, values := range [][]string{{""}, {`""`}, {"a b"}, {"a,b"}, {`"a", "b"`}, {"a", "b"}, {`"a"`, `"a"`}, {`"a`}, {`a"`}, {`"a"b`}, {"ä"}, {strings.Repeat("x", 256)}} {
			req, _ := http.NewRequest("POST", srv.URL, nil)
			req.Header["Idempotency-Key"] = values
			got, err := send(req)
			if err != nil || got.status != 400 || got.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%q: got %v %v, want a 400", values, got, err)
			}
		}
	}
	d.Check(t)
}

func TestI7BothFormsAreTheSameKey(t *testing.T) {
	db := open(t)
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), newOnce(), new(work))
	want(t, post(t, srv.URL, "8e03978e-40d5-43e8-bc93-6894a57f9324", "x"), "201 order 1")
	want(t, post(t, srv.URL, `"8e03978e-40d5-43e8-bc93-6894a57f9324"`, "x"), "201 order 1 (replayed)")
	want(t, post(t, srv.URL, `"8e03978e-40d5-43e8-bc93-6894a57f9324";v=1;w`, "x"), "201 order 1 (replayed)")
}

func TestI7Required(t *testing.T) {
	db := open(t)
	once := newOnce()
	once.Required = true
	srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, handle(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") }))
	if got := post(t, srv.URL, "", "x"); got.status != 400 || !strings.Contains(got.body, "Idempotency-Key is missing") {
		t.Errorf("got %v, want a 400", got)
	}
	if status, body, err := sqlreqtest.Get(t, srv.URL); status != 200 || body != "done" || err != nil {
		t.Errorf("GET: got %d %q %v", status, body, err)
	}
}

func TestI7OtherHeaders(t *testing.T) {
	for _, name := range []string{"webhook-id", "X-GitHub-Delivery", "PayPal-Request-Id"} {
		db := open(t)
		once := newOnce()
		once.Header = name
		srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, new(work))
		want(t, post(t, srv.URL, "", "x", name, "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"), "201 order 1")
		want(t, post(t, srv.URL, "", "x", name, "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"), "201 order 1 (replayed)")
		want(t, post(t, srv.URL, "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", "x"), "201 order 2")
	}
}

func TestI8NoKeyOrASafeMethod(t *testing.T) {
	var d fakedb.DB
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
	var w0 http.ResponseWriter
	var r0 *http.Request
	var calls int
	inner := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		if calls++; w != w0 || r != r0 {
			t.Errorf("%s: got another writer or request", r.Method)
		}
	}))
	h := reg.Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
		w0, r0 = w, r
		if n := testing.AllocsPerRun(10, func() { inner.ServeHTTP(w, r) }); n != 0 {
			t.Errorf("%s: got %v allocations, want none", r.Method, n)
		}
	}))
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE"} {
		r, _ := http.NewRequest(method, "/", nil)
		r.Header.Set("Idempotency-Key", "k")
		sqlreqtest.Ask(h, r)
	}
	r, _ := http.NewRequest("POST", "/", strings.NewReader("x"))
	sqlreqtest.Ask(h, r)
	if calls != 5*11 {
		t.Errorf("got %d calls", calls)
	}
	d.Check(t)
}

func TestMistakesPanic(t *testing.T) {
	valid := idempotency.Once{Dialect: idempotency.SQLite, Scope: noScope}
	h := http.NotFoundHandler()
	cases := map[string]func(){
		"Dialect":     func() { (&idempotency.Once{Dialect: 4, Scope: noScope}).Handler(h) },
		"CreateTable": func() { idempotency.Dialect(0).Schema("") },
		"Scope":       func() { (&idempotency.Once{Dialect: idempotency.MySQL}).Handler(h) },
		"Header":      func() { (&idempotency.Once{Dialect: valid.Dialect, Scope: noScope, Header: "a b"}).Handler(h) },
		"Table":       func() { (&idempotency.Once{Dialect: valid.Dialect, Scope: noScope, Table: "a-b"}).Handler(h) },
		"the tab":     func() { idempotency.MySQL.Schema("a.b.c") },
		"1keys":       func() { idempotency.MySQL.Schema("1keys") },
		"a.1keys":     func() { idempotency.MySQL.Schema("a.1keys") },
		`"a."`:        func() { idempotency.MySQL.Schema("a.") },
		"Limit":       func() { (&idempotency.Once{Dialect: valid.Dialect, Scope: noScope, Limit: -1}).Handler(h) },
		"Wait":        func() { (&idempotency.Once{Dialect: valid.Dialect, Scope: noScope, Wait: -1}).Handler(h) },
		"nil":         func() { newOnce().Handler(nil) },
		"function":    func() { newOnce().Do(t.Context(), nil, "", "a", nil) },
		"*Once":       func() { (*idempotency.Once)(nil).Handler(h) },
	}
	for name, mistake := range cases {
		if text, _ := sqlreqtest.Panicked(mistake).(string); !strings.HasPrefix(text, "idempotency: ") || !strings.Contains(text, name) {
			t.Errorf("%s: got the panic %q", name, text)
		}
	}
}

func TestI6TableNames(t *testing.T) {
	for _, name := range []string{"keys2", "_keys", "A.b_2", "a1.b2c3"} {
		if got := idempotency.SQLite.Schema(name); !strings.Contains(got[0], " "+name+" (") {
			t.Errorf("%s: got %q", name, got)
		}
	}
}
