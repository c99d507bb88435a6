package idempotency_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

func TestTransportAgainstHandler(t *testing.T) {
	for name, c := range map[string]struct {
		arm   func(l *lossy)
		calls int32
	}{
		"nothing breaks":           {func(*lossy) {}, 1},
		"the answer to COMMIT":     {func(l *lossy) { l.arm() }, 1},
		"the COMMIT":               {func(l *lossy) { l.before = true; l.arm() }, 2},
		"the connection, by a 201": {nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var l lossy
			db := withTable(t, sqlreqtest.OpenFaulty(t, &l.DB))
			h := new(work)
			next := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}).Middleware(newOnce().Handler(h))
			if c.arm != nil {
				c.arm(&l)
			} else {
				next = cut(next)
			}
			srv := sqlreqtest.Serve(t, next)
			var slept atomic.Int64
			transport := &idempotency.Transport{Backoff: func(int) time.Duration { return 0 }}
			transport.Sleep(func(_ context.Context, d time.Duration) error {
				slept.Add(int64(d))
				return nil
			})
			client := http.Client{Transport: transport}
			res, err := client.Post(srv.URL, "text/plain", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if b, _ := io.ReadAll(res.Body); res.StatusCode != 201 || string(b) != fmt.Sprint("order ", c.calls) || h.calls.Load() != c.calls {
				t.Errorf("got %d %q after %d calls", res.StatusCode, b, h.calls.Load())
			}
			rows(t, db, 1, 1)
			client.CloseIdleConnections()
		})
	}
}

// cut breaks the connection of the first answer in its middle.
func cut(next http.Handler) http.Handler {
	var cut atomic.Bool
	return handle(func(w http.ResponseWriter, r *http.Request) {
		if cut.Swap(true) {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
}

// script is a transport that answers as it is told, and notes what it is asked.
type script struct {
	answers []func() (*http.Response, error)
	asked   []*http.Request
	bodies  []string
	open    atomic.Int32 // bodies of answers that are not closed
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked = append(s.asked, r)
	if r.Body != nil {
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		s.bodies = append(s.bodies, string(b))
	}
	n := min(len(s.asked), len(s.answers)) - 1
	res, err := s.answers[n]()
	if res != nil {
		s.open.Add(1)
		res.Body = &closer{res.Body, func() { s.open.Add(-1) }}
	}
	return res, err
}

type closer struct {
	io.Reader
	closed func()
}

func (c *closer) Close() error {
	if c.closed != nil {
		c.closed()
		c.closed = nil
	}
	return nil
}

func respond(status int, header ...string) func() (*http.Response, error) {
	return func() (*http.Response, error) {
		res := &http.Response{StatusCode: status, Header: make(http.Header), Body: io.NopCloser(strings.NewReader("body"))}
		for i := 0; i+1 < len(header); i += 2 {
			res.Header.Set(header[i], header[i+1])
		}
		return res, nil
	}
}

func breaks(err error) func() (*http.Response, error) {
	return func() (*http.Response, error) { return nil, err }
}

type answersOf = []func() (*http.Response, error)

func TestTransportRepeats(t *testing.T) {
	opErr := &net.OpError{Op: "read", Err: errors.New("connection reset")}
	for name, c := range map[string]struct {
		answers  answersOf
		attempts int
		asked    int
		status   int // 0: an error
	}{
		"201":                         {answersOf{respond(201)}, 0, 1, 201},
		"a network error":             {answersOf{breaks(opErr), breaks(io.EOF), respond(201)}, 0, 3, 201},
		"429, 502, 503, 504":          {answersOf{respond(429), respond(502), respond(503), respond(504), respond(201)}, 5, 5, 201},
		"409 with Retry-After":        {answersOf{respond(409, "Retry-After", "1"), respond(201)}, 0, 2, 201},
		"409 without":                 {answersOf{respond(409), respond(201)}, 0, 1, 409},
		"400":                         {answersOf{respond(400, "Retry-After", "1")}, 0, 1, 400},
		"410":                         {answersOf{respond(410)}, 0, 1, 410},
		"422":                         {answersOf{respond(422)}, 0, 1, 422},
		"500":                         {answersOf{respond(500)}, 0, 1, 500},
		"four attempts":               {answersOf{respond(503)}, 0, 4, 503},
		"one attempt":                 {answersOf{respond(503)}, 1, 1, 503},
		"the last error":              {answersOf{respond(503), breaks(opErr)}, 2, 2, 0},
		"a certificate":               {answersOf{breaks(&tls.CertificateVerificationError{Err: errors.New("x")})}, 0, 1, 0},
		"a host that does not exist":  {answersOf{breaks(&net.DNSError{IsNotFound: true})}, 0, 1, 0},
		"a name server that does not": {answersOf{breaks(&net.DNSError{IsTimeout: true}), respond(201)}, 0, 2, 201},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answers: c.answers}
				transport := &idempotency.Transport{Base: s, Attempts: c.attempts}
				req, _ := http.NewRequest("POST", "http://x/", strings.NewReader("hello"))
				before := req.Header.Clone()
				res, err := transport.RoundTrip(req)
				if len(s.asked) != c.asked || (err != nil) != (c.status == 0) || res != nil && res.StatusCode != c.status {
					t.Errorf("got %v %v after %d attempts", res, err, len(s.asked))
				}
				for i, r := range s.asked {
					if key := r.Header.Get("Idempotency-Key"); len(key) != 38 || key != s.asked[0].Header.Get("Idempotency-Key") || s.bodies[i] != "hello" || r.ContentLength != 5 {
						t.Errorf("attempt %d: got the key %q and the body %q", i, key, s.bodies[i])
					}
				}
				want := int32(0)
				if res != nil {
					want = 1
				}
				if s.open.Load() != want || len(before) != len(req.Header) {
					t.Errorf("got %d answers open and the header %v", s.open.Load(), req.Header)
				}
			})
		})
	}
}

