package sqlreqpgx_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sqlreq/sqlreq"
)

var (
	storms = flag.Int("storm", 500, "how many random requests")
	seed   = flag.Uint64("seed", 1, "of the random requests; 0: another one each time")
)

// program is a random request. What its statements were told, it notes.
type program struct {
	*rand.Rand
	site *site
	id   int           // of the next note
	done chan struct{} // closed when the handler has returned: of a broken transfer the client may learn earlier

	committed []int // by explicit Commits
	kept      []int // acknowledged, and not undone, in the open transaction
	failed    bool  // something has returned an error
	script    []string
}

func (p *program) note(format string, args ...any) {
	p.script = append(p.script, fmt.Sprintf(format, args...))
}

func (p *program) met(what string, err error) error {
	p.note("%s: %v", what, err)
	if err != nil {
		p.failed = true
	}
	return err
}

// insert inserts a note by one of all ways, and notes it if that is acknowledged.
func (p *program) insert(ctx context.Context, q querier, text string) {
	id := p.id
	p.id++
	way := p.IntN(len(kinds) + 2)
	var err error
	switch {
	case way < len(kinds):
		err = p.met(kinds[way]+" "+text, insert(ctx, q, kinds[way], id, text))
	case way == len(kinds):
		err = p.met("sqlreq.Key "+text, second(sqlreq.DefaultKey.ExecContext(ctx, insertNote, id, text)))
	default:
		tx, txErr := sqlreq.Tx(ctx)
		if err = txErr; err == nil {
			_, err = tx.ExecContext(ctx, insertNote, id, text)
		}
		_ = p.met("*sql.Tx "+text, err)
	}
	if err == nil {
		p.kept = append(p.kept, id)
	}
}

// steps runs random steps.
func (p *program) steps(ctx context.Context, q querier, depth int) {
	for range 1 + p.IntN(4) {
		switch n := p.IntN(40); {
		case n < 18:
			p.insert(ctx, q, "text")
		case n < 20:
			p.insert(ctx, q, "fail")
		case n < 24 && depth < 3:
			p.level("Begin", func(undo error) error {
				return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
					p.steps(ctx, tx, depth+1)
					return undo
				})
			})
		case n < 28 && depth < 3:
			p.level("Savepoint", func(undo error) error {
				return sqlreq.Savepoint(ctx, func(ctx context.Context) error {
					p.steps(ctx, key, depth+1)
					return undo
				})
			})
		case n < 29:
			rows, err := q.Query(ctx, "SELECT generate_series(1, 1000)")
			rows.Next()
			if p.IntN(2) == 0 {
				p.insert(ctx, q, "refused") // an error, which changes nothing
			}
			rows.Close()
			_ = p.met("rows", errors.Join(err, rows.Err()))
		case n < 30:
			rows, err := q.Query(ctx, "SELECT 1/(g - 500) FROM generate_series(1, 1000) g")
			for rows.Next() {
			}
			_ = p.met("rows that fail late", errors.Join(err, rows.Err()))
		case n < 31:
			short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			p.insert(short, q, "nap")
			cancel()
		case n < 32:
			ended, cancel := context.WithCancel(ctx)
			cancel()
			p.insert(ended, q, "context ended")
		case n < 33:
			p.insert(ctx, q, "kill")
		case n < 34 && depth == 0:
			if p.met("Commit", sqlreq.Commit(ctx)) == nil {
				p.committed = append(p.committed, p.kept...)
				p.kept = nil
			}
		case n < 35 && depth == 0:
			if p.met("Rollback", sqlreq.Rollback(ctx)) == nil {
				p.kept = nil
			}
		case n < 37:
			if tx, err := key.Tx(ctx); p.met("Tx", err) == nil {
				p.insert(ctx, tx, "text")
			}
		default:
			p.beside(ctx)
		}
	}
}

