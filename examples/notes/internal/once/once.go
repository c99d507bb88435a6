// Package once shows what a client's repeat does after its server was killed between COMMIT and the answer: with the
// keys of requests in a table by hand, and with package idempotency. The servers are processes, and they are killed.
package once

import (
	"bufio"
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq/examples/notes/internal/source"
	"github.com/sqlreq/sqlreq/examples/notes/internal/watched"
)

const (
	hand = "hand"
	ours = "ours"
)

// patience bounds what should take a second. Its tests have more, for they run on machines that are busy.
var patience = 20 * time.Second

// Step is something that happened.
type Step struct {
	What string
	Saw  string // by the client, or in the database; "": nothing
	Kill bool
}

// Side is what came of one of the two ways.
type Side struct {
	Name    string
	Steps   []Step
	Orders  int
	Good    bool
	Verdict string
}

//go:embed byhand.go
var sources embed.FS

// Code is what the two ways are made of: by hand, and by idempotency.
func Code() [2]source.Code {
	return [2]source.Code{
		source.Cut(sources, "byhand.go", func(line string) bool { return strings.Contains(line, "INSERT INTO answers") }, "keysByHand", "orderByHand"),
		source.Cut(sources, "byhand.go", nil, "keysBySQLReq", "orderBySQLReq"),
	}
}

// Result is one run.
type Result struct {
	Killed bool
	Sides  [2]Side // by hand, by idempotency
}

// Run orders once by each way, on new files that are gone when it returns. With kill the first server of each is
// killed between COMMIT and the answer. All processes have ended when Run returns, and when ctx has ended.
func Run(ctx context.Context, kill bool) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := Result{Killed: kill}
	for i, way := range []string{hand, ours} {
		side, err := play(ctx, way, kill)
		if err != nil {
			return r, fmt.Errorf("once, %s: %w", way, err)
		}
		r.Sides[i] = side
	}
	return r, nil
}

func play(ctx context.Context, way string, kill bool) (side Side, err error) {
	dir, err := os.MkdirTemp("", "notes-once-")
	if err != nil {
		return side, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "orders.db")
	key := strings.ToLower(rand.Text()[:8])

	side.Name = map[string]string{hand: "Keys in a table, by hand", ours: "Keys by idempotency"}[way]
	note := func(what, saw string, kill bool) { side.Steps = append(side.Steps, Step{what, saw, kill}) }

	first, err := start(ctx, way, file, kill)
	if err != nil {
		return side, err
	}
	defer first.kill()
	told := make(chan string, 1)
	go func() {
		told <- first.order(ctx, key)
		if kill {
			first.cmd.Process.Kill() // an answer where it should have stopped: let nobody wait for that
		}
	}()
	if kill {
		if err := first.expect(committed); err != nil {
			return side, err
		}
		first.kill()
		note(fmt.Sprintf("A client orders, with the key “%s”. The server, process %d, commits the order.", key, first.pid()), "", false)
		note("It is killed before it answers.", "the client sees: "+<-told, true)
	} else {
		note(fmt.Sprintf("A client orders, with the key “%s”. The server, process %d, commits the order and answers.", key, first.pid()),
			"the client sees: "+<-told, false)
		first.kill()
		note("Then it is killed.", "", true)
	}
	n, err := orders(ctx, file)
	if err != nil {
		return side, err
	}
	note("The database now holds", plural(n), false)

	second, err := start(ctx, way, file, false)
	if err != nil {
		return side, err
	}
	defer second.kill()
	answer := second.order(ctx, key)
	note(fmt.Sprintf("A new server, process %d. The client sends the same order with the same key.", second.pid()), "the client sees: "+answer, false)
	second.kill()
	if side.Orders, err = orders(ctx, file); err != nil {
		return side, err
	}
	note("The database now holds", plural(side.Orders), false)

	side.Good = side.Orders == 1 && strings.HasPrefix(answer, "201")
	side.Verdict = "Ordered once, and two are on their way."
	if side.Good {
		side.Verdict = "Ordered once, made once."
	}
	return side, nil
}

func plural(n int) string {
	if n == 1 {
		return "1 order"
	}
	return fmt.Sprintf("%d orders", n)
}

// orders counts them in the file, when no server has it open.
func orders(ctx context.Context, file string) (n int, err error) {
	db, err := watched.Open(file, schema, 1, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM orders`).Scan(&n)
	return n, err
}

// process is a server.
type process struct {
	cmd   *exec.Cmd
	out   *bufio.Scanner
	alive io.Closer // its standard input: it ends when this is closed, also by the end of this process
	url   string
}

func start(ctx context.Context, way, file string, stop bool) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), envWay+"="+way, envFile+"="+file)
	if stop {
		cmd.Env = append(cmd.Env, envStop+"=yes")
	}
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
	p := &process{cmd: cmd, out: bufio.NewScanner(out), alive: in}
	if err := p.expect(listening); err != nil {
		p.kill()
		return nil, err
	}
	_, addr, _ := strings.Cut(p.out.Text(), " ")
	p.url = "http://" + addr
	return p, nil
}

// expect reads the next line of what the process tells, which must begin with word.
func (p *process) expect(word string) error {
	if p.out.Scan() && strings.HasPrefix(p.out.Text(), word) {
		return nil
	}
	return fmt.Errorf("the server process says %q, want %q (%v)", p.out.Text(), word, p.out.Err())
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends the process, which has no say in it, and waits until it has ended. It may be called again.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
	p.alive.Close()
}

// order sends the order, and returns what the client sees.
func (p *process) order(ctx context.Context, key string) string {
	form := url.Values{"item": {"a bicycle"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, strings.NewReader(form.Encode()))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Idempotency-Key", key)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "no answer, the connection is closed"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
	if err != nil {
		return "half an answer"
	}
	told := resp.Status + ", “" + strings.TrimSpace(string(body)) + "”"
	if resp.Header.Get("Idempotent-Replayed") != "" {
		told += ", the answer of the first time"
	}
	return told
}
