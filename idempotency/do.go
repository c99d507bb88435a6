package idempotency

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/repeat"
)

// Do runs fn for the message, or job, with an id, unless that was done: fn and the id
// are committed together. first tells whether fn ran; with an error it is false. An id
// is never the same as the key of a request. It has 1 to 255 bytes of UTF-8 without NUL,
// a scope up to 255: the queue, the kind of job.
//
// Do is a [sqlreq.Registry.Do]; if ctx is that of a request, or Do, in reg which has not
// ended, it is a part of that ([sqlreq.Registry.Atomic]), and the id shares its fate. fn
// uses the context that it is given, and may run again where Registry.Retry says so. If
// its error is returned nothing is stored, and the id is as new.
//
// A Do with the id of one that is in progress waits for it, up to Wait, and then returns
// ErrInProgress. Where the answer to COMMIT was lost, a retry finds out what became of
// it; first is false then if the work is there.
func (o *Once) Do(ctx context.Context, reg *sqlreq.Registry, scope, id string, fn func(context.Context) error) (first bool, err error) {
	o.prepare()
	if fn == nil {
		panic("idempotency: the function of Do is nil")
	}
	if err := errors.Join(checkText("the scope", scope), checkText("the id", id)); err != nil {
		return false, err
	}
	if id == "" {
		return false, errors.New("idempotency: the id is empty; every message would be the same")
	}
	around := unitOf(ctx)
	var m *message
	committing := false
	defer func() {
		if !committing && m != nil { // the unit may go on for long without it
			m.flight.land()
		}
	}()
	err = reg.Atomic(ctx, func(ctx context.Context) error {
		m = &message{newClaim(ctx, o, recordID{scope, id, ofMessage}, unitOf(ctx)), around}
		m.write = m.done
		var err error
		first, err = m.do(fn)
		return err
	})
	committing = err == nil
	return first && committing, err
}

func unitOf(ctx context.Context) repeat.Unit {
	if request := repeat.Of(ctx); request != nil {
		return request.Unit()
	}
	return nil
}

// message is a Do.
type message struct {
	claim
	around repeat.Unit // of the caller, nil if there is none
}

func (m *message) do(fn func(context.Context) error) (first bool, err error) {
	_, left, err := m.once.flights.enter(m.ctx, &m.flight, m.once.wait())
	if err != nil {
		return false, err
	}
	done, err := m.take(left)
	if err != nil {
		return false, err
	}
	if done != nil {
		m.flight.land()
		if done.status == 0 {
			return false, fmt.Errorf("%w: id %q of scope %q", ErrInProgress, m.id.key, m.id.scope)
		}
		return false, nil
	}
	if m.flight.unit == m.around {
		// A part of the caller's unit, which nothing in fn can end.
		if err := fn(m.ctx); err != nil {
			return false, err
		}
		return true, errors.Join(m.done(m.ctx), m.landEarly())
	}
	if err := m.watch(); err != nil {
		return false, err
	}
	if err := fn(m.ctx); err != nil {
		return false, err
	}
	return true, m.record()
}

// landEarly has the flight end with the transaction: the unit may go on for long after
// an explicit Commit, a Rollback or a Hijack, and may wait for another message meanwhile.
func (m *message) landEarly() error {
	db, land := m.once.database(), func(context.Context) { m.flight.land() }
	return errors.Join(db.AfterCommit(m.ctx, land), db.AfterRollback(m.ctx, land))
}

// done notes that the message was done.
func (m *message) done(ctx context.Context) error {
	return m.update(ctx, row{status: http.StatusOK})
}
