// G5. Slow clients hold no connection. The transaction is over before a held response
// is sent; TxFunc takes it only after a small body has arrived.

package guarantees_test

import (
	"bufio"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG5TransactionIsOverBeforeTheResponse(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	cases := map[string]struct {
		respond func(w http.ResponseWriter)
		query   string
		last    bool // only the last Write completes the response
	}{
		"body":          {func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireSmall) }, sqlreqtest.InsertWork, false},
		"204":           {func(w http.ResponseWriter) { w.WriteHeader(204) }, sqlreqtest.InsertWork, false},
		"rollback":      {func(w http.ResponseWriter) { http.Error(w, "no", 404) }, sqlreqtest.InsertWork, false},
		"failed commit": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireSmall) }, sqlreqtest.BreakCommit, false},
		"stream with length": {func(w http.ResponseWriter) {
			wireSetLength(w, len(wireLarge))
			wirePieces(w, wireLarge, 1<<10)
		}, sqlreqtest.InsertWork, true},
	}
	for name, c := range cases {
		under, used, looks := wireRecorder(), 0, 0
		under.look = func(string) {
			looks++
			used = db.Stats().InUse
			if used != 0 && !c.last {
				t.Errorf("%s: %d connections in use while the client is waited for", name, used)
			}
		}
		reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
		reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), c.query); err != nil {
				t.Error(err)
			}
			c.respond(w)
		})).ServeHTTP(under, httptest.NewRequest("GET", "/", nil))
		if looks == 0 || used != 0 {
			t.Errorf("%s: %d connections in use at the last of %d writes, want none", name, used, looks)
		}
	}
}

// wireBody tells when it is read, and how.
type wireBody struct {
	io.ReadCloser
	reads func()
}

func (b wireBody) Read(p []byte) (int, error) { b.reads(); return b.ReadCloser.Read(p) }

func TestG5TxFuncWaitsForASmallBody(t *testing.T) {
	db := sqlreqtest.OpenDB(t)
	reading := make(chan int, 100) // connections in use when the body is read
	app := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		if db.Stats().InUse != 1 {
			t.Errorf("the function runs with %d connections, want its own", db.Stats().InUse)
		}
		if _, err := tx.ExecContext(r.Context(), `INSERT INTO work (note) VALUES (?)`, string(body)); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	}))
	srv := sqlreqtest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = wireBody{r.Body, func() { reading <- db.Stats().InUse }}
		app.ServeHTTP(w, r)
	}))
	conn := wireDial(t, srv, nil)
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nfirst")
	for range 2 { // the first half is read, then the second is waited for
		if used := <-reading; used != 0 {
			t.Errorf("%d connections in use while the body is waited for, want none", used)
		}
	}
	fmt.Fprint(conn, " half")
	if got := wireRead(bufio.NewReader(conn), "POST"); got.body != "first half" || got.err != nil {
		t.Errorf("got %v, want the whole body", got)
	}
}
