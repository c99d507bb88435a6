package doctest

// The blocks of Go in README and docs that need nothing but the standard library, in
// functions that compile, and that are run where the text says what comes of it.
// TestBlocksAreCompiled finds them here.

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	_ "modernc.org/sqlite"
)

// docs/migration.md: From a middleware by hand.
type txKey struct{}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func withTx(db *sql.DB, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(r.Context(), nil)
		if err != nil {
			http.Error(w, "no database", http.StatusServiceUnavailable)
			return
		}
		defer tx.Rollback()
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(sw, r.WithContext(context.WithValue(r.Context(), txKey{}, tx)))
		if sw.status < 400 && tx.Commit() == nil {
			sendMail(r.Context())
		}
	})
}

func createUser(w http.ResponseWriter, r *http.Request) {
	tx := r.Context().Value(txKey{}).(*sql.Tx)
	if _, err := tx.ExecContext(r.Context(), `INSERT INTO users VALUES (?)`, r.FormValue("name")); err != nil {
		http.Error(w, "not saved", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated) // the client has its 201, and COMMIT may still fail
}

func addUser(w http.ResponseWriter, r *http.Request) error {
	tx, err := sqlreq.Tx(r.Context())
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(r.Context(), `INSERT INTO users VALUES (?)`, r.FormValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated) // sent when COMMIT has succeeded
	return sqlreq.AfterCommit(r.Context(), sendMail)
}

// README.md: Into a service you have.
func saveUser(w http.ResponseWriter, r *http.Request) {
	key := sqlreq.DefaultKey // was: tx := r.Context().Value(txKey{}).(*sql.Tx)
	if _, err := key.ExecContext(r.Context(), `INSERT INTO users VALUES (?)`, r.FormValue("name")); err != nil {
		http.Error(w, "not saved", 500) // as before; rolls back
		return
	}
	w.WriteHeader(http.StatusCreated) // was sent before COMMIT, is sent after it
}

func serveByHand(addr string, db *sql.DB, mux *http.ServeMux) error {
	return http.ListenAndServe(addr, withTx(db, mux))
}

var mails int

func sendMail(ctx context.Context) { mails++ }

func serveUsers(addr string, db *sql.DB, mux *http.ServeMux) error {
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		return err
	}
	mux.Handle("POST /users", sqlreq.HandlerFunc(addUser))
	return http.ListenAndServe(addr, reg.Middleware(mux))
}

// TestFourWordsAndTheTable: the lines of README.md that are not of a framework.
func TestFourWordsAndTheTable(t *testing.T) {
	db := usersDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	const query = `INSERT INTO users (name) VALUES ('ann')`
	importLine := func(ctx context.Context) error {
		_, err := sqlreq.DefaultKey.ExecContext(ctx, query)
		return errors.Join(err, errors.New("this line is wrong"))
	}
	mails = 0
	fn := func(ctx context.Context) error {
		if _, err := sqlreq.DefaultKey.ExecContext(ctx, query); err != nil {
			return err
		}
		if err := sqlreq.Savepoint(ctx, importLine); err == nil {
			t.Error("the line is accepted")
		}
		return sqlreq.AfterCommit(ctx, sendMail)
	}
	ctx := t.Context()
	err := reg.Do(ctx, fn)
	if n := sqlreqtest.Count(t, db, "users"); err != nil || n != 1 || mails != 1 {
		t.Errorf("got %v, %d users and %d mails, want one of each", err, n, mails)
	}
	once := &idempotency.Once{Dialect: idempotency.SQLite, Scope: userID}
	if err := once.CreateTable(ctx, db); err != nil {
		t.Error(err)
	}
}

func userID(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }

// usersDB has users whose names must be on a list, which COMMIT checks.
func usersDB(t *testing.T) *sql.DB {
	t.Helper()
	db := sqlreqtest.OpenDB(t)
	if _, err := db.Exec(`CREATE TABLE names (name TEXT PRIMARY KEY); INSERT INTO names VALUES ('ann'), ('bob');
		CREATE TABLE users (name TEXT REFERENCES names (name) DEFERRABLE INITIALLY DEFERRED, failed INTEGER NOT NULL DEFAULT 0)`); err != nil {
		t.Fatal(err)
	}
	return db
}

