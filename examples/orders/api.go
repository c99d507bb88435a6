package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/examples/orders/internal/web"
)

func (s *server) listProducts(w http.ResponseWriter, r *http.Request) error {
	products, err := s.store.Products(r.Context())
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, map[string]any{"products": products})
}

// createOrder says 201 to an order that is committed: the answer is held until then. A client that has not heard it sends
// the request again with the same Idempotency-Key, and gets the same answer.
func (s *server) createOrder(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Product  int64 `json:"product"`
		Quantity int64 `json:"quantity"`
	}
	if err := decode(r.Body, &in); err != nil {
		return err
	}
	order, err := s.shop.PlaceOrder(r.Context(), in.Product, in.Quantity)
	if err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/%s/api/orders/%d", order.Tenant, order.ID))
	return web.JSON(w, http.StatusCreated, map[string]int64{
		"id": order.ID, "product": order.Product, "quantity": order.Quantity, "total": order.Total,
	})
}

func (s *server) getOrder(w http.ResponseWriter, r *http.Request) error {
	order, err := s.order(r)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, order)
}

func (s *server) stats(w http.ResponseWriter, r *http.Request) error {
	stats, err := s.store.Stats(r.Context())
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, stats)
}

// order finds the order that the path names.
func (s *server) order(r *http.Request) (shop.Order, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return shop.Order{}, shop.ErrNoOrder
	}
	order, err := s.store.Order(r.Context(), id)
	order.Tenant = tenant.Of(r.Context())
	return order, err
}

// readBody reads all of a request's body. That it cannot be read is the client's mistake; one beyond the limit stays the 413
// that it is.
func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err == nil || errors.As(err, new(*http.MaxBytesError)) {
		return body, err
	}
	return nil, sqlreq.Errorf(http.StatusBadRequest, "The body could not be read: %w.", err)
}

// decode reads exactly one JSON value. A body beyond the limit stays the 413 that it is.
func decode(body io.Reader, v any) error {
	err := decodeOne(body, v)
	if err == nil || errors.As(err, new(*http.MaxBytesError)) {
		return err
	}
	return sqlreq.Errorf(http.StatusBadRequest, "This is not the JSON that is expected: %w.", err)
}

func decodeOne(body io.Reader, v any) error {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	// The error's own text names types of Go.
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("got %s for %s", wrong.Value, cmp.Or(wrong.Field, "the whole"))
	}
	if err == io.EOF {
		return errors.New("it is empty")
	}
	if err != nil {
		return err
	}
	switch _, err := dec.Token(); {
	case err == io.EOF:
		return nil
	case errors.As(err, new(*http.MaxBytesError)):
		return err
	}
	return errors.New("there is something after it")
}
