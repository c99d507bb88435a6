package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
)

// AddJob inserts a job in the transaction of ctx, and wakes the worker when that has committed.
func (q queries) AddJob(ctx context.Context, job shop.Job) error {
	if _, err := db.ExecContext(ctx, "INSERT INTO jobs (tenant, order_id) VALUES (?, ?)", job.Tenant, job.Order); err != nil {
		return err
	}
	return sqlreq.AfterCommit(ctx, func(context.Context) {
		select {
		case q.wake <- struct{}{}:
		default: // it is to wake up already
		}
	})
}

const (
	poll        = time.Second // for the jobs of other processes, and of this one before it was killed
	maxAttempts = 5
)

// Work works one job after another until ctx ends. There is no need for several at a time: SQLite has one writer.
func (s *Store) Work(ctx context.Context, reg *sqlreq.Registry, do func(context.Context, shop.Job) error) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		for s.workOne(ctx, reg, do) {
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// workOne works the next job, if there is one, and says whether there may be another.
func (s *Store) workOne(ctx context.Context, reg *sqlreq.Registry, do func(context.Context, shop.Job) error) bool {
	var job shop.Job
	err := reg.Do(ctx, func(ctx context.Context) (err error) {
		// The job is marked in the transaction of its work: another worker sees neither or both.
		job, err = scanJob(db.QueryRowContext(ctx, `UPDATE jobs SET state = 'completed' WHERE id = (SELECT id FROM jobs
			WHERE state = 'available' AND due <= unixepoch() ORDER BY id LIMIT 1) RETURNING id, tenant, order_id, state`).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return do(tenant.With(ctx, job.Tenant), job)
	})
	if err == nil {
		return job.ID != 0
	}
	if ctx.Err() != nil {
		return false
	}
	slog.ErrorContext(ctx, "orders: job failed", "job", job.ID, "order", job.Order, "error", err)
	return job.ID != 0 && postpone(ctx, reg, job.ID) == nil
}

// postpone notes in a transaction of its own that a job has failed: its own was rolled back.
func postpone(ctx context.Context, reg *sqlreq.Registry, id int64) error {
	return reg.Do(ctx, func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, `UPDATE jobs SET attempts = attempts + 1, due = unixepoch() + (1 << attempts),
			state = CASE WHEN attempts + 1 >= ? THEN 'discarded' ELSE state END WHERE id = ?`, maxAttempts, id)
		return err
	})
}
