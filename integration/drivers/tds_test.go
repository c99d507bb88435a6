package drivers

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"unicode/utf16"
)

// The protocol of SQL Server, as much as its driver needs of it: MS-TDS,
// https://learn.microsoft.com/openspecs/windows_protocols/ms-tds.

// Types of packets (2.2.3.1.1).
const (
	tdsBatch     = 0x01
	tdsReply     = 0x04
	tdsAttention = 0x06
	tdsManager   = 0x0e // requests to the transaction manager
	tdsLogin     = 0x10
	tdsPrelogin  = 0x12
)

// Status bits of packets (2.2.3.1.2).
const (
	tdsLast  = 0x01
	tdsReset = 0x08 // of the session, before the request
)

// Status bits of DONE (2.2.7.6).
const (
	doneError     = 0x002
	doneAttention = 0x020
	doneFatal     = 0x100
)

// Types of ENVCHANGE (2.2.7.9).
const (
	envBegin    = 8
	envCommit   = 9
	envRollback = 10
	envReset    = 18
)

// Requests to the transaction manager (2.2.6.9).
const (
	managerBegin    = 5
	managerCommit   = 7
	managerRollback = 8
)

// sqlSession is what a connection is served by. Its methods are called one after the other.
type sqlSession interface {
	manage(r *reply, kind uint16)     // BEGIN, COMMIT, ROLLBACK
	batch(r *reply, statement string) // a statement without arguments
	reset(r *reply)                   // before the request that it came with
	transaction() uint64              // the open one, 0 for none
	close()
}

// serveTDS listens until the end of the test and returns the address.
func serveTDS(t *testing.T, open func() sqlSession) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		running sync.WaitGroup
		mu      sync.Mutex
		conns   []net.Conn
	)
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			running.Go(func() {
				defer c.Close()
				serveConn(t, c, open())
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns { // a test that has failed may have left a transaction open
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return l.Addr().String()
}

func serveConn(t *testing.T, c net.Conn, s sqlSession) {
	defer s.close()
	for {
		kind, status, body, err := readTDS(c)
		if err != nil {
			return // the driver has closed the connection
		}
		r := &reply{}
		if status&tdsReset != 0 {
			s.reset(r)
		}
		switch kind {
		case tdsPrelogin:
			r.prelogin()
		case tdsLogin:
			r.loginAck()
			r.done(0)
		case tdsAttention:
			r.done(doneAttention)
		case tdsManager, tdsBatch:
			descriptor, rest := cutHeaders(body)
			switch {
			case descriptor != s.transaction():
				t.Errorf("a request of transaction %d, open is %d", descriptor, s.transaction())
				r.fail(sqlError{3971, 16, "The server failed to resume the transaction."})
			case kind == tdsManager:
				s.manage(r, binary.LittleEndian.Uint16(rest))
			default:
				s.batch(r, fromUCS2(rest))
			}
		default:
			t.Errorf("a packet of type %#x", kind)
			return
		}
		if r.waits {
			continue // until an attention comes
		}
		if _, err := c.Write(r.packet()); err != nil || r.hangUp {
			return
		}
	}
}

// readTDS reads a message, which may be of several packets.
func readTDS(r io.Reader) (kind, status byte, body []byte, err error) {
	for status&tdsLast == 0 {
		var header [8]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return 0, 0, nil, err
		}
		part := make([]byte, int(binary.BigEndian.Uint16(header[2:]))-len(header))
		if _, err := io.ReadFull(r, part); err != nil {
			return 0, 0, nil, err
		}
		kind, status, body = header[0], status|header[1], append(body, part...)
	}
	return kind, status, body, nil
}

// cutHeaders cuts ALL_HEADERS off (2.2.5.3), and returns the descriptor of the transaction in it.
func cutHeaders(body []byte) (descriptor uint64, rest []byte) {
	all := binary.LittleEndian.Uint32(body)
	for at := uint32(4); at < all; at += binary.LittleEndian.Uint32(body[at:]) {
		if binary.LittleEndian.Uint16(body[at+4:]) == 2 {
			descriptor = binary.LittleEndian.Uint64(body[at+6:])
		}
	}
	return descriptor, body[all:]
}

// sqlError is an error of the server.
type sqlError struct {
	number int32
	class  uint8
	text   string
}

// reply is the answer to a message.
type reply struct {
	bytes.Buffer
	waits  bool // no answer comes
	hangUp bool // the connection is closed after it
}

func (r *reply) packet() []byte {
	if r.Len() == 0 {
		return nil
	}
	head := []byte{tdsReply, tdsLast, 0, 0, 0, 0, 1, 0}
	binary.BigEndian.PutUint16(head[2:], uint16(len(head)+r.Len()))
	return append(head, r.Bytes()...)
}

func (r *reply) put(values ...any) {
	for _, v := range values {
		_ = binary.Write(r, binary.LittleEndian, v) // a bytes.Buffer takes all
	}
}

// token writes a token with the length of what it has (2.2.4.2).
func (r *reply) token(kind byte, values ...any) {
	var in reply
	in.put(values...)
	r.put(kind, uint16(in.Len()), in.Bytes())
}

// prelogin answers that there is no encryption (2.2.6.5).
func (r *reply) prelogin() {
	const notSupported = 2
	r.Write([]byte{0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xff, 16, 0, 0, 0, 0, 0, notSupported})
}

func (r *reply) loginAck() {
	name := ucs2("test")
	r.token(0xad, byte(1), [4]byte{0x74, 0, 0, 4}, byte(len(name)/2), name, [4]byte{16, 0, 0, 0})
}

func (r *reply) done(status uint16) { r.put(byte(0xfd), status, uint16(0), uint64(0)) }

// fail is the end of a request that met an error.
func (r *reply) fail(e sqlError) {
	r.error(e)
	r.done(doneError)
}

func (r *reply) error(e sqlError) {
	text := ucs2(e.text)
	r.token(0xaa, e.number, byte(1), e.class, uint16(len(text)/2), text, byte(0), byte(0), int32(1))
}

// changed tells of a transaction that began or ended, or of a session that was reset.
func (r *reply) changed(kind byte, transaction uint64) {
	switch {
	case kind == envBegin:
		r.token(0xe3, kind, byte(8), transaction, byte(0))
	case kind == envReset:
		r.token(0xe3, kind, byte(0), byte(0))
	default:
		r.token(0xe3, kind, byte(0), byte(8), transaction)
	}
}

// smallint is a result of one row and one column.
func (r *reply) smallint(n int16) {
	const int2 = 0x34
	r.put(byte(0x81), uint16(1), uint32(0), uint16(0), byte(int2), byte(0))
	r.put(byte(0xd1), n)
}

func ucs2(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

func fromUCS2(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}
