package sqlreq_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/sqlreq/sqlreq"
	_ "modernc.org/sqlite"
)

// One line around a mux gives every request its transaction: begun by the
// first use, committed before the response is complete, rolled back by a status
// of 400 or more.
func Example() {
	add := func(w http.ResponseWriter, r *http.Request) {
		tx, err := sqlreq.Tx(r.Context()) // begins the transaction
		if err != nil {
			http.Error(w, "no database", http.StatusServiceUnavailable)
			return
		}
		text := r.FormValue("text")
		if _, err := tx.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, text); err != nil {
			http.Error(w, "not saved", http.StatusInternalServerError)
			return
		}
		if text == "" {
			http.Error(w, "a note needs a text", http.StatusUnprocessableEntity) // rolls back
			return
		}
		w.WriteHeader(http.StatusCreated) // sent when COMMIT has succeeded
		fmt.Fprint(w, "saved")
	}

	db := open()
	defer db.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /notes", add)
	h := reg.Middleware(mux)

	call(h, "POST", "/notes?text=milk", "")
	call(h, "POST", "/notes?text=", "")
	notes(db)
	// Output:
	// POST /notes?text=milk -> 201 saved
	// POST /notes?text= -> 422 a note needs a text
	// notes: 1
}

// A Key is a connection for generated queries, made once: in each request they
// run in that request's transaction.
func ExampleKey() {
	queries := &Queries{db: sqlreq.DefaultKey}
	handler := func(w http.ResponseWriter, r *http.Request) error {
		if err := queries.AddNote(r.Context(), "milk"); err != nil {
			return err
		}
		n, err := queries.CountNotes(r.Context())
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%d note", n)
		return nil
	}

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(sqlreq.HandlerFunc(handler))
	call(h, "POST", "/", "")
	// Output:
	// POST / -> 200 1 note
}

// With is a decorator of single handlers. It opens a key that is bound OnDemand.
func ExampleRegistry_With() {
	db, reports := open(), open()
	defer db.Close()
	defer reports.Close()
	reg, err := sqlreq.New(
		sqlreq.Binding{DB: db},
		sqlreq.Binding{Key: "reports", DB: reports, OnDemand: true},
	)
	if err != nil {
		log.Fatal(err)
	}
	show := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreq.Key("reports").Tx(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "reports")
	})

	mux := http.NewServeMux()
	mux.Handle("GET /open", reg.With("reports")(show))
	mux.Handle("GET /closed", show)
	h := reg.Middleware(mux)
	call(h, "GET", "/open", "")
	call(h, "GET", "/closed", "")
	// Output:
	// GET /open -> 200 reports
	// GET /closed -> 500 sqlreq: key "reports" is bound OnDemand; open it with With("reports") (open here: "main")
}

// Several databases have a key each. All transactions of a request are
// committed, or rolled back, together.
func ExampleNew() {
	const Users, Orders = sqlreq.Key("users"), sqlreq.Key("orders")
	order := func(w http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		if _, err := Users.ExecContext(ctx, `INSERT INTO notes (text) VALUES ('ann')`); err != nil {
			return err
		}
		what := r.URL.Query().Get("what")
		if _, err := Orders.ExecContext(ctx, `INSERT INTO notes (text) VALUES (?)`, what); err != nil {
			return err
		}
		if what == "" {
			return sqlreq.Errorf(http.StatusBadRequest, "an order of nothing") // rolls back in both
		}
		return nil
	}

	users, orders := open(), open()
	defer users.Close()
	defer orders.Close()
	reg, err := sqlreq.New(
		sqlreq.Binding{Key: Users, DB: users},
		sqlreq.Binding{Key: Orders, DB: orders},
	)
	if err != nil {
		log.Fatal(err)
	}
	h := reg.Middleware(sqlreq.HandlerFunc(order))
	call(h, "POST", "/?what=", "")
	call(h, "POST", "/?what=tea", "")
	notes(users)
	notes(orders)

	_, err = sqlreq.New(sqlreq.Binding{Key: Users}, sqlreq.Binding{Key: Users, DB: users})
	fmt.Println(err)
	// Output:
	// POST /?what= -> 400 Bad Request
	// POST /?what=tea -> 200
	// notes: 1
	// notes: 1
	// sqlreq: key "users" has no database (binding 0); set one of DB, Route and Tx
	// sqlreq: key "users" is bound twice (binding 1); give each database a key of its own
}

