// G9. Closing the attempt's body does what net/http's Close does: on HTTP/1 the rest
// is read (into what is kept for the replay, up to the limit), so that trailers arrive
// and a client that writes first goes on; on HTTP/2 a Read under way ends, by closing
// the request's body, and if that was not at its end there is no further attempt.

package guarantees_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG9CloseReadsTheRestOnHTTP1(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	reg.Retry = sqlreqtest.Retries(2)
	attempts := 0
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		attempts++
		if attempts == 1 {
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			_ = r.Body.Close()
			if got := r.Trailer.Get("X-T"); got != "v" {
				t.Errorf("got the trailer %q after Close, want v", got)
			}
			return sqlreqtest.Conflict{}
		}
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", body, r.Trailer.Get("X-T"))
		return err
	})))
	conn := wireDial(t, srv, nil)
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3\r\nabc\r\n0\r\nX-T: v\r\n\r\n")
	if got := wireRead(bufio.NewReader(conn), "POST"); got.body != "abc v" || attempts != 2 {
		t.Errorf("got %v after %d attempts, want the body and its trailer by the second", got, attempts)
	}
}

func TestG9CloseEndsAReadOnHTTP2(t *testing.T) {
	for name, ended := range map[string]bool{"the client goes on": false, "the body is at its end": true} {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			reg.Retry = sqlreqtest.Retries(2)
			attempts := 0
			srv := wireTLS(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				attempts++
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
				if attempts > 1 {
					return nil
				}
				read, first := make(chan struct{}), make(chan struct{})
				go func() { // as grpc-go's ServeHTTP does
					defer close(read)
					_, _ = io.ReadFull(r.Body, make([]byte, 5))
					close(first)
					_, _ = io.Copy(io.Discard, r.Body)
				}()
				<-first
				if ended {
					<-read
				}
				_ = r.Body.Close()
				<-read
				return sqlreqtest.Conflict{}
			})))
			var body io.Reader = strings.NewReader("hello")
			if !ended {
				pr, pw := io.Pipe() // never at its end
				defer pw.Close()
				go func() { _, _ = io.WriteString(pw, "hello") }()
				body = pr
			}
			res, err := srv.Client().Post(srv.URL, "", body)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			// Where the client goes on, Close may come before the Read: then that reads
			// nothing, and the body is as it was.
			if again := attempts == 2; ended && !again || again != (res.StatusCode == 200) {
				t.Errorf("got %d after %d attempts", res.StatusCode, attempts)
			}
			wireIdle(t, db)
		})
	}
}

// Where the connection ends with the response, net/http waits for the rest of a body
// only if trailers may follow it: a client that sends the rest after it has read the
// answer (nginx asks with HTTP/1.0 and "Connection: close") must get one.
func TestG9CloseWaitsForNothingWhereTheConnectionEnds(t *testing.T) {
	for _, head := range []string{"HTTP/1.0\r\n", "HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"} {
		db := sqlreqtest.OpenDB(t)
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
		reg.Retry = sqlreqtest.Retries(2)
		attempts := 0
		srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			attempts++
			first := make([]byte, 3)
			_, err := io.ReadFull(r.Body, first)
			_ = r.Body.Close()
			if attempts == 1 {
				return sqlreqtest.Conflict{} // what was not read is there for the next attempt all the same
			}
			fmt.Fprintf(w, "%s", first)
			return err
		})))
		conn := wireDial(t, srv, nil)
		defer conn.Close()
		fmt.Fprintf(conn, "POST / %sContent-Length: 9\r\n\r\nabc", head)
		if got := wireRead(bufio.NewReader(conn), "POST"); got.body != "abc" || attempts != 2 {
			t.Errorf("%q: got %v after %d attempts, want abc by the second", head, got, attempts)
		}
		wireIdle(t, db)
	}
}