// TestMigrationBeforeAndAfter: by hand the client of a COMMIT that fails is told 201;
// after the four edits it is told 500. Both send a mail only for a user who is there,
// and undo what a handler has done that then answers with 409. A Commit that was
// forgotten, and a statement on the pool, are stored whatever the answer is.
func TestMigrationBeforeAndAfter(t *testing.T) {
	db := usersDB(t)
	if _, err := db.Exec(`ALTER TABLE users DROP COLUMN failed`); err != nil {
		t.Fatal(err)
	}
	after := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware
	for _, step := range []struct {
		h                   http.Handler
		name                string
		code, users, mailed int
	}{
		{withTx(db, http.HandlerFunc(createUser)), "ann", 201, 1, 1},
		{withTx(db, http.HandlerFunc(createUser)), "nobody", 201, 1, 0},
		{withTx(db, refused(createUser)), "bob", 409, 1, 0},
		{after(sqlreq.HandlerFunc(addUser)), "bob", 201, 2, 1},
		{after(sqlreq.HandlerFunc(addUser)), "nobody", 500, 2, 0},
		{after(refused(sqlreq.HandlerFunc(addUser).ServeHTTP)), "ann", 409, 2, 0},
		{after(http.HandlerFunc(saveUser)), "ann", 201, 3, 0},
		{after(http.HandlerFunc(saveUser)), "nobody", 500, 3, 0},
		{after(refused(saveUser)), "ann", 409, 3, 0},
		{after(leftOver((*sql.Tx).Commit)), "ann", 500, 4, 0},
		{after(leftOver((*sql.Tx).Rollback)), "ann", 500, 4, 0},
		{after(refused(pastTheKey(db))), "ann", 409, 5, 0},
	} {
		mails = 0
		rec := httptest.NewRecorder()
		step.h.ServeHTTP(rec, httptest.NewRequest("POST", "/users?name="+step.name, nil))
		if n := sqlreqtest.Count(t, db, "users"); rec.Code != step.code || n != step.users || mails != step.mailed {
			t.Errorf("%s: got %d, %d users, %d mails, want %+v", step.name, rec.Code, n, mails, step)
		}
	}
}

// leftOver is a handler whose Commit or deferred Rollback was forgotten in the port.
func leftOver(end func(*sql.Tx) error) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		tx, err := sqlreq.Tx(r.Context())
		if err != nil {
			return err
		}
		defer end(tx)
		w.WriteHeader(http.StatusCreated)
		_, err = tx.ExecContext(r.Context(), `INSERT INTO users VALUES (?)`, r.FormValue("name"))
		return err
	})
}

// pastTheKey is a handler that still has the pool.
func pastTheKey(db *sql.DB) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		_, _ = db.ExecContext(r.Context(), `INSERT INTO users VALUES (?)`, r.FormValue("name"))
	}
}

// refused is h whose answer becomes a 409 when its work is done.
func refused(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h(httptest.NewRecorder(), r)
		w.WriteHeader(http.StatusConflict)
	})
}

// docs/migration.md: From a pool in every place, From a transaction in each store method.
type DBTX interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

type UserStore struct{ db DBTX } // was: db *sql.DB

