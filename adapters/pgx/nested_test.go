package sqlreqpgx_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
)

var errNo = errors.New("no")

// nesting is a handler, its answer, and what becomes of the notes 0 to 2.
type nesting struct {
	status int
	stored [3]bool
	run    func(ctx context.Context, put func(context.Context, querier, int)) error
}

// inSavepoint runs fn in a Savepoint that is rolled back, or not.
func inSavepoint(ctx context.Context, keep bool, fn func(context.Context) error) error {
	err := sqlreq.Savepoint(ctx, func(ctx context.Context) error {
		if err := fn(ctx); err != nil || keep {
			return err
		}
		return errNo
	})
	if err == errNo {
		return nil
	}
	return err
}

// begin runs fn in a Begin that is rolled back, or not.
func begin(ctx context.Context, b interface {
	Begin(context.Context) (pgx.Tx, error)
}, keep bool, fn func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, b, func(tx pgx.Tx) error {
		if err := fn(tx); err != nil || keep {
			return err
		}
		return errNo
	})
	if err == errNo {
		return nil
	}
	return err
}

var nestings = map[string]nesting{
	"Begin kept": {200, [3]bool{true, true, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := begin(ctx, key, true, func(tx pgx.Tx) error { put(ctx, tx, 1); return nil })
		put(ctx, key, 2)
		return err
	}},
	"Begin rolled back": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := begin(ctx, key, false, func(tx pgx.Tx) error { put(ctx, key, 1); return nil })
		put(ctx, key, 2)
		return err
	}},
	"Begin rolled back, its context ended": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		short, cancel := context.WithCancel(ctx)
		defer cancel()
		tx, err := key.Begin(short)
		if err != nil {
			return err
		}
		put(short, tx, 1)
		cancel()
		err = tx.Rollback(short)
		put(ctx, key, 2)
		return err
	}},
	"Begin's Commit with an ended context": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		short, cancel := context.WithCancel(ctx)
		defer cancel()
		tx, err := key.Begin(short)
		if err != nil {
			return err
		}
		put(short, tx, 1)
		cancel()
		if err := tx.Commit(short); !errors.Is(err, context.Canceled) {
			return errors.Join(errors.New("Commit has succeeded"), err)
		}
		put(ctx, key, 2)
		return nil
	}},
	"a failed RELEASE goes back": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := pgx.BeginFunc(ctx, key, func(tx pgx.Tx) error {
			put(ctx, tx, 1)
			_, _ = tx.Exec(ctx, "SELECT 1/0") // swallowed
			return nil
		})
		if !hasState(err, "25P02") {
			return errors.Join(errors.New("not refused"), err)
		}
		put(ctx, key, 2)
		return nil
	}},
	"Begin in Begin, the inner rolled back": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		return begin(ctx, key, true, func(tx pgx.Tx) error {
			put(ctx, tx, 0)
			err := begin(ctx, tx, false, func(tx pgx.Tx) error { put(ctx, tx, 1); return nil })
			put(ctx, tx, 2)
			return err
		})
	}},
	"Begin in Begin, the outer rolled back": {200, [3]bool{}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		return begin(ctx, key, false, func(tx pgx.Tx) error {
			put(ctx, tx, 0)
			err := begin(ctx, tx, true, func(tx pgx.Tx) error { put(ctx, tx, 1); return nil })
			put(ctx, tx, 2)
			return err
		})
	}},
	"Begin of Tx": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		tx, err := sqlreqpgx.Tx(ctx)
		if err != nil {
			return err
		}
		put(ctx, tx, 0)
		err = begin(context.Background(), tx, false, func(tx pgx.Tx) error { put(context.Background(), tx, 1); return nil })
		put(ctx, tx, 2)
		return err
	}},
	"Tx taken in a Savepoint, used after it": {200, [3]bool{true, true, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		var tx pgx.Tx
		err := inSavepoint(ctx, true, func(ctx context.Context) (err error) {
			if tx, err = key.Tx(ctx); err == nil {
				put(ctx, tx, 0)
			}
			return err
		})
		if err != nil {
			return err
		}
		put(ctx, tx, 1)
		put(ctx, key, 2)
		return nil
	}},
	"Savepoint around Begin, rolled back": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := inSavepoint(ctx, false, func(ctx context.Context) error {
			return begin(ctx, key, true, func(tx pgx.Tx) error { put(ctx, tx, 1); return nil })
		})
		put(ctx, key, 2)
		return err
	}},
	"Savepoint around Begin, kept": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		return inSavepoint(ctx, true, func(ctx context.Context) error {
			put(ctx, key, 0)
			err := begin(ctx, key, false, func(tx pgx.Tx) error { put(ctx, tx, 1); return nil })
			put(ctx, key, 2)
			return err
		})
	}},
	"Savepoint in Begin, rolled back": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		return begin(ctx, key, true, func(tx pgx.Tx) error {
			put(ctx, tx, 0)
			err := inSavepoint(ctx, false, func(ctx context.Context) error { put(ctx, tx, 1); return nil })
			put(ctx, tx, 2)
			return err
		})
	}},
	"Savepoint in Begin, both kept, then the Begin rolled back": {200, [3]bool{false, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		err := begin(ctx, key, false, func(tx pgx.Tx) error {
			put(ctx, tx, 0)
			return inSavepoint(ctx, true, func(ctx context.Context) error { put(ctx, key, 1); return nil })
		})
		put(ctx, key, 2)
		return err
	}},
	"rows open at a Rollback of Begin": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := begin(ctx, key, false, func(tx pgx.Tx) error {
			put(ctx, tx, 1)
			return second(tx.Query(ctx, "SELECT generate_series(1, 100000)"))
		})
		put(ctx, key, 2)
		return err
	}},
	"rows open at a Rollback of a Savepoint": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := inSavepoint(ctx, false, func(ctx context.Context) error {
			put(ctx, key, 1)
			return second(key.Query(ctx, "SELECT generate_series(1, 100000)"))
		})
		put(ctx, key, 2)
		return err
	}},
	"rows open at the end of a Savepoint": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := inSavepoint(ctx, true, func(ctx context.Context) error {
			put(ctx, key, 1)
			return second(key.Query(ctx, "SELECT generate_series(1, 100000)"))
		})
		if !isBusy(err) {
			return errors.Join(errors.New("not refused"), err)
		}
		put(ctx, key, 2)
		return nil
	}},
	"an error met late, then Rollback": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := begin(ctx, key, false, func(tx pgx.Tx) error {
			put(ctx, tx, 1)
			rows, err := tx.Query(ctx, "SELECT 1/(g - 5000) FROM generate_series(1, 10000) g")
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			if !hasState(rows.Err(), "22012") {
				return errors.Join(errors.New("no error"), rows.Err())
			}
			return nil
		})
		put(ctx, key, 2)
		return err
	}},
	"Begin left open": {500, [3]bool{}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		tx, err := key.Begin(ctx)
		if err != nil {
			return err
		}
		put(ctx, tx, 1)
		return nil
	}},
	"Begin left open, and an error": {500, [3]bool{}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		tx, err := key.Begin(ctx)
		if err != nil {
			return err
		}
		put(ctx, tx, 0)
		return errNo
	}},
	"Begin left open in a Savepoint": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := inSavepoint(ctx, true, func(ctx context.Context) error {
			tx, err := key.Begin(ctx)
			if err != nil {
				return err
			}
			put(ctx, tx, 1)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "savepoint of Begin is open") {
			return errors.Join(errors.New("not refused"), err)
		}
		put(ctx, key, 2)
		return nil
	}},
	"Begin left open in a Savepoint that is rolled back": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := inSavepoint(ctx, false, func(ctx context.Context) error {
			tx, err := key.Begin(ctx)
			if err != nil {
				return err
			}
			put(ctx, tx, 1)
			return nil
		})
		put(ctx, key, 2)
		return err
	}},
	"crossed: Begin is rolled back in a Savepoint that was begun in it": {500, [3]bool{}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		tx, err := key.Begin(ctx)
		if err != nil {
			return err
		}
		put(ctx, tx, 0)
		err = sqlreq.Savepoint(ctx, func(ctx context.Context) error {
			put(ctx, key, 1)
			return tx.Rollback(ctx)
		})
		if err == nil {
			return nil // a success: the test fails
		}
		put(ctx, key, 2)
		return nil
	}},
	"crossed: the outer Begin committed before the inner is rolled back": {200, [3]bool{false, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		outer, err := key.Begin(ctx)
		if err != nil {
			return err
		}
		inner, err := outer.Begin(ctx)
		if err != nil {
			return err
		}
		put(ctx, inner, 0)
		if err := outer.Commit(ctx); err == nil || !strings.Contains(err.Error(), "savepoint of Begin is open") {
			return errors.Join(errors.New("not refused"), err)
		}
		if err := inner.Rollback(ctx); err != pgx.ErrTxClosed {
			return errors.Join(errors.New("not closed"), err)
		}
		put(ctx, key, 2)
		return nil
	}},
	"the inner Begin left open, the outer committed": {500, [3]bool{}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		return pgx.BeginFunc(ctx, key, func(tx pgx.Tx) error {
			inner, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			put(ctx, inner, 1)
			return nil
		})
	}},
	"the outer context in a Savepoint": {200, [3]bool{true, false, true}, func(ctx context.Context, put func(context.Context, querier, int)) error {
		put(ctx, key, 0)
		err := inSavepoint(ctx, true, func(context.Context) error {
			if err := insert(ctx, key, "Exec", fresh(), "text"); err == nil || !strings.Contains(err.Error(), "Savepoint is open") {
				return errors.Join(errors.New("not refused"), err)
			}
			return nil
		})
		put(ctx, key, 2)
		return err
	}},
}

