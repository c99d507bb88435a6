// G10 The writer stays a writer, and G1, G9: random programs of calls on the
// ResponseWriter, over HTTP/1.1 and HTTP/2, whose calls are made by three
// goroutines in turn. What a client gets and what the calls return is compared
// with net/http alone, but for what the contract names.

package guarantees_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// programEnd is what follows when a program's calls are through.
type programEnd byte

const (
	endsWell     programEnd = iota
	endsCommit              // COMMIT will fail
	endsError               // the handler returns an error
	endsConflict            // the same in the first attempt, a conflict
	programEnds
)

// programText has something to sniff, and is no two bytes the same way.
var programText = strings.Repeat("<html><body>\x00 the text of the response goes on and on", 1<<8)

var programStatuses = []int{200, 201, 204, 206, 302, 304, 404, 410, 413, 500, 503, 102, 103, 0}

var errProgram = errors.New("a source that ends early")

// programRun is one run of a program.
type programRun struct {
	w      http.ResponseWriter
	r      *http.Request
	bare   bool          // by net/http alone
	outer  *http.Request // net/http's
	late   bool          // a status of 400 or more may come late
	ops    []byte
	number int // of the run, from 1; a conflict makes a second one
	hands  [3]chan func()

	// What was seen.
	log      []string
	status   int
	length   int // declared with the status, -1 if none
	wrote    int
	asked    int  // of it, by the last call
	flushed  bool // since the last Write
	over     bool // more was written than declared
	hijacked bool
	muddy    bool // hijacked with bytes in net/http's buffers
	past     bool // the time to write in has passed
	panics   bool
	open     bool // a transaction
	began    bool
	lateSet  bool // a late status was set
	replaced bool // the same, or an error after an error
	copied   bool
	duplex   bool
	invalid  bool // a Content-Length was
	closed   bool // the request's body
	early    bool
	commits  int      // that should have been
	returned bool     // normally
	strays   []string // what a call after the end was told
}

func (p *programRun) next() (op, arg int) {
	op = int(p.ops[0])
	if len(p.ops) > 1 {
		arg = int(p.ops[1])
	}
	p.ops = p.ops[min(2, len(p.ops)):]
	return op, arg
}

// run makes each call in the goroutine that it names, one after the other.
func (p *programRun) run() {
	p.length = -1
	defer func() {
		for _, c := range p.hands {
			if c != nil {
				close(c)
			}
		}
	}()
	for len(p.ops) > 0 && !p.hijacked {
		op, arg := p.next()
		if hand := op >> 6; hand > 0 {
			p.in(hand-1, func() { p.step(op&63, arg) })
			continue
		}
		p.step(op, arg)
		p.mayPanic(op, arg)
	}
}

func (p *programRun) in(hand int, f func()) {
	if p.hands[hand] == nil {
		c := make(chan func())
		p.hands[hand] = c
		go func() {
			for f := range c {
				f()
			}
		}()
	}
	done := make(chan struct{})
	p.hands[hand] <- func() { defer close(done); f() }
	<-done
}

// mayPanic is for the goroutine of the handler only.
func (p *programRun) mayPanic(op, arg int) {
	if op == 21 && arg%8 == 1 || op == 0 && programStatuses[arg%len(programStatuses)] == 0 && p.status == 0 {
		p.panics = true
		if op == 21 {
			panic(http.ErrAbortHandler)
		}
		p.w.WriteHeader(0)
	}
}

func (p *programRun) note(what string, n any, err error) {
	told := "ok"
	switch {
	case err == nil, n == 0 && p.asked == 0: // net/http over HTTP/2 refuses to write nothing to a 304
	case errors.Is(err, http.ErrBodyNotAllowed):
		told = "no body"
	case errors.Is(err, http.ErrContentLength), strings.HasPrefix(err.Error(), "http2: handler wrote more than declared"):
		told = "too long"
	case errors.Is(err, http.ErrNotSupported):
		told = "not supported"
	case errors.Is(err, errProgram):
		told = "the source's error"
	default:
		told = "failed"
	}
	p.log = append(p.log, fmt.Sprint(what, " ", n, " ", told))
}

