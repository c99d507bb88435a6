// Package sqlreqpgx runs statements of pgx itself (pgxpool, sqlc's pgx/v5 code, CopyFrom,
// SendBatch, scany, River's pgx driver) in the transaction that sqlreq gives a request.
//
//	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
//	reg, err := sqlreq.New(sqlreq.Binding{DB: sqlreqpgx.OpenDB(pool)})
//	queries := notesdb.New(sqlreqpgx.DefaultKey) // sqlc, sql_package: pgx/v5; once, for all requests
//
//	mux.Handle("POST /notes", sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
//		note, err := queries.AddNote(r.Context(), r.FormValue("text"))
//		…
//	}))
//	http.ListenAndServe(addr, reg.Middleware(mux))
//
// # When a statement runs, and what ends it
//
// Exec, CopyFrom and a Tx's Prepare have run when they return, in the goroutine that calls them (a
// copy's source is read by another one of pgx). QueryRow runs in Scan, and not without it. Query and
// SendBatch send at once; what comes back is read by Next, Scan and Close, in the goroutine that calls
// these. The first statement takes a connection of the pool and sends BEGIN; the transaction's end
// gives it back. A context ends the statement that it was given to; pgx then closes the
// connection, and the request can only roll back, also if the handler swallows the error.
//
// A COMMIT or ROLLBACK waits for a step of rows, of a batch or of a copy that another goroutine has
// under way, and ends early what is open: rows return no more, and say so in Err; of a batch what is
// left is executed and read, without the functions of its queries. If the context of what is under way
// ends, COMMIT is refused; a ROLLBACK is given up with the request's context, as with
// every driver. What meets an error meanwhile, a lost connection for example, is not committed, and the
// error says that this is known. Only a COMMIT that was sent and not answered leaves the outcome open.
//
// # What it costs
//
// No round trip; 5 to 7 allocations and below a microsecond for a statement beside those of native pgx,
// about 50 ns for each row of a Query. See README.md for ratios.
//
// # What goes past it
//
// What runs on Tx(ctx).Conn() or in its LargeObjects is in the transaction, but its errors are not seen:
// return them from the handler. DEFERRABLE is set by SET TRANSACTION. LISTEN and locks of the session
// outlive a transaction: take a connection by pool.Acquire for them. A Valuer that Exec encodes, and a
// Scanner of QueryRow, must not use the Key: they would wait for themselves. So would, until the context
// ends, a [sqlreq.Commit] in the function of a batch, or in the source of a copy.
package sqlreqpgx
