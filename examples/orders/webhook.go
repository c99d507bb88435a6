package main

import (
	"bytes"
	"context"
	"io"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/provider"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/examples/orders/internal/web"
)

type eventKey struct{}

// ofEvent reads a webhook's body before there is a transaction: it names the tenant, for which BEGIN is to work. A sender's
// signature would be checked here too.
func ofEvent(next http.Handler) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		body, err := readBody(r)
		if err != nil {
			return err
		}
		var event provider.Event
		if err := decode(bytes.NewReader(body), &event); err != nil {
			return err
		}
		if !tenant.Known(event.Tenant) {
			return sqlreq.Errorf(http.StatusUnprocessableEntity, "There is no such tenant.")
		}
		ctx := context.WithValue(tenant.With(r.Context(), event.Tenant), eventKey{}, event)
		r = r.WithContext(ctx)
		r.Body = io.NopCloser(bytes.NewReader(body)) // idempotency compares it with that of a repeat
		next.ServeHTTP(w, r)
		return nil
	})
}

// paymentReceived books a payment. It is called once for each event, however often the provider sends it.
func (s *server) paymentReceived(w http.ResponseWriter, r *http.Request) error {
	event := r.Context().Value(eventKey{}).(provider.Event)
	if err := s.shop.Receive(r.Context(), event.Order, event.Amount); err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, map[string]string{"status": "received"})
}
