package held

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

// script runs a sequence of calls on a ResponseWriter and notes what they return.
type script struct {
	w      http.ResponseWriter
	ops    []byte
	log    []string
	status int
	length int // declared, -1 if none
	next   int // to be declared with the status
	wrote  int
}

func (s *script) arg() int {
	if len(s.ops) == 0 {
		return 0
	}
	b := s.ops[0]
	s.ops = s.ops[1:]
	return int(b)
}

func (s *script) note(n any, err error) { s.log = append(s.log, fmt.Sprint(n, " ", err)) }

var fuzzStatuses = []int{200, 201, 204, 302, 304, 404, 500, 103}

// text has something to sniff.
const text = "<html><body>\x00 the text of the response goes on and on"

func bodyText(from, n int) string {
	return strings.Repeat(text, (from%len(text)+n)/len(text)+1)[from%len(text):][:n]
}

// see notes the status that a call implies, and with it what length was declared. It
// does not ask for the header: most handlers never do.
func (s *script) see(status int) {
	if s.status == 0 {
		s.status, s.length = status, s.next
	}
}

func (s *script) run() {
	s.length = -1
	for len(s.ops) > 0 {
		s.step()
	}
}

func (s *script) step() {
	op, arg := s.arg(), s.arg()
	switch op % 9 {
	case 0:
		status := fuzzStatuses[arg%len(fuzzStatuses)]
		if s.status != 0 && status >= 400 {
			return // replaces a held response: on purpose not what net/http does
		}
		if status >= 200 {
			s.see(status)
		}
		s.w.WriteHeader(status)
	case 1, 2:
		s.see(200)
		p := bodyText(s.wrote, arg*13)
		s.wrote += len(p)
		if op%9 == 1 {
			s.note(s.w.Write([]byte(p)))
		} else {
			s.note(io.WriteString(s.w, p))
		}
	case 3:
		s.see(200)
		s.note("flush", http.NewResponseController(s.w).Flush())
	case 4:
		s.w.Header().Set(fmt.Sprint("X-", arg%4), fmt.Sprint(arg))
	case 5:
		s.w.Header().Del(fmt.Sprint("X-", arg%4))
	case 6:
		n := arg * 29
		if n > 0 { // a copy of nothing writes nothing, and decides no status
			s.see(200)
		}
		if s.length >= 0 {
			// Beyond the length net/http would send what the client takes for another response.
			n = min(n, max(s.length-s.wrote, 0))
		}
		src := io.Reader(strings.NewReader(bodyText(s.wrote, n)))
		if arg%2 == 0 {
			src = io.LimitReader(src, int64(n))
		}
		s.wrote += n
		s.note(io.Copy(s.w, onlyReader{src}))
	case 7:
		s.next = arg * 17
		s.w.Header().Set("Content-Length", fmt.Sprint(s.next))
	case 8:
		if arg%2 == 0 {
			s.w.Header().Set("Content-Type", "text/x")
		} else if s.status == 0 {
			s.w.Header().Set("Trailer", "X-1")
		}
	}
}

// answer is what a client got, and what the handler was told.
type answer struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
	broken  bool
	log     []string
}

func (a answer) String() string {
	return fmt.Sprintf("%d %v %d bytes, trailers %v, broken %t, log %q", a.status, a.header, len(a.body), a.trailer, a.broken, a.log)
}

// outsideLength is the Content-Length that a middleware outside has declared.
const outsideLength = 20 * 13

// fuzzServer runs the script in a header of the request, on net/http's writer or on a
// Writer. outside is the framing that a middleware outside has set, if any.
func fuzzServer() (ask func(method, path, outside string, limit int, ops []byte) answer, stop func()) {
	logs := make(chan []string, 1)
	srv := quiet(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		ops, _ := base64.StdEncoding.DecodeString(r.Header.Get("Ops"))
		var limit int
		_, _ = fmt.Sscan(r.Header.Get("Limit"), &limit)
		s := &script{w: rw, ops: ops, next: -1}
		switch r.Header.Get("Outside") {
		case "Content-Length":
			s.next = outsideLength
			rw.Header().Set("Content-Length", fmt.Sprint(s.next))
		case "Transfer-Encoding":
			rw.Header().Set("Transfer-Encoding", "identity")
		}
		if r.URL.Path == "/bare" {
			s.run()
		} else {
			w := new(Writer)
			w.Init(rw, r, limit)
			if r.URL.Path == "/own" {
				w.OwnHeader()
			}
			s.w = w
			s.run()
			switch {
			case r.URL.Path == "/failed":
				fail(w, rw)
			case limit%2 == 0:
				w.Finish()
			default:
				w.finish()
			}
		}
		logs <- s.log
	}))
	client := srv.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Transport.(*http.Transport).DisableCompression = true
	client.Transport.(*http.Transport).DisableKeepAlives = true // no request is sent twice
	ask = func(method, path, outside string, limit int, ops []byte) answer {
		a := fetch(client, srv, method, path, outside, limit, ops)
		a.log = <-logs
		return a
	}
	return ask, srv.Close
}

