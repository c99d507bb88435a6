package failures

import (
	"context"
	"database/sql"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	patience = time.Minute
	os.Exit(m.Run())
}

// told returns the statuses that the clients of a side were told, and facts what was counted.
func told(s Side) string {
	var all []string
	for _, a := range s.Told {
		all = append(all, strings.TrimSpace(a.Early[:min(3, len(a.Early))]+" "+a.Status))
	}
	return strings.Join(all, "; ")
}

func facts(s Side) string {
	var all []string
	for _, f := range s.Facts {
		all = append(all, f.Value)
	}
	return strings.Join(all, "; ")
}

// TestEachFailure: by hand it happens, with sqlreq it does not, and both go well without trouble.
func TestEachFailure(t *testing.T) {
	const (
		closed  = "no answer: the connection was closed"
		waiting = "no answer: it waits for a connection to the database"
	)
	cases := []struct {
		id      string
		trouble bool
		hand    string // what was told, what was counted, how many lines were logged
		ours    string
	}{
		{"commit", true, "201 Created | 0 | 1", "500 Internal Server Error | 0 | 1"},
		{"commit", false, "201 Created | 1 | 0", "201 Created | 1 | 0"},
		{"panic", true, closed + "; " + closed + "; " + waiting + " | 2 of 2 | 2", closed + "; " + closed + "; 200 OK | 0 of 2 | 2"},
		{"panic", false, "201 Created; 201 Created; 200 OK | 0 of 2 | 0", "201 Created; 201 Created; 200 OK | 0 of 2 | 0"},
		{"hint", true, "103 422 Unprocessable Entity | 1; 0 | 0", "103 422 Unprocessable Entity | 0; 0 | 0"},
		{"hint", false, "103 201 Created | 1; 1 | 0", "103 201 Created | 1; 1 | 0"},
		{"idle", true, waiting + " | 0; 10 | 0", "200 OK | 10; 0 | 0"},
		{"idle", false, "200 OK | 10; 10 | 0", "200 OK | 10; 0 | 0"},
		{"conflict", true, "200 OK; 500 Internal Server Error | 1 | 0", "200 OK; 200 OK | 2 | 0"},
		{"conflict", false, "200 OK; 200 OK | 2 | 0", "200 OK; 200 OK | 2 | 0"},
	}
	for _, c := range cases {
		name := c.id + " when it goes well"
		if c.trouble {
			name = c.id
		}
		t.Run(name, func(t *testing.T) {
			r, err := Find(c.id).Run(t.Context(), c.trouble)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []string{c.hand, c.ours} {
				s := r.Sides[i]
				if got := told(s) + " | " + facts(s) + " | " + string(rune('0'+len(s.Log))); got != want {
					t.Errorf("%s: got %q, want %q", s.Name, got, want)
				}
				if good := !c.trouble || i == 1; s.Good != good || s.Verdict == "" {
					t.Errorf("%s: good is %v, want %v, with the verdict %q", s.Name, s.Good, good, s.Verdict)
				}
			}
			if hand, ours := r.Sides[0].Verdict, r.Sides[1].Verdict; c.trouble && hand == ours {
				t.Errorf("both have the verdict %q", hand)
			}
		})
	}
}

// TestWhatIsLogged: the lines on the page are those of the middleware, of net/http and of sqlreq, without times and stacks.
func TestWhatIsLogged(t *testing.T) {
	for id, want := range map[string][2]string{
		"commit": {"COMMIT failed, and the client has its answer", "commit on key"},
		"panic":  {"http: panic serving", "http: panic serving"},
	} {
		r, err := Find(id).Run(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range r.Sides {
			line := s.Log[0]
			if !strings.Contains(line, want[i]) || strings.Contains(line, "time=") || strings.Contains(line, "goroutine") {
				t.Errorf("%s, %s: logged %q, want %q in it", id, s.Name, line, want[i])
			}
		}
	}
}

// TestVerdictsAreFound: they follow from what was told and counted, not from the name of the side.
func TestVerdictsAreFound(t *testing.T) {
	for _, f := range All {
		s, err := f.side(t.Context(), "With sqlreq", true, func(s *stage, log *slog.Logger) (http.Handler, error) {
			return byHand(s.ctx, s.db.DB, log, f.serve(s, txByHand)), nil
		})
		if err != nil || s.Good {
			t.Errorf("%s: the middleware by hand is good by another name (%v)", f.ID, err)
		}
	}
}

// TestNothingIsLeft: no file, no transaction, no goroutine that waits for a connection.
func TestNothingIsLeft(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("TMP", os.Getenv("TMPDIR")) // Windows
	for _, f := range All {
		var pool *sql.DB
		_, err := f.side(t.Context(), "by hand", true, func(s *stage, log *slog.Logger) (http.Handler, error) {
			pool = s.db.DB
			return byHand(s.ctx, s.db.DB, log, f.serve(s, txByHand)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := pool.Stats().OpenConnections; n != 0 {
			t.Errorf("%s: %d connections are open after the run", f.ID, n)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("files are left: %q", left)
	}
}

// TestCancelledRunEnds: a visitor who leaves takes the run along.
func TestCancelledRunEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, f := range All {
		if r, err := f.Run(ctx, true); err == nil && r.Sides[0].Good {
			t.Errorf("%s: found something good without having run", f.ID)
		}
	}
}

// TestDocIsThere: each card leads to a heading of the guarantees.
func TestDocIsThere(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			anchors[strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(strings.TrimSpace(title)), ".", ""), " ", "-")] = true
		}
	}
	for _, f := range All {
		if !anchors[f.Doc] {
			t.Errorf("%s: docs/guarantees.md has no part %q", f.ID, f.Doc)
		}
	}
}

// TestTheCodeIsTheSource: what the page shows stands in the files, letter by letter, with one guilty line each.
func TestTheCodeIsTheSource(t *testing.T) {
	src, err := os.ReadFile("byhand.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range All {
		hand, ours := f.ByHand(), f.BySQLReq()
		if hand.Count < 18 || hand.Count > 22 || ours.Count != 2 {
			t.Errorf("%s: %d lines by hand and %d with sqlreq, want about 20 and 2", f.ID, hand.Count, ours.Count)
		}
		guilty := 0
		for _, line := range hand.Lines {
			if line.Guilty {
				guilty++
			}
		}
		if guilty != 1 {
			t.Errorf("%s: %d lines are guilty, want 1", f.ID, guilty)
		}
		for _, text := range []string{ours.Text(), strings.Split(hand.Text(), "\n\n")[0]} {
			if !strings.Contains(string(src), strings.TrimSpace(text)) {
				t.Errorf("%s: not in byhand.go:\n%s", f.ID, text)
			}
		}
		if len(f.Handler().Lines) < 4 {
			t.Errorf("%s: the handler's code is %q", f.ID, f.Handler().Text())
		}
	}
}