// see notes the status that a call implies, and with it what length was declared.
func (p *programRun) see(status int) {
	if p.status != 0 {
		return
	}
	p.status, p.length = status, -1
	if n := p.w.Header().Get("Content-Length"); n != "" {
		if _, err := fmt.Sscan(n, &p.length); err != nil {
			p.length = -1
		}
	}
}

// text is the next n bytes of the body.
func (p *programRun) text(n int) string {
	p.asked = n
	s := programText[p.wrote%50:][:n]
	p.wrote += n
	p.flushed = p.flushed && n == 0
	p.over = p.over || p.length >= 0 && p.wrote > p.length
	return s
}

func (p *programRun) step(op, arg int) {
	switch op % 22 {
	case 0:
		p.writeHeader(programStatuses[arg%len(programStatuses)])
	case 1, 2:
		p.see(200)
		n, err := p.w.Write([]byte(p.text(arg * 13)))
		p.note("Write", n, err)
	case 3:
		p.see(200)
		n, err := io.WriteString(p.w, p.text(arg*7))
		p.note("WriteString", n, err)
	case 4:
		p.see(200)
		p.note("Flush", "", http.NewResponseController(p.w).Flush())
		p.flushed = true
	case 5, 6:
		p.copy(arg, op%22 == 6)
	case 7, 8:
		p.setHeader(op, arg)
	case 9:
		p.contentLength(arg)
	case 10, 11:
		p.trailer(op, arg)
	case 12, 13, 14:
		p.deadline(op, arg)
	case 15, 16:
		p.readBody(arg)
	case 17:
		if arg%6 == 0 {
			p.hijack()
		}
	case 18, 19:
		p.work()
	case 20:
		p.commit(arg)
	}
}

func (p *programRun) writeHeader(status int) {
	switch {
	case status == 0:
		return // mayPanic
	case status < 200:
		p.early = p.early || p.status == 0
	case p.status != 0 && status >= 400:
		// Replaces a held response, or fails the request: on purpose not what net/http does.
		if p.bare || !p.late {
			return
		}
		p.lateSet, p.replaced = p.lateSet || p.status < 400, true
	default:
		p.see(status)
	}
	p.w.WriteHeader(status)
}

// copy copies from a source that is limited, that is not, or that ends early.
func (p *programRun) copy(arg int, fails bool) {
	n := arg * 29
	p.copied = true
	if n > 0 {
		p.see(200)
	}
	if p.length >= 0 {
		// Beyond the length net/http would send what the client takes for another response.
		n = min(n, max(p.length-p.wrote, 0))
	}
	src := io.Reader(strings.NewReader(p.text(n)))
	switch {
	case fails:
		src = io.MultiReader(src, programBadSource{})
	case arg%2 == 0:
		src = io.LimitReader(src, int64(n))
	}
	m, err := io.Copy(p.w, wireReader{src})
	p.note("Copy", m, err)
}

type programBadSource struct{}

func (programBadSource) Read([]byte) (int, error) { return 0, errProgram }

func (p *programRun) setHeader(op, arg int) {
	key := fmt.Sprint("X-", arg%4)
	switch {
	case op%22 == 8 && arg%3 == 0:
		p.w.Header().Set("Content-Type", "text/x")
	case op%22 == 8 && arg%3 == 1:
		p.w.Header()["Content-Type"] = nil
	case arg%16 == 5:
		p.w.Header().Del(key)
	case arg%16 == 6:
		p.w.Header().Add(key, fmt.Sprint(arg))
	default:
		p.w.Header().Set(key, fmt.Sprint(arg))
	}
}

func (p *programRun) contentLength(arg int) {
	switch h := p.w.Header(); arg % 8 {
	case 0:
		h["Content-Length"] = nil
	case 1:
		h.Del("Content-Length")
	case 2:
		h.Set("Content-Length", "none")
		p.invalid = true
	case 3, 4:
		h.Set("Content-Length", fmt.Sprint(arg*13)) // a Write may fill it
	default:
		h.Set("Content-Length", fmt.Sprint(arg*17))
	}
}

func (p *programRun) trailer(op, arg int) {
	switch {
	case op%22 == 10 && p.status == 0:
		p.w.Header().Set("Trailer", fmt.Sprint("X-", arg%4))
	case op%22 == 11:
		p.w.Header().Set(fmt.Sprint(http.TrailerPrefix, "X-P", arg%4), fmt.Sprint(arg))
	}
}