// A handler that returns an error rolls back. The client gets the status of the
// error, never its text.
func ExampleHandlerFunc() {
	handler := func(w http.ResponseWriter, r *http.Request) error {
		var text string
		err := sqlreq.DefaultKey.QueryRowContext(r.Context(), `SELECT text FROM notes WHERE id = 1`).Scan(&text)
		if errors.Is(err, sql.ErrNoRows) {
			return sqlreq.Errorf(http.StatusNotFound, "note 1: %w", err)
		}
		if err != nil {
			return err
		}
		_, err = io.WriteString(w, text)
		return err
	}

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(sqlreq.HandlerFunc(handler))
	call(h, "GET", "/", "")
	// Output:
	// GET / -> 404 Not Found
}

// A TxFunc is handed the transaction.
func ExampleTxFunc() {
	add := sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		_, err := tx.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, r.FormValue("text"))
		if err != nil {
			return err
		}
		http.Redirect(w, r, "/notes", http.StatusSeeOther)
		return nil
	})

	db, reg := setUp()
	defer db.Close()
	call(reg.Middleware(add), "POST", "/notes?text=milk", "")
	notes(db)
	// Output:
	// POST /notes?text=milk -> 303 /notes
	// notes: 1
}

// A View has a method for each request method, of any of the three shapes.
func ExampleView() {
	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(sqlreq.View(NoteView{}))
	call(h, "GET", "/", "")
	call(h, "POST", "/", "")
	call(h, "DELETE", "/", "")
	notes(db)
	// Output:
	// GET / -> 200 all notes
	// POST / -> 200
	// DELETE / -> 405 Method Not Allowed
	// notes: 1
}

// An application under another has a registry, and a prefix, of its own.
func ExampleRegistry_Mount() {
	db, adminDB := open(), open()
	defer db.Close()
	defer adminDB.Close()
	site, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}
	admin, err := sqlreq.New(sqlreq.Binding{Key: "admin", DB: adminDB})
	if err != nil {
		log.Fatal(err)
	}

	adminMux := http.NewServeMux()
	adminMux.HandleFunc("GET /users", func(w http.ResponseWriter, r *http.Request) {
		_, inner := sqlreq.Key("admin").Tx(r.Context())
		_, outer := sqlreq.Tx(r.Context()) // found outward
		fmt.Fprintf(w, "%v %v, next: %s/users?page=2", inner, outer, sqlreq.Prefix(r.Context()))
	})
	mux := http.NewServeMux()
	mux.Handle("/admin/", admin.Mount("/admin", adminMux))
	h := site.Middleware(mux)
	call(h, "GET", "/admin/users", "")
	// Output:
	// GET /admin/users -> 200 <nil> <nil>, next: /admin/users?page=2
}

// Do is a unit of work of its own: what it commits survives the rollback of the
// request around it. It uses a second database, for it takes a second connection.
func ExampleRegistry_Do() {
	db, audit := open(), open()
	defer db.Close()
	defer audit.Close()
	reg, err := sqlreq.New(
		sqlreq.Binding{DB: db},
		sqlreq.Binding{Key: "audit", DB: audit, OnDemand: true},
	)
	if err != nil {
		log.Fatal(err)
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		err := reg.Do(r.Context(), func(ctx context.Context) error {
			_, err := sqlreq.Key("audit").ExecContext(ctx, `INSERT INTO notes (text) VALUES ('somebody tried')`)
			return err
		})
		if err != nil {
			return err
		}
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES ('secret')`); err != nil {
			return err
		}
		return sqlreq.Errorf(http.StatusForbidden, "not allowed")
	}))
	call(h, "POST", "/", "")
	notes(db)
	notes(audit)
	// Output:
	// POST / -> 403 Forbidden
	// notes: 0
	// notes: 1
}

// Read-only transactions for the methods that only read: nothing is persisted
// through one, not even on SQLite, which knows no such transactions.
func ExampleReadOnlySafeMethods() {
	db := open()
	defer db.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db, TxOptions: sqlreq.ReadOnlySafeMethods})
	if err != nil {
		log.Fatal(err)
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		_, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, r.Method)
		return err
	}))
	call(h, "GET", "/", "")
	call(h, "POST", "/", "")
	notes(db)
	// Output:
	// GET / -> 200
	// POST / -> 200
	// notes: 1
}

// A pool for each tenant, chosen by the request.
func ExampleBinding_route() {
	tenants := map[string]*sql.DB{"a.example": open(), "b.example": open()}
	reg, err := sqlreq.New(sqlreq.Binding{
		Route: func(ctx context.Context, r *http.Request) (*sql.DB, error) {
			if db := tenants[r.Host]; db != nil {
				return db, nil
			}
			return nil, sqlreq.Errorf(http.StatusNotFound, "no tenant %q", r.Host)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		_, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES ('milk')`)
		return err
	}))
	call(h, "POST", "http://a.example/", "")
	call(h, "POST", "http://c.example/", "")
	notes(tenants["a.example"])
	notes(tenants["b.example"])
	// Output:
	// POST http://a.example/ -> 200
	// POST http://c.example/ -> 404 Not Found
	// notes: 1
	// notes: 0
}