// Savepoint around, Begin inside, interleaved: what is rolled back is, and nothing else.
func TestSavepoints(t *testing.T) {
	for on, s := range map[string]*site{
		"DB":    newSite(t),
		"Guard": newSite(t, onBinding(func(b *sqlreq.Binding) { b.Guard = true })),
		"Tx":    newTestTxSite(t),
	} {
		for name, n := range nestings {
			for _, kind := range kinds {
				t.Run(on+"/"+name+"/"+kind, func(t *testing.T) {
					ids := []int{fresh(), fresh(), fresh()}
					a := s.request(func(_ http.ResponseWriter, r *http.Request) error {
						return n.run(r.Context(), func(ctx context.Context, q querier, i int) {
							if err := insert(ctx, q, kind, ids[i], "text"); err != nil && n.status == 200 {
								t.Errorf("note %d: %v", i, err)
							}
						})
					})
					if a.status != n.status {
						t.Errorf("got %d %q, want %d (events %v)", a.status, a.body, n.status, a.events)
					}
					for i, id := range ids {
						if got := s.stored(id); got != n.stored[i] {
							t.Errorf("note %d stored: got %v, want %v", i, got, n.stored[i])
						}
					}
				})
			}
		}
	}
}

// A Rollback that cannot go back, since something is under way, fails the request.
func TestRollbackThatFailsFailsTheRequest(t *testing.T) {
	s := newSite(t)
	id := fresh()
	a := s.want(500, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
		sp, err := key.Begin(r.Context())
		if err != nil {
			return err
		}
		var b pgx.Batch
		b.Queue(insertNote, id, "text").Exec(func(pgconn.CommandTag) error {
			if err := sp.Rollback(r.Context()); !isBusy(err) {
				t.Errorf("got %v, want an error that says what is open", err)
			}
			return nil // swallowed
		})
		return key.SendBatch(r.Context(), &b).Close()
	})
	if e := a.last(); e.Outcome != sqlreq.RolledBack || e.Err == nil || !strings.Contains(e.Err.Error(), "rollback to a savepoint of Begin failed") {
		t.Errorf("got %v, want a rollback that says why", a.events)
	}
}

