// Package idempotency makes requests that change something safe to repeat: the answer
// is recorded under the request's Idempotency-Key in the transaction of its work, by
// package sqlreq, so that both are there or neither is. There is no lease and no second
// commit: a server that is killed in between leaves nothing behind.
//
//	once := &idempotency.Once{Scope: userID}
//	mux.Handle("POST /orders", once.Handler(createOrder))
//	http.ListenAndServe(addr, reg.Middleware(mux))
//
// # What happens to a request
//
// [Once.Handler] inserts the key before the handler runs, in the request's transaction:
// the unique index decides who is the first. The first runs the handler, and its
// status, header, body and trailers are written to the same row right before COMMIT. A
// repeat gets them, with "Idempotent-Replayed: true"; the handler is not called. One
// that comes while the first is under way waits for it. A request that rolls back, with
// a status of 400 or more for instance, leaves nothing: its key is as new.
//
// Another request with a used key (method, path, query or body) is answered with 422.
// The answers 307 and 308 roll back: they tell the client to send the same request
// elsewhere.
//
// # Databases
//
// The work is in a database that speaks the SQL of SQLite, PostgreSQL or MySQL; the
// driver tells which: see Once.Dialect. There is no dialect for SQL Server, Oracle, DuckDB and
// others. It would need an INSERT that waits for another transaction's row with the same
// key and then tells, without an error, that it is there; a SELECT that sees that row as
// it is committed; and columns that are compared byte by byte.
//
// # What it does not do
//
// Effects outside of the database are at least once: pass the key on, or write an
// outbox row. Work in other databases than Once.Database is at least once too. Functions
// of [sqlreq.AfterCommit] run at most once. What the handler decides, authorization for
// instance, is not asked at a repeat: put that outside of Handler. Answers are stored as
// they are, tokens included: see [Once.Clean].
//
// # Messages and jobs
//
// [Once.Do] does the same for what is no request: an id that was done is not done again.
//
// # Clients
//
// [Transport] gives requests a key and repeats them with it.
package idempotency
