// G1. Complete means committed. No client ever receives a complete success
// response for work that should have been committed and was not. A response up to
// HoldLimit is held until COMMIT has succeeded; if COMMIT fails, the client gets an
// error response instead: none of the handler's headers or body. This holds with a
// declared Content-Length (the last byte is kept back), with chunking, with HTTP/2,
// for HEAD, 204 and 304, and after Flush. Once COMMIT was attempted and failed, all
// this applies whatever status the handler chose. A rollback that the program asked
// for (Rollback, CommitIf, a status of 400 or more while the response is held) is no
// failure: the handler's response stands. A Transfer-Encoding set by the handler is
// removed.

package guarantees_test

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestG1NoFailedCommitLooksLikeSuccess(t *testing.T) {
	cases := wireCases(t)
	wireEach(t, func(t *testing.T, p wireProtocol) {
		for _, v := range []wireVariant{{}, {last: true}, {retry: true}, {recover: true}, {recover: true, last: true}, {recover: true, retry: true}} {
			v.query = sqlreqtest.BreakCommit
			if p.name == wireTLS10.name && (v.retry || v.last) {
				continue // a handshake for each request takes its time
			}
			t.Run(v.String(), func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				ask := p.start(t, v.handler(t, wireRegistry(t, v.retry, sqlreq.Binding{DB: db}), cases))
				for n, c := range cases {
					for _, method := range []string{"POST", "HEAD"} {
						got := ask(method, fmt.Sprint("/", n))
						if c.own != 0 {
							if got.status != c.own {
								t.Errorf("%s %s:\n got %v\nwant %d: the rollback was asked for", method, c.name, got, c.own)
							}
							continue
						}
						if complaint := got.success(method); complaint != "" {
							t.Errorf("%s %s: %s: got %v", method, c.name, complaint, got)
						}
					}
				}
				if rows := sqlreqtest.Count(t, db, "child"); rows != 0 {
					t.Errorf("%d rows stayed", rows)
				}
				wireIdle(t, db)
			})
		}
	})
}

func TestG1FailedCommitOverridesEveryStatus(t *testing.T) {
	wireEach(t, func(t *testing.T, p wireProtocol) {
		for _, explicit := range []bool{false, true} {
			for _, body := range []string{wireSmall, wireLarge} {
				reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
				reg.CommitIf = func(int, http.Header) bool { return true }
				ask := p.start(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
						t.Error(err)
					}
					w.Header().Set("X-Case", "1")
					w.WriteHeader(404)
					_, _ = io.WriteString(w, body)
					if explicit && sqlreq.Commit(r.Context()) == nil {
						t.Error("Commit succeeded")
					}
				})))
				got := ask("GET", "/")
				if body == wireSmall && (got.status != 500 || got.header.Get("X-Case") != "" || got.err != nil) || body == wireLarge && got.err == nil {
					t.Errorf("explicit %t, %d bytes: got %v, want an error", explicit, len(body), got)
				}
			}
		}
	})
}

func TestG1RollbackThatWasAskedForIsNoFailure(t *testing.T) {
	large := func(w http.ResponseWriter, status int) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, wireLarge)
	}
	cases := map[string]struct {
		handler  sqlreq.HandlerFunc
		commitIf func(int, http.Header) bool
		status   int
	}{
		"status":                 {func(w http.ResponseWriter, r *http.Request) error { large(w, 404); return nil }, nil, 404},
		"error after the answer": {func(w http.ResponseWriter, r *http.Request) error { large(w, 404); return sqlreqtest.ErrTest }, nil, 404},
		"Rollback": {func(w http.ResponseWriter, r *http.Request) error {
			large(w, 200)
			return sqlreq.Rollback(r.Context())
		}, nil, 200},
		"CommitIf": {func(w http.ResponseWriter, r *http.Request) error { large(w, 200); return nil },
			func(int, http.Header) bool { return false }, 200},
	}
	wireEach(t, func(t *testing.T, p wireProtocol) {
		for name, c := range cases {
			db := sqlreqtest.OpenDB(t)
			reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
			reg.CommitIf = c.commitIf
			ask := p.start(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.InsertWork); err != nil {
					t.Error(err)
				}
				return c.handler(w, r)
			})))
			if got := ask("GET", "/"); got.status != c.status || got.body != wireLarge || got.err != nil {
				t.Errorf("%s: got %v, want a complete %d", name, got, c.status)
			}
			if n := sqlreqtest.Count(t, db, "work"); n != 0 {
				t.Errorf("%s: %d rows stayed", name, n)
			}
		}
	})
}