func (p *programRun) deadline(op, arg int) {
	rc, at := http.NewResponseController(p.w), time.Now().Add(time.Hour)
	if arg%2 == 0 {
		at = time.Time{}
	}
	switch op % 22 {
	case 12:
		if arg%16 == 15 {
			at, p.past = time.Unix(1, 0), true
		}
		p.note("SetWriteDeadline", "", rc.SetWriteDeadline(at))
	case 13:
		p.note("SetReadDeadline", "", rc.SetReadDeadline(at))
	case 14:
		if p.status == 0 { // net/http asks for it when the header leaves
			p.duplex = true
			p.note("EnableFullDuplex", "", rc.EnableFullDuplex())
		}
	}
}

// readBody reads of the request. What net/http allows after the beginning of the
// response depends on when it left.
func (p *programRun) readBody(arg int) {
	if p.status != 0 || p.early || p.closed {
		return
	}
	b, err := io.ReadAll(io.LimitReader(p.r.Body, int64(arg*19)))
	p.note("Read", string(b), err)
	if arg%32 == 31 {
		p.note("Close", "", p.r.Body.Close())
		p.closed = true // what a Read returns then depends on the protocol
	}
}

func (p *programRun) hijack() {
	conn, buf, err := http.NewResponseController(p.w).Hijack()
	p.note("Hijack", "", err)
	if err != nil {
		return
	}
	p.hijacked, p.muddy = true, p.status != 0 && p.wrote > 0 && (!p.flushed || p.r.Method == http.MethodHead)
	if p.open && p.status < 400 && !p.replaced {
		p.commits++
	}
	p.open = false
	_, err = p.w.Write([]byte("x"))
	p.note("Write", "", err)
	if p.status == 0 {
		_, _ = buf.WriteString("HTTP/1.1 299 By hand\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	}
	_ = buf.Flush()
	_ = conn.Close()
}

// work begins the transaction, or is a further statement of it.
func (p *programRun) work() {
	if p.bare {
		return
	}
	_, err := sqlreqtest.Main.ExecContext(p.r.Context(), "INSERT")
	if p.open, p.began = true, true; err != nil && !p.lateSet {
		p.log = append(p.log, err.Error())
	}
}

func (p *programRun) commit(arg int) {
	if p.bare || arg%4 != 0 || !p.open || p.lateSet {
		return
	}
	if err := sqlreqtest.Main.Commit(p.r.Context()); err != nil {
		p.log = append(p.log, err.Error())
	}
	p.open = false
	p.commits++
}

// programInput is what a program is made from.
type programInput struct {
	method string
	http2  bool
	retry  bool
	late   bool // a status of 400 or more may come late
	end    programEnd
	limit  int
	ops    []byte
}

func (in programInput) String() string {
	return fmt.Sprintf("%s, HTTP/2 %t, Retry %t, late %t, end %d, HoldLimit %d, %v", in.method, in.http2, in.retry, in.late, in.end, in.limit, in.ops)
}

// programSite runs programs, one request at a time, with sqlreq or without.
type programSite struct {
	bare bool
	pool *sql.DB
	ask  func(method string) wireAnswer
	over chan *programRun // the last run of a request whose handler has returned

	mu      sync.Mutex // guards what follows
	input   programInput
	breaks  bool // COMMIT fails
	commits int  // that have succeeded
}

func newProgramSite(t testing.TB, http2, bare bool) *programSite {
	s := &programSite{bare: bare, over: make(chan *programRun, 1)}
	db := &fakedb.DB{Commit: s.commit}
	s.pool = db.Open(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(!http2)
	srv.Config.Protocols.SetUnencryptedHTTP2(http2)
	srv.Start()
	t.Cleanup(srv.Close)
	if s.ask = s.askHTTP1(t, srv); http2 {
		srv.Client().Transport.(*http.Transport).Protocols = srv.Config.Protocols
		s.ask = func(method string) wireAnswer { return programAskHTTP2(srv, method) }
	}
	return s
}

func (s *programSite) commit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.breaks {
		return errors.New("COMMIT was broken")
	}
	s.commits++
	return nil
}

// run returns what the client got, and the last run of the program.
func (s *programSite) run(in programInput) (a wireAnswer, p *programRun, commits int) {
	s.mu.Lock()
	s.input, s.breaks, s.commits = in, false, 0
	s.mu.Unlock()
	a = s.ask(in.method)
	p = <-s.over
	<-p.outer.Context().Done() // the server has it back
	p.later("after the response")
	s.mu.Lock()
	defer s.mu.Unlock()
	return a, p, s.commits
}

func (s *programSite) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/second" {
		return
	}
	s.mu.Lock()
	in := s.input
	s.mu.Unlock()
	var p *programRun
	defer func() { s.over <- p }()
	number := 0
	if s.bare {
		p = &programRun{w: w, r: r, outer: r, bare: true, ops: in.ops}
		p.run()
		return
	}
	reg, err := sqlreq.New(sqlreq.Binding{DB: s.pool})
	if err != nil {
		panic(err)
	}
	reg.HoldLimit, reg.Logger = in.limit, slog.New(slog.DiscardHandler)
	if in.retry {
		reg.Retry = sqlreq.Retry{Attempts: 3, Within: time.Hour, Backoff: func(int) time.Duration { return 0 }}
	}
	reg.Middleware(sqlreq.HandlerFunc(func(iw http.ResponseWriter, ir *http.Request) error {
		number++
		p = &programRun{w: iw, r: ir, outer: r, late: in.late, ops: in.ops, number: number}
		p.hooks()
		p.run()
		return s.end(in.end, p)
	})).ServeHTTP(w, r)
}

