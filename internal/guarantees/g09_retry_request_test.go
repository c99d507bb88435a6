// G9 A retry is invisible to the client. Each attempt gets a clone of the request as
// it arrived, its own view of the same body, fresh headers, hooks and transaction.

package guarantees

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// serveThrice serves one request over TCP, with two failing attempts before the last.
func serveThrice(t *testing.T, handler func(run int, w http.ResponseWriter, r *http.Request)) *httptest.Server {
	t.Helper()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	reg.Retry = sqlreqtest.Retries(3)
	run := 0
	return sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		run++
		handler(run, w, r)
		if run < 3 {
			return sqlreqtest.Conflict{}
		}
		return nil
	})))
}

func TestG9BodyIsReplayed(t *testing.T) {
	tests := map[string]func(run int, r *http.Request) string{
		"read whole": func(_ int, r *http.Request) string { b, _ := io.ReadAll(r.Body); return string(b) },
		"read in part first": func(run int, r *http.Request) string {
			if run < 3 {
				_, _ = io.ReadFull(r.Body, make([]byte, run))
				return "a=1&b=2"
			}
			b, _ := io.ReadAll(r.Body)
			return string(b)
		},
		"closed first": func(run int, r *http.Request) string {
			if run < 3 {
				_ = r.Body.Close()
				return "a=1&b=2"
			}
			b, _ := io.ReadAll(r.Body)
			return string(b)
		},
		"a form": func(_ int, r *http.Request) string {
			return "a=" + r.FormValue("a") + "&b=" + r.PostFormValue("b")
		},
		"a form that the attempt changes": func(_ int, r *http.Request) string {
			s := "a=" + r.FormValue("a") + "&b=" + r.PostFormValue("b")
			r.Form.Set("a", "changed")
			r.PostForm.Set("b", "changed")
			return s
		},
	}
	for name, read := range tests {
		t.Run(name, func(t *testing.T) {
			srv := serveThrice(t, func(run int, w http.ResponseWriter, r *http.Request) {
				if got := read(run, r); got != "a=1&b=2" {
					t.Errorf("attempt %d read %q", run, got)
				}
				_, _ = fmt.Fprint(w, run)
			})
			res, err := http.Post(srv.URL, "application/x-www-form-urlencoded", strings.NewReader("a=1&b=2"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if b, err := io.ReadAll(res.Body); string(b) != "3" || err != nil {
				t.Errorf("got %q %v, want the third attempt", b, err)
			}
		})
	}
}

// The client sends what comes next only when an attempt has read what was there.
func TestG9BodyIsNotReadAhead(t *testing.T) {
	body, client := io.Pipe()
	parts := []string{"one", "two", "three"}
	srv := serveThrice(t, func(run int, w http.ResponseWriter, r *http.Request) {
		for i, part := range parts[:run] {
			if i == run-1 {
				go func() { _, _ = io.WriteString(client, part) }()
			}
			got := make([]byte, len(part))
			if _, err := io.ReadFull(r.Body, got); err != nil || string(got) != part {
				t.Errorf("attempt %d read %q %v, want %q", run, got, err, part)
			}
		}
		if run == 3 {
			_ = client.Close()
			if b, err := io.ReadAll(r.Body); len(b) > 0 || err != nil {
				t.Errorf("after the end: %q %v", b, err)
			}
		}
		_, _ = fmt.Fprint(w, run)
	})
	res, err := http.Post(srv.URL, "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(b) != "3" {
		t.Errorf("got %d %q", res.StatusCode, b)
	}
}

func TestG9TemporaryFilesOfFailedAttemptsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	files := func() int {
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		return len(all)
	}
	srv := serveThrice(t, func(run int, _ http.ResponseWriter, r *http.Request) {
		if n := files(); n != 0 {
			t.Errorf("attempt %d begins with %d temporary files", run, n)
		}
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
			return
		}
		if n := files(); n != 1 {
			t.Errorf("attempt %d has %d temporary files, want 1", run, n)
		}
		f, _, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if b, err := io.ReadAll(f); string(b) != strings.Repeat("x", 1000) || err != nil {
			t.Errorf("attempt %d read %d bytes, %v", run, len(b), err)
		}
	})
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	part, _ := w.CreateFormFile("file", "file.txt")
	_, _ = io.WriteString(part, strings.Repeat("x", 1000))
	_ = w.Close()
	res, err := http.Post(srv.URL, w.FormDataContentType(), &form)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	srv.Close() // net/http removes those of the last attempt after the response
	if n := files(); res.StatusCode != 200 || n != 0 {
		t.Errorf("got %d, %d temporary files stayed", res.StatusCode, n)
	}
}