// A part of the work may fail without the whole.
func ExampleSavepoint() {
	handler := func(w http.ResponseWriter, r *http.Request) error {
		for _, text := range []string{"milk", "milk", "tea"} {
			err := sqlreq.Savepoint(r.Context(), func(ctx context.Context) error {
				_, err := sqlreq.DefaultKey.ExecContext(ctx, `INSERT INTO notes (text) VALUES (?)`, text)
				return err
			})
			fmt.Fprintf(w, "%s: %t. ", text, err == nil)
		}
		return nil
	}

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(sqlreq.HandlerFunc(handler))
	call(h, "POST", "/", "")
	notes(db)
	// Output:
	// POST / -> 200 milk: true. milk: false. tea: true.
	// notes: 2
}

// AfterBegin sets what belongs to a transaction before anybody uses it: here who
// asks, which a view looks at. With PostgreSQL it is the place for row-level security:
//
//	_, err := tx.ExecContext(ctx, `SELECT set_config('app.tenant', $1, true)`, r.Header.Get("Tenant"))
//
// with a policy USING (tenant = current_setting('app.tenant')); true makes the setting
// end with the transaction.
func ExampleBinding_afterBegin() {
	db := open()
	defer db.Close()
	if _, err := db.Exec(`
		CREATE TABLE tenant (name TEXT);
		INSERT INTO tenant VALUES ('');
		CREATE VIEW mine AS SELECT text FROM notes WHERE text LIKE (SELECT name FROM tenant) || ':%';
		INSERT INTO notes (text) VALUES ('ann: milk'), ('bob: tea'), ('ann: bread')`); err != nil {
		log.Fatal(err)
	}
	reg, err := sqlreq.New(sqlreq.Binding{
		DB: db,
		AfterBegin: func(ctx context.Context, r *http.Request, tx *sql.Tx) error {
			tenant := r.URL.Query().Get("tenant")
			if tenant == "" {
				return sqlreq.Errorf(http.StatusForbidden, "no tenant")
			}
			_, err := tx.ExecContext(ctx, `UPDATE tenant SET name = ?`, tenant)
			return err
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		var n int
		if err := sqlreq.DefaultKey.QueryRowContext(r.Context(), `SELECT count(*) FROM mine`).Scan(&n); err != nil {
			return err
		}
		fmt.Fprintf(w, "%d notes", n)
		return nil
	}))
	call(h, "GET", "/?tenant=ann", "")
	call(h, "GET", "/?tenant=bob", "")
	call(h, "GET", "/", "")
	// Output:
	// GET /?tenant=ann -> 200 2 notes
	// GET /?tenant=bob -> 200 1 notes
	// GET / -> 403 Forbidden
}

