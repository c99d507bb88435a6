// Package sqlreq gives every net/http request its own database/sql transaction:
// begun when the handler first asks for it, committed before the response is
// complete, rolled back when anything goes wrong.
//
//	reg, err := sqlreq.New(sqlreq.Binding{DB: db})
//	…
//	http.ListenAndServe("localhost:8080", reg.Middleware(mux))
//
// In a handler, and anywhere below it that has the request's context, [Tx] is the
// transaction, and a [Key] is a connection that generated queries and bun can be
// handed once and for all (gorm can not: see below). A request that asks for nothing
// begins nothing.
//
// # The life of a request
//
// The response is held, up to Registry.HoldLimit bytes, while the handler runs.
// When the outermost handler has returned, the request commits, unless one of
// these says no: a panic, runtime.Goexit, an error returned by a [HandlerFunc] or
// given to [Fail] or [RollbackOnly], a status of 400 or more (or Registry.CommitIf),
// a failed [Commit], a transaction ended through *sql.Tx or by the server, a request's
// context that has ended. Then the connection goes back to the pool, the functions of
// [AfterCommit] or [AfterRollback] run, and only then the response is sent: a slow
// client holds no connection, and no client is told of work that the database does not
// have. If COMMIT fails, the client gets an error response with none of the handler's
// headers.
//
// A response larger than HoldLimit, or flushed, streams, and open rows go on
// yielding while it does. It cannot complete before COMMIT: the last byte of a
// declared length is kept back, and a stream that fails is aborted, so that the
// client sees a broken transfer. For that the write deadline of the connection
// is put in the past and the middleware panics with http.ErrAbortHandler; the
// end of an HTTP/1.0 response without a length is a reset. Where a middleware outside
// has a writer with neither Unwrap nor Hijack, the goroutine ends by runtime.Goexit,
// which nobody can recover, after a panic of the handler's own was logged. What a
// client sees on which server is in docs/responses.md; an HTTP/1.0 response without a
// length, and FastCGI, are the weak ones: have a proxy in front speak HTTP/1.1.
//
// A status of 400 or more that is set when a response below 400 streams already
// comes too late to be sent: the request rolls back, and the response is broken off.
// If no registry has a CommitIf, a flushed response of 400 or more is whole for the
// client, and stands.
//
// One request has one outcome, and one transaction for each pool, however many
// middlewares, decorators, mounted applications and keys take part.
//
// # What goes outside of Middleware
//
// Middlewares that look at the response or add to it: logs, metrics, CORS,
// sessions, compression, request IDs. Inside, a status is not final. So do
// middlewares that recover panics, which must answer 500 and pass
// http.ErrAbortHandler on: inside, one that recovers a plain handler's panic and
// answers nothing commits half a work (around a [HandlerFunc] they are safe
// anywhere). So do caches, and h2c.NewHandler. Wrappers outside need Unwrap. Handlers
// that answer while another goroutine still works (http.TimeoutHandler) may be on
// either side.
//
// Protocols whose errors have the status 200 (gRPC, gRPC-Web, connect's streams,
// GraphQL, JSON-RPC) commit what their handlers did before the error, unless an
// interceptor calls [RollbackOnly].
//
// After Hijack nothing begins any more: use [Registry.Do] for each message of a socket.
//
// The writer handed to a handler does what net/http's does, by
// http.ResponseController and by the old interfaces, but for http.Pusher. It has no
// Unwrap: that would be a way around the held response. http.MaxBytesReader
// tells net/http by an unexported method to close the connection; sqlreq sends
// "Connection: close" with every 413 of an HTTP/1 request instead.
//
// # Transactions
//
// The wait for a connection and the BEGIN end with the caller's context and with
// the request's; the transaction's own life is bound to no context, and a COMMIT
// that was sent is seen through. What ends it is the end of the handler,
// [Commit], [Rollback] and Hijack, nothing else. Use statements with the request's
// context, in a [Savepoint] with the one that its function was given: they notice a
// client that has gone.
//
// A COMMIT, and the begin and the end of a Savepoint, wait for the statements of Keys
// that other goroutines still run in the transaction, and what their errors say
// about it counts. A statement on one key that waits for a row which the transaction
// of another key has locked is a circle that no database sees: it lasts until the
// request's context ends. A ROLLBACK that the server does not answer is given up two
// seconds after that, with drivers that heed a context (pgx).
//
// Close rows before an explicit Commit: open ones end early on every driver, and only
// rows.Err() tells. Rows scanned into sql.RawBytes and left open block any end of
// the transaction for ever, which database/sql does (Tx.Commit waits for them).
//
// A read-only transaction ends with ROLLBACK, so that nothing is persisted through
// one, also where the driver ignores the flag (SQLite); with
// sql.LevelSerializable it ends with COMMIT, without which PostgreSQL would not
// count its reads.
//
// Some databases end a transaction by themselves: MariaDB and MySQL on a deadlock
// or on DDL, SQLite on an interrupted or failed statement. What follows commits by
// itself while *sql.Tx looks healthy. Statements run through a Key are watched:
// after an error that may have ended the transaction no further one runs, and the
// request can only roll back (or go back to a [Savepoint]). Not seen are errors that
// come later, out of rows.Next or a prepared statement, constraint errors under
// OR ROLLBACK, and statements run on *sql.Tx. For those there is Binding.Guard.
// A handler that swallows a deadlock (1213) of MariaDB on *sql.Tx and goes on is
// told nil by COMMIT, its client gets a 200, and only what ran after the deadlock is
// there; with Guard it is a 500 and CommitError.Ambiguous; through a Key it is a 503
// and nothing is there.
//
// A rollback may turn out to have been none: Guard's savepoint is gone, or the
// answer to ROLLBACK says that no transaction is open (SQLite and lib/pq say so; pgx
// and the drivers for MySQL say nothing, there only Guard can tell). What ran since
// the server's end may then be stored for good. Such a request fails with
// [ErrTxEnded]: no hook runs, it is not run again, no Retry-After is sent,
// [Event].Outcome is [Ended], and it is logged whatever its status. It is an ordinary
// rollback only where a statement of a Key met the error and nothing can have run
// after it. So with Guard a deadlock that was met on *sql.Tx is not run again: use
// the Key, where conflicts are to be retried on MariaDB and MySQL.
//
// # Several databases
//
// Read-only transactions end first; then come the commits, adjacent, in the order of
// the BEGINs; then Registry.Observe and the hooks. There is no two-phase commit: if
// one fails, the rest are rolled back, and [CommitError].Committed names those that
// are committed for good. CommitError.Ambiguous says that the server's answer never
// came, or that it had ended the transaction before, so that the work may be there;
// no hook runs then, and nothing is retried. [MayHaveCommitted] asks for both, and for
// [ErrTxEnded]: before work is done again that failed, ask it.
//
// # Retries
//
// With Registry.Retry a request that failed on a conflict runs again, invisibly to
// the client, until a byte has left or something is committed. A retry repeats
// everything the handler does, also what it does outside of the database: put such
// effects into [AfterCommit], or exclude the route by Retry.When. Without a retry,
// or when the attempts are used up, a conflict is answered with 503 and
// Retry-After; so is a request that could not begin because the database cannot be
// reached. Where something is or may be committed there is neither.
//
// # Errors in a 200
//
// gRPC, connect, GraphQL and JSON-RPC answer their errors with the status 200. Call
// [RollbackOnly] in an interceptor when the handler has failed: every transaction of
// the request is rolled back, and the response stands. [Fail] would cost the client its
// code, and [Rollback] ends the transaction of one key only.
//
// # Do
//
// [Registry.Do] is a unit of work without a request. Inside of one it is
// independent, and takes a second connection: as a second writer on one SQLite file
// it waits until its context ends, and where the request holds the only connection
// of the pool it is an error at once, if its context is the request's. Use a second
// database for what must survive a rollback.
//
// # Settings worth knowing
//
// Memory is bounded by requests × (HoldLimit + Retry.BodyLimit + 64 KiB for TxFunc). Set ReadTimeout and
// WriteTimeout on the server: a handler that reads a body with a transaction open
// holds a connection as long as the client takes ([TxFunc] reads small ones
// before); where ReadTimeout passes while a handler runs, net/http cancels the
// request's context, and the request rolls back. For SQLite use a busy_timeout and, for
// requests that write, _txlock=immediate, or Retry.
//
// gorm takes a connection that has BeginTx, as Key does, for a pool, and ends the
// request's transaction after each write, so that the row of a request that then fails
// stays: use the module adapters/gorm. sqlc and bun take a Key as it is. gin and echo
// have modules there, too, and docs/frameworks.md says what belongs outside.
//
// A custom ErrorHandler does its own logging of what it answers, but for a COMMIT
// that failed and work that may have stayed. The 405 and
// OPTIONS answers of a [View] are written by the view, not by the ErrorHandler.
// An error answer by http.Error in a plain handler stands as it is.
package sqlreq
