// G1 Complete means committed, and G9: programs that try to get a success out of a
// request whose COMMIT fails.

package guarantees_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/matrix"
)

// nastyPrograms write an answer of a request whose COMMIT fails.
var nastyPrograms = map[string]func(w http.ResponseWriter, r *http.Request){
	"early hints first": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(103)
		_, _ = io.WriteString(w, wireSmall)
	},
	"two lengths, the shorter one first": func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Length"] = []string{"5", "6"}
		_, _ = io.WriteString(w, "small")
		wireFlush(w)
	},
	"a length under two spellings": func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["content-length"] = []string{"5"}
		w.Header()["Content-Length"] = []string{"600"}
		_, _ = io.WriteString(w, wireSmall)
		wireFlush(w)
	},
	"a length of nothing": func(w http.ResponseWriter, _ *http.Request) {
		wireSetLength(w, 0)
		w.WriteHeader(200)
		wireFlush(w)
	},
	"a length that grows after the header": func(w http.ResponseWriter, _ *http.Request) {
		wireSetLength(w, len(wireLarge))
		wireFlush(w)
		wireSetLength(w, len(wireLarge)/2)
		wirePieces(w, wireLarge, 1000)
		_, _ = io.WriteString(w, "more")
	},
	"trailers that say that all is well": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		wireFlush(w)
		wirePieces(w, wireLarge, 1000)
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
	},
	"a status of 304": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304); wireFlush(w) },
	"a deadline far away, again and again": func(w http.ResponseWriter, _ *http.Request) {
		wirePieces(w, wireLarge, 1000)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Hour))
	},
	"several goroutines": func(w http.ResponseWriter, _ *http.Request) {
		done := make(chan struct{})
		go func() { defer close(done); wirePieces(w, wireSmall, 100); wireFlush(w) }()
		<-done
		wirePieces(w, wireLarge, 100)
	},
	"the body of the request as the answer": func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		wireFlush(w)
		_, _ = io.Copy(w, io.MultiReader(r.Body, strings.NewReader(wireLarge)))
	},
}

func TestG1NastyPrograms(t *testing.T) {
	for name, program := range nastyPrograms {
		for _, p := range []wireProtocol{wireHTTP10, wireHTTP11, wireHTTP2} {
			for _, retry := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, Retry %t", name, p.name, retry), func(t *testing.T) {
					db := sqlreqtest.OpenDB(t)
					reg := wireRegistry(t, retry, sqlreq.Binding{DB: db})
					h := lateOnce(wireRecover(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if err := matrix.BreakCommit(w, r); err != nil {
							t.Error(err)
						}
						program(w, r)
					}))))
					for _, method := range []string{"GET", "HEAD"} {
						if got := p.start(t, h)(method, "/"); got.err == nil && got.status < 400 {
							t.Errorf("%s: got %v", method, got)
						}
					}
					wireIdle(t, db)
				})
			}
		}
	}
}

// TestG1PipelinedAfterAFailure: what follows a broken response on its connection is
// not taken for its rest.
func TestG1PipelinedAfterAFailure(t *testing.T) {
	for _, keep := range []string{"1.1\r\nHost: test", "1.0\r\nConnection: keep-alive"} {
		reg := wireRegistry(t, false, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
		srv := sqlreqtest.Serve(t, wireRecover(reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/second" {
				_, _ = io.WriteString(w, "the second")
				return
			}
			if err := matrix.BreakCommit(w, r); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(w, wireLarge)
		}))))
		conn := wireDial(t, srv, nil)
		fmt.Fprintf(conn, "GET / HTTP/%s\r\n\r\nGET /second HTTP/%s\r\n\r\n", keep, keep)
		br := bufio.NewReader(conn)
		if got := wireRead(br, "GET"); got.err == nil {
			t.Errorf("%s: got %v, want a broken transfer", keep[:3], got)
		}
		if rest, _ := io.ReadAll(br); strings.Contains(string(rest), "the second") {
			t.Errorf("%s: the second response followed", keep[:3])
		}
		_ = conn.Close()
	}
}

// TestG9PartOfTheBodyThenAConflict: the second attempt reads from the beginning, and
// what the first has read and not read is the same to it.
func TestG9PartOfTheBodyThenAConflict(t *testing.T) {
	for _, p := range []wireProtocol{wireHTTP11, wireHTTP2} {
		for _, closes := range []bool{false, true} {
			attempts := 0
			reg := wireRegistry(t, true, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)})
			srv := p.serve(t, reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				if attempts++; attempts == 1 {
					_, _ = io.WriteString(w, "of the first attempt")
					w.Header().Set("X-First", "1")
					_, err := io.CopyN(io.Discard, r.Body, 100)
					if closes && p.name == wireHTTP11.name {
						_ = r.Body.Close()
					}
					if err != nil {
						t.Error(err)
					}
					return programConflict{}
				}
				body, err := io.ReadAll(r.Body)
				_, _ = w.Write(body)
				return err
			})))
			res, err := srv.Client().Post(srv.URL, "text/plain", strings.NewReader(wireLarge))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || res.StatusCode != 200 || string(body) != wireLarge || res.Header.Get("X-First") != "" || attempts != 2 {
				t.Errorf("%s, closes %t: got %d, %d bytes, %v after %d attempts", p.name, closes, res.StatusCode, len(body), err, attempts)
			}
		}
	}
}
