package idempotency

import (
	"context"
	"errors"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/repeat"
)

// Handler returns next as a handler whose requests with a key are done once. It stands
// anywhere inside of [sqlreq.Registry.Middleware]: around a mux, or around single
// routes. Requests without a key, and those with a safe method (GET, HEAD, OPTIONS,
// TRACE), are next's as if it were not there. It panics if a field of o is not valid, or
// Scope or next is nil.
//
// The work, and all that next does in the database, must be in the request's
// transaction. An explicit [sqlreq.Commit] in next commits the key without an answer: if
// the request fails afterwards its repeats get ErrInProgress until the record is
// cleaned. [sqlreq.BeginTx] in next is an error, since the transaction has begun. If the
// request ends before next has returned, in a goroutine that a layer outside has not
// waited for, nothing is committed and the request fails.
//
// Up to 64 KiB of the body are read before the transaction begins.
func (o *Once) Handler(next http.Handler) http.Handler {
	o.prepare()
	switch {
	case o.Scope == nil:
		panic("idempotency: Once.Scope is nil; let it return the user, or \"\" if all clients are one")
	case next == nil:
		panic("idempotency: Handler(nil); give it the handler to wrap")
	}
	return &handler{once: o, header: o.header(), next: next}
}

type handler struct {
	once   *Once
	header string
	next   http.Handler
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	values, ok := r.Header[h.header]
	switch {
	case isSafe(r.Method), !ok && !h.once.Required:
		h.next.ServeHTTP(w, r)
	case !ok:
		h.once.refuse(w, r, ErrMissing)
	default:
		h.serveWithKey(w, r, values)
	}
}

// isSafe reports whether a method changes nothing (RFC 9110, section 9.2.1).
func isSafe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, "":
		return true
	}
	return false
}

func (h *handler) serveWithKey(w http.ResponseWriter, r *http.Request, values []string) {
	o := h.once
	key, ok := parseKey(values)
	if !ok {
		o.refuse(w, r, ErrMalformed)
		return
	}
	scope, err := o.Scope(r)
	if err == nil {
		err = checkText("the scope", scope)
	}
	if err != nil {
		o.refuse(w, r, err)
		return
	}
	request := repeat.Of(r.Context())
	if request == nil {
		fail(w, r, sqlreq.ErrNoRegistry)
		return
	}
	c := &call{claim: newClaim(r.Context(), o, recordID{scope, key, ofRequest}, request.Unit())}
	c.write = c.writeAnswer
	c.body.init(r)
	c.serve(w, r, h.next)
}

// call is a request with a key.
type call struct {
	claim
	body     body
	recorder recorder
	inside   repeat.Marked // the context of next; its mark is the flight
	print    []byte        // the fingerprint; set by recordAnswer
}

var errUnanswered = errors.New("idempotency: the request ends while the handler of its key still runs, nothing is committed; wait for it, or answer 400 or more")

// MayCommit says no as long as nothing has the answer recorded: the handler runs in a
// goroutine that nobody has waited for, as behind http.TimeoutHandler.
func (c *call) MayCommit() error {
	if c.isUnanswered() {
		return errUnanswered
	}
	return nil
}

func (c *call) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	o := c.once
	f, left, err := o.flights.enter(c.ctx, &c.flight, o.wait())
	if err != nil {
		c.failed(w, r, err)
		return
	}
	if f.isAround(c.ctx) { // this Handler is around itself
		next.ServeHTTP(w, r)
		return
	}
	c.flight.unit.BeforeEnd(c) // if it is over, the use of its transaction says so
	others := o.database().Begun(c.ctx)
	done, err := c.take(left)
	switch {
	case err != nil:
		c.failed(w, r, err)
	case done != nil:
		c.noteAnswered()
		c.flight.land()
		if !others {
			_ = o.database().Rollback(c.ctx) // an error of it is the request's
		}
		c.repeat(w, r, done)
	default:
		c.first(w, r, next)
	}
}

// failed answers a request whose key could not be claimed.
func (c *call) failed(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrInProgress) {
		c.once.refuse(w, r, err)
		return
	}
	fail(w, r, err)
}

var errPanicked = errors.New("idempotency: the handler panicked, or has ended its goroutine")

// first runs the handler.
func (c *call) first(w http.ResponseWriter, r *http.Request, next http.Handler) {
	returned := false
	defer func() {
		if !returned { // also if something outside recovers
			_ = sqlreq.Fail(c.ctx, errPanicked)
		}
	}()
	if err := c.watch(); err != nil {
		returned = true
		fail(w, r, err)
		return
	}
	c.body.start()
	c.recorder.init(w, r, c.once.limit())
	c.recorder.call = c
	c.inside = repeat.Marked{Context: r.Context(), Mark: &c.flight}
	req := r.WithContext(&c.inside)
	defer func() { // for layers outside, and for net/http, which removes the files
		r.Pattern, r.MultipartForm = req.Pattern, req.MultipartForm
	}()
	next.ServeHTTP(&c.recorder, req)
	c.handlerDone()
	returned = true
}

// handlerDone has the answer recorded.
func (c *call) handlerDone() {
	var err error
	switch status, hijacked := c.recorder.handlerDone(); {
	case hijacked:
		c.forget()
	case status == http.StatusTemporaryRedirect, status == http.StatusPermanentRedirect:
		c.forget()
		err = c.once.database().Rollback(c.ctx)
	default:
		if err = c.recordAnswer(); err == nil {
			c.noteAnswered()
		}
	}
	if err != nil {
		_ = sqlreq.Fail(c.ctx, err)
	}
}

// recordAnswer has the answer written before COMMIT.
func (c *call) recordAnswer() error {
	c.print = c.body.fingerprint()
	return c.record()
}

// writeAnswer is a BeforeCommit function. After a Hijack that was refused the handler may
// Commit before it has answered: then the key is committed without an answer.
func (c *call) writeAnswer(ctx context.Context) error {
	r, ok := c.recorder.row(c.print)
	if !ok {
		c.noteWritten()
		return nil
	}
	return c.update(ctx, r)
}

// repeat answers from the record. No transaction is open any more, unless a layer
// outside had begun it.
func (c *call) repeat(w http.ResponseWriter, r *http.Request, done *row) {
	if done.status == 0 {
		c.once.refuse(w, r, ErrInProgress)
		return
	}
	a, err := done.answer()
	if err != nil {
		fail(w, r, err)
		return
	}
	same, err := c.body.matches(done.fingerprint)
	switch {
	case err != nil:
		fail(w, r, err)
	case !same:
		c.once.refuse(w, r, ErrMismatch)
	case a.status < 0:
		c.once.refuse(w, r, ErrNotKept)
	default:
		_ = a.replay(w) // the client has gone, or the connection
	}
}

// fail makes the request fail with an error that is none of its key's: it is the
// registry's to run the request again, to answer and to log it.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return err }).ServeHTTP(w, r)
}