func TestG9EachAttemptGetsTheRequestAsItArrived(t *testing.T) {
	var seen []string
	mux := http.NewServeMux()
	mux.Handle("GET /x/{id}", sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		seen[len(seen)-1] += fmt.Sprint(" id=", r.PathValue("id"), " pattern=", r.Pattern)
		r.SetPathValue("id", "changed")
		w.Header().Add("X-Attempt", strconv.Itoa(len(seen)))
		if len(seen) < 3 {
			return sqlreqtest.Conflict{}
		}
		return nil
	}))
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	reg.Retry = sqlreqtest.Retries(3)
	outside := http.NewServeMux()
	outside.Handle("/{first}/{rest...}", reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, fmt.Sprint(r.Method, " ", r.URL, " ", r.Header["X-A"], " ", w.Header()["X-Attempt"], " first=", r.PathValue("first"), " ", r.Pattern))
		r.Header.Set("X-A", "changed")
		r.Header.Add("X-B", "added")
		defer mux.ServeHTTP(w, r)
		r.Method = "GET"
		r.URL.RawQuery = "changed"
		r.URL.Path = "/x/7"
	})))
	srv := sqlreqtest.Serve(t, outside)
	req, _ := http.NewRequest("POST", srv.URL+"/x/y?q=1", nil)
	req.Header.Set("X-A", "as it arrived")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	want := "POST /x/y?q=1 [as it arrived] [] first=x /{first}/{rest...} id=7 pattern=GET /x/{id}"
	if !slices.Equal(seen, []string{want, want, want}) || !slices.Equal(res.Header["X-Attempt"], []string{"3"}) {
		t.Errorf("got %s\nwant three times %s\nand header %q", strings.Join(seen, "\n"), want, res.Header["X-Attempt"])
	}
}

func TestG9TrailersOfTheRequestAreVisibleInEachAttempt(t *testing.T) {
	srv := serveThrice(t, func(run int, _ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if got := r.Trailer.Get("X-Sum"); got != "42" {
			t.Errorf("attempt %d: trailer %q, want 42", run, got)
		}
	})
	req, _ := http.NewRequest("POST", srv.URL, struct{ io.Reader }{strings.NewReader("body")})
	req.Trailer = http.Header{"X-Sum": {"42"}}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("got %d", res.StatusCode)
	}
}

// What a goroutine of the first attempt still does, during the last one, reaches nobody.
func TestG9StaleAttemptDisturbsNothing(t *testing.T) {
	tests := map[string]func(t *testing.T, w http.ResponseWriter, r *http.Request){
		"Write": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "stale") },
		"WriteString": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.(io.StringWriter).WriteString("stale")
		},
		"ReadFrom": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.(io.ReaderFrom).ReadFrom(strings.NewReader("stale"))
		},
		"WriteHeader": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) },
		"early hints": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "stale")
			w.WriteHeader(103)
		},
		"Flush":  func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() },
		"Header": func(_ *testing.T, w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Attempt", "stale") },
		"Hijack": func(t *testing.T, w http.ResponseWriter, _ *http.Request) {
			if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
				t.Error("a stale Hijack took the connection")
			}
		},
		"body": func(t *testing.T, _ http.ResponseWriter, r *http.Request) {
			if n, err := r.Body.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
		},
		"transaction": func(t *testing.T, _ http.ResponseWriter, r *http.Request) { sqlreqtest.Finished(t, r.Context()) },
	}
	for name, stale := range tests {
		t.Run(name, func(t *testing.T) {
			last, done := make(chan struct{}), make(chan struct{})
			srv := serveThrice(t, func(run int, w http.ResponseWriter, r *http.Request) {
				switch run {
				case 1:
					go func() {
						defer close(done)
						<-last
						stale(t, w, r)
					}()
				case 3:
					w.Header().Set("X-Attempt", "3")
					close(last)
					<-done
					w.WriteHeader(201)
					_, _ = io.Copy(w, r.Body)
				}
			})
			res, err := http.Post(srv.URL, "text/plain", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if res.StatusCode != 201 || string(b) != "body" || err != nil || res.Header.Get("X-Attempt") != "3" {
				t.Errorf("got %d %q %v %v, want what the last attempt answered", res.StatusCode, b, err, res.Header)
			}
		})
	}
}

// A Read of the first attempt is under way in the body when the next attempt begins.
func TestG9StaleReadStealsNothing(t *testing.T) {
	body, client := io.Pipe()
	stale := make(chan error, 1)
	srv := serveThrice(t, func(run int, w http.ResponseWriter, r *http.Request) {
		switch run {
		case 1:
			reading := make(chan struct{})
			go func() {
				close(reading)
				_, err := r.Body.Read(make([]byte, 4))
				stale <- err
			}()
			<-reading
		case 3:
			go func() {
				_, _ = io.WriteString(client, "body")
				_ = client.Close()
			}()
			_, _ = io.Copy(w, r.Body)
		}
	})
	res, err := http.Post(srv.URL, "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); string(b) != "body" || err != nil {
		t.Errorf("got %q %v, want the whole body", b, err)
	}
	if err := <-stale; err == nil {
		t.Error("the stale Read got bytes")
	}
}

func TestG9HeadersOfFailedAttemptsAreGone(t *testing.T) {
	srv := serveThrice(t, func(run int, w http.ResponseWriter, _ *http.Request) {
		if run < 3 {
			w.Header().Set("X-Secret", "1")
			w.Header().Del("X-Outside")
			w.WriteHeader(103)
			w.Header().Set("Trailer", "X-Late")
			_, _ = io.WriteString(w, "secret")
		}
	})
	outside := srv.Config.Handler
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Outside", "stays")
		outside.ServeHTTP(w, r)
	})
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if res.StatusCode != 200 || len(b) > 0 || err != nil || res.Header.Get("X-Secret") != "" || res.Trailer != nil || res.Header.Get("X-Outside") != "stays" {
		t.Errorf("got %d %q %v %v %v", res.StatusCode, b, err, res.Header, res.Trailer)
	}
}
