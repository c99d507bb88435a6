package idempotency

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// encode makes a row of an answer.
func encode(a answer) row {
	flags := byte(0)
	if a.implicit {
		flags = flagImplicit
	}
	r := row{status: a.status, fingerprint: make([]byte, len(fingerprint{})), header: newHeader(flags), body: a.body}
	for _, f := range a.fields {
		r.header = appendField(r.header, f.do, f.name, f.values)
	}
	r.seal()
	return r
}

var sample = answer{
	status: 201,
	fields: []field{
		{fieldSet, "Location", []string{"/orders/1"}},
		{fieldSet, "Content-Type", nil},
		{fieldAdd, "Vary", []string{"Accept", ""}},
		{fieldDelete, "X-Gone", nil},
		{fieldTrailer, http.TrailerPrefix + "X-Sum", []string{strings.Repeat("x", 300)}},
	},
	body: []byte("order 1"),
}

func TestI2AnswerComesBack(t *testing.T) {
	for _, a := range []answer{sample, {status: 200, implicit: true}, {status: -101}} {
		r := encode(a)
		got, err := r.answer()
		if err != nil || !reflect.DeepEqual(got, a) {
			t.Errorf("got %+v %v, want %+v", got, err, a)
		}
	}
}

func TestI11EachByteCounts(t *testing.T) {
	whole := encode(sample)
	for name, column := range map[string]func(*row) *[]byte{
		"fingerprint": func(r *row) *[]byte { return &r.fingerprint },
		"header":      func(r *row) *[]byte { return &r.header },
		"body":        func(r *row) *[]byte { return &r.body },
	} {
		good := *column(&whole)
		for i := range good {
			for _, damaged := range [][]byte{append(append(bytes.Clone(good[:i]), good[i]^1), good[i+1:]...), good[:i]} {
				r := whole
				*column(&r) = damaged
				if _, err := r.answer(); err == nil {
					t.Errorf("%s: byte %d of %d is damaged, and nobody sees it", name, i, len(good))
				}
			}
		}
	}
}

// FuzzI11Answer decodes rows whose checksum is right, so that what is behind it is
// reached.
func FuzzI11Answer(f *testing.F) {
	r := encode(sample)
	f.Add(r.status, r.header, r.body, true)
	f.Add(r.status, r.header, r.body, false)
	f.Add(200, []byte{1, 1, 0, 0, 0, 0, 1, 1, 'A', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, []byte(nil), true)
	f.Add(200, []byte{1, 0, 0, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, []byte(nil), true)
	f.Fuzz(func(t *testing.T, status int, header, body []byte, sealed bool) {
		r := row{status: status, header: bytes.Clone(header), body: body}
		if sealed && len(header) >= headerStart {
			r.seal()
		}
		a, err := r.answer()
		if err != nil {
			return
		}
		again := encode(a)
		b, err := again.answer()
		if err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("got %+v %v, want %+v", b, err, a)
		}
		if a.status > 0 {
			_ = a.replay(httptest.NewRecorder())
		}
	})
}

func TestI5BoundaryInAnyPieces(t *testing.T) {
	const boundary = "--aab"
	for _, text := range []string{"", "--", "--aab", "--a--aab", "--aa--aab--aabx--aa", "-----aab", "x--aab\r\n--aaab--aab--"} {
		whole := digest(strings.NewReader(text), boundary)
		other := digest(strings.NewReader(strings.ReplaceAll(text, boundary, "--cddddd")), "--cddddd")
		single := digest(iotest.OneByteReader(strings.NewReader(text)), boundary)
		half := digest(iotest.HalfReader(strings.NewReader(text)), boundary)
		if whole != single || whole != half || whole != other {
			t.Errorf("%q: got %s, in single bytes %s, in halves %s, with another boundary %s", text, whole, single, half, other)
		}
	}
	if digest(strings.NewReader("a"), boundary) == digest(strings.NewReader("b"), boundary) {
		t.Error("two bodies have the same hash")
	}
	if digest(strings.NewReader("a"+boundary+"b"), boundary) == digest(strings.NewReader("ab"), boundary) {
		t.Error("a body with a boundary has the hash of one without")
	}
}

func digest(r io.Reader, boundary string) string {
	b := body{boundary: []byte(boundary)}
	h := b.newHash()
	p := make([]byte, 100)
	for {
		n, err := r.Read(p)
		h.write(p[:n])
		if err != nil {
			h.flush()
			return fmt.Sprintf("%x/%d", h.hash.Sum(nil)[:4], h.n)
		}
	}
}

func TestI5ReadAhead(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, aheadLimit - 1, aheadLimit, aheadLimit + 1, 3 * aheadLimit} {
		for _, length := range []int64{-1, int64(size)} {
			text := strings.Repeat("x", size)
			head, err := readAhead(iotest.HalfReader(strings.NewReader(text)), length)
			if len(head) != min(size, aheadLimit) || cap(head) > aheadLimit || size < aheadLimit && err != io.EOF || size > aheadLimit && err != nil {
				t.Errorf("%d (declared %d): got %d bytes in %d, %v", size, length, len(head), cap(head), err)
			}
		}
	}
	head, err := readAhead(iotest.TimeoutReader(iotest.HalfReader(strings.NewReader(strings.Repeat("x", 2000)))), -1)
	if err != iotest.ErrTimeout || len(head) == 0 {
		t.Errorf("got %d bytes and %v", len(head), err)
	}
}
