package browser

import (
	"fmt"
	"strings"
)

// Side is one of the two sides of a card: what became of a request in one pair of hands.
type Side struct {
	Name    string
	Good    bool // by its colour
	Verdict string
}

// Card shows the same request by hand and with sqlreq.
type Card struct {
	Title string
	Sides []Side
}

// Cards are those of the page that have been run.
func (p *Page) Cards() ([]Card, error) { return Eval[[]Card](p, checkJS("cards")) }

// Verdicts returns what is wrong with cards: each has two sides, and a verdict on each in words and by a sign, which is the
// same as by colour. By hand it is bad where something was made to fail, and good otherwise; with sqlreq it is always good.
func Verdicts(cards []Card, trouble bool) (found []string) {
	for _, card := range cards {
		if len(card.Sides) != 2 {
			found = append(found, fmt.Sprintf("%s: it has %d sides", card.Title, len(card.Sides)))
			continue
		}
		for i, side := range card.Sides {
			good := i == 1 || !trouble
			sign := map[bool]string{true: "✓ ", false: "✗ "}[good]
			words, ok := strings.CutPrefix(side.Verdict, sign)
			if side.Good != good {
				found = append(found, fmt.Sprintf("%s, %s: by its colour it is good: %v, want %v", card.Title, side.Name, side.Good, good))
			}
			if !ok || len(words) < 10 {
				found = append(found, fmt.Sprintf("%s, %s: the verdict is %q, want %q and a sentence", card.Title, side.Name, side.Verdict, sign))
			}
		}
	}
	return found
}