func (s *UserStore) Add(ctx context.Context, name string) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO users (name) VALUES (?)`, name)
	return err
}

func newUserStore() *UserStore {
	users := &UserStore{db: sqlreq.DefaultKey} // was: db
	return users
}

type TeamStore struct {
	reg   *sqlreq.Registry // was: db *sql.DB
	users *UserStore
}

func (s *TeamStore) AddBoth(ctx context.Context, one, two string) error {
	return s.reg.Atomic(ctx, func(ctx context.Context) error { // was: BeginTx, defer Rollback, Commit
		if err := s.users.Add(ctx, one); err != nil {
			return err
		}
		return s.users.Add(ctx, two)
	})
}

// TestStoresInARequest: a store with a key works in requests and jobs, and says what
// is missing elsewhere; a failed Atomic is undone, and the request goes on.
func TestStoresInARequest(t *testing.T) {
	db := usersDB(t)
	if _, err := db.Exec(`CREATE UNIQUE INDEX once ON users (name)`); err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	users := newUserStore()
	teams := &TeamStore{reg, users}
	rec := sqlreqtest.Do(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := teams.AddBoth(r.Context(), "ann", "ann"); err == nil {
			t.Error("two of one name: no error")
		}
		if err := users.Add(r.Context(), "ann"); err != nil {
			t.Error(err)
		}
	})))
	if n := sqlreqtest.Count(t, db, "users"); rec.Code != 200 || n != 1 {
		t.Errorf("got %d and %d users, want 200 and 1", rec.Code, n)
	}
	if err := users.Add(context.Background(), "bob"); !errors.Is(err, sqlreq.ErrNoRegistry) {
		t.Errorf("without a request: %v", err)
	}
	if err := reg.Do(t.Context(), func(ctx context.Context) error { return users.Add(ctx, "bob") }); err != nil {
		t.Errorf("in a job: %v", err)
	}
}

// docs/migration.md: A 4xx whose work must stay.
func TestFourHundredWhoseWorkStays(t *testing.T) {
	db := usersDB(t)
	if _, err := db.Exec(`INSERT INTO users (name) VALUES ('ann')`); err != nil {
		t.Fatal(err)
	}
	signIn := func(ctx context.Context, name string) error {
		_, err := sqlreq.DefaultKey.ExecContext(ctx, `UPDATE users SET failed = failed + 1 WHERE name = ?`, name)
		if err != nil {
			return err
		}
		if err := sqlreq.Commit(ctx); err != nil {
			return err
		}
		return sqlreq.Errorf(http.StatusUnauthorized, "wrong password of %q", name)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		return signIn(r.Context(), "ann")
	})))
	var failed int
	if err := db.QueryRow(`SELECT failed FROM users`).Scan(&failed); err != nil || rec.Code != 401 || failed != 1 {
		t.Errorf("got %d, %d failed, %v, want 401 and 1", rec.Code, failed, err)
	}
}

// docs/testing.md.
func app(reg *sqlreq.Registry) http.Handler {
	return reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		note, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO work (note) VALUES (?)`, note); err != nil {
			return err
		}
		w.WriteHeader(http.StatusCreated)
		return nil
	}))
}

func TestInATransactionOfTheTest(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	t.Run("the test of the page", func(t *testing.T) {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		reg, err := sqlreq.New(sqlreq.Binding{Tx: tx}) // DB: db in production
		if err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		app(reg).ServeHTTP(rec, httptest.NewRequest("POST", "/notes", strings.NewReader("milk")))
		if rec.Code != http.StatusCreated {
			t.Errorf("got %d: %s", rec.Code, rec.Body)
		}
	})
	if n := sqlreqtest.Count(t, db, "work"); n != 0 {
		t.Errorf("%d notes stay", n)
	}
}

func TestStoreWithoutHTTP(t *testing.T) {
	db := usersDB(t)
	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	users := newUserStore()
	err = reg.Do(t.Context(), func(ctx context.Context) error {
		return users.Add(ctx, "ann")
	})
	if n := sqlreqtest.Count(t, db, "users"); err != nil || n != 1 {
		t.Errorf("got %v and %d users", err, n)
	}
}

func TestWithSqlmock(t *testing.T) {
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	mock.ExpectBegin()
	mock.ExpectExec("INSERT").WillReturnResult(sqlmock.NewResult(1, 1))
	mock.ExpectCommit().WillReturnError(errors.New("the disk is full"))

	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := httptest.NewRecorder()
	app(reg).ServeHTTP(rec, httptest.NewRequest("POST", "/notes", strings.NewReader("milk")))
	if err := mock.ExpectationsWereMet(); err != nil || rec.Code != 500 {
		t.Errorf("got %d, %v", rec.Code, err)
	}
}

