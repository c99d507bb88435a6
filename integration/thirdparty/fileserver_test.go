package thirdparty

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var modified = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// files is a folder to serve: small and large files, a folder with an index page and one without.
func files(t *testing.T) http.Handler {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"small.txt":            text(small),
		"large.bin":            text(large),
		"empty":                "",
		"folder/index.html":    "<!DOCTYPE html><p>index",
		"listing/one":          "1",
		"listing/<two> & more": "2",
	} {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		for ; path != root; path = filepath.Dir(path) {
			if err := os.Chtimes(path, modified, modified); err != nil {
				t.Fatal(err)
			}
		}
	}
	return http.FileServer(http.Dir(root))
}

var fileRequests = []struct {
	name, method, path string
	header             map[string]string
	status             int
}{
	{"small", "GET", "/small.txt", nil, 200},
	{"large", "GET", "/large.bin", nil, 200},
	{"empty", "GET", "/empty", nil, 200},
	{"head of small", "HEAD", "/small.txt", nil, 200},
	{"head of large", "HEAD", "/large.bin", nil, 200},
	{"first bytes", "GET", "/small.txt", map[string]string{"Range": "bytes=0-9"}, 206},
	{"last bytes", "GET", "/large.bin", map[string]string{"Range": "bytes=-5"}, 206},
	{"a large range", "GET", "/large.bin", map[string]string{"Range": "bytes=1000-200000"}, 206},
	{"head of a range", "HEAD", "/large.bin", map[string]string{"Range": "bytes=1000-200000"}, 206},
	{"two ranges", "GET", "/small.txt", map[string]string{"Range": "bytes=0-9,20-29"}, 206},
	{"two large ranges", "GET", "/large.bin", map[string]string{"Range": "bytes=0-99999,100005-220000"}, 206},
	{"range beyond the end", "GET", "/small.txt", map[string]string{"Range": "bytes=999999-"}, 416},
	{"range if unchanged", "GET", "/small.txt", map[string]string{"Range": "bytes=0-9", "If-Range": modified.Format(http.TimeFormat)}, 206},
	{"range but changed", "GET", "/small.txt", map[string]string{"Range": "bytes=0-9", "If-Range": modified.Add(-time.Hour).Format(http.TimeFormat)}, 200},
	{"not modified", "GET", "/large.bin", map[string]string{"If-Modified-Since": modified.Format(http.TimeFormat)}, 304},
	{"modified", "GET", "/large.bin", map[string]string{"If-Modified-Since": modified.Add(-time.Hour).Format(http.TimeFormat)}, 200},
	{"head not modified", "HEAD", "/large.bin", map[string]string{"If-Modified-Since": modified.Format(http.TimeFormat)}, 304},
	{"failed precondition", "GET", "/small.txt", map[string]string{"If-Unmodified-Since": modified.Add(-time.Hour).Format(http.TimeFormat)}, 412},
	{"index page", "GET", "/folder/", nil, 200},
	{"redirect to the folder", "GET", "/folder", nil, 301},
	{"redirect from the index", "GET", "/folder/index.html", nil, 301},
	{"listing", "GET", "/listing/", nil, 200},
	{"missing", "GET", "/missing", nil, 404},
}

// askers are the ways to ask: each returns what the client got.
var askers = []struct {
	name, proto string
	ask         func(t *testing.T, srv *httptest.Server, method, path string, header map[string]string) answer
}{
	{"HTTP/1.0", "HTTP/1.1", askRaw("HTTP/1.0")},
	{"HTTP/1.1", "HTTP/1.1", askRaw("HTTP/1.1")},
	{"HTTP/2.0", "HTTP/2.0", func(t *testing.T, srv *httptest.Server, method, path string, header map[string]string) answer {
		req := newRequest(t, method, srv.URL+path, "")
		for name, value := range header {
			req.Header.Set(name, value)
		}
		return readAnswer(srv.Client().Do(req))
	}},
}

