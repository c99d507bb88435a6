package postgres

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/sqlreq/sqlreq"
	sqlreqpgx "github.com/sqlreq/sqlreq/adapters/pgx"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
)

// confirmArgs are the arguments of River's job.
type confirmArgs shop.Job

func (confirmArgs) Kind() string { return "confirm" }

// newInserting returns a client that only inserts.
func newInserting(pool *pgxpool.Pool) (*river.Client[pgx.Tx], error) {
	return river.NewClient(riverpgxv5.New(pool), &river.Config{})
}

// AddJob inserts a job in the transaction of ctx. River's workers see it when that has committed, and never otherwise.
func (s *Store) AddJob(ctx context.Context, job shop.Job) error {
	tx, err := sqlreqpgx.Tx(ctx)
	if err != nil {
		return err
	}
	_, err = s.inserting.InsertTx(ctx, tx, confirmArgs(job), nil)
	return err
}

// worker works River's jobs.
type worker struct {
	river.WorkerDefaults[confirmArgs]
	reg *sqlreq.Registry
	do  func(context.Context, shop.Job) error
}

// Work does a job and marks it as done in one transaction: a process that is killed in between has done nothing, and River
// gives the job to another one.
func (w *worker) Work(ctx context.Context, job *river.Job[confirmArgs]) error {
	return w.reg.Do(tenant.With(ctx, job.Args.Tenant), func(ctx context.Context) error {
		if err := w.do(ctx, shop.Job(job.Args)); err != nil {
			return err
		}
		tx, err := sqlreqpgx.Tx(ctx)
		if err != nil {
			return err
		}
		_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
}

// stopWithin is how long jobs that are under way may take when the process ends.
const stopWithin = 5 * time.Second

// Work works jobs until ctx ends.
func (s *Store) Work(ctx context.Context, reg *sqlreq.Registry, do func(context.Context, shop.Job) error) error {
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{reg: reg, do: do})
	client, err := river.NewClient(riverpgxv5.New(s.pool), &river.Config{
		Queues:                      map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 4}},
		Workers:                     workers,
		CompletedJobRetentionPeriod: -1, // for ever: /api/stats counts all there ever were. The default is a day
		// A job of a process that was killed is given to another one after this time, in which it must have ended.
		JobTimeout:           10 * time.Second,
		RescueStuckJobsAfter: 20 * time.Second,
		Logger:               slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	// The client's context would take the jobs under way along when it ends; Stop lets them finish.
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	if err := client.Stop(stop); err == nil {
		return nil
	}
	stop, cancel = context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	return client.StopAndCancel(stop)
}
