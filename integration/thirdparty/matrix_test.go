package thirdparty

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/matrix"
)

// matrixServers are those of other modules than the standard library's.
var matrixServers = []matrix.Server{
	{
		Name: "golang.org/x/net/http2/h2c", Ask: askH2C,
		Exception: func(outside string, _ bool) bool { return strings.HasPrefix(outside, "goroutine") },
	},
	// A write deadline keeps no response of quic-go from being complete, and nothing else can be had.
	{Name: "HTTP/3 (quic-go)", Ask: askHTTP3, Exception: matrix.Swallows},
}

func askH2C(t *testing.T, h http.Handler) matrix.Answer {
	srv := serve(t, "HTTP/1.1", overH2C(h))
	transport := &http2.Transport{AllowHTTP: true, DisableCompression: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	defer transport.CloseIdleConnections()
	return matrixAsk(t, transport, srv.URL, "HTTP/2.0")
}

func askHTTP3(t *testing.T, h http.Handler) matrix.Answer {
	certs := httptest.NewUnstartedServer(nil)
	certs.StartTLS()
	config := certs.TLS.Clone()
	certs.Close()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	slow := &quic.Config{HandshakeIdleTimeout: matrix.Patience} // its own 5 s may pass on a machine that is busy
	srv := &http3.Server{Handler: h, TLSConfig: http3.ConfigureTLSConfig(config), QUICConfig: slow, Logger: slog.New(slog.DiscardHandler)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(conn) }()
	transport := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, QUICConfig: slow, DisableCompression: true}
	a := matrixAsk(t, transport, "https://"+conn.LocalAddr().String(), "HTTP/3.0")
	transport.Close()
	srv.Close()
	<-served
	return a
}

// matrixAsk sends one request and reads the answer to its end.
func matrixAsk(t *testing.T, transport http.RoundTripper, url, proto string) matrix.Answer {
	ctx, cancel := context.WithTimeout(context.Background(), matrix.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return matrix.Answer{Err: err}
	}
	defer res.Body.Close()
	if res.Proto != proto {
		t.Errorf("got %s, want %s", res.Proto, proto)
	}
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && res.ContentLength >= 0 && n != res.ContentLength {
		err = io.ErrUnexpectedEOF // quic-go's client does not look
	}
	return matrix.Answer{Status: res.StatusCode, Err: err}
}

// TestMatrixOfServers prints the tables of docs/responses.md that begin with x/net's h2c.
func TestMatrixOfServers(t *testing.T) {
	tables, cells := matrix.Print(t, retry.Attempts, matrixServers)
	if cells != 168 {
		t.Errorf("%d cells, want 168", cells)
	}
	t.Logf("%d cells\n%s", cells, tables)
	matrix.Compare(t, filepath.Join("..", "..", "docs", "responses.md"), "## "+matrixServers[0].Name, "", tables)
}
