package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestVerdicts shows the check of cards red in each way.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	const (
		bad  = `<section class="side bad"><h3>By hand</h3><p class="verdict">✗ Somebody believes in it.</p></section>`
		fine = `<section class="side good"><h3>By hand</h3><p class="verdict">✓ It was committed.</p></section>`
		ours = `<section class="side good"><h3>sqlreq</h3><p class="verdict">✓ The client knows.</p></section>`
	)
	for i, c := range []struct {
		name, sides string
		trouble     bool
		want        string // a part of all that is found; "" for nothing
	}{
		{"it has happened", bad + ours, true, ""},
		{"it went well", fine + ours, false, ""},
		{"it has not happened", fine + ours, true, "by its colour it is good: true, want false"},
		{"it did not go well", bad + ours, false, "by its colour it is good: false, want true"},
		{"sqlreq has failed", bad + bad, true, "by its colour it is good: false, want true"},
		{"one side", ours, false, "it has 1 sides"},
		{"no verdict", strings.Replace(bad, "verdict", "other", 1) + ours, true, `the verdict is ""`},
		{"a verdict that is not seen", strings.Replace(bad, `class="verdict"`, `class="verdict" hidden`, 1) + ours, true, `the verdict is ""`},
		{"by colour only", bad + strings.Replace(ours, "✓ ", "", 1), true, `the verdict is "The client knows."`},
		{"a sign only", bad + strings.Replace(ours, "The client knows.", "", 1), true, `the verdict is "✓"`},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				fmt.Fprintf(w, `<!doctype html><main><section aria-labelledby="x"><h2 id="x">Card %d</h2><div class="sides">%s</div></section></main>`, i, c.sides)
			}))
			t.Cleanup(srv.Close)
			p := open(t, Views[0])
			if _, err := p.Open(srv.URL); err != nil {
				t.Fatal(err)
			}
			cards, err := p.Cards()
			if err != nil {
				t.Fatal(err)
			}
			if len(cards) != 1 || cards[0].Title != fmt.Sprintf("Card %d", i) {
				t.Fatalf("read %+v, want one card with its title", cards)
			}
			found := strings.Join(Verdicts(cards, c.trouble), "\n")
			if c.want == "" && found != "" || !strings.Contains(found, c.want) {
				t.Errorf("found %q, want …%s…", found, c.want)
			}
		})
	}
}
