// G5 Slow clients hold no connection. The transaction is over before a held response
// is sent; TxFunc takes it only after a small body has arrived.

package guarantees

import (
	"bytes"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG5TxFuncBody: the function gets the whole body, however large, and none of it
// is read with a transaction open that fits into 64 KiB.
func TestG5TxFuncBody(t *testing.T) {
	f := &fakedb.DB{}
	db := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		got, err := io.ReadAll(r.Body) // HTTP/1 cannot be read any more when the answer has begun
		_, _ = w.Write(got)
		return errors.Join(err, r.Body.Close())
	})))
	for _, size := range []int{0, 1, 100, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			sent := make([]byte, size)
			for i := range sent {
				sent[i] = byte(i % 251)
			}
			var body io.Reader = bytes.NewReader(sent)
			if chunked {
				body = io.MultiReader(body)
			}
			res, err := http.Post(srv.URL, "application/octet-stream", body)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != 200 || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes, chunked %v: got %d, %d bytes, %v", size, chunked, res.StatusCode, len(got), err)
			}
		}
	}
	f.CheckClean(t)
}

// TestG5TxFuncReadsFirst: a client that dribbles a form holds no connection.
func TestG5TxFuncReadsFirst(t *testing.T) {
	f := &fakedb.DB{}
	db := f.Open(t)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
	body, dribble := io.Pipe()
	reading := make(chan struct{})
	h := reg.Middleware(sqlreq.TxFunc(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		got, err := io.ReadAll(r.Body)
		if string(got) != "ab" {
			t.Errorf("got %q", got)
		}
		return err
	}))
	done := make(chan sqlreqtest.Answer)
	go func() {
		done <- sqlreqtest.Ask(h, httptest.NewRequest("POST", "/", struct{ io.Reader }{io.TeeReader(body, notify(reading))}))
	}()
	_, _ = dribble.Write([]byte("a"))
	<-reading
	if got := f.Log(); len(got) != 0 {
		t.Errorf("got %q before the body was there", got)
	}
	_, _ = dribble.Write([]byte("b"))
	dribble.Close()
	if o := <-done; o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.Check(t, "BEGIN", "COMMIT")
}

type notified struct {
	once sync.Once
	c    chan struct{}
}

func notify(c chan struct{}) io.Writer { return &notified{c: c} }

func (n *notified) Write(p []byte) (int, error) {
	n.once.Do(func() { close(n.c) })
	return len(p), nil
}

// TestG5TxFuncBodyErrors reach who reads so far.
func TestG5TxFuncBodyErrors(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "books", DB: f.Open(t)})
	inner := sqlreq.Key("books").Handler(func(w http.ResponseWriter, r *http.Request, tx *sql.Tx) error {
		got, err := io.ReadAll(r.Body)
		if string(got) != "0123456789" {
			t.Errorf("got %q, want the ten bytes before the limit", got)
		}
		return err
	})
	h := reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 10)
		inner.ServeHTTP(w, r)
	}))
	o := sqlreqtest.Ask(h, httptest.NewRequest("POST", "/", strings.NewReader(strings.Repeat("0123456789", 3))))
	if o.Code != 413 {
		t.Errorf("got %d, want 413", o.Code)
	}
	f.Check(t, "BEGIN", "ROLLBACK")
}
