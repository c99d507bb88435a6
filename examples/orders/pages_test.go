package main

import (
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// field finds the value of a hidden field.
func field(t *testing.T, page, name string) string {
	t.Helper()
	m := regexp.MustCompile(`name="` + name + `" value="([^"]*)"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no field %s in %s", name, page)
	}
	return html.UnescapeString(m[1])
}

// A form orders once: by a double click, after the back button, and after it was corrected.
func TestFormOrdersOnce(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		key := field(t, s.get("/acme/").is(t, 200).body, keyField)
		if again := field(t, s.get("/acme/").body, keyField); again == key {
			t.Errorf("two forms have the key %s", key)
		}
		send := func(quantity string) answer {
			return s.form("/acme/orders", keyField, key, "product", "2", "quantity", quantity)
		}
		for _, c := range []struct{ quantity, problem string }{
			{"6", "There are not that many left."}, {"0", "The quantity must be"}, {"many", "are numbers"}, {"", "are numbers"},
			{"99999999999999999999", "The quantity must be"},
		} {
			a := send(c.quantity).has(t, c.problem).has(t, "Nothing was ordered.").has(t, `aria-invalid="true"`)
			if a.status != 409 && a.status != 422 {
				t.Errorf("quantity %q: got %d", c.quantity, a.status)
			}
			equal(t, "the form's key", field(t, a.body, keyField), key)
			a.has(t, `required value="`+c.quantity+`"`)
		}
		a := send("5").is(t, http.StatusSeeOther)
		equal(t, "answers of 303", each(4, func(int) answer { return send("5") })[303], 4)
		equal(t, "Location", send("5").header.Get("Location"), a.header.Get("Location"))
		send("4").is(t, 422).has(t, "another order")
		s.form("/acme/orders", "product", "2", "quantity", "1").is(t, 400).has(t, "Idempotency-Key")
		equal(t, "stats", s.stats(), shop.Stats{Orders: 1, Payments: 1, Jobs: 1, Outbox: 1, Sold: 5, Stock: 45, Initial: 50})
		s.get(a.header.Get("Location")).is(t, 200).has(t, "Rocket skates").has(t, "€ 745.00").has(t, ">pending<")
	})
}

// The button pays by the provider's webhook, which comes twice; pressed again it pays no more.
func TestPay(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		s.order("globex", "k", `{"product": 1, "quantity": 1}`).is(t, 201)
		path := fmt.Sprintf("/globex/orders/%d", s.number("SELECT id FROM orders"))
		page := s.get(path).is(t, 200).body
		pay := func() answer {
			return s.form("/provider/pay", "tenant", field(t, page, "tenant"), "order", field(t, page, "order"), "amount", field(t, page, "amount"))
		}
		equal(t, "Location", pay().is(t, 303).header.Get("Location"), path)
		pay().is(t, 303)
		equal(t, "received", s.number("SELECT received FROM payments"), 8900)
		if after := s.get(path).has(t, ">paid<").body; strings.Contains(after, "/provider/pay") {
			t.Error("what is paid can be paid again")
		}
		// What the shop refuses is a page that says why.
		for _, c := range []struct {
			tenant, order, amount string
			status                int
			problem               string
		}{
			{"globex", "0", "1", 404, "There is no such order."},
			{"acme", field(t, page, "order"), "8900", 404, "There is no such order."},
			{"nobody\r\n", "0", "1", 422, "There is no such tenant."},
			{"globex", field(t, page, "order"), "1", 422, "This key has come with another request already."},
			{"globex", field(t, page, "order"), "0", 422, ""},
			{"globex", "", "", 400, "The order and the amount are numbers."},
		} {
			s.form("/provider/pay", "tenant", c.tenant, "order", c.order, "amount", c.amount).is(t, c.status).has(t, c.problem).has(t, "</html>")
		}
		equal(t, "received", s.number("SELECT received FROM payments"), 8900)
	})
}

// Every page is whole, names itself, and marks where it is.
func TestPages(t *testing.T) {
	s := onSQLite(t, 5)
	s.order("acme", "k", `{"product": 1, "quantity": 1}`).is(t, 201)
	for path, c := range map[string]struct {
		status  int
		current string // the link that is marked
		text    string
	}{
		"/":                {200, `href="/" class="brand" aria-current="page"`, "Two shops"},
		"/acme/":           {200, `href="/acme/" aria-current="page"`, "<h1>Acme</h1>"},
		"/globex/":         {200, `href="/globex/" aria-current="page"`, "<h1>Globex</h1>"},
		"/acme/orders/1":   {200, `href="/acme/" aria-current="true"`, "<h1>Order 1</h1>"},
		"/admin/":          {200, `href="/admin/" class="out" aria-current="page"`, "Confirm order 1"},
		"/acme/orders/2":   {404, `href="/acme/" aria-current="true"`, "There is no such order."},
		"/acme/orders/one": {404, `href="/acme/" aria-current="true"`, "There is no such order."},
		"/acme/nothing":    {404, `href="/acme/" aria-current="true"`, "There is no such page."},
		"/admin/nothing":   {404, `href="/admin/" class="out" aria-current="true"`, "There is no such page."},
		"/nobody/":         {404, "", "There is no such shop."},
	} {
		a := s.get(path).is(t, c.status).has(t, c.text).has(t, "</html>").has(t, `<a class="skip" href="#main">`)
		if strings.Count(a.body, "aria-current") != min(1, len(c.current)) || !strings.Contains(a.body, c.current) {
			t.Errorf("%s: marked is not %s: %s", path, c.current, a.body)
		}
		if strings.Contains(a.body, "<script") || strings.Contains(a.body, " style=") {
			t.Errorf("%s: there is a script or a style in it, which the policy forbids", path)
		}
	}
	equal(t, "/acme", s.get("/acme").is(t, 307).header.Get("Location"), "/acme/")
	equal(t, "/admin", s.get("/admin").is(t, 307).header.Get("Location"), "/admin/")
	s.get("/static/style.css").is(t, 200).has(t, "--paper")
	s.get("/static/icon.svg").is(t, 200)
	s.get("/healthz").is(t, 200).has(t, "ok")
	for _, path := range []string{"", "web.go", "layout.html", "style.css/"} {
		s.get("/static/"+path).is(t, 404).has(t, "There is no such file.")
	}
	equal(t, "/acme/orders", s.get("/acme/orders").is(t, 303).header.Get("Location"), "/acme/")
	s.get("/admin/nothing").has(t, `<a href="/admin/">Back</a>`)
	s.do("POST", "/", "", "", "").is(t, 404)
	s.get("/acme/api/nothing").is(t, 404).has(t, `{"error":`)
}

// Pages of other sites send no forms, and reach no service on this machine by a name of their own.
func TestOtherSites(t *testing.T) {
	s := onSQLite(t, 5)
	for _, change := range []func(*http.Request){
		func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		func(r *http.Request) { r.Host = "evil.example" },
	} {
		req, err := http.NewRequest("POST", s.url+"/acme/orders", strings.NewReader(keyField+"=k&product=1&quantity=1"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		change(req)
		res, err := noRedirects.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden && res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("got %d", res.StatusCode)
		}
	}
	equal(t, "orders", s.stats().Orders, 0)
}

// A database that is gone is a 503 of the health check, and an error page.
func TestDatabaseGone(t *testing.T) {
	s := onSQLite(t, 5)
	s.server.store.Close()
	s.get("/healthz").is(t, 503)
	s.get("/acme/").is(t, 503).has(t, "Service Unavailable")
	s.form("/provider/pay", "tenant", "acme", "order", "1", "amount", "1").is(t, 502).has(t, "Bad Gateway").has(t, "Paying again is safe")
	equal(t, "Retry-After", s.order("acme", "k", `{"product": 1, "quantity": 1}`).is(t, 503).header.Get("Retry-After"), "1")
}

// A transaction's span is below that of its request.
func TestTraces(t *testing.T) {
	onBoth(t, 5, func(t *testing.T, s *service) {
		s.order("acme", "k", `{"product": 1, "quantity": 1}`).is(t, 201)
		var request, commit *tracetest.SpanStub
		eventually(t, "both spans", func() bool {
			for _, span := range s.spans.GetSpans() {
				switch {
				case span.SpanKind.String() == "server":
					request = &span
				case span.Name == "transaction main":
					commit = &span
				}
			}
			return request != nil && commit != nil
		})
		equal(t, "parent", commit.Parent.SpanID(), request.SpanContext.SpanID())
	})
}
