// Package fastcgi serves a handler by net/http/fcgi, and is the web server that asks
// it. It imports the standard library only, so that tests of every package can use it.
package fastcgi

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
)

// The types of records, and the role of a responder (FastCGI specification, section 8).
const (
	beginRequest = 1
	endRequest   = 3
	params       = 4
	stdin        = 5
	stdout       = 6
	responder    = 1
)

// Serve starts h, and returns the address of its listener.
func Serve(t testing.TB, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fcgi.Serve(l, h) // the error of a listener that was closed
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

// Get asks for a path, and returns what a web server would send on. The error is
// that of a response which is not complete.
func Get(addr, path string) (status int, header http.Header, body string, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, nil, "", err
	}
	defer conn.Close()
	var env bytes.Buffer
	for _, pair := range [][2]string{
		{"REQUEST_METHOD", "GET"}, {"REQUEST_URI", path}, {"SCRIPT_NAME", ""},
		{"SERVER_PROTOCOL", "HTTP/1.1"}, {"HTTP_HOST", "test"}, {"REMOTE_ADDR", "127.0.0.1"},
	} {
		env.Write([]byte{byte(len(pair[0])), byte(len(pair[1]))})
		env.WriteString(pair[0] + pair[1])
	}
	var ask bytes.Buffer
	record(&ask, beginRequest, []byte{0, responder, 0, 0, 0, 0, 0, 0})
	record(&ask, params, env.Bytes())
	record(&ask, params, nil)
	record(&ask, stdin, nil)
	if _, err := conn.Write(ask.Bytes()); err != nil {
		return 0, nil, "", err
	}
	out, err := output(bufio.NewReader(conn))
	if err != nil {
		return 0, nil, "", err
	}
	return response(out)
}

func record(w *bytes.Buffer, kind byte, content []byte) {
	head := [8]byte{1, kind, 0, 1}
	binary.BigEndian.PutUint16(head[4:], uint16(len(content)))
	w.Write(head[:])
	w.Write(content)
}

// output reads what is sent to the standard output, until the request has ended.
func output(r io.Reader) (out []byte, err error) {
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		content := make([]byte, int(binary.BigEndian.Uint16(head[4:]))+int(head[6]))
		if _, err := io.ReadFull(r, content); err != nil {
			return nil, err
		}
		switch head[1] {
		case stdout:
			out = append(out, content[:len(content)-int(head[6])]...)
		case endRequest:
			return out, nil
		}
	}
}

// response reads out as a CGI response (RFC 3875, section 6).
func response(out []byte) (status int, header http.Header, body string, err error) {
	r := bufio.NewReader(bytes.NewReader(out))
	mime, err := textproto.NewReader(r).ReadMIMEHeader()
	if err != nil {
		return 0, nil, "", err
	}
	header = http.Header(mime)
	code, _, _ := strings.Cut(header.Get("Status"), " ")
	if status, err = strconv.Atoi(code); err != nil {
		return 0, nil, "", err
	}
	rest, err := io.ReadAll(r)
	if told := header.Get("Content-Length"); err == nil && told != "" && told != strconv.Itoa(len(rest)) {
		err = errors.New("the body is not as long as its Content-Length")
	}
	return status, header, string(rest), err
}
