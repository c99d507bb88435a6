// Package sqlreqotel tells OpenTelemetry of each transaction.
package sqlreqotel

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/sqlreq/sqlreq"
)

const scope = "github.com/sqlreq/sqlreq/adapters/otel"

// Observe returns a function for [sqlreq.Registry].Observe. nil providers are the global
// ones.
//
// Each transaction is a span of kind client below that of the request, from the use that
// asked for it to its end, with the events "begun" and "ending", and the attributes
//
//	db.system.name       other_sql: sqlreq does not know the database
//	db.operation.name    COMMIT or ROLLBACK
//	sqlreq.key           the key that began it
//	sqlreq.outcome       committed, rolled_back, commit_failed, ended
//	sqlreq.attempt       at the request, from 1
//	error.type           if it failed: an SQLSTATE, a status code, or the type of the error; never a text
//
// The span's status is an error if the COMMIT failed, if nobody knows how the transaction
// ended, and if it was rolled back for an error of 500 or more; a rollback that the
// handler's own 4xx asked for is none, nor is a client that has gone.
//
// These are the metrics, in seconds, with the same attributes, sqlreq.attempt aside:
//
//	db.client.connection.wait_time   for a connection and BEGIN; db.client.connection.pool.name is the key
//	db.client.connection.use_time    from then to the end; likewise
//	db.client.operation.duration     of COMMIT or ROLLBACK
//	sqlreq.transactions              a counter; with sqlreq.attempt, by which retries are seen
//
// The function may be called by several goroutines at once.
func Observe(tp trace.TracerProvider, mp metric.MeterProvider) func(context.Context, sqlreq.Event) {
	if tp == nil {
		tp = otel.GetTracerProvider()
	}
	if mp == nil {
		mp = otel.GetMeterProvider()
	}
	o := &observer{tracer: tp.Tracer(scope)}
	o.init(mp.Meter(scope))
	return o.observe
}

type observer struct {
	tracer          trace.Tracer
	wait, use, took metric.Float64Histogram
	transactions    metric.Int64Counter
}

// init makes the instruments. Those of the API are no-ops if that fails.
func (o *observer) init(m metric.Meter) {
	histogram := func(name, what string) metric.Float64Histogram {
		h, err := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what),
			metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10))
		if err != nil {
			otel.Handle(err)
		}
		return h
	}
	o.wait = histogram("db.client.connection.wait_time", "The time it took to obtain an open connection, and to begin a transaction.")
	o.use = histogram("db.client.connection.use_time", "The time between borrowing a connection and returning it.")
	o.took = histogram("db.client.operation.duration", "Duration of COMMIT or ROLLBACK.")
	var err error
	o.transactions, err = m.Int64Counter("sqlreq.transactions", metric.WithUnit("{transaction}"), metric.WithDescription("Transactions that have ended."))
	if err != nil {
		otel.Handle(err)
	}
}

func (o *observer) observe(ctx context.Context, e sqlreq.Event) {
	attrs, failed := attributes(e)
	attempt := attribute.Int("sqlreq.attempt", e.Attempt)
	o.span(ctx, e, append(attrs[:len(attrs):len(attrs)], attempt), failed)
	measured := metric.WithAttributes(attrs...)
	pool := metric.WithAttributes(append(attrs[:len(attrs):len(attrs)], attribute.String("db.client.connection.pool.name", string(e.Key)))...)
	o.wait.Record(ctx, e.Wait.Seconds(), pool)
	o.use.Record(ctx, (e.Open + e.End).Seconds(), pool)
	o.took.Record(ctx, e.End.Seconds(), measured)
	o.transactions.Add(ctx, 1, measured, metric.WithAttributes(attempt))
}

func (o *observer) span(ctx context.Context, e sqlreq.Event, attrs []attribute.KeyValue, failed bool) {
	begun := e.Began.Add(e.Wait)
	ending := begun.Add(e.Open)
	_, span := o.tracer.Start(ctx, "transaction "+string(e.Key), trace.WithTimestamp(e.Began),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...))
	defer span.End(trace.WithTimestamp(ending.Add(e.End)))
	if failed {
		span.SetStatus(codes.Error, "")
	}
	span.AddEvent("begun", trace.WithTimestamp(begun))
	span.AddEvent("ending", trace.WithTimestamp(ending))
}

func attributes(e sqlreq.Event) (attrs []attribute.KeyValue, failed bool) {
	operation, outcome := "ROLLBACK", "rolled_back"
	failed = isFailure(e)
	switch e.Outcome {
	case sqlreq.Committed:
		operation, outcome = "COMMIT", "committed"
	case sqlreq.CommitFailed:
		operation, outcome = "COMMIT", "commit_failed"
	case sqlreq.Ended:
		outcome = "ended"
	}
	attrs = []attribute.KeyValue{
		attribute.String("db.system.name", "other_sql"),
		attribute.String("db.operation.name", operation),
		attribute.String("sqlreq.key", string(e.Key)),
		attribute.String("sqlreq.outcome", outcome),
	}
	if failed {
		attrs = append(attrs, attribute.String("error.type", classOf(e.Err)))
	}
	return attrs, failed
}

// isFailure reports whether somebody should look at it.
func isFailure(e sqlreq.Event) bool {
	switch e.Outcome {
	case sqlreq.Committed:
		return false
	case sqlreq.RolledBack:
		return e.Err != nil && sqlreq.StatusCode(e.Err) >= 500 && !errors.Is(e.Err, context.Canceled)
	}
	return true
}

// classOf names the kind of an error: there are few, and none tells a value.
func classOf(err error) string {
	var state interface{ SQLState() string }
	var code *sqlreq.StatusError
	switch {
	case err == nil:
		return "_OTHER"
	case errors.As(err, &state):
		return state.SQLState()
	case errors.Is(err, context.DeadlineExceeded):
		return "context.DeadlineExceeded"
	case errors.Is(err, sqlreq.ErrTxEnded):
		return "sqlreq.ErrTxEnded"
	case errors.As(err, &code) && code.Code >= 400 && code.Code <= 599:
		return strconv.Itoa(code.Code)
	}
	for { // the type of the cause, not that of what was wrapped around it
		inner := errors.Unwrap(err)
		if inner == nil {
			return fmt.Sprintf("%T", err)
		}
		err = inner
	}
}
