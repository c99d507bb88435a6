package idempotency

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"

	"github.com/sqlreq/sqlreq"
)

// aheadLimit is how many bytes of a body are read before the transaction begins, so
// that a client which sends slowly holds no connection.
const aheadLimit = 64 << 10

// body is the body of a request with a key. What the handler reads is hashed on its
// way; nothing is held but what was read ahead.
type body struct {
	about    []byte // method, path, query: what the fingerprint has besides the body
	boundary []byte // of a multipart body with its dashes, nil otherwise
	rest     io.ReadCloser

	mu   sync.Mutex // guards what follows, never while the body is read
	head []byte     // read ahead, as far as the handler has not read it
	err  error      // how the body has ended, nil until then
	hash bodyHash   // of what was read, but at least of head; none before start
	sum  fingerprint
}

// init reads ahead, and takes the place of the body of r.
func (b *body) init(r *http.Request) {
	b.about, b.rest, b.err = about(r), r.Body, io.EOF
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	b.boundary = boundaryOf(r.Header.Get("Content-Type"))
	b.head, b.err = readAhead(r.Body, r.ContentLength)
	r.Body = b
}

// maxBoundary is the longest boundary that RFC 2046, section 5.1.1, allows. One that is
// longer counts as it is: it would be looked for in a time that grows with its square.
const maxBoundary = 70

// boundaryOf returns the boundary of a multipart body with its dashes, nil if there is none.
func boundaryOf(contentType string) []byte {
	kind, params, err := mime.ParseMediaType(contentType)
	boundary := params["boundary"]
	if err != nil || !strings.HasPrefix(kind, "multipart/") || boundary == "" || len(boundary) > maxBoundary {
		return nil
	}
	return []byte("--" + boundary)
}

// about returns what a fingerprint has besides the body, each part with its length.
func about(r *http.Request) []byte {
	parts := [...]string{r.Method, sqlreq.Prefix(r.Context()) + r.URL.EscapedPath(), r.URL.RawQuery}
	size := len(parts) * binary.MaxVarintLen64
	for _, part := range parts {
		size += len(part)
	}
	b := make([]byte, 0, size)
	for _, part := range parts {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	return b
}

// readAhead reads up to aheadLimit bytes. The error is how the body has ended, nil if
// it has not.
func readAhead(src io.Reader, length int64) (head []byte, err error) {
	head = make([]byte, 0, min(max(length, 0), aheadLimit-1)+1) // one more: the end of the body is seen
	for err == nil && len(head) < aheadLimit {
		if len(head) == cap(head) {
			head = grow(head, 1, aheadLimit)
		}
		var n int
		n, err = src.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
	}
	return head, err
}

// grow returns b with room for n more bytes, of up to limit in all.
func grow(b []byte, n int, limit int64) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	size := min(int64(max(2*cap(b), len(b)+n, 512)), limit)
	return append(make([]byte, 0, size), b...)
}

// Read hashes what it reads.
func (b *body) Read(p []byte) (int, error) {
	if n, err := b.readHead(p); n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	n, err := b.rest.Read(p)
	b.note(p[:n], err)
	return n, err
}

// readHead reads what was read ahead and, if there is no more, how the body has ended.
func (b *body) readHead(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := copy(p, b.head)
	if b.head = b.head[n:]; len(b.head) == 0 {
		b.head = nil // it was hashed, and may be large
	}
	if n > 0 {
		return n, nil
	}
	return 0, b.err
}

func (b *body) note(p []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hash.hash == nil {
		return
	}
	b.hash.write(p)
	if err == io.EOF {
		b.hash.flush()
	}
}

// Close closes the body.
func (b *body) Close() error { return b.rest.Close() }

// start begins to hash for a first request.
func (b *body) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hash = b.newHash()
	b.hash.write(b.head)
	if b.err == io.EOF {
		b.hash.flush()
	}
}

func (b *body) newHash() bodyHash {
	h := bodyHash{hash: sha256.New(), boundary: b.boundary}
	h.hash.Write(b.about)
	return h
}

// fingerprint is that of a request, as it is stored: a version, whether the body was
// read to its end, how many bytes of it were hashed, the hash.
type fingerprint [1 + 1 + 8 + sha256.Size]byte

const fingerprintVersion = 1

// fingerprint returns that of the request as far as it was read.
func (b *body) fingerprint() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := append(b.sum[:0], fingerprintVersion, 0)
	if b.hash.ended {
		f[1] = 1
	}
	f = binary.BigEndian.AppendUint64(f, uint64(b.hash.n))
	return b.hash.hash.Sum(f)
}

var errFingerprint = errors.New("idempotency: the fingerprint in the record is damaged")

// matches reports whether the request is the one with the fingerprint f. It reads as
// much of the body as that says, and hashes it.
func (b *body) matches(f []byte) (bool, error) {
	if len(f) != len(fingerprint{}) || f[0] != fingerprintVersion || f[1] > 1 {
		return false, errFingerprint
	}
	ended, n := f[1] == 1, int64(binary.BigEndian.Uint64(f[2:]))
	h := b.newHash()
	h.limit, h.limited = n, true
	h.write(b.head)
	err := b.err
	var p []byte
	for err == nil && (h.n < n || ended && h.n == n) {
		if p == nil {
			p = make([]byte, 32<<10)
		}
		var m int
		m, err = b.rest.Read(p)
		h.write(p[:m])
	}
	if err == io.EOF {
		h.flush()
	} else if err != nil && (h.n < n || ended) { // otherwise the first has not seen how it ends either
		return false, err
	}
	same := h.n == n || h.n > n && !ended
	return same && bytes.Equal(h.hash.Sum(nil), f[len(f)-sha256.Size:]), nil
}

// bodyHash hashes a body. A multipart boundary, which browsers draw anew at each try,
// counts as a fixed word.
type bodyHash struct {
	hash     hash.Hash
	boundary []byte
	limited  bool
	limit    int64 // how many bytes are hashed, if limited
	n        int64 // how many there were
	ended    bool
	pending  []byte // what may be the begin of a boundary
}

var anyBoundary = []byte("\x00--boundary\x00")

func (h *bodyHash) write(p []byte) {
	if h.boundary == nil {
		h.add(p)
		return
	}
	p = append(h.pending, p...)
	for {
		i := bytes.Index(p, h.boundary)
		if i < 0 {
			break
		}
		h.add(p[:i])
		h.add(anyBoundary)
		p = p[i+len(h.boundary):]
	}
	keep := min(len(p), len(h.boundary)-1)
	for !bytes.HasPrefix(h.boundary, p[len(p)-keep:]) {
		keep--
	}
	h.add(p[:len(p)-keep])
	h.pending = append([]byte(nil), p[len(p)-keep:]...)
}

// flush ends the body.
func (h *bodyHash) flush() {
	h.add(h.pending)
	h.pending, h.ended = nil, true
}

func (h *bodyHash) add(p []byte) {
	n := len(p)
	if h.limited {
		p = p[:min(int64(n), max(0, h.limit-h.n))]
	}
	h.hash.Write(p)
	h.n += int64(n)
}