// A COMMIT that is refused before it is sent, because a savepoint is open, costs no connection.
func TestRefusedCommitKeepsTheConnection(t *testing.T) {
	s := newSite(t)
	var pid uint32
	s.want(500, false, nil, func(_ http.ResponseWriter, r *http.Request) error {
		tx, err := key.Begin(r.Context())
		if err == nil {
			pid = tx.Conn().PgConn().PID()
		}
		return err
	})
	if s.number("SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'idle'", pid) != 1 {
		t.Error("the connection is lost")
	}
}

// After Commit or Rollback a savepoint is closed, also for what is deferred.
func TestSavepointIsClosed(t *testing.T) {
	s := newSite(t)
	for _, commit := range []bool{true, false} {
		id := fresh()
		s.want(200, commit, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
			tx, err := key.Begin(r.Context())
			if err != nil {
				return err
			}
			err = insert(r.Context(), tx, "Exec", id, "text")
			if commit {
				err = errors.Join(err, tx.Commit(r.Context()))
			} else {
				err = errors.Join(err, tx.Rollback(r.Context()))
			}
			wantClosed(t, r.Context(), tx)
			return err
		})
	}
}

// A savepoint is closed, too, when one around it was gone back to: what runs on it then
// would be a part of the request's transaction, which lives.
func TestSavepointIsClosedWithTheOneAround(t *testing.T) {
	for on, s := range map[string]*site{"DB": newSite(t), "Tx": newTestTxSite(t)} {
		t.Run(on, func(t *testing.T) {
			id := fresh()
			s.want(200, true, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
				ctx := r.Context()
				if err := insert(ctx, key, "Exec", id, "text"); err != nil {
					return err
				}
				inner := make([]pgx.Tx, 3)
				err := begin(ctx, key, false, func(tx pgx.Tx) (err error) {
					for i := range inner { // each in the one before
						if inner[i], err = tx.Begin(ctx); err != nil {
							return err
						}
						tx = inner[i]
					}
					return nil
				})
				for _, tx := range inner {
					rows, _ := tx.Query(ctx, "SELECT 1")
					if _, err := pgx.CollectRows(rows, pgx.RowTo[int]); !errors.Is(err, pgx.ErrTxClosed) {
						t.Errorf("got %v, want ErrTxClosed", err)
					}
				}
				if err := inner[2].Rollback(ctx); err != pgx.ErrTxClosed {
					t.Errorf("Rollback: got %v, want ErrTxClosed", err)
				}
				if err := inner[1].Commit(ctx); err != pgx.ErrTxClosed {
					t.Errorf("Commit: got %v, want ErrTxClosed", err)
				}
				for _, kind := range kinds {
					if err := insert(ctx, inner[0], kind, fresh(), "text"); !errors.Is(err, pgx.ErrTxClosed) {
						t.Errorf("%s: got %v, want ErrTxClosed", kind, err)
					}
				}
				wantClosed(t, ctx, inner[0])
				return err
			})
		})
	}
}