func TestTransportPassesSafeRequestsOn(t *testing.T) {
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE", ""} {
		s := &script{answers: answersOf{respond(503)}}
		req := &http.Request{Method: method}
		if res, err := (&idempotency.Transport{Base: s}).RoundTrip(req); len(s.asked) != 1 || s.asked[0] != req || err != nil || res.StatusCode != 503 {
			t.Errorf("%s: got %v %v after %d attempts", method, res, err, len(s.asked))
		}
	}
}

func TestTransportKeys(t *testing.T) {
	keyOf := func(transport *idempotency.Transport, header http.Header, name string) string {
		s := &script{answers: answersOf{respond(503), respond(200)}}
		transport.Base = s
		transport.Sleep(func(context.Context, time.Duration) error { return nil })
		_, err := transport.RoundTrip((&http.Request{Method: "DELETE", Header: header}).WithContext(t.Context()))
		must(t, err)
		if s.asked[0].Header.Get(name) != s.asked[1].Header.Get(name) {
			t.Errorf("got another key in the second attempt: %v", s.asked[1].Header)
		}
		return s.asked[0].Header.Get(name)
	}
	if got := keyOf(&idempotency.Transport{}, http.Header{"Idempotency-Key": {"own"}}, "Idempotency-Key"); got != "own" {
		t.Errorf("got %q in place of the request's own key", got)
	}
	a, b := keyOf(&idempotency.Transport{}, nil, "Idempotency-Key"), keyOf(&idempotency.Transport{}, nil, "Idempotency-Key")
	if a == b || len(a) != 38 || a[0] != '"' || a[15] != '4' {
		t.Errorf("got the keys %q and %q", a, b)
	}
	if got := keyOf(&idempotency.Transport{Header: "paypal-request-id"}, nil, "PayPal-Request-Id"); len(got) != 36 || strings.Contains(got, `"`) {
		t.Errorf("got %q", got)
	}
}

// stream is a body without GetBody.
type stream struct {
	io.Reader
	closed int
}

func (s *stream) Close() error {
	s.closed++
	return nil
}

func TestTransportBodies(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		body   io.Reader
		length int64
		limit  int64
		want   string
		asked  int
		err    error
	}{
		"small":               {strings.NewReader("hello"), 5, 0, "hello", 4, nil},
		"of unknown length":   {strings.NewReader("hello"), -1, 0, "hello", 4, nil},
		"of the limit":        {strings.NewReader("hello"), -1, 5, "hello", 4, nil},
		"over the limit":      {strings.NewReader("hello!"), -1, 5, "hello!", 1, nil},
		"known to be over":    {strings.NewReader("hello!"), 6, 5, "hello!", 1, nil},
		"without a limit":     {strings.NewReader("hello"), -1, math.MaxInt64, "hello", 4, nil},
		"over the default":    {bytes.NewReader(make([]byte, 64<<10+1)), -1, 0, string(make([]byte, 64<<10+1)), 1, nil},
		"that cannot be read": {io.MultiReader(strings.NewReader("h"), errorReader{broken}), -1, 0, "", 0, broken},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{answers: answersOf{respond(503)}}
			transport := &idempotency.Transport{Base: s, BodyLimit: c.limit}
			transport.Sleep(func(context.Context, time.Duration) error { return nil })
			body := &stream{Reader: c.body}
			req := &http.Request{Method: "POST", Body: body, ContentLength: c.length, Header: make(http.Header)}
			_, err := transport.RoundTrip(req)
			if !errors.Is(err, c.err) || len(s.asked) != c.asked || body.closed != 1 {
				t.Errorf("got %v after %d attempts, closed %d times", err, len(s.asked), body.closed)
			}
			for _, b := range s.bodies {
				if b != c.want {
					t.Errorf("got a body of %d bytes, want %d", len(b), len(c.want))
				}
			}
		})
	}
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

