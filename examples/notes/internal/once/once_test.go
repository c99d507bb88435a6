package once

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const envParent = "NOTES_ONCE_TEST_PARENT"

func TestMain(m *testing.M) {
	if IsServer() {
		os.Exit(Serve())
	}
	if file := os.Getenv(envParent); file != "" {
		// A program that starts a server and is killed: see TestServersEndWithTheirParent.
		p, err := start(context.Background(), ours, file, false)
		fmt.Println(p.url, err)
		select {}
	}
	patience = time.Minute
	os.Exit(m.Run())
}

func TestKilledBetweenCommitAndAnswer(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("TMP", os.Getenv("TMPDIR")) // Windows
	r, err := Run(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		orders int
		good   bool
		repeat string
	}{
		{2, false, "201 Created, “Ordered: a bicycle”"},
		{1, true, "201 Created, “Ordered: a bicycle”, the answer of the first time"},
	} {
		s := r.Sides[i]
		if s.Orders != want.orders || s.Good != want.good {
			t.Errorf("%s: %d orders, good is %v, want %+v", s.Name, s.Orders, s.Good, want)
		}
		saws := []string{"", "the client sees: no answer, the connection is closed", "1 order", "the client sees: " + want.repeat, plural(want.orders)}
		for n, saw := range saws {
			if s.Steps[n].Saw != saw {
				t.Errorf("%s, step %d: %q, want %q", s.Name, n+1, s.Steps[n].Saw, saw)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("files are left: %q", left)
	}
}

func TestWhenItGoesWell(t *testing.T) {
	r, err := Run(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Sides {
		if s.Orders != 1 || !s.Good || !strings.HasSuffix(s.Steps[3].Saw, "the answer of the first time") {
			t.Errorf("%s: %+v", s.Name, s)
		}
	}
}

// TestServersEndWithTheirParent: a server whose parent was killed, and so cannot kill it, ends by itself.
func TestServersEndWithTheirParent(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self)
	parent.Env = append(os.Environ(), envParent+"="+filepath.Join(t.TempDir(), "orders.db"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	url, _, _ := strings.Cut(lines.Text(), " ")
	p := process{url: url}
	if told := p.order(t.Context(), "k"); !strings.HasPrefix(told, "201") {
		t.Fatalf("the server says %q before anything was killed", told)
	}
	parent.Process.Kill()
	parent.Wait()
	// The test's own limit ends the loop if it never does.
	for strings.HasPrefix(p.order(t.Context(), "k"), "201") {
	}
}

func TestServersEndWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := start(ctx, hand, filepath.Join(t.TempDir(), "orders.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := p.expect("more"); err == nil || !strings.Contains(err.Error(), "<nil>") {
		t.Errorf("got %v, want the end of its output", err)
	}
	p.kill()
}

func TestTheCodeIsTheSource(t *testing.T) {
	src, err := os.ReadFile("byhand.go")
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range Code() {
		guilty := 0
		for _, line := range c.Lines {
			if line.Guilty {
				guilty++
			}
			if !strings.Contains(string(src), line.Text) {
				t.Errorf("not in byhand.go: %q", line.Text)
			}
		}
		if want := 1 - i; guilty != want || c.Count == 0 {
			t.Errorf("%d guilty lines of %d, want %d", guilty, c.Count, want)
		}
	}
}
