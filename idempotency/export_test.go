package idempotency

import (
	"context"
	"time"
)

// OnWait has fn called by each request that is going to wait for another one in this
// process.
func (o *Once) OnWait(fn func()) { o.flights.joined = fn }

// Sleep replaces the clock of t.
func (t *Transport) Sleep(fn func(context.Context, time.Duration) error) { t.sleep = fn }

// Statements returns those of the table.
func (o *Once) Statements() (insert, read, update, clean string) {
	o.prepare()
	s := o.sql[o.Dialect]
	return s.insert, s.read, s.update, s.clean
}