// fail ends a response whose work could not be committed, under a middleware
// that has recovered and does what it can to complete it.
func fail(w *Writer, rw http.ResponseWriter) {
	if w.HandlerDone().Held {
		w.Reset()
		w.Close()
		rw.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Abort()
	w.Release()
	w.Close()
	_, _ = io.WriteString(rw, "x")
	_ = http.NewResponseController(rw).Flush()
}

func fetch(client *http.Client, srv *httptest.Server, method, path, outside string, limit int, ops []byte) (a answer) {
	req, _ := http.NewRequest(method, srv.URL+path, nil)
	req.Header.Set("Ops", base64.StdEncoding.EncodeToString(ops))
	req.Header.Set("Limit", fmt.Sprint(limit))
	req.Header.Set("Outside", outside)
	res, err := client.Do(req)
	if err != nil {
		return answer{broken: true}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	for _, k := range []string{"Date", "Content-Length", "Transfer-Encoding", "Connection"} {
		res.Header.Del(k)
	}
	a = answer{status: res.StatusCode, header: res.Header, body: string(b), broken: err != nil, trailer: make(http.Header)}
	for k, v := range res.Trailer {
		if len(v) > 0 {
			a.trailer[k] = v
		}
	}
	return a
}

// FuzzWriter compares what a client sees, and what the calls return, with and
// without a Writer in between.
func FuzzWriter(f *testing.F) {
	addScripts(f)
	ask, stop := fuzzServer()
	f.Cleanup(stop)
	f.Fuzz(func(t *testing.T, head, own bool, limit uint16, ops []byte) {
		if len(ops) > 200 {
			return
		}
		method, path := http.MethodGet, "/held"
		if head {
			method = http.MethodHead
		}
		if own {
			path = "/own"
		}
		want := ask(method, "/bare", "", 0, ops)
		got := ask(method, path, "", int(limit)+1, ops)
		if got.broken && want.broken {
			return
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s, own %t, limit %d, %v:\n got %v\nwant %v", method, own, limit, ops, got, want)
		}
	})
}

// FuzzFailure looks for a failed response that a client would take for a
// complete one.
func FuzzFailure(f *testing.F) {
	addScripts(f)
	ask, stop := fuzzServer()
	f.Cleanup(stop)
	f.Fuzz(func(t *testing.T, head, framed bool, limit uint16, ops []byte) {
		if len(ops) > 200 {
			return
		}
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		outside := ""
		switch {
		case framed && limit%2 == 0:
			outside = "Content-Length"
		case framed:
			outside = "Transfer-Encoding"
		}
		got := ask(method, "/failed", outside, int(limit)+1, ops)
		if !got.broken && (got.status != 500 || len(got.header) > 0 || got.body != "" || len(got.trailer) > 0) {
			t.Errorf("%s, %s outside, limit %d, %v: got %v, want a bare 500 or a broken transfer", method, outside, limit, ops, got)
		}
	})
}

func addScripts(f *testing.F) {
	seeds := [][]byte{
		{},
		{1, 5},
		{4, 1, 0, 1, 4, 2, 2, 40},
		{1, 5, 4, 1},                     // a header first asked for after a Write
		{3, 0, 1, 5},                     // flushed first
		{1, 0, 3, 0, 1, 200},             // a Write of nothing
		{7, 10, 1, 10, 3, 0, 1, 3},       // flushed with length, then incomplete
		{7, 13, 1, 17, 3, 0},             // complete, then flushed
		{7, 13, 1, 17, 1, 1},             // too long
		{6, 30, 6, 31, 1, 100, 6, 250},   // copies
		{7, 29, 6, 17, 3, 0},             // copied with length
		{0, 2, 1, 5, 6, 5},               // 204
		{0, 4, 8, 0, 3, 0},               // 304
		{0, 7, 4, 1, 0, 7, 1, 5},         // early hints
		{8, 1, 1, 5, 4, 1},               // trailer
		{8, 1, 1, 255, 4, 1, 1, 255},     // trailer of a large one
		{1, 1, 3, 0, 1, 200, 4, 3, 3, 0}, // type half known
		{0, 5, 1, 50, 0, 0},
		{1, 5, 1, 5},                // whose header is never asked for
		{1, 1, 4, 1, 1, 19, 3, 0},   // asked for late, with what may be declared outside
		{7, 13, 1, 10, 1, 10, 1, 7}, // one Write is too long, and the next would fit
		{0, 0, 4, 1, 2, 10, 2, 10, 3, 0},
	}
	for _, ops := range seeds {
		for _, head := range []bool{false, true} {
			f.Add(head, false, uint16(1000), ops)
			f.Add(head, true, uint16(100), ops)
			f.Add(head, true, uint16(101), ops)
		}
	}
}
