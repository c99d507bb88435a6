package thirdparty

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
)

// upload makes a form with a file of n bytes, a multiple of small.
func upload(t *testing.T, srv *httptest.Server, path string, n int) *http.Request {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	file, err := form.CreateFormFile("file", "upload.bin")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(file, strings.Repeat(text(small), n/small))
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest("POST", srv.URL+path, &body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	return req
}

// store is a handler of uploads that keeps at most a KiB of a file in memory. It answers with the number of files in
// folder, the path value and the size of the upload.
func store(s *site, folder string, commitFails bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseMultipartForm(1 << 10); err != nil {
			unexpected(w, err)
			return
		}
		file, header, err := r.FormFile("file")
		if err != nil {
			unexpected(w, err)
			return
		}
		defer file.Close()
		size, err := io.Copy(io.Discard, file)
		if err != nil {
			unexpected(w, err)
			return
		}
		if err := s.add(r.Context(), commitFails); err != nil {
			unexpected(w, err)
			return
		}
		w.Header().Set(markHeader, mark)
		fmt.Fprintf(w, "%d file, %s, %s, %d bytes", len(temporaryFiles(folder)), r.PathValue("album"), header.Filename, size)
	}
}

func temporaryFiles(folder string) []os.DirEntry {
	files, err := os.ReadDir(folder)
	if err != nil {
		panic(err)
	}
	return files
}

func TestUploadLeavesNoTemporaryFiles(t *testing.T) {
	recovering := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if recover() != nil {
					w.WriteHeader(http.StatusInternalServerError)
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
	for _, proto := range protocols {
		for _, c := range []struct {
			name   string
			fails  bool
			status int
			wrap   func(s *site, h http.Handler) http.Handler
		}{
			{"in Middleware", false, 200, func(s *site, h http.Handler) http.Handler { return h }},
			{"and COMMIT fails", true, 500, func(s *site, h http.Handler) http.Handler { return h }},
			{"in With inside Middleware", false, 200, func(s *site, h http.Handler) http.Handler {
				return s.reg.With(sqlreq.DefaultKey)(h)
			}},
			{"in a HandlerFunc that fails", false, 502, func(s *site, h http.Handler) http.Handler {
				return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					h.ServeHTTP(w, r)
					return sqlreq.Errorf(502, "on purpose")
				})
			}},
			{"and a panic recovered outside", false, 500, func(s *site, h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.ServeHTTP(w, r)
					panic("on purpose")
				})
			}},
		} {
			t.Run(proto+" "+c.name, func(t *testing.T) {
				folder := t.TempDir()
				s := newSite(t)
				t.Setenv("TMPDIR", folder)
				mux := http.NewServeMux()
				mux.Handle("POST /albums/{album}/photos", c.wrap(s, store(s, folder, c.fails)))
				pattern := make(chan string, 1)
				h := recovering(s.reg.Middleware(mux))
				srv := serve(t, proto, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.ServeHTTP(w, r)
					pattern <- r.Pattern
				}))
				got := readAnswer(srv.Client().Do(upload(t, srv, "/albums/a%2Fb/photos", large)))
				got.wantStatus(t, c.status)
				if want := fmt.Sprintf("1 file, a/b, upload.bin, %d bytes", large); c.status == 200 && got.body != want {
					t.Errorf("upload: got %q, want %q", got.body, want)
				}
				if c.status == 200 {
					s.wantNotes(t, 1)
				} else {
					got.wantUnmarked(t)
					s.wantNotes(t, 0)
				}
				if got, want := await(t, pattern, "the middleware outside"), "POST /albums/{album}/photos"; got != want {
					t.Errorf("Pattern outside: got %q, want %q", got, want)
				}
				srv.Close() // waits for net/http to have finished the request
				if left := temporaryFiles(folder); len(left) != 0 {
					t.Errorf("temporary files after the request: got %v, want none", left)
				}
			})
		}
	}
}

// Without a limit of its own the handler keeps 32 MB in memory, the rest in a file.
func TestUploadBeyondTheDefaultMemory(t *testing.T) {
	folder := t.TempDir()
	s := newSite(t)
	t.Setenv("TMPDIR", folder)
	const n = 33 << 20
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, header, err := r.FormFile("file")
		if err != nil {
			unexpected(w, err)
			return
		}
		if err := s.add(r.Context(), false); err != nil {
			unexpected(w, err)
			return
		}
		fmt.Fprintf(w, "%d file, %d bytes", len(temporaryFiles(folder)), header.Size)
	})))
	got := readAnswer(srv.Client().Do(upload(t, srv, "/", n)))
	got.wantStatus(t, 200)
	if want := fmt.Sprintf("1 file, %d bytes", n); got.body != want {
		t.Errorf("upload: got %q, want %q", got.body, want)
	}
	s.wantNotes(t, 1)
	srv.Close()
	if left := temporaryFiles(folder); len(left) != 0 {
		t.Errorf("temporary files after the request: got %v, want none", left)
	}
}
