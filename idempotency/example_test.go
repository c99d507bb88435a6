package idempotency_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	_ "modernc.org/sqlite"
)

// shop returns a database in memory with a table of orders and one of records.
func shop(once *idempotency.Once) *sql.DB {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		log.Fatal(err)
	}
	db.SetMaxOpenConns(1) // each connection to :memory: is a database of its own
	if _, err := db.Exec(`CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)`); err != nil {
		log.Fatal(err)
	}
	if err := once.CreateTable(context.Background(), db); err != nil {
		log.Fatal(err)
	}
	return db
}

// createOrder knows nothing of keys.
var createOrder = sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
	result, err := tx.ExecContext(r.Context(), `INSERT INTO orders (item) VALUES (?)`, r.FormValue("item"))
	if err != nil {
		return err
	}
	id, err := result.LastInsertId()
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	_, err = fmt.Fprintf(w, "order %d", id)
	return err
})

// One line around a handler makes its requests safe to repeat.
func Example() {
	once := &idempotency.Once{
		Dialect: idempotency.SQLite,
		Scope:   func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }, // of your authentication
	}
	db := shop(once)
	defer db.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /orders", once.Handler(createOrder))
	h := reg.Middleware(mux)

	order := func(user, key, item string) {
		r := httptest.NewRequest("POST", "/orders?item="+item, nil)
		r.Header.Set("X-User", user)
		r.Header.Set("Idempotency-Key", key)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		replayed := rec.Header().Get("Idempotent-Replayed") == "true"
		fmt.Println(user, key, item, "->", rec.Code, rec.Body, replayed)
	}
	order("ann", `"k1"`, "tea")
	order("ann", `"k1"`, "tea") // the answer was lost on the way
	order("bob", `"k1"`, "tea")
	order("ann", `"k2"`, "tea")
	// Output:
	// ann "k1" tea -> 201 order 1 false
	// ann "k1" tea -> 201 order 1 true
	// bob "k1" tea -> 201 order 2 false
	// ann "k2" tea -> 201 order 3 false
}

// A message that a queue delivers twice is done once.
func ExampleOnce_Do() {
	once := &idempotency.Once{Dialect: idempotency.SQLite}
	db := shop(once)
	defer db.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}
	for _, id := range []string{"m1", "m2", "m1"} {
		first, err := once.Do(context.Background(), reg, "orders", id, func(ctx context.Context) error {
			_, err := sqlreq.DefaultKey.ExecContext(ctx, `INSERT INTO orders (item) VALUES (?)`, id)
			return err
		})
		fmt.Println(id, first, err)
	}
	// Output:
	// m1 true <nil>
	// m2 true <nil>
	// m1 false <nil>
}

// A client of such a service repeats by itself.
func ExampleTransport() {
	answers := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answers++; answers == 1 {
			panic(http.ErrAbortHandler) // the connection breaks
		}
		fmt.Fprintln(w, "done, in answer", answers)
	}))
	defer srv.Close()

	client := &http.Client{Transport: &idempotency.Transport{}}
	res, err := client.Post(srv.URL, "text/plain", strings.NewReader("tea"))
	if err != nil {
		log.Fatal(err)
	}
	defer res.Body.Close()
	fmt.Println(res.StatusCode)
	// Output: 200
}