func TestG1DownloadCompletesOnlyWhenCounted(t *testing.T) {
	file := wireFile(t, wireLarge)
	for name, query := range map[string]string{"works": sqlreqtest.InsertWork, "fails": sqlreqtest.BreakCommit} {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			reg := wireRegistry(t, false, sqlreq.Binding{DB: db})
			srv := sqlreqtest.Serve(t, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.ServeFile(w, r, file)
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err != nil {
					t.Error(err)
				}
			})))
			status, body, err := sqlreqtest.Get(t, srv.URL)
			if query == sqlreqtest.InsertWork && (status != 200 || body != wireLarge || err != nil || sqlreqtest.Count(t, db, "work") != 1) {
				t.Errorf("got %d, %d bytes, %v, want all of it", status, len(body), err)
			}
			if query == sqlreqtest.BreakCommit && (status == 200 && err != io.ErrUnexpectedEOF || body == wireLarge) {
				t.Errorf("got %d, %d bytes, %v, want a broken transfer", status, len(body), err)
			}
		})
	}
}

func TestG1FailedHijackIsAnswered(t *testing.T) {
	cases := map[string]struct {
		over   wireProtocol
		query  string
		before func(w http.ResponseWriter)
		status int
	}{
		"commit fails":             {wireHTTP11, sqlreqtest.BreakCommit, func(http.ResponseWriter) {}, 500},
		"commit fails after a 101": {wireHTTP11, sqlreqtest.BreakCommit, func(w http.ResponseWriter) { w.WriteHeader(101) }, 500},
		"HTTP/2 has none":          {wireHTTP2, sqlreqtest.InsertWork, func(http.ResponseWriter) {}, 200},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			db := sqlreqtest.OpenDB(t)
			ask := c.over.start(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := sqlreqtest.Main.ExecContext(r.Context(), c.query); err != nil {
					t.Error(err)
				}
				c.before(w)
				_, _, err := http.NewResponseController(w).Hijack()
				var commit *sqlreq.CommitError
				if c.status == 500 && !errors.As(err, &commit) || c.status == 200 && !errors.Is(err, http.ErrNotSupported) {
					t.Errorf("Hijack: got %v", err)
				}
				if c.status == 200 {
					_, _ = io.WriteString(w, "still held")
					if db.Stats().InUse != 1 {
						t.Error("a Hijack that cannot be has ended the transaction")
					}
				}
			})))
			if got := ask("GET", "/"); got.status != c.status || got.err != nil {
				t.Errorf("got %v, want %d", got, c.status)
			}
		})
	}
}

// An attempt that is given up must not answer for the request, whatever one of
// its goroutines does later.
func TestG1AbandonedAttemptCannotAnswer(t *testing.T) {
	reg := wireRegistry(t, true, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
	reg.Retry.Retryable = func(err error) bool { return errors.Is(err, sqlreqtest.ErrTest) }
	reg.Retry.Backoff = func(int) time.Duration { return 0 }
	reg.Retry.Within = time.Hour // a loaded machine must not lose the second attempt
	var writers []http.ResponseWriter
	srv := sqlreqtest.Serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		writers = append(writers, w)
		if len(writers) == 1 {
			return sqlreqtest.ErrTest
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
			t.Error(err)
		}
		first := writers[0]
		first.Header().Set("X-Stray", "1")
		first.WriteHeader(201)
		_, _ = io.WriteString(first, "created")
		_ = http.NewResponseController(first).Flush()
		_, _ = io.WriteString(w, "created")
		return nil
	})))
	res, err := http.Get(srv.URL)
	if len(writers) != 2 {
		t.Errorf("%d attempts, want 2", len(writers))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 500 || strings.Contains(string(body), "created") || res.Header.Get("X-Stray") != "" {
		t.Errorf("got %d %q, X-Stray %q, %v, want a 500: the commit failed", res.StatusCode, body, res.Header.Get("X-Stray"), err)
	}
}