// hooks go on when the handler has returned, and before its response is sent.
func (p *programRun) hooks() {
	late := func(context.Context) {
		if p.returned {
			p.later("in a hook")
		}
	}
	if err := errors.Join(sqlreqtest.Main.AfterCommit(p.r.Context(), late), sqlreqtest.Main.AfterRollback(p.r.Context(), late)); err != nil {
		p.log = append(p.log, err.Error())
	}
}

// end ends a program that has returned, as the input says.
func (s *programSite) end(end programEnd, p *programRun) error {
	p.returned = true
	if p.open && end == endsWell && p.status < 400 && !p.lateSet {
		p.commits++
	}
	switch end {
	case endsCommit:
		s.mu.Lock()
		s.breaks = true
		s.mu.Unlock()
		p.work()
	case endsError:
		return sqlreqtest.ErrTest
	case endsConflict:
		if p.number == 1 {
			return programConflict{}
		}
		if p.open && p.status < 400 && !p.lateSet {
			p.commits++
		}
	}
	return nil
}

type programConflict struct{}

func (programConflict) Error() string    { return "a conflict" }
func (programConflict) SQLState() string { return "40001" }

// later uses the writer when the handler has returned: nothing may come of it.
func (p *programRun) later(when string) {
	if p.bare || p.hijacked {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			p.strays = append(p.strays, fmt.Sprint(when, ": panic: ", v))
		}
	}()
	if h := p.w.Header(); when == "in a hook" {
		h.Set("X-Late", "1") // afterwards the map may be net/http's
	}
	p.w.WriteHeader(299)
	if n, err := p.w.Write([]byte("late")); err == nil {
		p.strays = append(p.strays, fmt.Sprint(when, ": Write took ", n, " bytes"))
	}
	_, _ = io.Copy(p.w, strings.NewReader("late"))
	rc := http.NewResponseController(p.w)
	_ = rc.Flush()
	_ = rc.SetWriteDeadline(time.Unix(1, 0))
	_ = rc.EnableFullDuplex()
	if _, _, err := rc.Hijack(); err == nil {
		p.strays = append(p.strays, when+": Hijack succeeded")
	}
}