// beside runs statements of two goroutines.
func (p *program) beside(ctx context.Context) {
	var wg sync.WaitGroup
	ids := []int{p.id, p.id + 1}
	p.id += 2
	errs := make([]error, 2)
	for i, id := range ids {
		wg.Go(func() { errs[i] = insert(ctx, key, []string{"Exec", "QueryRow"}[i], id, "text") })
	}
	wg.Wait()
	for i, id := range ids {
		if p.met("beside", errs[i]) == nil {
			p.kept = append(p.kept, id)
		}
	}
}

var errUndo = errors.New("to be undone")

// level runs fn, which returns undo if it is not nil.
func (p *program) level(what string, fn func(undo error) error) {
	before := slices.Clone(p.kept)
	var undo error
	if p.IntN(2) == 0 {
		undo = errUndo
	}
	p.note("%s {", what)
	err := fn(undo)
	if err != nil {
		p.kept = before
	}
	if err == errUndo {
		err = nil
	}
	_ = p.met("} "+what, err)
}

// run is the request: random steps, and a random end.
func (p *program) run(w http.ResponseWriter, r *http.Request) error {
	p.steps(r.Context(), key, 0)
	end := p.IntN(10)
	p.note("end %d", end)
	p.failed = p.failed || end < 3
	switch end {
	case 0:
		w.WriteHeader(404)
	case 1:
		return errNo
	case 2:
		panic(http.ErrAbortHandler)
	case 3:
		_, err := key.Query(r.Context(), "SELECT generate_series(1, 1000)") // left open
		_ = p.met("rows left open", err)
	case 4:
		var b pgx.Batch
		b.Queue(insertNote, p.id, "text")
		key.SendBatch(r.Context(), &b) // left open; it is executed all the same
		p.kept = append(p.kept, p.id)  // if the request succeeds
	}
	return nil
}

// Random requests that mix everything, judged by a connection of its own against what
// the client was told.
func TestStorm(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	j := newJudge(t)
	s := newSiteOn(t, j, newPool(t, j.dsn, func(c *pgxpool.Config) { c.MaxConns = 8 }))
	var mu sync.Mutex
	programs := make(map[string]*program)
	h := sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		mu.Lock()
		p := programs[r.URL.Path]
		mu.Unlock()
		defer close(p.done)
		return p.run(w, r)
	})
	s.handler.Store(&h)
	next := make(chan int)
	told := make(map[int]int)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			for n := range next {
				path := "/" + strconv.Itoa(n)
				p := &program{Rand: rand.New(rand.NewPCG(*seed, uint64(n))), site: s, id: n * 1000, done: make(chan struct{})}
				mu.Lock()
				programs[path] = p
				mu.Unlock()
				status, _ := s.post(context.Background(), path)
				select {
				case <-p.done:
				case <-time.After(patience):
					t.Errorf("request %d has not come to its end", n)
				}
				mu.Lock()
				told[n] = status
				mu.Unlock()
			}
		})
	}
	for n := range *storms {
		next <- n
	}
	close(next)
	wg.Wait()
	eventually(t, "the connections given back", func() bool { return s.pool.Stat().AcquiredConns() == 0 })
	succeeded := 0
	for n := range *storms {
		p := programs["/"+strconv.Itoa(n)]
		rows, _ := j.Query(context.Background(), "SELECT id FROM notes WHERE id >= $1 AND id < $2 ORDER BY id", n*1000, (n+1)*1000)
		stored, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil {
			t.Fatal(err)
		}
		want := p.committed
		if told[n] == 200 {
			want = append(want, p.kept...)
			succeeded++
		}
		if slices.Sort(want); !slices.Equal(stored, want) {
			t.Errorf("-seed %d, request %d: told %d: stored %v, want %v\n%q", *seed, n, told[n], stored, want, p.script)
		}
		if told[n] != 200 && !p.failed {
			t.Errorf("-seed %d, request %d: told %d, and nothing has failed\n%q", *seed, n, told[n], p.script)
		}
	}
	t.Logf("-seed %d: %d of %d requests have succeeded", *seed, succeeded, *storms)
	if *storms >= 500 && (succeeded < *storms/10 || succeeded > *storms*9/10) {
		t.Errorf("%d of %d requests have succeeded: the mixture is one-sided", succeeded, *storms)
	}
}
