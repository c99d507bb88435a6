package browser

import (
	"fmt"
	"strings"
)

// Listen begins to note what the page says in live regions, which is what a screen reader says without being asked.
func (p *Page) Listen() error {
	_, err := Eval[bool](p, `(() => {
		const said = globalThis.browserSaid = [];
		for (const region of document.querySelectorAll("[role=status],[role=alert],[aria-live]")) {
			new MutationObserver(() => said.push(region.innerText.trim())).observe(region,
				{childList: true, characterData: true, subtree: true});
		}
		return true;
	})()`)
	return err
}

// Said is what the page has said since Listen.
func (p *Page) Said() ([]string, error) { return Eval[[]string](p, "globalThis.browserSaid") }

// WaitSaid returns when the page has said something with that text in it.
func (p *Page) WaitSaid(text string) error {
	return p.Wait(fmt.Sprintf("globalThis.browserSaid.some((said) => said.includes(%q))", text))
}

// Announced shows that a window announces what others have committed and nothing else: it must say nothing of what
// refuse does, which is rolled back, and say the text named after commit. What comes later would have come after what came
// before, so that nothing has to be waited for that does not happen.
func Announced(window *Page, refused []string, committed string, refuse, commit func() error) (found []string, err error) {
	if err := window.Listen(); err != nil {
		return nil, err
	}
	if err := refuse(); err != nil {
		return nil, err
	}
	if err := commit(); err != nil {
		return nil, err
	}
	if err := window.WaitSaid(committed); err != nil {
		found = append(found, fmt.Sprintf("%q was committed and is not announced: %v", committed, err))
	}
	said, err := window.Said()
	if err != nil {
		return found, err
	}
	for _, text := range said {
		for _, title := range refused {
			if strings.Contains(text, title) {
				found = append(found, fmt.Sprintf("%q was rolled back, and the window says %q", title, text))
			}
		}
	}
	return found, nil
}
