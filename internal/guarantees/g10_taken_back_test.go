// G10 The writer stays a writer: what a program of calls has completed leaves
// before its Hijack, as from net/http alone, and a trailer that was taken back is
// not sent. The random programs of FuzzG10Programs found these.

package guarantees_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// takenBackHandler is serve as it is, or in Middleware behind a statement.
func takenBackHandler(t *testing.T, bare, retry bool, serve http.HandlerFunc) http.Handler {
	if bare {
		return serve
	}
	return wireRegistry(t, retry, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
			t.Error(err)
		}
		serve(w, r)
	}))
}

func TestG10HijackSendsWhatIsComplete(t *testing.T) {
	for _, c := range []struct {
		name, method string
		write        func(w http.ResponseWriter)
	}{
		{"held, flushed", "GET", func(w http.ResponseWriter) {
			wireSetLength(w, len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
		}},
		{"streaming", "GET", func(w http.ResponseWriter) {
			wireSetLength(w, len(wireLarge))
			_, _ = io.WriteString(w, wireLarge)
			wireFlush(w)
		}},
		{"HEAD, flushed", "HEAD", wireFlush},
		{"a Write of nothing", "HEAD", func(w http.ResponseWriter) { _, _ = w.Write(nil) }},
	} {
		serve := func(w http.ResponseWriter, _ *http.Request) {
			c.write(w)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.Close()
		}
		ask := func(bare, retry bool) wireAnswer {
			srv := sqlreqtest.Serve(t, takenBackHandler(t, bare, retry, serve))
			res, err := srv.Client().Do(takenBackRequest(t, c.method, srv.URL))
			if err != nil {
				return wireAnswer{err: err}
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			return wireAnswer{status: res.StatusCode, header: res.Header, body: string(body), err: err}
		}
		want := ask(true, false)
		for _, retry := range []bool{false, true} {
			if got := ask(false, retry); got.err != nil || !got.same(want) {
				t.Errorf("%s, Retry %t:\n got %v\nwant %v", c.name, retry, got, want)
			}
		}
	}
}

func takenBackRequest(t *testing.T, method, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestG10TrailerTakenBack: over HTTP/2 net/http never ends a response with a declared
// trailer that has a key and no values.
func TestG10TrailerTakenBack(t *testing.T) {
	for _, body := range []string{wireSmall, wireLarge} {
		serve := func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			w.Header().Set("X-Sum", "guess")
			w.Header().Set(http.TrailerPrefix+"X-Undeclared", "guess")
			w.WriteHeader(200)
			w.Header().Set(http.TrailerPrefix+"X-Undeclared", "better")
			_, _ = io.WriteString(w, body)
			wireFlush(w)
			w.Header().Set(http.TrailerPrefix+"X-Undeclared", "guess") // after all
			w.Header().Del("X-Sum")
		}
		for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
			want := p.start(t, takenBackHandler(t, true, false, serve))("GET", "/")
			for _, retry := range []bool{false, true} {
				if got := p.start(t, takenBackHandler(t, false, retry, serve))("GET", "/"); got.err != nil || !got.same(want) {
					t.Errorf("%s, %d bytes, Retry %t:\n got %v\nwant %v", p.name, len(body), retry, got, want)
				}
			}
		}
	}
}
