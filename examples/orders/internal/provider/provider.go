// Package provider plays a payment provider: a service of somebody else's, which would run elsewhere. It has a page's
// button pressed, and tells the shop by a webhook.
package provider

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
)

// Event is what the webhook's body says. Its id is the Idempotency-Key.
type Event struct {
	Tenant string `json:"tenant"`
	Order  int64  `json:"order"`
	Amount int64  `json:"amount"`
}

// client repeats an event that was not answered, as providers do, with the same key.
var client = &http.Client{Transport: &idempotency.Transport{}, Timeout: 20 * time.Second}

// Pay is the button. It stands outside of the shop's middleware: it has no transaction, and would hold none while it
// waits for the shop's answer. Nor has it the middleware's error pages: fail answers what went wrong.
func Pay(fail func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event, err := pay(r)
		if err != nil {
			fail(w, r, err)
			return
		}
		http.Redirect(w, r, fmt.Sprintf("/%s/orders/%d", event.Tenant, event.Order), http.StatusSeeOther)
	})
}

func pay(r *http.Request) (Event, error) {
	if err := r.ParseForm(); errors.As(err, new(*http.MaxBytesError)) {
		return Event{}, err
	}
	order, errOrder := strconv.ParseInt(r.PostFormValue("order"), 10, 64)
	amount, errAmount := strconv.ParseInt(r.PostFormValue("amount"), 10, 64)
	if errOrder != nil || errAmount != nil {
		return Event{}, sqlreq.Errorf(http.StatusBadRequest, "The order and the amount are numbers.")
	}
	event := Event{Tenant: r.PostFormValue("tenant"), Order: order, Amount: amount}
	for range 2 { // senders of webhooks deliver at least once
		if err := deliver(r, event); err != nil {
			return Event{}, err
		}
	}
	return event, nil
}

// deliver sends an event to the shop that the button belongs to. The same payment is the same event, whenever it is sent.
// What the shop refuses, this refuses; that it could not be asked is a 502.
func deliver(r *http.Request, event Event) error {
	body, err := json.Marshal(event)
	if err != nil {
		return err
	}
	shop, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return fmt.Errorf("no server has sent %s", r.URL.Path)
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "http://"+shop.String()+"/webhooks/payments", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", fmt.Sprintf("payment-%s-%d", url.PathEscape(event.Tenant), event.Order))
	res, err := client.Do(req)
	if err != nil {
		return sqlreq.Errorf(http.StatusBadGateway, "the shop has not answered the webhook: %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if err != nil {
		return sqlreq.Errorf(http.StatusBadGateway, "the shop has answered the webhook with half an answer: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		return nil
	}
	var problem struct{ Error string }
	if err := json.Unmarshal(answer, &problem); err == nil && res.StatusCode >= 400 && res.StatusCode < 500 {
		return sqlreq.Errorf(res.StatusCode, "The shop refuses the payment. %s", problem.Error)
	}
	return sqlreq.Errorf(http.StatusBadGateway, "the shop has answered the webhook with %d: %s", res.StatusCode, answer)
}
