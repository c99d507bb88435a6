package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// block returns the first fenced block of the README that begins with start.
func block(t *testing.T, start string) string {
	t.Helper()
	_, rest, ok := strings.Cut(readme(t), start)
	if !ok {
		t.Fatalf("the README has no %q", start)
	}
	text, _, _ := strings.Cut(rest, "```")
	return text
}

func TestReadmeShowsThisProgram(t *testing.T) {
	b, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(b), "\n") // the package comment is not in the README
	if got := block(t, "```go\n"); got != program {
		t.Errorf("the program of the README is not main.go:\n%s", got)
	}
}

// What the README says that the program prints, it prints.
func TestReadmeShowsItsOutput(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "quickstart")
	source := filepath.Join(dir, "main.go")
	b, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	// A free port, told on standard output.
	listen := strings.Replace(string(b), `log.Fatal(http.ListenAndServe("localhost:8080", reg.Middleware(mux)))`,
		`l, err := net.Listen("tcp", "127.0.0.1:0")
	fmt.Println(l.Addr(), err)
	log.Fatal(http.Serve(l, reg.Middleware(mux)))`, 1)
	listen = strings.Replace(listen, `"log"`, `"log"
	"net"`, 1)
	if err := os.WriteFile(source, []byte(listen), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", bin, source).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	cmd.Dir = dir
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := strings.Cut(line, " ")

	var got strings.Builder
	want := block(t, "```console\n")
	for line := range strings.Lines(want) {
		command, ok := strings.CutPrefix(line, "$ curl ")
		if !ok {
			continue // what it prints
		}
		fmt.Fprintf(&got, "%s%s", line, curl(t, addr, strings.Fields(command)))
	}
	if strings.Count(want, "$ ") < 3 {
		t.Errorf("the README's commands are not those of curl:\n%s", want)
	}
	if got.String() != want {
		t.Errorf("got:\n%s\nthe README says:\n%s", got.String(), want)
	}
}

// curl does what the command of the same name does with these arguments, at addr
// instead of localhost:8080.
func curl(t *testing.T, addr string, args []string) string {
	t.Helper()
	method, body := http.MethodGet, ""
	if args[0] == "-d" {
		method, body, args = http.MethodPost, args[1], args[2:]
	}
	path, ok := strings.CutPrefix(args[0], "localhost:8080")
	if !ok || len(args) != 1 {
		t.Fatalf("curl %q: not known here", args)
	}
	req, err := http.NewRequest(method, "http://"+addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}
