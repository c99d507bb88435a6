package fakedb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

var errTest = errors.New("test")

// work runs a statement in each way, and ends the transaction.
func work(ctx context.Context, db *sql.DB, opts *sql.TxOptions, end func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return err
	}
	_, exec := tx.ExecContext(ctx, "INSERT")
	var n int
	query := tx.QueryRowContext(ctx, "SELECT").Scan(&n)
	if n != 1 && query == nil {
		query = errors.New("the row is not 1")
	}
	stmt, prepare := tx.PrepareContext(ctx, "UPDATE")
	if prepare == nil {
		_, prepare = stmt.ExecContext(ctx)
	}
	return errors.Join(exec, query, prepare, end(tx))
}

func TestLogAndCounts(t *testing.T) {
	d := &DB{}
	db := d.Open(t)
	if err := work(t.Context(), db, nil, (*sql.Tx).Commit); err != nil {
		t.Error(err)
	}
	opts := &sql.TxOptions{Isolation: sql.LevelSerializable, ReadOnly: true}
	if err := work(t.Context(), db, opts, (*sql.Tx).Rollback); err != nil {
		t.Error(err)
	}
	d.Check(t, "BEGIN", "INSERT", "SELECT", "PREPARE UPDATE", "UPDATE", "COMMIT",
		"BEGIN Serializable READ ONLY", "INSERT", "SELECT", "PREPARE UPDATE", "UPDATE", "ROLLBACK")
	if n := d.Count("BEGIN"); n != 2 {
		t.Errorf("%d BEGINs, want 2", n)
	}
	if got, want := d.Counts(), (Counts{Opened: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	_ = db.Close()
	if got, want := d.Counts(), (Counts{Opened: 1, Closed: 1}); got != want {
		t.Errorf("after Close: got %+v, want %+v", got, want)
	}
}

func TestFaults(t *testing.T) {
	step := func(text string) func(*DB) {
		return func(d *DB) {
			d.Step = func(_ context.Context, got string) error {
				if got == text {
					return errTest
				}
				return nil
			}
		}
	}
	tests := map[string]func(*DB){
		"Connect":      func(d *DB) { d.Connect = func(context.Context) error { return errTest } },
		"Begin":        func(d *DB) { d.Begin = func(context.Context) error { return errTest } },
		"Stmt":         func(d *DB) { d.Stmt = func(context.Context, string) error { return errTest } },
		"Commit":       func(d *DB) { d.Commit = func() error { return errTest } },
		"Committed":    func(d *DB) { d.Committed = func() error { return errTest } },
		"Step BEGIN":   step("BEGIN"),
		"Step INSERT":  step("INSERT"),
		"Step SELECT":  step("SELECT"),
		"Step PREPARE": step("PREPARE UPDATE"),
		"Step UPDATE":  step("UPDATE"),
		"Step COMMIT":  step("COMMIT"),
	}
	for name, set := range tests {
		t.Run(name, func(t *testing.T) {
			d := &DB{}
			set(d)
			if err := work(t.Context(), d.Open(t), nil, (*sql.Tx).Commit); !errors.Is(err, errTest) {
				t.Errorf("got %v, want %v", err, errTest)
			}
			d.CheckClean(t)
		})
	}
	t.Run("Rollback", func(t *testing.T) {
		d := &DB{Rollback: func() error { return errTest }}
		if err := work(t.Context(), d.Open(t), nil, (*sql.Tx).Rollback); !errors.Is(err, errTest) {
			t.Errorf("got %v, want %v", err, errTest)
		}
		d.CheckClean(t)
	})
	t.Run("Reset", func(t *testing.T) {
		d := &DB{Reset: func(context.Context) error { return driver.ErrBadConn }}
		db := d.Open(t)
		for range 2 {
			if err := work(t.Context(), db, nil, (*sql.Tx).Commit); err != nil {
				t.Error(err)
			}
		}
		if got, want := d.Counts(), (Counts{Opened: 2, Closed: 1}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("Close", func(t *testing.T) {
		d := &DB{Close: func() error { return errTest }}
		db := d.Open(t)
		err := work(t.Context(), db, nil, (*sql.Tx).Commit)
		if err = errors.Join(err, db.Close()); !errors.Is(err, errTest) {
			t.Errorf("got %v, want %v", err, errTest)
		}
	})
}

func TestScript(t *testing.T) {
	step, bare := Script(errTest, []string{"BEGIN", "INSERT!", "ROLLBACK"})
	if !slices.Equal(bare, []string{"BEGIN", "INSERT", "ROLLBACK"}) {
		t.Errorf("got %q", bare)
	}
	for i, text := range []string{"BEGIN", "INSERT", "ROLLBACK", "INSERT"} {
		if err := step(t.Context(), text); (err != nil) != (i == 1) {
			t.Errorf("%d, %s: got %v", i, text, err)
		}
	}
}

func TestRows(t *testing.T) {
	d := &DB{Rows: func(q string) [][]driver.Value {
		return [][]driver.Value{{q, int64(1)}, {q, int64(2)}}
	}}
	rows, err := d.Open(t).Query("SELECT")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	sum := 0
	for rows.Next() {
		var q string
		var n int
		if err := rows.Scan(&q, &n); err != nil || q != "SELECT" {
			t.Errorf("got %q, %v", q, err)
		}
		sum += n
	}
	if names, _ := rows.Columns(); sum != 3 || rows.Err() != nil {
		t.Errorf("got columns %q, the sum %d, %v; want 3", names, sum, rows.Err())
	}
}

func TestPoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPoint()
		d := &DB{Begin: p.WaitOr, Commit: func() error { p.Wait(); return nil }}
		db := d.Open(t)
		ctx, cancel := context.WithCancel(t.Context())
		begun := make(chan error, 1)
		go func() { begun <- work(ctx, db, nil, (*sql.Tx).Rollback) }()
		p.Reached()
		cancel()
		if err := <-begun; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that the context was cancelled", err)
		}
		p.Release()
		if err := work(t.Context(), db, nil, (*sql.Tx).Commit); err != nil {
			t.Errorf("after Release: got %v", err)
		}
	})
}

// A transaction whose context ends is rolled back by database/sql, in a goroutine
// of its own.
func TestByDatabaseSQL(t *testing.T) {
	for _, own := range []bool{true, false} {
		by := make(chan bool, 1)
		d := &DB{Rollback: func() error { by <- ByDatabaseSQL(); return nil }}
		ctx, cancel := context.WithCancel(t.Context())
		tx, err := d.Open(t).BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if own {
			cancel()
		} else {
			_ = tx.Rollback()
		}
		if got := <-by; got != own {
			t.Errorf("got %t, want %t", got, own)
		}
		cancel()
	}
}
