package integration

import (
	"context"
	"fmt"
	"testing"

	"github.com/sqlreq/sqlreq"
	savepoints "github.com/sqlreq/sqlreq/integration/ports/dials/savepoints"
)

// The recipe of docs/migration.md for a store that begins and commits in each method, on each database: what a method
// that fails did is undone, also inside of another one, and the rest of the request is committed.
func TestRecipeOfSavepoints(t *testing.T) {
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) {
			db := d.open(t)
			tables(t, db, "line (id INTEGER PRIMARY KEY)")
			_, store, err := savepoints.New(db, nil)
			if err != nil {
				t.Fatal(err)
			}
			reg, err := sqlreq.New(sqlreq.Binding{DB: db})
			if err != nil {
				t.Fatal(err)
			}
			told := 0
			// method adds two lines, in one that it calls the second.
			method := func(ctx context.Context, first, second int) error {
				tx, err := store.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				defer tx.Rollback()

				tx.AfterCommit(func(context.Context) { told += first })
				if _, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO line VALUES (%d)", first)); err != nil {
					return err
				}
				if err := addInPart(ctx, store, second); (err == nil) == (second == 1) {
					t.Errorf("line %d: got %v", second, err)
				}
				return tx.Commit()
			}
			err = reg.Do(t.Context(), func(ctx context.Context) error {
				if _, err := key.ExecContext(ctx, "INSERT INTO line VALUES (1)"); err != nil {
					return err
				}
				if err := method(ctx, 10, 20); err != nil { // all stays
					t.Error(err)
				}
				if err := method(ctx, 100, 1); err != nil { // the inner one fails
					t.Error(err)
				}
				if err := method(ctx, 1, 200); err == nil { // fails before it calls
					t.Error("a line that is there already: got nil")
				}
				_, err := key.ExecContext(ctx, "INSERT INTO line VALUES (1000)")
				return err
			})
			if sum := number(t, db, "SELECT SUM(id) FROM line"); err != nil || sum != 1131 || told != 110 {
				t.Errorf("got %v, lines of the sum %d and hooks of the sum %d, want 1131 and 110", err, sum, told)
			}
			idle(t, db)
		})
	}
}

func addInPart(ctx context.Context, store *savepoints.DB, id int) error {
	tx, err := store.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()

	if _, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO line VALUES (%d)", id)); err != nil {
		return err
	}
	return tx.Commit()
}
