package guarantees_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// wireCase is a handler, all but its work in the database.
type wireCase struct {
	name    string
	respond func(t testing.TB, w http.ResponseWriter, r *http.Request)
	http1   bool // on HTTP/2 net/http itself breaks the response
	own     int  // the answer of 400 or more that it ends in, instead of what a bare handler gives
}

// wireCases is every way of answering that this library must not disturb.
func wireCases(t testing.TB) []wireCase {
	small, large := wireFile(t, wireSmall), wireFile(t, wireLarge)
	return slices.Concat(wirePlainCases(), wireLengthCases(large), wireCopyCases(small, large), wireFlushCases(), wireHeaderCases(), wireTrailerCases(small))
}

func wirePlainCases() []wireCase {
	return []wireCase{
		{name: "nothing written", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {}},
		{name: "only a header", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Case", "1") }},
		{name: "only a status", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { w.WriteHeader(202) }},
		{name: "bare write", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") }},
		{name: "write of nothing", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { _, _ = w.Write(nil) }},
		{name: "201 and body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Case", "1")
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"id":1}`)
		}},
		{name: "204", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.WriteHeader(204)
		}},
		{name: "205", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { w.WriteHeader(205) }},
		{name: "303", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/done", http.StatusSeeOther)
		}},
		{name: "304", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Etag", `"case"`)
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(304)
		}},
		{name: "cookie", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
			http.SetCookie(w, &http.Cookie{Name: "other", Value: "2"})
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "write on 204", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(204)
			if n, err := io.WriteString(w, "no"); n != 0 || err != http.ErrBodyNotAllowed {
				t.Errorf("Write on a 204: got %d %v, want ErrBodyNotAllowed", n, err)
			}
		}},
		{name: "copy and flush on 304", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Etag", `"case"`)
			w.WriteHeader(304)
			if _, err := io.Copy(w, wireReader{strings.NewReader("no")}); err != http.ErrBodyNotAllowed {
				t.Errorf("Copy on a 304: got %v, want ErrBodyNotAllowed", err)
			}
			wireFlush(w)
		}},
		{name: "second WriteHeader below 400", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			w.WriteHeader(202)
			_, _ = io.WriteString(w, "hello")
			w.WriteHeader(203)
		}},
		{name: "second WriteHeader of 400 or more", own: 409, respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			_, _ = io.WriteString(w, "the page that broke half-")
			http.Error(w, "conflict", http.StatusConflict)
		}},
		{name: "early hints", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(102)
			w.Header().Add("Link", "</b.css>")
			w.WriteHeader(103)
			w.Header().Set("X-Case", "1")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "early hints and a large body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(103)
			w.Header().Del("Link")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "html", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "<!DOCTYPE html>")
			_, _ = io.WriteString(w, "<title>x</title>")
		}},
		{name: "a type that the second write decides", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, " ")
			_, _ = io.WriteString(w, "\x89PNG\x00\x01")
		}},
		{name: "binary after 600 bytes of text", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wirePieces(w, wireSmall+strings.Repeat("\x00", 4096), 100)
		}},
		{name: "encoded body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			_, _ = io.WriteString(w, "<html>")
		}},
		{name: "no type wanted", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = nil
			w.Header()["Date"] = nil
			_, _ = io.WriteString(w, "<html>")
		}},
	}
}

func wireLengthCases(large string) []wireCase {
	return []wireCase{
		{name: "small with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
		}},
		{name: "large with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wireSetLength(w, len(wireLarge))
			_, _ = w.Write([]byte(wireLarge))
		}},
		{name: "large string with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "large without length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "in pieces", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wirePieces(w, wireLarge, 777)
		}},
		{name: "in pieces with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wirePieces(w, wireLarge, 1024)
		}},
		{name: "byte by byte with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			body := wireLarge[:wireLimit+2]
			wireSetLength(w, len(body))
			wirePieces(w, body, 1)
		}},
		{name: "exactly HoldLimit", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
		}},
		{name: "HoldLimit and a byte, with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, wireLimit+1)
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
			_, _ = io.WriteString(w, "x")
		}},
		{name: "length zero", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, 0)
			w.WriteHeader(200)
			wireFlush(w)
		}},
		{name: "shorter than declared", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireSmall)+1)
			_, _ = io.WriteString(w, wireSmall)
		}},
		{name: "large and shorter than declared", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge)+1)
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "longer than declared", http1: true, respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
			if n, err := io.WriteString(w, "x"); n != 0 || err != http.ErrContentLength {
				t.Errorf("Write beyond the length: got %d %v, want ErrContentLength", n, err)
			}
		}},
		{name: "large and longer than declared", http1: true, respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wirePieces(w, wireLarge, 1024)
			if n, err := io.WriteString(w, "x"); n != 0 || err != http.ErrContentLength {
				t.Errorf("Write beyond the length: got %d %v, want ErrContentLength", n, err)
			}
		}},
		{name: "invalid length", http1: true, respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead || !r.ProtoAtLeast(1, 1) {
				return // net/http itself sends the invalid one
			}
			w.Header().Set("Content-Length", "many")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "ServeFile", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, large) }},
		{name: "ServeContent of a range", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=100-20000")
			http.ServeFile(w, r, large)
		}},
		{name: "ServeContent of a small range", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=-7")
			http.ServeFile(w, r, large)
		}},
	}
}

func wireCopyCases(small, large string) []wireCase {
	return []wireCase{
		{name: "small file copied", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) { wireCopyFile(t, w, small) }},
		{name: "file copied", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) { wireCopyFile(t, w, large) }},
		{name: "file copied with length", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			wireCopyFile(t, w, large)
		}},
		{name: "file copied after a status", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			wireCopyFile(t, w, large)
		}},
		{name: "reader copied", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)})
		}},
		{name: "reader copied with length", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			_, _ = io.Copy(w, wireReader{strings.NewReader(wireLarge)})
		}},
		{name: "copied in parts", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge)+6)
			src := strings.NewReader(wireLarge)
			_, _ = io.CopyN(w, src, 100)
			_, _ = io.CopyN(w, src, 10000)
			_, _ = io.WriteString(w, "abc")
			_, _ = io.Copy(w, wireReader{src})
			_, _ = io.WriteString(w, "def")
		}},
		{name: "written, then copied", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "<html>")
			wireCopyFile(t, w, large)
		}},
		{name: "file that grew since its length was told", http1: true, respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge)-10)
			wireCopyFile(t, w, large)
		}},
	}
}

func wireFlushCases() []wireCase {
	return []wireCase{
		{name: "flushed early", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.Header().Set("Content-Type", "text/event-stream")
			wireFlush(w)
			for range 3 {
				_, _ = io.WriteString(w, "data: x\n\n")
				wireFlush(w)
			}
		}},
		{name: "flushed before the type is known", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireFlush(w)
			_, _ = io.WriteString(w, "<html>")
		}},
		{name: "flushed with the type half known", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "<ht")
			wireFlush(w)
			_, _ = io.WriteString(w, "ml>\x00")
		}},
		{name: "flushed when complete", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wireSetLength(w, len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
		}},
		{name: "large and flushed when complete", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, len(wireLarge))
			_, _ = io.WriteString(w, wireLarge)
			wireFlush(w)
		}},
		{name: "flushed with length half-way", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			wireSetLength(w, 2*len(wireSmall))
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
		}},
		{name: "204 flushed", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.WriteHeader(204)
			wireFlush(w)
		}},
	}
}

func wireHeaderCases() []wireCase {
	return []wireCase{
		{name: "header changed after WriteHeader", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			w.Header().Set("X-Gone", "1")
			w.WriteHeader(200)
			w.Header().Set("X-Case", "late")
			w.Header().Set("X-Late", "1")
			w.Header().Del("X-Gone")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "header first asked for after a Write", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-Late", "1")
		}},
		{name: "header first asked for after WriteHeader", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.Header().Set("Content-Type", "text/late")
			w.Header().Set("Content-Length", "3")
			w.Header().Set("Transfer-Encoding", "identity")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "header changed while streaming", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireSmall)
			w.Header().Set("X-Late", "1")
			_, _ = io.WriteString(w, wireLarge)
			w.Header().Set("X-Later", "1")
		}},
		{name: "Transfer-Encoding first set while held", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireSmall)
			w.Header().Set("Transfer-Encoding", "identity")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "values changed in place", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header()["X-Case"] = []string{"1", "2"}
			w.WriteHeader(200)
			w.Header()["X-Case"][1] = "late"
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "header of the outside changed", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Del("X-Outside")
			w.Header().Add("X-Outside-2", "added")
			_, _ = io.WriteString(w, "hello")
		}},
		{name: "Transfer-Encoding chunked", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 {
				w.Header().Set("Transfer-Encoding", "chunked")
			}
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, wireLarge)
		}},
		{name: "Transfer-Encoding identity", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 {
				w.Header().Set("Transfer-Encoding", "identity")
			}
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, wireLarge)
		}},
	}
}

func wireTrailerCases(small string) []wireCase {
	declared := func(body string) func(testing.TB, http.ResponseWriter, *http.Request) {
		return func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum, X-Unused")
			w.Header().Add("Trailer", "X-More")
			_, _ = io.WriteString(w, body)
			w.Header().Set("X-Sum", "abc")
			w.Header().Add("X-More", "1")
			w.Header().Add("X-More", "2")
		}
	}
	late := func(body string, size int) func(testing.TB, http.ResponseWriter, *http.Request) {
		return func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wirePieces(w, body, size)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}
	}
	return []wireCase{
		{name: "declared trailers", respond: declared(wireSmall)},
		{name: "declared trailers after a large body", respond: declared(wireLarge)},
		{name: "declared trailers without a body", respond: declared("")},
		{name: "trailers by prefix before the body", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set(http.TrailerPrefix+"X-Sum", "early")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
		{name: "trailers by prefix after a small body", respond: late(wireSmall, 600)},
		{name: "trailers by prefix after a body that is held", respond: late(wireLarge[:wireLimit], 100)},
		{name: "trailers by prefix after a large body", respond: late(wireLarge, 1000)},
		{name: "trailers by prefix, header first asked for then", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireLarge[:wireLimit])
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
		{name: "trailers by prefix after a flush", respond: func(_ testing.TB, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, wireSmall)
			wireFlush(w)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
		{name: "trailers by prefix after a copied file", respond: func(t testing.TB, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Case", "1")
			wireCopyFile(t, w, small)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}},
	}
}
