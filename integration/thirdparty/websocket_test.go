package thirdparty

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

// gorillaEcho hijacks and writes its 101 to the connection itself.
func gorillaEcho(w http.ResponseWriter, r *http.Request) {
	var upgrader gorilla.Upgrader
	w.Header().Set(markHeader, mark)
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil || conn.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// coderEcho writes its 101 by WriteHeader, then hijacks.
func coderEcho(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(markHeader, mark)
	conn, err := coder.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, message) != nil {
			return
		}
	}
}

var websockets = []struct {
	name string
	echo http.HandlerFunc
}{
	{"gorilla", gorillaEcho},
	{"coder", coderEcho},
}

// gorillaTalk has one message echoed. upgraded is called after the upgrade, before the message.
func gorillaTalk(addr string, upgraded func()) (*http.Response, error) {
	conn, resp, err := gorilla.DefaultDialer.Dial("ws"+strings.TrimPrefix(addr, "http"), nil)
	if err != nil {
		return resp, err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	upgraded()
	if err := conn.WriteMessage(gorilla.TextMessage, []byte("ping")); err != nil {
		return resp, err
	}
	_, got, err := conn.ReadMessage()
	if err == nil && string(got) != "ping" {
		err = fmt.Errorf("echo: got %q, want %q", got, "ping")
	}
	return resp, err
}

func coderTalk(addr string, upgraded func()) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, resp, err := coder.Dial(ctx, addr, nil)
	if err != nil {
		return resp, err
	}
	defer conn.CloseNow()
	upgraded()
	if err := conn.Write(ctx, coder.MessageText, []byte("ping")); err != nil {
		return resp, err
	}
	_, got, err := conn.Read(ctx)
	if err == nil && string(got) != "ping" {
		err = fmt.Errorf("echo: got %q, want %q", got, "ping")
	}
	return resp, err
}

var talks = []struct {
	name string
	talk func(addr string, upgraded func()) (*http.Response, error)
}{
	{"gorilla", gorillaTalk},
	{"coder", coderTalk},
}

func TestWebsocketCommitsBeforeTheUpgrade(t *testing.T) {
	for _, server := range websockets {
		for _, client := range talks {
			t.Run(server.name+" server, "+client.name+" client", func(t *testing.T) {
				s := newSite(t)
				h, left := finishing(s.reg.Middleware(s.adding(false, server.echo)))
				srv := serve(t, "HTTP/1.1", h)
				if _, err := client.talk(srv.URL, func() { s.wantNotes(t, 1) }); err != nil {
					t.Errorf("talk: %v", err)
				}
				await(t, left, "the handler to return")
				s.wantNotes(t, 1)
			})
		}
	}
}

func TestWebsocketWithoutTransactionUpgrades(t *testing.T) {
	for _, server := range websockets {
		t.Run(server.name, func(t *testing.T) {
			s := newSite(t)
			h, left := finishing(s.reg.Middleware(server.echo))
			srv := serve(t, "HTTP/1.1", h)
			if _, err := gorillaTalk(srv.URL, func() {}); err != nil {
				t.Errorf("talk: %v", err)
			}
			await(t, left, "the handler to return")
		})
	}
}

func TestWebsocketIsRefusedWhenCommitFails(t *testing.T) {
	for _, server := range websockets {
		for _, client := range talks {
			t.Run(server.name+" server, "+client.name+" client", func(t *testing.T) {
				s := newSite(t)
				srv := serve(t, "HTTP/1.1", s.reg.Middleware(s.adding(true, server.echo)))
				resp, err := client.talk(srv.URL, func() { t.Error("the connection was upgraded") })
				wantRefused(t, resp, err)
				s.wantNotes(t, 0)
			})
		}
	}
}

// wantRefused wants an error answer to a handshake, with no trace of the 101.
func wantRefused(t *testing.T, resp *http.Response, err error) {
	t.Helper()
	if err == nil || resp == nil {
		t.Fatalf("handshake: got %v, %v, want an error answer", resp, err)
	}
	if resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("status: got %d, want 500", resp.StatusCode)
	}
	for _, name := range []string{"Upgrade", "Sec-Websocket-Accept", markHeader} {
		if got := resp.Header.Get(name); got != "" {
			t.Errorf("%s in the error answer: got %q, want none", name, got)
		}
	}
}

// A connection is no unit of work: each message is one, by Do.
func TestWebsocketHandlerCommitsEachMessage(t *testing.T) {
	s := newSite(t)
	failed := make(chan error, 1)
	h, left := finishing(s.reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var upgrader gorilla.Upgrader
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, message, err := conn.ReadMessage()
			if err != nil {
				return
			}
			if err := s.reg.Do(r.Context(), func(ctx context.Context) error { return s.add(ctx, false) }); err != nil {
				failed <- err
				return
			}
			if conn.WriteMessage(kind, message) != nil {
				return
			}
		}
	})))
	srv := serve(t, "HTTP/1.1", h)
	conn, _, err := gorilla.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	for want := 1; want <= 3; want++ {
		if err := conn.WriteMessage(gorilla.TextMessage, []byte("note")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.ReadMessage(); err != nil {
			select {
			case err = <-failed:
			default:
			}
			t.Fatalf("message %d: %v", want, err)
		}
		s.wantNotes(t, want)
	}
	conn.Close()
	await(t, left, "the handler to return")
}

// The proxy takes the connection over with http.ResponseController after the upstream has agreed.
func TestWebsocketThroughReverseProxy(t *testing.T) {
	for _, server := range websockets {
		t.Run(server.name, func(t *testing.T) {
			upstream := httptest.NewServer(server.echo)
			t.Cleanup(upstream.Close)
			proxy := proxyTo(t, upstream)
			t.Run("COMMIT works", func(t *testing.T) {
				s := newSite(t)
				h, left := finishing(s.reg.Middleware(s.adding(false, proxy)))
				srv := serve(t, "HTTP/1.1", h)
				if _, err := gorillaTalk(srv.URL, func() { s.wantNotes(t, 1) }); err != nil {
					t.Errorf("talk: %v", err)
				}
				await(t, left, "the handler to return")
			})
			t.Run("COMMIT fails", func(t *testing.T) {
				s := newSite(t)
				srv := serve(t, "HTTP/1.1", s.reg.Middleware(s.adding(true, proxy)))
				resp, err := gorillaTalk(srv.URL, func() { t.Error("the connection was upgraded") })
				if resp == nil || resp.StatusCode < 500 {
					t.Errorf("handshake: got %v, %v, want an error answer", resp, err)
				}
				s.wantNotes(t, 0)
			})
		})
	}
}