// docs/databases.md: the settings for SQLite.
func TestSQLiteSettings(t *testing.T) {
	t.Chdir(t.TempDir())
	db, err := sql.Open("sqlite", "file:app.db?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0)`); err != nil {
		t.Fatal(err)
	}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	const clients = 8
	done := make(chan error, clients)
	for range clients { // one attempt is enough, though all read before they write
		go func() {
			done <- reg.Do(t.Context(), func(ctx context.Context) error {
				var n int
				if err := sqlreq.DefaultKey.QueryRowContext(ctx, `SELECT n FROM counter`).Scan(&n); err != nil {
					return err
				}
				_, err := sqlreq.DefaultKey.ExecContext(ctx, `UPDATE counter SET n = ?`, n+1)
				return err
			})
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var n int
	if err := db.QueryRow(`SELECT n FROM counter`).Scan(&n); err != nil || n != clients {
		t.Errorf("counted %d, %v, want %d", n, err, clients)
	}
}

// docs/faq.md.
func findNote(ctx context.Context, id int) error {
	var text string
	err := sqlreq.DefaultKey.QueryRowContext(ctx, `SELECT note FROM work WHERE id = ?`, id).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return sqlreq.Errorf(http.StatusNotFound, "note %d: %w", id, err)
	}
	return err
}

func TestNoRowsIsA404(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	rec := sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		return findNote(r.Context(), 1)
	})))
	if rec.Code != 404 {
		t.Errorf("got %d", rec.Code)
	}
}

func echoSocket(ctx context.Context, reg *sqlreq.Registry, notes *UserStore, read func() (string, error)) error {
	for {
		message, err := read()
		if err != nil {
			return err
		}
		if err := reg.Do(ctx, func(ctx context.Context) error { return notes.Add(ctx, message) }); err != nil {
			return err
		}
	}
}

func TestMessagesOfASocket(t *testing.T) {
	db := usersDB(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	messages := []string{"ann", "bob"}
	err := echoSocket(t.Context(), reg, newUserStore(), func() (string, error) {
		if len(messages) == 0 {
			return "", io.EOF
		}
		first := messages[0]
		messages = messages[1:]
		return first, nil
	})
	if n := sqlreqtest.Count(t, db, "users"); err != io.EOF || n != 2 {
		t.Errorf("got %v and %d, want the end and 2", err, n)
	}
}

// docs/exactly-once.md: what its blocks need is declared here; package idempotency has
// the tests.
var (
	createOrder, onPayment http.Handler
	verifySignature        func(http.Handler) http.Handler
)

func serveOrders(addr string, reg *sqlreq.Registry, mux *http.ServeMux) {
	once := &idempotency.Once{Scope: userID}
	mux.Handle("POST /orders", once.Handler(createOrder))
	http.ListenAndServe(addr, reg.Middleware(mux))
}

func clean(ctx context.Context, once *idempotency.Once, db *sql.DB) (int64, error) {
	n, err := once.Clean(ctx, db, 7*24*time.Hour) // a thousand rows at a time; call it by a ticker, in one process
	return n, err
}

func serveWebhooks(mux *http.ServeMux) {
	webhooks := &idempotency.Once{
		Header: "webhook-id", // Standard Webhooks; X-GitHub-Delivery, PayPal-Request-Id
		Scope:  func(*http.Request) (string, error) { return "payments", nil },
	}
	mux.Handle("POST /webhooks/payments", verifySignature(webhooks.Handler(onPayment)))
}

type message struct{ ID, Order string }

func (message) Ack() {}

type orderQueries struct{}

func (orderQueries) Reserve(context.Context, string) error { return nil }

func onMessage(ctx context.Context, reg *sqlreq.Registry, once *idempotency.Once, queries orderQueries, msg message) (bool, error) {
	first, err := once.Do(ctx, reg, "orders", msg.ID, func(ctx context.Context) error {
		return queries.Reserve(ctx, msg.Order) // by a sqlreq.Key
	})
	if err == nil {
		msg.Ack() // also if first is false: it was done before
	}
	return first, err
}

func idempotentClient() *http.Client {
	client := &http.Client{Transport: &idempotency.Transport{}}
	return client
}

var _ = []any{serveByHand, serveUsers, serveOrders, clean, serveWebhooks, onMessage, idempotentClient}
