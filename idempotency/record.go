package idempotency

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/http"
)

// row is what the table has of a key.
type row struct {
	status      int
	fingerprint []byte
	header      []byte
	body        []byte
}

// The column header begins with a version, flags, and a checksum over status,
// fingerprint, header and body. Then come changes of the header until its end: what is to
// be done, the name, how many values, the values; texts with their length before them.
const (
	headerVersion = 1
	headerStart   = 1 + 1 + 4

	flagImplicit = 1 // the handler has set no status
)

const (
	fieldSet     byte = iota + 1 // whatever a layer outside has set
	fieldAdd                     // behind what a layer outside has set
	fieldDelete                  // what a layer outside has set
	fieldTrailer                 // after the body
	fieldEarly                   // a trailer that was set, or certain to be sent, when the header left
)

// newHeader returns the start of a header column.
func newHeader(flags byte) []byte {
	return append(make([]byte, 0, 256), headerVersion, flags, 0, 0, 0, 0) // most have no more than that
}

func appendField(b []byte, do byte, name string, values []string) []byte {
	b = append(b, do)
	b = appendText(b, name)
	b = binary.AppendUvarint(b, uint64(len(values)))
	for _, v := range values {
		b = appendText(b, v)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// seal puts the checksum into the header.
func (r *row) seal() { binary.BigEndian.PutUint32(r.header[2:], r.checksum()) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r *row) checksum() uint32 {
	var status [4]byte
	binary.BigEndian.PutUint32(status[:], uint32(int32(r.status)))
	sum := crc32.Update(0, castagnoli, status[:])
	sum = crc32.Update(sum, castagnoli, r.fingerprint)
	sum = crc32.Update(sum, castagnoli, r.header[:2])
	sum = crc32.Update(sum, castagnoli, r.header[headerStart:])
	return crc32.Update(sum, castagnoli, r.body)
}

// answer is a recorded answer, to be given again.
type answer struct {
	status   int
	implicit bool
	fields   []field
	body     []byte
}

// field is a change of the header.
type field struct {
	do     byte
	name   string
	values []string
}

var errDamaged = errors.New("idempotency: the record of the key is damaged")

// answer reads what seal has finished. Anything else is an error.
func (r *row) answer() (answer, error) {
	status := max(r.status, -r.status)
	if status < 100 || status > 999 || len(r.header) < headerStart || r.header[0] != headerVersion || r.header[1] > flagImplicit ||
		binary.BigEndian.Uint32(r.header[2:]) != r.checksum() {
		return answer{}, errDamaged
	}
	a := answer{status: r.status, implicit: r.header[1] == flagImplicit, body: r.body}
	for p := (parser{rest: r.header[headerStart:]}); len(p.rest) > 0; {
		f, ok := p.field()
		if !ok {
			return answer{}, errDamaged
		}
		a.fields = append(a.fields, f)
	}
	return a, nil
}

type parser struct{ rest []byte }

func (p *parser) field() (f field, ok bool) {
	f.do, p.rest = p.rest[0], p.rest[1:]
	if f.do < fieldSet || f.do > fieldEarly {
		return f, false
	}
	if f.name, ok = p.text(); !ok || !isToken(f.name) && f.do < fieldTrailer {
		return f, false
	}
	n, ok := p.number()
	if !ok || n > uint64(len(p.rest)) { // each value takes a byte at least
		return f, false
	}
	for range n {
		v, ok := p.text()
		if !ok {
			return f, false
		}
		f.values = append(f.values, v)
	}
	return f, true
}

func (p *parser) number() (uint64, bool) {
	n, size := binary.Uvarint(p.rest)
	if size <= 0 {
		return 0, false
	}
	p.rest = p.rest[size:]
	return n, true
}

func (p *parser) text() (string, bool) {
	n, ok := p.number()
	if !ok || n > uint64(len(p.rest)) {
		return "", false
	}
	s := string(p.rest[:n])
	p.rest = p.rest[n:]
	return s, true
}

// replay gives the answer again. Fields that layers outside have set stay, but for those
// that the handler had changed.
func (a *answer) replay(w http.ResponseWriter) error {
	h := w.Header()
	for _, f := range a.fields {
		switch f.do {
		case fieldSet, fieldEarly:
			h[f.name] = f.values
		case fieldAdd:
			h[f.name] = append(h[f.name][:len(h[f.name]):len(h[f.name])], f.values...)
		case fieldDelete:
			delete(h, f.name)
		}
	}
	h.Set("Idempotent-Replayed", "true")
	if !a.implicit {
		w.WriteHeader(a.status)
	}
	if len(a.body) > 0 {
		if _, err := w.Write(a.body); err != nil {
			return err
		}
	}
	for _, f := range a.fields {
		if f.do == fieldTrailer {
			h[f.name] = f.values
		}
	}
	return nil
}
