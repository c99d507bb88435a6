package unit

import (
	"context"
	"errors"

	"github.com/sqlreq/sqlreq/internal/txn"
)

// Savepoint runs fn in a savepoint of the transaction of b, begun if there is
// none, with a context of its own. An error or a panic of fn goes back to it. bound
// is the context of the registry that bound b.
func (u *Unit) Savepoint(ctx, bound context.Context, b Binding, fn func(context.Context) error) error {
	sp, err := u.save(ctx, bound, b)
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = sp.RollBack(b.Name())
		}
	}()
	err = fn(sp.Context(ctx))
	returned = true
	if err == nil {
		return sp.Release(b.Name())
	}
	if failed := sp.RollBack(b.Name()); failed != nil {
		return errors.Join(err, failed)
	}
	return err
}

// save begins a savepoint. If another goroutine ends the transaction meanwhile,
// this is the next use, which begins a new one.
func (u *Unit) save(ctx, bound context.Context, b Binding) (*txn.Savepoint, error) {
	for {
		o, err := u.Begin(ctx, bound, b, txn.ForSavepoint, nil)
		if err != nil {
			return nil, err
		}
		sp, err := u.saveIn(ctx, o)
		if err != nil {
			u.metIfSent(err)
			return nil, u.ofEnd(err)
		}
		if sp != nil {
			return sp, nil
		}
	}
}

// saveIn begins a savepoint in the transaction that o has found; see txn.Slot.Save.
func (u *Unit) saveIn(ctx context.Context, o Open) (*txn.Savepoint, error) {
	done, err := u.mayUse(ctx, o.source)
	if err != nil {
		return nil, err
	}
	defer done()
	return o.source.slot.Save(ctx, u.host.Context(), o.Tx, o.source.Name())
}

// metIfSent remembers a conflict that a statement about a savepoint met.
func (u *Unit) metIfSent(err error) {
	if sent := (*txn.SaveError)(nil); errors.As(err, &sent) {
		u.Met(err)
	}
}
