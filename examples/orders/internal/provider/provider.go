// Package provider plays a payment provider: a service of somebody else's, which would run elsewhere. It has a page's
// button pressed, and tells the shop by a webhook.
package provider

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
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
// waits for the shop's answer.
func Pay() http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		order, err := strconv.ParseInt(r.PostFormValue("order"), 10, 64)
		if err != nil {
			return sqlreq.Errorf(http.StatusBadRequest, "the order is no number: %w", err)
		}
		amount, err := strconv.ParseInt(r.PostFormValue("amount"), 10, 64)
		if err != nil {
			return sqlreq.Errorf(http.StatusBadRequest, "the amount is no number: %w", err)
		}
		event := Event{Tenant: r.PostFormValue("tenant"), Order: order, Amount: amount}
		for range 2 { // senders of webhooks deliver at least once
			if err := deliver(r, event); err != nil {
				return err
			}
		}
		http.Redirect(w, r, fmt.Sprintf("/%s/orders/%d", event.Tenant, event.Order), http.StatusSeeOther)
		return nil
	})
}

// deliver sends an event to the shop that the button belongs to. The same payment is the same event, whenever it is sent.
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
	req.Header.Set("Idempotency-Key", fmt.Sprintf("payment-%s-%d", event.Tenant, event.Order))
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return sqlreq.Errorf(http.StatusBadGateway, "the shop has answered the webhook with %d: %s", res.StatusCode, answer)
	}
	return nil
}
