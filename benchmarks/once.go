package benchmarks

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
)

// once compares idempotency.Once.Handler with others, in turns in one process as turns
// does: requests with a key each of its own ("first"), repeats of one ("repeat"), and
// requests without a key ("keyless"). The work is one INSERT and an answer of 1 KiB.
func once() []Benchmark {
	var all []Benchmark
	for _, o := range []struct {
		work string
		open func(testing.TB) *site
		run  func(*testing.B, *onceSite)
	}{
		{"first", openDurable, firsts},
		{"first-normal", openSQLite, firsts},
		{"repeat", openDurable, repeats},
		{"keyless", openSQLite, keyless},
	} {
		all = append(all, Benchmark{"Once", "sqlite", o.work, "sqlreq", func(b *testing.B) { o.run(b, openOnce(b, o.open)) }})
	}
	return all
}

// onceSite is a database with the tables for keys.
type onceSite struct {
	*site
	once    *idempotency.Once
	with    http.Handler // Handler around a handler that inserts
	without http.Handler // the same handler without Handler
	probe   func()
	n       int // of the last key
}

func openOnce(t testing.TB, open func(testing.TB) *site) *onceSite {
	t.Helper()
	return onceOn(t, open(t), nil)
}

// onceOn adds the tables to a database. probe is called while the transaction is open.
func onceOn(t testing.TB, on *site, probe func()) *onceSite {
	t.Helper()
	s := &onceSite{site: on, probe: probe, once: &idempotency.Once{
		Dialect: idempotency.SQLite,
		Table:   "sqlreq_bench_key",
		Scope:   func(*http.Request) (string, error) { return "ann", nil },
	}}
	if on.dsn != "" {
		s.once.Dialect = idempotency.PostgreSQL
	}
	if err := s.once.CreateTable(context.Background(), s.db); err != nil {
		t.Fatal(err)
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: s.db})
	if err != nil {
		t.Fatal(err)
	}
	insert := sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), insertWork); err != nil {
			return err
		}
		if probe != nil {
			probe()
		}
		_, err := w.Write(page1KiB)
		return err
	})
	s.with, s.without = reg.Middleware(s.once.Handler(insert)), reg.Middleware(insert)
	return s
}

const (
	selectKey = "SELECT status, fingerprint, header, body FROM sqlreq_bench_key WHERE scope = $1 AND idempotency_key = $2 AND kind = 0"
	insertKey = "INSERT INTO sqlreq_bench_key (scope, idempotency_key, created_at) VALUES ($1, $2, $3)"
	updateKey = "UPDATE sqlreq_bench_key SET status = $1, fingerprint = $2, header = $3, body = $4 WHERE scope = $5 AND idempotency_key = $6 AND kind = 0"
	fewBytes  = "0123456789abcdef0123456789abcdef"
)

// twoTransactions is what is written by hand where the key must be there before the
// work: the key in a transaction of its own, then the work and the answer in another
// (https://github.com/brandur/rocket-rides-atomic).
func (s *onceSite) twoTransactions() http.Handler {
	in := func(ctx context.Context, fn func(dbtx) error) error {
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return errors.Join(fn(tx), tx.Commit())
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, key := r.Context(), r.Header.Get("Idempotency-Key")
		var kept []byte
		err := in(ctx, func(tx dbtx) error {
			rows, err := tx.QueryContext(ctx, selectKey, "ann", key)
			if err != nil {
				return err
			}
			found := rows.Next()
			if found {
				err = rows.Scan(new(int), new([]byte), new([]byte), &kept)
			}
			if err := errors.Join(err, rows.Err(), rows.Close()); err != nil || found {
				return err
			}
			_, err = tx.ExecContext(ctx, insertKey, "ann", key, time.Now().Unix())
			return err
		})
		if err == nil && kept != nil {
			_, _ = w.Write(kept)
			return
		}
		if err == nil {
			err = in(ctx, func(tx dbtx) error {
				if _, err := tx.ExecContext(ctx, insertWork); err != nil {
					return err
				}
				if s.probe != nil {
					s.probe()
				}
				_, err := tx.ExecContext(ctx, updateKey, 200, []byte(fewBytes), []byte(fewBytes), page1KiB, "ann", key)
				return err
			})
		}
		if err != nil {
			http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(page1KiB)
	})
}

// post returns a POST with a body of 100 bytes, with a new key unless it has one.
func (s *onceSite) post(t testing.TB, key string) func() *http.Request {
	r := newRequest(t, "/orders")
	r.Method = http.MethodPost
	body := strings.NewReader(strings.Repeat("x", 100))
	r.Body, r.ContentLength = noCloser{body}, 100
	own := r.Body
	return func() *http.Request {
		body.Reset(strings.Repeat("x", 100))
		r.Body = own
		switch {
		case key == "-":
		case key != "":
			r.Header["Idempotency-Key"] = []string{key}
		default:
			s.n++
			r.Header["Idempotency-Key"] = []string{strconv.Itoa(s.n)}
		}
		return r
	}
}

type noCloser struct{ *strings.Reader }

func (noCloser) Close() error { return nil }

// contest lets the first of some handlers take turns with the others. Each request must
// be answered with 1 KiB, and leave so many rows.
func contest(b *testing.B, s *onceSite, next []func() *http.Request, handlers []http.Handler, rows []int) [][]float64 {
	b.Helper()
	want := s.done(b)
	w := &sink{header: make(http.Header)}
	bad := 0
	take := func(k, n int) time.Duration {
		start := time.Now()
		for range n {
			clear(w.header)
			w.status, w.n = 0, 0
			handlers[k].ServeHTTP(w, next[k]())
			if w.status != http.StatusOK || w.n != int64(len(page1KiB)) {
				bad++
			}
		}
		want += n * rows[k]
		return time.Since(start)
	}
	n := 1
	for take(0, n) < turn {
		n *= 2
	}
	times := make([][]float64, len(handlers))
	for round := 0; b.Loop(); round++ {
		for i := range handlers {
			k := (i + round) % len(handlers)
			times[k] = append(times[k], float64(take(k, n))/float64(n))
		}
	}
	if got := s.done(b); bad > 0 || got != want {
		b.Fatalf("%d requests failed, the database has seen %d of %d", bad, got, want)
	}
	return times
}

func firsts(b *testing.B, s *onceSite) {
	next := s.post(b, "")
	times := contest(b, s, []func() *http.Request{next, next, s.post(b, "-")}, []http.Handler{s.with, s.twoTransactions(), s.without}, []int{1, 1, 1})
	b.ReportMetric(middle(times[0]), "ns/op")
	b.ReportMetric(middle(quotients(times[0], times[1])), "of-hand")
	b.ReportMetric(middle(quotients(times[0], times[2])), "of-keyless")
}

func repeats(b *testing.B, s *onceSite) {
	s.with.ServeHTTP(&sink{header: make(http.Header)}, s.post(b, "repeated")())
	times := contest(b, s, []func() *http.Request{s.post(b, "repeated"), s.post(b, "")}, []http.Handler{s.with, s.with}, []int{0, 1})
	b.ReportMetric(middle(times[0]), "ns/op")
	b.ReportMetric(middle(quotients(times[0], times[1])), "of-first")
}

func keyless(b *testing.B, s *onceSite) {
	next := s.post(b, "-")
	times := contest(b, s, []func() *http.Request{next, next}, []http.Handler{s.with, s.without}, []int{1, 1})
	b.ReportMetric(middle(times[0]), "ns/op")
	b.ReportMetric(middle(quotients(times[0], times[1])), "of-without")
}