// askHTTP1 asks over one connection as long as that can be used again; what comes
// after a response would be taken for the next one.
func (s *programSite) askHTTP1(t testing.TB, srv *httptest.Server) func(method string) wireAnswer {
	var conn net.Conn
	var br *bufio.Reader
	drop := func() {
		_ = conn.(*net.TCPConn).SetLinger(0) // or the ports would run out
		_ = conn.Close()
		conn = nil
	}
	t.Cleanup(func() {
		if conn != nil {
			drop()
		}
	})
	return func(method string) wireAnswer {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", srv.Listener.Addr().String()); err != nil {
				panic(err)
			}
			br = bufio.NewReader(conn)
		}
		_ = conn.SetDeadline(time.Now().Add(wirePatience))
		body := ""
		if method == http.MethodPost {
			body = programText[:3000]
		}
		fmt.Fprintf(conn, "%s / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", method, len(body), body)
		a, closes := programRead(br, method)
		if a.err != nil || closes {
			if a.err == nil {
				if rest, err := io.ReadAll(br); len(rest) > 0 || err != nil {
					a.err = fmt.Errorf("after the response: %q, %w", rest, err)
				}
			}
			drop()
			return a
		}
		fmt.Fprint(conn, "GET /second HTTP/1.1\r\nHost: test\r\n\r\n")
		if second, _ := programRead(br, "GET"); errors.Is(second.err, io.ErrUnexpectedEOF) || errors.Is(second.err, syscall.ECONNRESET) {
			a.header.Set("Closes", "1") // without a word
			drop()
		} else if second.err != nil || second.status != 200 || second.body != "" || len(second.header) > 2 {
			a.err = fmt.Errorf("the next response on the connection is %v", second)
			drop()
		}
		return a
	}
}

// programRead is wireRead, and reports whether the response said that it is the last
// one of its connection. That of a 413 is sqlreq's, see G10.
func programRead(br *bufio.Reader, method string) (a wireAnswer, closes bool) {
	for {
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			a.err = err
			return a, true
		}
		if res.StatusCode < 200 {
			a.early = append(a.early, fmt.Sprint(res.StatusCode, " ", res.Header))
			continue
		}
		b, err := io.ReadAll(res.Body)
		a.status, a.header, a.body, a.err, a.trailer = res.StatusCode, res.Header, string(b), err, res.Trailer
		if res.Close && a.status != http.StatusRequestEntityTooLarge {
			a.header.Set("Closes", "1")
		}
		return a, res.Close
	}
}

func programAskHTTP2(srv *httptest.Server, method string) (a wireAnswer) {
	ctx, cancel := context.WithTimeout(context.Background(), wirePatience)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		a.early = append(a.early, fmt.Sprint(code, " ", h))
		return nil
	}})
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(programText[:3000])
	}
	req, err := http.NewRequestWithContext(ctx, method, srv.URL, body)
	if err != nil {
		return wireAnswer{err: err}
	}
	res, err := srv.Client().Transport.RoundTrip(req)
	if err != nil {
		a.err = err
		return a
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	a.status, a.header, a.body, a.trailer, a.err = res.StatusCode, res.Header, string(b), res.Trailer, err
	return a
}

// programSites are the four servers, by HTTP/2 and by bare.
type programSites [2][2]*programSite

func newProgramSites(t testing.TB) (all programSites) {
	for h := range all {
		for b := range all[h] {
			all[h][b] = newProgramSite(t, h == 1, b == 1)
		}
	}
	return all
}

// check runs a program twice and returns what is wrong, "" if nothing is.
func (all programSites) check(in programInput) string {
	h := 0
	if in.http2 {
		h = 1
	}
	want, plain, _ := all[h][1].run(in)
	got, p, commits := all[h][0].run(in)
	wrong := programDifference(in, want, plain, got, p, commits)
	switch {
	case len(p.strays) > 0:
		wrong = strings.Join(p.strays, ", ")
	case wrong != "":
	case commits != p.commits && !p.past && !(in.http2 && in.method == "HEAD"): // there net/http tells that the client has gone
		wrong = fmt.Sprintf("%d commits, want %d", commits, p.commits)
	}
	if wrong == "" {
		return ""
	}
	return fmt.Sprintf("%v: %s\n got %v\n     %q\nwant %v\n     %q", in, wrong, got, p.log, want, plain.log)
}

