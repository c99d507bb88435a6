// Replicas is a guest book on a PostgreSQL primary and a hot standby: what
// changes something goes to the primary, what reads to the standby, and whoever has
// just written reads the own words all the same.
//
//	go run ./replicas -primary postgres://…:5432/db -standby postgres://…:5433/db
package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq"
)

func main() {
	addr := flag.String("addr", "localhost:8088", "address to listen on")
	primary := flag.String("primary", "", "DSN of the primary, postgres://…")
	standby := flag.String("standby", "", "DSN of the standby; empty: the primary's")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *primary, cmp.Or(*standby, *primary)); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr, primaryDSN, standbyDSN string) error {
	primary, err := sql.Open("pgx", primaryDSN)
	if err != nil {
		return err
	}
	defer primary.Close()
	standby, err := sql.Open("pgx", standbyDSN)
	if err != nil {
		return err
	}
	defer standby.Close()
	if _, err := primary.ExecContext(ctx, schema); err != nil {
		return err
	}
	handler, err := newHandler(&replicas{primary, standby})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w: if another program has the port, choose one with -addr, such as -addr localhost:8099", err)
	}
	fmt.Printf("http://%s\n", l.Addr())
	srv := &http.Server{Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return err
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// newHandler returns the guest book, with everything in its place: what adds to the
// response outside of Middleware, what uses the transaction inside.
func newHandler(dbs *replicas) (http.Handler, error) {
	reg, err := sqlreq.New(sqlreq.Binding{Route: dbs.route, TxOptions: sqlreq.ReadOnlySafeMethods})
	if err != nil {
		return nil, err
	}
	reg.Retry = sqlreq.Retry{Attempts: 5} // a standby cancels queries that are in the way of replication: 40001
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", sqlreq.HandlerFunc(list))
	mux.Handle("POST /{$}", sqlreq.HandlerFunc(add))
	return http.NewCrossOriginProtection().Handler(setCookie(reg.Middleware(dbs.remember(mux)))), nil
}

const schema = `CREATE TABLE IF NOT EXISTS replicas_entry (
	id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	words VARCHAR(1000) NOT NULL
)`

var page = template.Must(template.New("").Parse(`<!doctype html><title>Guest book</title>
<form method="post"><input name="words" maxlength="1000" required autofocus> <button>Write</button></form>
<p>From the {{if .Standby}}standby{{else}}primary{{end}}:</p>
<ul>{{range .Entries}}<li>{{.}}</li>
{{end}}</ul>
`))

func list(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var data struct {
		Standby bool
		Entries []string
	}
	if err := sqlreq.DefaultKey.QueryRowContext(ctx, "SELECT pg_is_in_recovery()").Scan(&data.Standby); err != nil {
		return err
	}
	rows, err := sqlreq.DefaultKey.QueryContext(ctx, "SELECT words FROM replicas_entry ORDER BY id DESC LIMIT 100")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var words string
		if err := rows.Scan(&words); err != nil {
			return err
		}
		data.Entries = append(data.Entries, words)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return page.Execute(w, data)
}

func add(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	if err := r.ParseForm(); err != nil {
		return sqlreq.Errorf(http.StatusBadRequest, "the form: %w", err)
	}
	words := r.PostForm.Get("words")
	if words == "" || len(words) > 1000 {
		return sqlreq.Errorf(http.StatusUnprocessableEntity, "%d bytes of words, want 1 to 1000", len(words))
	}
	if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), "INSERT INTO replicas_entry (words) VALUES ($1)", words); err != nil {
		return err
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}
