// G6 A read-only serializable transaction ends with COMMIT: what is in it is stored,
// and so a failure after it says that something may be.

package guarantees

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG6CommitErrorNamesReadOnlySerializable(t *testing.T) {
	const other sqlreq.Key = "other"
	first, second := sqlreqtest.OpenDB(t), sqlreqtest.OpenDB(t)
	reg := sqlreqtest.NewRegistry(t,
		sqlreq.Binding{DB: first, TxOptions: sqlreqtest.Options(sqlreqtest.ReadOnlySerializable)},
		sqlreq.Binding{Key: other, DB: second})
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		sqlreqtest.Note(t, ctx, sqlreqtest.Main, "a") // SQLite takes no notice of the flag
		_, err := other.ExecContext(ctx, sqlreqtest.BreakCommit)
		return err
	})
	if n := sqlreqtest.Count(t, first, "work"); n != 1 {
		t.Errorf("%d rows are stored", n)
	}
	var c *sqlreq.CommitError
	if !errors.As(err, &c) || !slices.Equal(c.Committed, []sqlreq.Key{sqlreqtest.Main}) || !sqlreq.MayHaveCommitted(err) {
		t.Errorf("Do returned %v, MayHaveCommitted %v; want a CommitError that names what is stored", err, sqlreq.MayHaveCommitted(err))
	}
}