func TestTransportGetBodyThatFails(t *testing.T) {
	s := &script{answers: answersOf{respond(503)}}
	req := &http.Request{Method: "POST", Body: &stream{Reader: strings.NewReader("x")}, GetBody: func() (io.ReadCloser, error) { return nil, errTest }}
	if res, err := (&idempotency.Transport{Base: s}).RoundTrip(req); err != nil || res.StatusCode != 503 || s.open.Load() != 1 || len(s.asked) != 1 {
		t.Errorf("got %v %v, want the answer that is there", res, err)
	}
}

func TestTransportWaits(t *testing.T) {
	now := func() string { return time.Now().Add(7 * time.Second).UTC().Format(http.TimeFormat) }
	for name, c := range map[string]struct {
		header      func() string
		backoff     func(int) time.Duration
		least, most time.Duration
	}{
		"the default":            {nil, nil, 1, 100 * time.Millisecond},
		"a Backoff":              {nil, func(n int) time.Duration { return time.Duration(n) * time.Minute }, time.Minute, time.Minute},
		"Retry-After":            {func() string { return "5" }, nil, 5 * time.Second, 5 * time.Second},
		"less than the Backoff":  {func() string { return "5" }, func(int) time.Duration { return time.Minute }, time.Minute, time.Minute},
		"a date":                 {now, nil, 6 * time.Second, 7 * time.Second},
		"a date that has passed": {func() string { return "Thu, 01 Jan 1970 00:00:00 GMT" }, func(int) time.Duration { return 1 }, 1, 1},
		"nonsense":               {func() string { return "soon" }, func(int) time.Duration { return 1 }, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				header := []string{}
				if c.header != nil {
					header = []string{"Retry-After", c.header()}
				}
				s := &script{answers: answersOf{respond(503, header...), respond(201)}}
				start := time.Now()
				_, err := (&idempotency.Transport{Base: s, Backoff: c.backoff}).RoundTrip((&http.Request{Method: "POST"}).WithContext(t.Context()))
				if d := time.Since(start); d < c.least || d > c.most || err != nil {
					t.Errorf("waited %v, want %v to %v (%v)", d, c.least, c.most, err)
				}
			})
		})
	}
}

func TestTransportBackoffGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: answersOf{respond(503)}}
		start := time.Now()
		if _, err := (&idempotency.Transport{Base: s, Attempts: 100}).RoundTrip((&http.Request{Method: "POST"}).WithContext(t.Context())); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d < time.Minute || d > 99*5*time.Second {
			t.Errorf("99 waits took %v", d)
		}
	})
}

func TestTransportEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: answersOf{respond(503, "Retry-After", "5")}}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		res, err := (&idempotency.Transport{Base: s}).RoundTrip((&http.Request{Method: "POST"}).WithContext(ctx))
		if !errors.Is(err, context.Canceled) || res != nil || time.Since(start) != time.Second || s.open.Load() != 0 {
			t.Errorf("got %v %v after %v, %d answers open", res, err, time.Since(start), s.open.Load())
		}

		// Where the deadline comes before the next attempt the answer that is there is better.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		res, err = (&idempotency.Transport{Base: s}).RoundTrip((&http.Request{Method: "POST"}).WithContext(ctx))
		if err != nil || res.StatusCode != 503 || time.Since(start) != 0 {
			t.Errorf("got %v %v after %v", res, err, time.Since(start))
		}

		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		s = &script{answers: answersOf{breaks(context.Canceled)}}
		if _, err := (&idempotency.Transport{Base: s}).RoundTrip((&http.Request{Method: "POST"}).WithContext(ctx)); !errors.Is(err, context.Canceled) || len(s.asked) != 1 {
			t.Errorf("got %v after %d attempts", err, len(s.asked))
		}
	})
}

func TestTransportBodyThatDoesNotCome(t *testing.T) {
	// The context ends while the body is waited for, which is kept for a repeat.
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: answersOf{respond(200)}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		slow, w := io.Pipe()
		defer w.Close()
		body := &stream{Reader: slow}
		req := (&http.Request{Method: "POST", Body: body}).WithContext(ctx)
		start := time.Now()
		res, err := (&idempotency.Transport{Base: s}).RoundTrip(req)
		if !errors.Is(err, context.DeadlineExceeded) || res != nil || time.Since(start) != time.Second || len(s.asked) != 0 || body.closed != 1 {
			t.Errorf("got %v %v after %v, %d attempts, closed %d times", res, err, time.Since(start), len(s.asked), body.closed)
		}
	})
}