// wantClosed fails the test if anything works on tx.
func wantClosed(t *testing.T, ctx context.Context, tx pgx.Tx) {
	t.Helper()
	refused := map[string]error{
		"Commit":   tx.Commit(ctx),
		"Rollback": tx.Rollback(ctx),
		"Begin":    second(tx.Begin(ctx)),
		"Prepare":  second(tx.Prepare(ctx, "x", "SELECT 1")),
	}
	for _, kind := range kinds {
		refused[kind] = insert(ctx, tx, kind, fresh(), "text")
	}
	for name, err := range refused {
		if !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("%s: got %v, want ErrTxClosed", name, err)
		}
	}
	rows, _ := tx.Query(ctx, "SELECT 1")
	if _, err := pgx.CollectRows(rows, pgx.RowTo[int]); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("the rows of Query: got %v, want ErrTxClosed", err)
	}
}

// Commit and Rollback of the request's transaction fail the request, and the text says
// what to use. So does the idiom of every pgx program, a deferred Rollback.
func TestTxCommitAndRollbackFailTheRequest(t *testing.T) {
	var failed error
	s := newSite(t, onRegistry(func(reg *sqlreq.Registry) {
		reg.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) { failed = err }
	}))
	for name, end := range map[string]func(context.Context, pgx.Tx) error{
		"Commit":            func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
		"Commit, swallowed": func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil },
		"Rollback":          func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
		"defer Rollback":    func(ctx context.Context, tx pgx.Tx) error { defer tx.Rollback(ctx); return nil },
		"defer Rollback, another context": func(_ context.Context, tx pgx.Tx) error {
			defer tx.Rollback(context.Background())
			return nil
		},
		"both": func(ctx context.Context, tx pgx.Tx) error { defer tx.Rollback(ctx); return tx.Commit(ctx) },
		"Commit's error": func(ctx context.Context, tx pgx.Tx) error {
			err := tx.Commit(ctx)
			if !errors.Is(err, sqlreq.ErrTxEnded) {
				t.Errorf("Commit: got %v, want ErrTxEnded", err)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := fresh()
			s.want(500, false, []int{id}, func(_ http.ResponseWriter, r *http.Request) error {
				tx, err := sqlreqpgx.Tx(r.Context())
				if err != nil {
					return err
				}
				defer func() {
					if err := insert(r.Context(), tx, "Exec", id, "text"); !errors.Is(err, pgx.ErrTxClosed) {
						t.Errorf("after its end: got %v, want ErrTxClosed", err)
					}
				}()
				if err := insert(r.Context(), tx, "Exec", id, "text"); err != nil {
					return err
				}
				return end(r.Context(), tx)
			})
			if !errors.Is(failed, sqlreq.ErrTxEnded) || !strings.Contains(failed.Error(), "sqlreqpgx.Key.Begin") {
				t.Errorf("got %v, want ErrTxEnded with the name of Key.Begin", failed)
			}
		})
	}
}