// programDifference applies the contract: where may what the client gets differ?
func programDifference(in programInput, want wireAnswer, plain *programRun, got wireAnswer, p *programRun, commits int) string {
	success := got.err == nil && got.status < 400
	if plain.over || p.duplex || got.status == http.StatusRequestEntityTooLarge {
		// After the first net/http closes the connection, after the second if not all of the body has come by then, after
		// the third the library.
		want.header.Del("Closes")
		got.header.Del("Closes")
	}
	if p.number > 1 {
		want.early, got.early = nil, nil // G9: 1xx responses of each attempt
	}
	switch {
	case p.lateSet && p.began:
		if success && !p.hijacked { // G1: a late status has failed the request
			return "a complete success after a late status"
		}
		return ""
	case p.replaced: // G4: of a held response the last one is sent, and of no transaction
		return ""
	case in.end != endsWell && !(in.end == endsConflict && p.number > 1) && !p.panics:
		if success && !p.hijacked { // G1
			return "a complete success of a request that failed"
		}
		if in.end == endsConflict && in.retry && got.err == nil && got.status >= 500 && p.status < 400 && commits == 0 {
			return "not run again" // G9: held, so nothing had left
		}
		return ""
	case p.panics, p.past: // what net/http alone had sent by then may still be held, or may have left too late
		if got.err == nil && !got.same(want) && !(p.past && want.err != nil) {
			return "complete"
		}
		return ""
	case want.err != nil && strings.HasPrefix(want.err.Error(), "bad Content-Length"): // G1: the library drops it
		return ""
	case p.muddy: // what of the body leaves depends on the sizes of the Writes
		want.body, got.body, want.err, got.err = "", "", nil, nil
		want.trailer, got.trailer = nil, nil
		for _, a := range []wireAnswer{want, got} {
			a.header.Del("Content-Type") // so does what is sniffed
			a.header.Del("Closes")
		}
	case plain.over && in.http2: // net/http finds out, or not, when it sends
		return ""
	}
	if !in.http2 && (p.invalid || p.copied && in.limit < 2<<10) {
		// Trailers that were not declared need a chunked response. It is none of those that net/http alone makes by
		// an invalid length, which the library drops, and where a copy is cut in two parts, none of which net/http flushes.
		for _, a := range []wireAnswer{want, got} {
			maps.DeleteFunc(a.trailer, func(k string, _ []string) bool { return strings.HasPrefix(k, "X-P") })
		}
	}
	if !got.same(want) {
		return "another response"
	}
	if in.http2 && in.method == "HEAD" {
		return "" // net/http refuses what is written after the header, the library counts it
	}
	if !slices.Equal(plain.log, p.log) {
		return "calls returned something else"
	}
	return ""
}

// programOf makes an input of bytes.
func programOf(kind byte, limit uint16, ops []byte) programInput {
	in := programInput{method: "GET", http2: kind&1 != 0, retry: kind&2 != 0, late: kind&0x1c == 0x1c, limit: int(limit)%9000 + 1, ops: ops}
	if kind&0x1c != 0x1c { // an eighth has late statuses, a third of the rest fails
		in.end = programEnd(max(int(kind>>2)&7-3, 0))
	}
	switch kind >> 6 {
	case 1:
		in.method = "HEAD"
	case 2:
		in.method = "POST"
	}
	return in
}

// FuzzG10Programs runs as many programs as are asked for, TestG10Programs some.
func FuzzG10Programs(f *testing.F) {
	random := rand.New(rand.NewPCG(12, 12))
	for range 400 {
		kind, limit, ops := programRandom(random)
		f.Add(kind, limit, ops)
	}
	all := newProgramSites(f)
	f.Fuzz(func(t *testing.T, kind byte, limit uint16, ops []byte) {
		if len(ops) > 60 {
			return
		}
		if wrong := all.check(programOf(kind, limit, ops)); wrong != "" {
			t.Error(wrong)
		}
	})
}

func programRandom(random *rand.Rand) (kind byte, limit uint16, ops []byte) {
	limit = uint16(random.IntN(1 << 16))
	if random.IntN(2) == 0 {
		limit %= 600
	}
	ops = make([]byte, 2*(1+random.IntN(14)))
	for i := range ops {
		ops[i] = byte(random.IntN(256))
		if i%2 == 0 && random.IntN(2) == 0 {
			ops[i] &= 63 // the goroutine of the handler
		}
	}
	return byte(random.IntN(256)), limit, ops
}
