package idempotency_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

func TestI16DoUnderARequestDoesNotWaitInTheProcess(t *testing.T) {
	// The request has a transaction open, and the Do is a unit of its own.
	var d, other fakedb.DB
	outer, inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}), sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: other.Open(t)})
	once := newOnce()
	once.OnWait(func() { t.Error("a Do waits in the process, and the request around it has a transaction open") })
	err := outer.Do(t.Context(), func(ctx context.Context) error {
		insertWork(t, ctx)
		reached, release := make(chan struct{}), make(chan struct{})
		done := make(chan error)
		go func() {
			_, err := once.Do(context.Background(), inner, "q", "1", func(context.Context) error {
				close(reached)
				<-release
				return nil
			})
			done <- err
		}()
		<-reached
		_, err := once.Do(ctx, inner, "q", "1", func(context.Context) error { return nil })
		close(release)
		return errors.Join(err, <-done)
	})
	must(t, err)
}

func TestI4RowThatIsCleanedInBetween(t *testing.T) {
	for name, c := range map[string]struct {
		gone int // how often
		want int
	}{"once": {1, 201}, "twice": {2, 201}, "each time": {3, 409}} {
		t.Run(name, func(t *testing.T) {
			left := c.gone
			d := fakedb.DB{
				Affected: func(q string) int64 {
					if strings.HasPrefix(q, "INSERT INTO idempotency_keys") && left > 0 {
						left--
						return 0
					}
					return 1
				},
				Rows: func(string) [][]driver.Value { return nil },
			}
			h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}).Middleware(newOnce().Handler(new(work)))
			if rec := ask(t.Context(), h); rec.Code != c.want {
				t.Errorf("got %d, want %d", rec.Code, c.want)
			}
			d.CheckClean(t)
		})
	}
}

func TestI11RequestThatIsOver(t *testing.T) {
	var d fakedb.DB
	h := new(work)
	inner := newOnce().Handler(h)
	var late *http.Request
	sqlreqtest.Do(sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}).Middleware(handle(func(_ http.ResponseWriter, r *http.Request) {
		late = r
		r.Header.Set("Idempotency-Key", "k")
	})))
	rec := httptest.NewRecorder()
	inner.ServeHTTP(rec, late)
	if rec.Code != 500 || h.calls.Load() != 0 {
		t.Errorf("got %d and %d calls, want 500 and none", rec.Code, h.calls.Load())
	}
	d.Check(t)
}

func TestI3TimeoutHandlerInBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d fakedb.DB
		var slow atomic.Bool
		slow.Store(true)
		once := newOnce().Handler(handle(func(w http.ResponseWriter, r *http.Request) {
			sqlreqtest.Exec(t, r.Context(), main, sqlreqtest.InsertWork)
			if slow.Load() {
				time.Sleep(2 * time.Second) // by the clock of the bubble
			}
			w.WriteHeader(201)
		}))
		h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)}).Middleware(http.TimeoutHandler(once, time.Second, ""))
		if rec := ask(t.Context(), h); rec.Code != 503 {
			t.Errorf("got %d, want 503", rec.Code)
		}
		if d.Count("COMMIT") != 0 || d.Count("ROLLBACK") != 1 {
			t.Errorf("got %q", d.Log())
		}
		slow.Store(false)
		if rec := ask(t.Context(), h); rec.Code != 201 || d.Count("COMMIT") != 1 {
			t.Errorf("got %d, %q", rec.Code, d.Log())
		}
		time.Sleep(2 * time.Second)
		d.CheckClean(t)
	})
}

func TestI6Schema(t *testing.T) {
	for dialect, want := range map[idempotency.Dialect][]string{
		idempotency.SQLite: {
			"CREATE TABLE IF NOT EXISTS app.once (scope TEXT NOT NULL, idempotency_key TEXT NOT NULL, kind INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL, " +
				"status INTEGER NOT NULL DEFAULT 0, fingerprint BLOB, header BLOB, body BLOB, PRIMARY KEY (scope, idempotency_key, kind))",
			"CREATE INDEX IF NOT EXISTS app.once_created_at ON once (created_at)",
		},
		idempotency.PostgreSQL: {
			`CREATE TABLE IF NOT EXISTS app.once (scope text COLLATE "C" NOT NULL, idempotency_key text COLLATE "C" NOT NULL, kind smallint NOT NULL DEFAULT 0, created_at bigint NOT NULL, ` +
				"status integer NOT NULL DEFAULT 0, fingerprint bytea, header bytea, body bytea, PRIMARY KEY (scope, idempotency_key, kind))",
			"CREATE INDEX IF NOT EXISTS once_created_at ON app.once (created_at)",
		},
		idempotency.MySQL: {
			"CREATE TABLE IF NOT EXISTS app.once (scope VARBINARY(255) NOT NULL, idempotency_key VARBINARY(255) NOT NULL, kind SMALLINT NOT NULL DEFAULT 0, created_at BIGINT NOT NULL, " +
				"status INT NOT NULL DEFAULT 0, fingerprint VARBINARY(64), header MEDIUMBLOB, body LONGBLOB, PRIMARY KEY (scope, idempotency_key, kind), KEY once_created_at (created_at)) ENGINE=InnoDB",
		},
	} {
		if got := dialect.Schema("app.once"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := idempotency.SQLite.Schema("")[0]; !strings.Contains(got, " idempotency_keys ") {
		t.Errorf("got %q", got)
	}
}

func TestI11CreateTableFails(t *testing.T) {
	var d fakedb.DB
	db := d.Open(t)
	failing(&d, "CREATE")
	if err := newOnce().CreateTable(t.Context(), db); err == nil || !strings.Contains(err.Error(), "idempotency_keys") {
		t.Errorf("got %v", err)
	}
}

// slowClient is a response whose Writes wait.
type slowClient struct {
	*httptest.ResponseRecorder
	reached, release chan struct{}
}

func (s *slowClient) Write(p []byte) (int, error) {
	select {
	case s.reached <- struct{}{}:
	default:
	}
	<-s.release
	return s.ResponseRecorder.Write(p)
}

func TestI16ARepeatKeepsNobodyWaiting(t *testing.T) {
	db := open(t)
	once := newOnce()
	h := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(once.Handler(handle(func(w http.ResponseWriter, r *http.Request) {
		insertWork(t, r.Context())
		fmt.Fprint(w, strings.Repeat("x", 200_000)) // more than is held
	})))
	if rec := ask(t.Context(), h); rec.Code != 200 {
		t.Fatalf("got %d", rec.Code)
	}
	once.OnWait(func() { t.Error("a repeat waits for the client of another one") })
	slow := &slowClient{httptest.NewRecorder(), make(chan struct{}, 1), make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequest("POST", "/", strings.NewReader("x"))
		r.Header.Set("Idempotency-Key", "k")
		h.ServeHTTP(slow, r)
	}()
	<-slow.reached
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("got %d connections in use, want none", n)
	}
	if rec := ask(t.Context(), h); rec.Code != 200 || rec.Body.Len() != 200_000 || rec.Header().Get("Idempotent-Replayed") != "true" {
		t.Errorf("got %d with %d bytes", rec.Code, rec.Body.Len())
	}
	close(slow.release)
	<-done
	if slow.Body.Len() != 200_000 {
		t.Errorf("the slow client got %d bytes", slow.Body.Len())
	}
}
