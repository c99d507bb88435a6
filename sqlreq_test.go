package sqlreq_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	_ "modernc.org/sqlite"
)

type nullWriter struct{ h http.Header }

func (n *nullWriter) Header() http.Header         { return n.h }
func (n *nullWriter) Write(p []byte) (int, error) { return len(p), nil }
func (n *nullWriter) WriteHeader(int)             {}

func TestSmoke(t *testing.T) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "x.db")+"?_pragma=foreign_keys(1)")
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(`create table a(id integer primary key); create table b(a int references a(id) deferrable initially deferred)`)
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ok" {
			if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), "insert into a default values"); err != nil {
				t.Error(err)
			}
		} else if r.URL.Path == "/bad" {
			if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), "insert into b values(77)"); err != nil {
				t.Error(err)
			}
		}
		w.Header().Set("X-A", "1")
		w.WriteHeader(201)
		io.WriteString(w, strings.Repeat("x", 1024))
	}))
	srv := httptest.NewServer(h)
	defer srv.Close()
	for _, p := range []string{"/ok", "/bad", "/"} {
		res, err := http.Get(srv.URL + p)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		fmt.Println(p, res.Status, res.Header, len(b))
	}
	fmt.Println(db.Stats().InUse)
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-A", "1")
		w.WriteHeader(201)
		w.Write(make([]byte, 1024))
	})
	req := httptest.NewRequest("GET", "/", nil)
	nw := &nullWriter{http.Header{}}
	fmt.Println(testing.AllocsPerRun(1000, func() { bare.ServeHTTP(nw, req) }))
	m := reg.Middleware(bare)
	fmt.Println(testing.AllocsPerRun(1000, func() { m.ServeHTTP(nw, req) }))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req = req.WithContext(ctx)
	hand := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(r.Context(), nil)
		if err != nil {
			t.Error(err)
		}
		tx.ExecContext(r.Context(), "insert into a default values")
		tx.Commit()
		w.WriteHeader(201)
	})
	fmt.Println(testing.AllocsPerRun(300, func() { hand.ServeHTTP(nw, req) }))
	ours := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			t.Error(err)
		}
		tx.ExecContext(r.Context(), "insert into a default values")
		w.WriteHeader(201)
	}))
	fmt.Println(testing.AllocsPerRun(300, func() { ours.ServeHTTP(nw, req) }))
	res := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			m.ServeHTTP(nw, req)
		}
	})
	fmt.Println(res, res.MemString())
	res = testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			bare.ServeHTTP(nw, req)
		}
	})
	fmt.Println(res, res.MemString())
}
