package main

import (
	"bufio"
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestProcess builds the program and runs it like a user: start, read the address, send a note, interrupt. A browser
// that listens to the events must not hold the end up.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "notes")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(context.Background(), bin, "-addr", "127.0.0.1:0")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()

	lines := bufio.NewScanner(stdout)
	lines.Scan()
	url := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text())
	if url == "" {
		t.Fatalf("the first line names no URL: %q\n%s", lines.Text(), &stderr)
	}
	var curls int
	for curls < 3 && lines.Scan() {
		if strings.HasPrefix(strings.TrimSpace(lines.Text()), "curl ") && strings.Contains(lines.Text(), url) {
			curls++
		}
	}
	equal(t, "curl lines", curls, 3)

	s := &service{t: t, url: url}
	stream := s.listen("/events")
	s.json("POST", "/api/notes", `{"title": "Milk"}`).is(t, 201)
	equal(t, "announced", stream.next().Title, "Milk")
	// The program itself is what it starts and kills.
	equal(t, "killed", verdicts(t, s.form("/demo/once", nil).body), "bad good")

	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for stream.lines.Scan() { // the stream is ended by the service
	}
	for lines.Scan() { // Wait closes the pipe, so it has to be read first
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("after an interrupt: %v, want exit code 0\n%s", err, &stderr)
	}
	if _, err := http.Get(url); err == nil {
		t.Error("somebody still answers")
	}
	for _, name := range []string{"notes.db", "notes-audit.db"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, name+"-wal")); err == nil {
			t.Errorf("%s was not closed: its log is still there", name)
		}
	}
}
