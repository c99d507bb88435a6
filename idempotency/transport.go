package idempotency

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"time"
)

// Transport is an [http.RoundTripper] for hosts that honour the key, as [Once.Handler]
// does, and for those only: anywhere else a repeat after a network error may do the work
// twice. A request with an unsafe method gets a key, unless it has one, and is sent again
// with it after a network error, 409 with Retry-After, 429, 502, 503 and 504, and after
// nothing else. The caller gets the last answer, or error. Requests with a safe method
// are passed on as they are.
//
// It ends with the request's context. The zero value is ready for use; it may be used
// from several goroutines at once.
type Transport struct {
	// Base sends the requests; nil means http.DefaultTransport.
	Base http.RoundTripper

	// Header is the field with the key; "" means Idempotency-Key.
	Header string

	// Attempts is how often a request is sent, in all; 0 means 4.
	Attempts int

	// Backoff is the wait after the given failed attempt, from 1; nil means exponential
	// with full jitter, 100 ms to 5 s. A Retry-After of the answer is waited for at least.
	Backoff func(attempt int) time.Duration

	// BodyLimit is how many bytes are kept of a body without GetBody; 0 means 64 KiB. A
	// request with a larger one is sent once.
	BodyLimit int64

	sleep func(ctx context.Context, d time.Duration) error // nil: by the clock; for tests
}

// RoundTrip sends the request until it has an answer that repeats would not change.
// The request is not changed; its body is closed.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if isSafe(r.Method) {
		return t.base().RoundTrip(r)
	}
	bodies, err := t.bodies(r)
	if err != nil {
		return nil, err
	}
	own := r.Clone(r.Context())
	if own.Header == nil {
		own.Header = make(http.Header)
	}
	if name := t.header(); len(own.Header[name]) == 0 {
		own.Header[name] = []string{newKey(name)}
	}
	for attempt := 1; ; attempt++ {
		out := own.Clone(r.Context())
		out.Body, out.GetBody = bodies.next, bodies.get
		res, err := t.base().RoundTrip(out)
		if attempt >= t.attempts() || !bodies.again || !isRepeatable(r.Context(), res, err) {
			return res, err
		}
		again, failed := t.prepare(r.Context(), attempt, res, bodies)
		switch {
		case failed != nil:
			return nil, failed
		case !again:
			return res, err
		}
	}
}

// CloseIdleConnections closes those of Base.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func (t *Transport) base() http.RoundTripper {
	if t.Base == nil {
		return http.DefaultTransport
	}
	return t.Base
}

func (t *Transport) header() string {
	if t.Header == "" {
		return defaultHeader
	}
	return textproto.CanonicalMIMEHeaderKey(t.Header)
}

func (t *Transport) attempts() int {
	if t.Attempts == 0 {
		return 4
	}
	return t.Attempts
}

// newKey returns a random UUID, in quotes where the field is that of the draft.
func newKey(header string) string {
	var b [16]byte
	rand.Read(b[:]) // never fails (Go 1.24)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	key := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	if header == defaultHeader {
		return `"` + key + `"`
	}
	return key
}

// bodies gives each attempt the request's body.
type bodies struct {
	next  io.ReadCloser                 // of the next attempt; the transport closes it
	get   func() (io.ReadCloser, error) // of those behind it; nil: there is none
	again bool                          // whether there may be another attempt
}

// more makes the body of another attempt.
func (b *bodies) more() (err error) {
	if b.get != nil {
		b.next, err = b.get()
	}
	return err
}

// bodies keeps the body of r as far as it has to.
func (t *Transport) bodies(r *http.Request) (*bodies, error) {
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		return &bodies{next: r.Body, again: true}, nil
	case r.GetBody != nil:
		return &bodies{next: r.Body, get: r.GetBody, again: true}, nil
	}
	limit := t.BodyLimit
	if limit == 0 {
		limit = 64 << 10
	}
	if r.ContentLength > limit {
		return &bodies{next: r.Body}, nil
	}
	kept, err := readUpTo(r.Context(), r.Body, min(limit, math.MaxInt64-1)+1)
	if err == nil && int64(len(kept)) > limit {
		whole := io.MultiReader(bytes.NewReader(kept), r.Body)
		return &bodies{next: readCloser{whole, r.Body}}, nil
	}
	if closed := r.Body.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return nil, err
	}
	get := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(kept)), nil }
	b := &bodies{get: get, again: true}
	return b, b.more()
}

// readUpTo reads up to limit bytes. It does not wait for who sends nothing when ctx has
// ended: the caller closes src, which may still be read then, as [http.Transport] does.
func readUpTo(ctx context.Context, src io.Reader, limit int64) ([]byte, error) {
	type result struct {
		read []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		read, err := io.ReadAll(io.LimitReader(src, limit))
		done <- result{read, err}
	}()
	select {
	case res := <-done:
		return res.read, res.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type readCloser struct {
	io.Reader
	io.Closer
}

// isRepeatable reports whether another attempt may have another answer.
func isRepeatable(ctx context.Context, res *http.Response, err error) bool {
	if err != nil {
		var certificate *tls.CertificateVerificationError
		var dns *net.DNSError
		return ctx.Err() == nil && !errors.As(err, &certificate) && !(errors.As(err, &dns) && dns.IsNotFound)
	}
	switch res.StatusCode {
	case http.StatusConflict:
		return res.Header.Get("Retry-After") != ""
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// prepare waits before the next attempt, and makes its body. again is false if there
// is no time left, or no body: then the answer stands. failed is the error of the
// context that has ended meanwhile.
func (t *Transport) prepare(ctx context.Context, attempt int, res *http.Response, b *bodies) (again bool, failed error) {
	pause := t.pause(attempt, res)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
		return false, nil
	}
	if b.more() != nil {
		return false, nil
	}
	if res != nil {
		_, _ = io.CopyN(io.Discard, res.Body, drainLimit) // so that the connection is used again
		_ = res.Body.Close()
	}
	if err := t.wait(ctx, pause); err != nil {
		if b.next != nil {
			_ = b.next.Close()
		}
		return false, err
	}
	return true, nil
}

// drainLimit is how many bytes of an answer are read that nobody wants.
const drainLimit = 256 << 10

func (t *Transport) wait(ctx context.Context, d time.Duration) error {
	if t.sleep != nil {
		return t.sleep(ctx, d)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *Transport) pause(attempt int, res *http.Response) time.Duration {
	pause := time.Duration(0)
	if t.Backoff != nil {
		pause = t.Backoff(attempt)
	} else {
		pause = backoff(attempt)
	}
	if res == nil {
		return pause
	}
	return max(pause, retryAfter(res.Header.Get("Retry-After")))
}

// backoff is exponential with full jitter, from 100 ms to 5 s.
func backoff(attempt int) time.Duration {
	const first, most = 100 * time.Millisecond, 5 * time.Second
	ceiling := most
	if shift := attempt - 1; shift < 6 {
		ceiling = min(first<<shift, most)
	}
	return mathrand.N(ceiling) + 1
}

// retryAfter returns the wait that a server asks for: seconds, or a date (RFC 9110,
// section 10.2.3).
func retryAfter(s string) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 63); err == nil {
		if n > uint64(math.MaxInt64/time.Second) {
			return math.MaxInt64
		}
		return time.Duration(n) * time.Second
	}
	if date, err := http.ParseTime(s); err == nil {
		return time.Until(date)
	}
	return 0
}