// A row of an outbox is written in the transaction of the work, with what is known at
// its end: it is there if, and only if, the work is.
func ExampleBeforeCommit() {
	db := open()
	defer db.Close()
	if _, err := db.Exec(`CREATE TABLE outbox (message TEXT NOT NULL)`); err != nil {
		log.Fatal(err)
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}
	tell := func(next http.Handler) http.Handler {
		return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			err := sqlreq.BeforeCommit(r.Context(), func(ctx context.Context) error {
				_, err := sqlreq.DefaultKey.ExecContext(ctx, `INSERT INTO outbox SELECT count(*) || ' notes' FROM notes`)
				return err
			})
			next.ServeHTTP(w, r)
			return err
		})
	}
	h := reg.Middleware(tell(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		_, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, r.FormValue("text"))
		return err
	})))
	call(h, "POST", "/?text=milk", "")
	call(h, "POST", "/?text=milk", "") // the second is no new note: nothing is told
	call(h, "POST", "/?text=tea", "")

	rows, err := db.Query(`SELECT message FROM outbox`)
	if err != nil {
		log.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var message string
		if err := rows.Scan(&message); err != nil {
			log.Fatal(err)
		}
		fmt.Println("outbox:", message)
	}
	// Output:
	// POST /?text=milk -> 200
	// POST /?text=milk -> 500 Internal Server Error
	// POST /?text=tea -> 200
	// outbox: 1 notes
	// outbox: 2 notes
}

// Begun tells whether there is a transaction, and begins none: a middleware that logs
// can tell the requests that used the database.
func ExampleBegun() {
	mux := http.NewServeMux()
	logged := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r)
		fmt.Println(r.URL.Path, "used the database:", sqlreq.Begun(r.Context()))
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "well")
	})
	mux.Handle("GET /notes", sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		fmt.Fprint(w, "notes")
		return nil
	}))

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(logged)
	call(h, "GET", "/health", "")
	call(h, "GET", "/notes", "")
	// Output:
	// /health used the database: false
	// GET /health -> 200 well
	// /notes used the database: true
	// GET /notes -> 200 notes
}

// Atomic is for a function that handlers and jobs share: all of it stays or nothing. In a
// request it is a part of the request's work, elsewhere it has a transaction of its own.
func ExampleRegistry_Atomic() {
	db, reg := setUp()
	defer db.Close()
	addBoth := func(ctx context.Context, one, two string) error {
		return reg.Atomic(ctx, func(ctx context.Context) error {
			for _, text := range []string{one, two} {
				if _, err := sqlreq.DefaultKey.ExecContext(ctx, `INSERT INTO notes (text) VALUES (?)`, text); err != nil {
					return err
				}
			}
			return nil
		})
	}
	h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "milk, tea: ", addBoth(r.Context(), "milk", "tea") == nil)
		fmt.Fprint(w, "; bread, milk: ", addBoth(r.Context(), "bread", "milk") == nil) // not the bread, either
	}))
	call(h, "POST", "/", "")
	notes(db)
	fmt.Println("job:", addBoth(context.Background(), "bread", "salt"))
	notes(db)
	// Output:
	// POST / -> 200 milk, tea: true; bread, milk: false
	// notes: 2
	// job: <nil>
	// notes: 4
}

// Side effects outside of the database wait for COMMIT.
func ExampleAfterCommit() {
	handler := func(w http.ResponseWriter, r *http.Request) error {
		text := r.URL.Query().Get("text")
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, text); err != nil {
			return sqlreq.Errorf(http.StatusConflict, "add %q: %w", text, err)
		}
		return sqlreq.AfterCommit(r.Context(), func(ctx context.Context) {
			fmt.Println("mail about", text)
		})
	}

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(sqlreq.HandlerFunc(handler))
	call(h, "POST", "/?text=milk", "")
	call(h, "POST", "/?text=milk", "")
	// Output:
	// mail about milk
	// POST /?text=milk -> 200
	// POST /?text=milk -> 409 Conflict
}

// With Retry a request that met a conflict runs again, and the client knows nothing.
func ExampleRetry() {
	db, reg := setUp()
	defer db.Close()
	reg.Retry = sqlreq.Retry{Attempts: 3}
	runs := 0
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		body, err := io.ReadAll(r.Body) // each attempt has its own view of the same body
		if err != nil {
			return err
		}
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, body); err != nil {
			return err
		}
		if runs++; runs == 1 {
			return conflict{} // what a statement would have returned
		}
		fmt.Fprintf(w, "saved %s in run %d", body, runs)
		return nil
	}))
	call(h, "POST", "/", "milk")
	notes(db)
	// Output:
	// POST / -> 200 saved milk in run 2
	// notes: 1
}

