package main

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
	"modernc.org/sqlite"
)

// A server is this program again, with these in its environment.
const (
	envWay  = "CRASHPOINTS_WAY"
	envFile = "CRASHPOINTS_FILE"
)

// What a server tells on its standard output.
const (
	listening = "listening"
	stopped   = "stopped"
)

func isServer() bool { return os.Getenv(envWay) != "" }

// serveOrders serves until the process at the other end of standard input ends, or kills this one.
func serveOrders() int {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, listen(way(os.Getenv(envWay)), os.Getenv(envFile)))
	return 1
}

func dsn(file string) string {
	file = filepath.ToSlash(file)
	if !strings.HasPrefix(file, "/") {
		file = "/" + file
	}
	return "file:" + (&url.URL{Path: file}).EscapedPath() + "?_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)"
}

func listen(by way, file string) error {
	var s stops
	fake := &fakedb.DB{Behind: &sqlite.Driver{}, DSN: dsn(file), Step: s.step, Stepped: s.stepped}
	db := sql.OpenDB(fake.Connector())
	defer db.Close()
	if _, err := db.Exec(schema); err != nil {
		return err
	}
	h, err := newHandler(context.Background(), by, db)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listening, l.Addr())
	srv := &http.Server{Handler: s.around(h), ReadHeaderTimeout: 10 * time.Second}
	return srv.Serve(l)
}

// server is a process that serves orders.
type server struct {
	cmd   *exec.Cmd
	alive io.Closer // its standard input
	out   *bufio.Scanner
	url   string
}

func start(ctx context.Context, by way, file string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), envWay+"="+string(by), envFile+"="+file)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, alive: in, out: bufio.NewScanner(out)}
	if err := s.expect(listening); err != nil {
		s.kill()
		return nil, err
	}
	_, addr, _ := strings.Cut(s.out.Text(), " ")
	s.url = "http://" + addr
	return s, nil
}

func (s *server) expect(word string) error {
	if s.out.Scan() && strings.HasPrefix(s.out.Text(), word) {
		return nil
	}
	return fmt.Errorf("the server says %q, want %q (%v)", s.out.Text(), word, s.out.Err())
}

func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.alive.Close()
}

// What a client sees.
const (
	nothing  = "no answer"
	half     = "half an answer"
	whole    = "201"
	replayed = "201, replayed"
)

// ask sends the order, and returns what the client sees. With a point the server stops there.
func (s *server) ask(ctx context.Context, item string, at point) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(url.Values{"item": {item}}.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set(keyHeader, item)
	req.Header.Set(stopAt, string(at))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nothing, ctx.Err()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return half, ctx.Err()
	case resp.StatusCode != http.StatusCreated || !strings.HasPrefix(string(body), "order "):
		return "", fmt.Errorf("a %s: %s", resp.Status, body)
	case resp.Header.Get("Idempotent-Replayed") != "":
		return replayed, nil
	}
	return whole, nil
}
