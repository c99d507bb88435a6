package browser

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// order orders over the API.
func order(t *testing.T, s *Service, tenant, key string, product, quantity int) {
	t.Helper()
	body := fmt.Sprintf(`{"product": %d, "quantity": %d}`, product, quantity)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/"+tenant+"/api/orders", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		t.Fatalf("an order is answered with %s", answer.Status)
	}
}

// TestOrdersPages looks at every page that a link leads to, without an order and with some.
func TestOrdersPages(t *testing.T) {
	t.Parallel()
	s := start(t, "orders")
	empty := person{t, open(t, Views[0])}
	found, err := Visit(empty.Page, s.URL+"/admin/")
	empty.must(err)
	for _, problem := range found {
		t.Errorf("/admin/, empty: %s", problem)
	}
	for i := range 3 {
		order(t, s, "acme", fmt.Sprint("key-", i), 1+i%2, 1+i)
		order(t, s, "globex", fmt.Sprint("key-", i), 1+i%2, 30)
	}
	crawl(t, s, "/", "/acme/", "/globex/", "/admin/", "/acme/orders/5", "/globex/orders/6")
}

// TestOrdersErrors looks at pages that no link leads to.
func TestOrdersErrors(t *testing.T) {
	t.Parallel()
	s := start(t, "orders")
	p := person{t, open(t, Views[0])}
	for path, want := range map[string]int{"/nowhere": 404, "/nobody/": 404, "/acme/orders/7": 404, "/admin/nowhere": 404} {
		p.goTo(s.URL+path, want)
		p.looks()
	}
}

// TestOrdersLifeByKeyboard is an order's whole life without a mouse: too much is ordered, then what there is; a job
// confirms it, it is paid, and the form that is sent once more orders nothing more.
func TestOrdersLifeByKeyboard(t *testing.T) {
	t.Parallel()
	s := start(t, "orders")
	p := person{t, open(t, Views[0])}
	p.goTo(s.URL+"/", 200)
	p.follow("Acme", 200)
	products, err := Eval[[]string](p.Page, `[...document.querySelectorAll("#product option")].map((option) => option.text)`)
	p.must(err)
	if len(products) < 2 {
		t.Fatalf("the shop has %q, want two products to choose from", products)
	}
	p.tabTo("Product")
	p.must(p.Press(kb.ArrowDown))
	p.fill("Quantity", "1000")
	p.follow("Order", 409)
	p.reads("There are not that many left. Nothing was ordered.")
	p.looks()
	if chosen, err := Eval[string](p.Page, `document.querySelector("#product").selectedOptions[0].text`); err != nil || chosen != products[1] {
		t.Errorf("after the error %q is chosen, %v, want %q", chosen, err, products[1])
	}
	p.fill("Quantity", "2")
	p.follow("Order", 200)
	p.reads("Order 1", products[1], "Quantity 2", "Payment pending")
	p.looks()
	p.confirmed()
	p.must(p.TabToPrefix("Pay "))
	p.enter(200)
	p.reads("Payment paid")
	p.looks()

	// The form that is still in the history, with the same key.
	for !p.at("Quantity") {
		p.must(p.run(chromedp.NavigateBack()))
	}
	p.follow("Order", 200)
	p.reads("Order 1", "Quantity 2", "Payment paid")
	p.follow("Admin", 200)
	p.reads("Orders 1 ", "Payments 1 ", "Jobs 1 ", "98")
	p.looks()
	p.follow("1", 200)
	p.reads("Order 1")
}

// at says whether the page has a field with that label.
func (p person) at(label string) bool {
	p.t.Helper()
	there, err := Eval[bool](p.Page, fmt.Sprintf(`[...document.querySelectorAll("label")].some((label) => label.innerText === %q)`, label))
	p.must(err)
	return there
}

// confirmed looks again at an order until a job has confirmed it.
func (p person) confirmed() {
	p.t.Helper()
	for end := time.Now().Add(p.Patience); ; {
		waiting, err := Eval[bool](p.Page, `document.body.innerText.includes("Look again")`)
		p.must(err)
		if !waiting {
			p.reads("State confirmed")
			return
		}
		if time.Now().After(end) {
			p.t.Fatal("no job has confirmed the order")
		}
		p.follow("Look again", 200)
	}
}