// A test gives the application an open transaction, and leaves nothing behind.
func ExampleBinding_test() {
	db := open()
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		log.Fatal(err)
	}
	reg, err := sqlreq.New(sqlreq.Binding{Tx: tx}) // DB: db in production
	if err != nil {
		log.Fatal(err)
	}
	app := reg.Middleware(sqlreq.View(NoteView{}))

	call(app, "POST", "/", "")
	var n int
	if err := tx.QueryRow(`SELECT count(*) FROM notes`).Scan(&n); err != nil {
		log.Fatal(err)
	}
	fmt.Println("notes in the test:", n)
	if err := tx.Rollback(); err != nil {
		log.Fatal(err)
	}
	notes(db)
	// Output:
	// POST / -> 200
	// notes in the test: 1
	// notes: 0
}

// What became of the transactions, for metrics.
func ExampleEvent() {
	db, reg := setUp()
	defer db.Close()
	reg.Observe = func(ctx context.Context, e sqlreq.Event) {
		fmt.Println(e.Key, e.Outcome, "attempt", e.Attempt, "waited", e.Wait >= 0)
	}
	h := reg.Middleware(sqlreq.View(NoteView{}))
	call(h, "POST", "/", "")
	call(h, "POST", "/", "") // the text is taken
	call(h, "GET", "/", "")  // asks for nothing
	// Output:
	// main Committed attempt 1 waited true
	// POST / -> 200
	// main RolledBack attempt 1 waited true
	// POST / -> 500 Internal Server Error
	// GET / -> 200 all notes
}