// After an explicit Commit or Rollback, and after the end of the request, Tx and Begin
// are closed: never the next transaction, which goes on.
func TestTxEndsWithItsTransaction(t *testing.T) {
	for on, s := range map[string]*site{"DB": newSite(t), "Tx": newTestTxSite(t)} {
		for name, end := range map[string]func(context.Context) error{"Commit": sqlreq.Commit, "Rollback": sqlreq.Rollback} {
			t.Run(on+"/"+name, func(t *testing.T) {
				before, after := fresh(), fresh()
				var left pgx.Tx
				var leftCtx context.Context
				s.want(200, true, []int{after}, func(_ http.ResponseWriter, r *http.Request) (err error) {
					ctx := r.Context()
					tx, err := sqlreqpgx.Tx(ctx)
					if err != nil {
						return err
					}
					defer tx.Rollback(ctx) // is a no-op after the transaction's end
					if err := insert(ctx, tx, "Exec", before, "text"); err != nil {
						return err
					}
					if err := end(ctx); err != nil {
						return err
					}
					if err := insert(ctx, tx, "Exec", fresh(), "text"); !errors.Is(err, pgx.ErrTxClosed) {
						t.Errorf("got %v, want ErrTxClosed", err)
					}
					if sqlreq.Begun(ctx) {
						t.Error("the closed Tx has begun the next transaction")
					}
					if err := insert(ctx, key, "Exec", after, "text"); err != nil {
						return err
					}
					wantClosed(t, ctx, tx)
					left, err = sqlreqpgx.Tx(ctx)
					leftCtx = ctx
					return err
				})
				if got := s.stored(before); got != (name == "Commit") {
					t.Errorf("the first transaction: stored %v", got)
				}
				wantClosed(t, leftCtx, left)
			})
		}
	}
}