func askRaw(version string) func(*testing.T, *httptest.Server, string, string, map[string]string) answer {
	return func(t *testing.T, srv *httptest.Server, method, path string, header map[string]string) answer {
		var request strings.Builder
		fmt.Fprintf(&request, "%s %s %s\r\nHost: files\r\nConnection: close\r\n", method, path, version)
		for name, value := range header {
			fmt.Fprintf(&request, "%s: %s\r\n", name, value)
		}
		return exchange(t, srv, method, request.String()+"\r\n")
	}
}

// steadyBoundary replaces the boundary of a multipart answer, which is random.
func (a answer) steadyBoundary() answer {
	if _, boundary, ok := strings.Cut(a.header.Get("Content-Type"), "multipart/byteranges; boundary="); ok {
		a.header.Set("Content-Type", "multipart/byteranges; boundary=steady")
		a.body = strings.ReplaceAll(a.body, boundary, "steady")
	}
	return a
}

// addingAfter is a handler whose statement comes last: it counts the download.
func (s *site) addingAfter(commitFails bool, first http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first.ServeHTTP(w, r)
		if err := s.add(r.Context(), commitFails); err != nil {
			unexpected(w, err)
		}
	})
}

func TestFileServerAnswersAreTheSame(t *testing.T) {
	fileServer := files(t)
	for _, asker := range askers {
		t.Run(asker.name, func(t *testing.T) {
			s := newSite(t)
			plain := serve(t, asker.proto, fileServer)
			idle := serve(t, asker.proto, s.reg.Middleware(fileServer))
			before := serve(t, asker.proto, s.reg.Middleware(s.adding(false, fileServer)))
			afterwards := serve(t, asker.proto, s.reg.Middleware(s.addingAfter(false, fileServer)))
			want := 0
			for _, req := range fileRequests {
				t.Run(req.name, func(t *testing.T) {
					reference := asker.ask(t, plain, req.method, req.path, req.header).steadyBoundary()
					reference.wantStatus(t, req.status)
					t.Run("no transaction", func(t *testing.T) {
						asker.ask(t, idle, req.method, req.path, req.header).steadyBoundary().wantSame(t, reference)
						s.wantNotes(t, want)
					})
					if req.status < 400 {
						want++
					}
					t.Run("a statement before", func(t *testing.T) {
						asker.ask(t, before, req.method, req.path, req.header).steadyBoundary().wantSame(t, reference)
						s.wantNotes(t, want)
					})
					if req.status < 400 {
						want++
					}
					t.Run("a statement after", func(t *testing.T) {
						asker.ask(t, afterwards, req.method, req.path, req.header).steadyBoundary().wantSame(t, reference)
						s.wantNotes(t, want)
					})
				})
			}
		})
	}
}

func TestFileServerNoCompleteSuccessWhenCommitFails(t *testing.T) {
	fileServer := files(t)
	for _, asker := range askers {
		t.Run(asker.name, func(t *testing.T) {
			s := newSite(t)
			before := serve(t, asker.proto, s.reg.Middleware(s.adding(true, fileServer)))
			afterwards := serve(t, asker.proto, s.reg.Middleware(s.addingAfter(true, fileServer)))
			for _, srv := range []*httptest.Server{before, afterwards} {
				for _, req := range fileRequests {
					name := req.name + ", a statement before"
					if srv == afterwards {
						name = req.name + ", a statement after"
					}
					t.Run(name, func(t *testing.T) {
						got := asker.ask(t, srv, req.method, req.path, req.header)
						switch {
						case req.status >= 400: // rolled back as asked, and the answer stands
							got.wantStatus(t, req.status)
						case got.err != nil: // broken
						case got.status == 500:
							for _, name := range []string{"Last-Modified", "Content-Range", "Accept-Ranges", "Location"} {
								if value := got.header.Get(name); value != "" {
									t.Errorf("%s in the error answer: got %q, want none", name, value)
								}
							}
						default:
							t.Errorf("answer: got a complete %d, want 500 or a broken transfer", got.status)
						}
					})
				}
			}
			s.wantNotes(t, 0)
		})
	}
}
