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
	for _, c := range []struct{ method, target string }{
		{"POST", "/notes?text=milk"}, {"POST", "/notes?text="}, {"GET", "/ping"},
	} {
		req, err := http.NewRequest(c.method, "http://"+addr+c.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		flag := ""
		if c.method != "GET" {
			flag = "-X " + c.method + " "
		}
		fmt.Fprintf(&got, "$ curl %s'localhost:8080%s'\n%s", flag, c.target, body)
	}
	if want := block(t, "```console\n"); got.String() != want {
		t.Errorf("got:\n%s\nthe README says:\n%s", got.String(), want)
	}
}