// An explicit Commit lets the handler go on without a transaction open: values
// stay valid, and the next use begins a new one.
func ExampleCommit() {
	handler := func(w http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES ('milk')`); err != nil {
			return err
		}
		if err := sqlreq.Commit(r.Context()); err != nil {
			return err
		}
		// Something slow, and then something that fails.
		return sqlreq.Errorf(http.StatusBadGateway, "the other service is down")
	}

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(sqlreq.HandlerFunc(handler))
	call(h, "POST", "/", "")
	notes(db)
	// Output:
	// POST / -> 502 Bad Gateway
	// notes: 1
}

// A protocol whose errors have the status 200 answers them itself. RollbackOnly
// in its interceptor rolls the request's transactions back, and the answer stands.
func ExampleRollbackOnly() {
	method := func(ctx context.Context, text string) error {
		if _, err := sqlreq.DefaultKey.ExecContext(ctx, `INSERT INTO notes (text) VALUES (?)`, text); err != nil {
			return err
		}
		if text == "" {
			return errors.New("a note needs a text")
		}
		return nil
	}
	rpc := func(w http.ResponseWriter, r *http.Request) {
		err := method(r.Context(), r.FormValue("text"))
		if err == nil {
			fmt.Fprint(w, `{"result":"saved"}`)
			return
		}
		if err := sqlreq.RollbackOnly(r.Context(), err); err != nil {
			log.Print(err)
		}
		fmt.Fprintf(w, `{"error":%q}`, err)
	}

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(http.HandlerFunc(rpc))
	call(h, "POST", "/rpc?text=milk", "")
	call(h, "POST", "/rpc?text=", "")
	notes(db)
	// Output:
	// POST /rpc?text=milk -> 200 {"result":"saved"}
	// POST /rpc?text= -> 200 {"error":"a note needs a text"}
	// notes: 1
}

// A job that failed is done once more, unless a part of its work is, or may be, in
// a database for good. Here the second of two commits fails.
func ExampleMayHaveCommitted() {
	db := open()
	defer db.Close()
	index := openIndex()
	defer index.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "index", DB: index})
	if err != nil {
		log.Fatal(err)
	}
	job := func(statement string) {
		err := reg.Do(context.Background(), func(ctx context.Context) error {
			if _, err := sqlreq.DefaultKey.ExecContext(ctx, `INSERT INTO notes (text) VALUES ('milk')`); err != nil {
				return err
			}
			_, err := sqlreq.Key("index").ExecContext(ctx, statement)
			return err
		})
		var c *sqlreq.CommitError
		switch {
		case err == nil:
			fmt.Println("done")
		case !sqlreq.MayHaveCommitted(err):
			fmt.Println("once more")
		case errors.As(err, &c):
			fmt.Println("for a human: committed are", c.Committed, "but not", c.Key)
		}
		notes(db)
	}

	job(`INSERT INTO word (page) VALUES (1)`)    // there is no such table
	job(`INSERT INTO words (page) VALUES (404)`) // there is no such page, which COMMIT finds out
	// Output:
	// once more
	// notes: 0
	// for a human: committed are [main] but not index
	// notes: 1
}

// Errors as JSON, those of handlers and of a COMMIT that failed. The text of an error
// may say more than a client should know: show those only that are meant for it. What
// an ErrorHandler answers it also logs.
func ExampleRegistry_errorHandler() {
	asJSON := func(w http.ResponseWriter, r *http.Request, err error) {
		status := sqlreq.StatusCode(err)
		answer := struct {
			Error string `json:"error"`
			Retry bool   `json:"retry"`
		}{http.StatusText(status), w.Header().Get("Retry-After") != ""}
		var forClient *sqlreq.StatusError
		switch {
		case status >= 500:
			log.Printf("%s %s: %d: %v", r.Method, r.URL.Path, status, err)
		case errors.As(err, &forClient):
			answer.Error = forClient.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			log.Print(err)
		}
	}

	db, reg := setUp()
	defer db.Close()
	reg.ErrorHandler = asJSON
	h := reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if r.FormValue("text") == "" {
			return sqlreq.Errorf(http.StatusUnprocessableEntity, "a note needs a text")
		}
		return errors.New("the password of the database is secret")
	}))
	call(h, "POST", "/?text=", "")
	call(h, "POST", "/?text=milk", "")
	// Output:
	// POST /?text= -> 422 {"error":"a note needs a text","retry":false}
	// POST /?text=milk -> 500 {"error":"Internal Server Error","retry":false}
}

// Some answers of 400 and more are to be committed: here a 409 whose handler has
// written down that somebody tried.
func ExampleRegistry_commitIf() {
	commitIf := func(status int, header http.Header) bool {
		return status < 400 || status == http.StatusConflict
	}

	db, reg := setUp()
	defer db.Close()
	reg.CommitIf = commitIf
	h := reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		if _, err := tx.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, r.FormValue("who")+" tried"); err != nil {
			return err
		}
		http.Error(w, "taken", http.StatusConflict) // an error that is returned never commits
		return nil
	}))
	call(h, "POST", "/?who=ann", "")
	notes(db)
	// Output:
	// POST /?who=ann -> 409 taken
	// notes: 1
}

// What an ErrorHandler, or a job, can tell of a COMMIT that failed: which database it
// was, what is committed for good, and whether the outcome is known.
func ExampleCommitError() {
	report := func(err error) {
		var c *sqlreq.CommitError
		if errors.As(err, &c) {
			fmt.Println("COMMIT failed on", c.Key, "committed before:", c.Committed, "unknown outcome:", c.Ambiguous)
		}
	}

	db, index := open(), openIndex()
	defer db.Close()
	defer index.Close()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db}, sqlreq.Binding{Key: "index", DB: index})
	if err != nil {
		log.Fatal(err)
	}
	report(reg.Do(context.Background(), func(ctx context.Context) error {
		if _, err := sqlreq.DefaultKey.ExecContext(ctx, `INSERT INTO notes (text) VALUES ('milk')`); err != nil {
			return err
		}
		_, err := sqlreq.Key("index").ExecContext(ctx, `INSERT INTO words (page) VALUES (404)`) // COMMIT finds out
		return err
	}))
	notes(db)
	// Output:
	// COMMIT failed on index committed before: [main] unknown outcome: false
	// notes: 1
}

// A handler that returns nothing tells by Fail: what it has written is dropped, and
// the error is answered.
func ExampleFail() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "saved") // held, and dropped
		_, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, r.FormValue("text"))
		if err != nil {
			sqlreq.Fail(r.Context(), sqlreq.Errorf(http.StatusConflict, "add: %w", err))
		}
	}

	db, reg := setUp()
	defer db.Close()
	h := reg.Middleware(http.HandlerFunc(handler))
	call(h, "POST", "/?text=milk", "")
	call(h, "POST", "/?text=milk", "")
	notes(db)
	// Output:
	// POST /?text=milk -> 200 saved
	// POST /?text=milk -> 409 Conflict
	// notes: 1
}

// A report that must see one state of the database chooses its options before the
// first statement. Later it is too late.
func ExampleBeginTx() {
	report := func(w http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreq.BeginTx(r.Context(), &sql.TxOptions{Isolation: sql.LevelSerializable, ReadOnly: true})
		if err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(r.Context(), `SELECT count(*) FROM notes`).Scan(&n); err != nil {
			return err
		}
		_, err = sqlreq.BeginTx(r.Context(), nil)
		fmt.Fprintf(w, "%d notes; begun already: %t", n, errors.Is(err, sqlreq.ErrBegun))
		return nil
	}

	db, reg := setUp()
	defer db.Close()
	call(reg.Middleware(sqlreq.HandlerFunc(report)), "GET", "/", "")
	// Output:
	// GET / -> 200 0 notes; begun already: true
}

// A stream of events. Its reader sees each at once, so what it tells of is committed
// before; the next statement begins a new transaction.
func Example_stream() {
	stream := func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, text := range []string{"milk", "tea"} {
			if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES (?)`, text); err != nil {
				return err
			}
			if err := sqlreq.Commit(r.Context()); err != nil {
				return err
			}
			fmt.Fprintf(w, "data: %s is saved\n\n", text)
			if err := http.NewResponseController(w).Flush(); err != nil {
				return err
			}
		}
		_, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES ('milk')`)
		return err // the text is taken: the stream breaks off, and what was told stays
	}

	db, reg := setUp()
	defer db.Close()
	reg.Logger = slog.New(slog.DiscardHandler)
	srv := httptest.NewServer(reg.Middleware(sqlreq.HandlerFunc(stream)))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Printf("%sbroken off: %t\n", body, err != nil)
	notes(db)
	// Output:
	// data: milk is saved
	//
	// data: tea is saved
	//
	// broken off: true
	// notes: 2
}

// Queries is what sqlc generates; bun takes such a connection too. gorm needs it
// without BeginTx: see Key.
type Queries struct{ db DBTX }

// DBTX is satisfied by *sql.DB, by *sql.Tx, and by a sqlreq.Key.
type DBTX interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	PrepareContext(context.Context, string) (*sql.Stmt, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

func (q *Queries) AddNote(ctx context.Context, text string) error {
	_, err := q.db.ExecContext(ctx, `INSERT INTO notes (text) VALUES (?)`, text)
	return err
}

func (q *Queries) CountNotes(ctx context.Context) (n int, err error) {
	err = q.db.QueryRowContext(ctx, `SELECT count(*) FROM notes`).Scan(&n)
	return n, err
}

// NoteView answers by method.
type NoteView struct{}

func (NoteView) Get(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "all notes")
}

func (NoteView) Post(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
	_, err := tx.ExecContext(r.Context(), `INSERT INTO notes (text) VALUES ('milk')`)
	return err
}

// conflict is an error as pgx reports a serialization failure.
type conflict struct{}

func (conflict) Error() string    { return "could not serialize access" }
func (conflict) SQLState() string { return "40001" }

// setUp returns a registry of a database with a table of notes.
func setUp() (*sql.DB, *sqlreq.Registry) {
	db := open()
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		log.Fatal(err)
	}
	return db, reg
}

// open returns a database in memory with a table of notes.
func open() *sql.DB {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		log.Fatal(err)
	}
	db.SetMaxOpenConns(1) // each connection to :memory: is a database of its own
	if _, err := db.Exec(`CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)`); err != nil {
		log.Fatal(err)
	}
	return db
}

// call prints what a client of h is told.
func call(h http.Handler, method, target, body string) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, target, strings.NewReader(body)))
	line := fmt.Sprint(method, " ", target, " -> ", rec.Code, " ", rec.Header().Get("Location"), rec.Body.String())
	fmt.Println(strings.TrimSpace(line))
}

// notes prints how many notes there are.
func notes(db *sql.DB) {
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM notes`).Scan(&n); err != nil {
		log.Fatal(err)
	}
	fmt.Println("notes:", n)
}

// openIndex returns a database of pages and words, whose COMMIT fails for words on a
// page that is not there.
func openIndex() *sql.DB {
	db, err := sql.Open("sqlite", "file::memory:?_pragma=foreign_keys(1)")
	if err != nil {
		log.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`CREATE TABLE pages (id INTEGER PRIMARY KEY);
		CREATE TABLE words (page INTEGER REFERENCES pages DEFERRABLE INITIALLY DEFERRED)`); err != nil {
		log.Fatal(err)
	}
	return db
}