// What a middleware outside has set counts as well: net/http does not ask who
// declared the length.
func TestG1FramingSetOutside(t *testing.T) {
	outside := map[string]func(h http.Header){
		"Content-Length":              func(h http.Header) { h.Set("Content-Length", strconv.Itoa(len(wireLarge))) },
		"Transfer-Encoding: identity": func(h http.Header) { h.Set("Transfer-Encoding", "identity") },
	}
	answers := map[string]func(w http.ResponseWriter){
		"written": func(w http.ResponseWriter) { _, _ = io.WriteString(w, wireLarge) },
		"copied":  func(w http.ResponseWriter) { _, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)}) },
		"flushed": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
			wireFlush(w)
			_, _ = io.WriteString(w, wireLarge[wireLimit:])
			wireFlush(w)
		},
		"its header asked for after the status": func(w http.ResponseWriter) {
			w.WriteHeader(200)
			w.Header().Set("X-Late", "1")
			_, _ = io.WriteString(w, wireLarge)
			wireFlush(w)
		},
		"its header asked for after a Write": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, wireLarge[:10])
			w.Header().Set("X-Late", "1")
			_, _ = io.WriteString(w, wireLarge[10:])
			wireFlush(w)
		},
	}
	for header, set := range outside {
		for answer, respond := range answers {
			for query, fails := range map[string]bool{sqlreqtest.InsertWork: false, sqlreqtest.BreakCommit: true} {
				app := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					respond(w)
					if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err != nil {
						t.Error(err)
					}
				}))
				ask := wireHTTP11.start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					set(w.Header())
					app.ServeHTTP(w, r)
				}))
				if got := ask("GET", "/"); (got.err != nil) != fails || !fails && got.body != wireLarge {
					t.Errorf("%s outside, %s, commit fails %t: got %v", header, answer, fails, got)
				}
			}
		}
	}
}

// net/http drops a length that it cannot read, but not in HTTP/1.0, where a
// client may be able to read it.
func TestG1InvalidLengthInHTTP10(t *testing.T) {
	ask := wireHTTP10.start(t, wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(" ", len(wireLarge)))
		_, _ = io.WriteString(w, wireLarge)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		if _, err := sqlreqtest.Main.ExecContext(r.Context(), sqlreqtest.BreakCommit); err != nil {
			t.Error(err)
		}
	})))
	if got := ask("GET", "/"); got.err == nil {
		t.Errorf("got %v, want a broken transfer", got)
	}
}

// A compressed response has another length on the wire than the handler declared.
func TestG1CompressionOutside(t *testing.T) {
	for name, query := range map[string]string{"works": sqlreqtest.InsertWork, "fails": sqlreqtest.BreakCommit} {
		app := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := sqlreqtest.Main.ExecContext(r.Context(), query); err != nil {
				t.Error(err)
			}
			wireSetLength(w, len(wireLarge))
			w.WriteHeader(200) // an implicit one stays so, and wireZip does not look for it
			_, _ = io.WriteString(w, wireLarge)
		}))
		srv := sqlreqtest.Serve(t, wireRecover(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			zip := &wireZip{ResponseWriter: w}
			zip.zip = gzip.NewWriter(w)
			defer zip.zip.Close() // also when the handler panics: gzip's own end must not help either
			app.ServeHTTP(zip, r)
		})))
		_, body, err := sqlreqtest.Get(t, srv.URL)
		if query == sqlreqtest.InsertWork && (body != wireLarge || err != nil) || query == sqlreqtest.BreakCommit && err == nil {
			t.Errorf("commit %s: got %d bytes, %v", name, len(body), err)
		}
	}
}

type wireZip struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (z *wireZip) Unwrap() http.ResponseWriter { return z.ResponseWriter }

func (z *wireZip) WriteHeader(status int) {
	z.Header().Del("Content-Length")
	z.Header().Set("Content-Encoding", "gzip")
	z.ResponseWriter.WriteHeader(status)
}

func (z *wireZip) Write(p []byte) (int, error) { return z.zip.Write(p) }
