package main

import (
	"bytes"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/examples/orders/internal/web"
)

//go:embed templates
var files embed.FS

var (
	homePage  = web.Parse(files, "templates/home.html")
	shopPage  = web.Parse(files, "templates/shop.html")
	orderPage = web.Parse(files, "templates/order.html")
)

func (s *server) home(w http.ResponseWriter, r *http.Request) error {
	return web.Render(w, r, http.StatusOK, homePage, tenant.All)
}

// orderForm is the form as it is shown: for a new order, or as it was sent, with what is wrong about it.
type orderForm struct {
	Tenant   string
	Products []shop.Product
	Key      string // of the order that the form places, however often it is sent
	Product  int64
	Quantity string
	Problem  string
}

// keyField is the form's field with its key.
const keyField = "idempotency_key"

func (s *server) shopPage(w http.ResponseWriter, r *http.Request) error {
	return s.renderShop(w, r, http.StatusOK, orderForm{Key: rand.Text(), Product: 1, Quantity: "1"})
}

func (s *server) renderShop(w http.ResponseWriter, r *http.Request, code int, form orderForm) (err error) {
	form.Tenant = tenant.Of(r.Context())
	if form.Products, err = s.store.Products(r.Context()); err != nil {
		return err
	}
	return web.Render(w, r, code, shopPage, form)
}

// placeOrder answers a form with a redirect. That answer is kept like that of the API: the same form leads to the same
// order.
func (s *server) placeOrder(w http.ResponseWriter, r *http.Request) error {
	product, errProduct := strconv.ParseInt(r.PostFormValue("product"), 10, 64)
	quantity, errQuantity := strconv.ParseInt(r.PostFormValue("quantity"), 10, 64)
	// A number that is too large for us is one still: the shop says what is wrong about it.
	var err error
	if errors.Is(errProduct, strconv.ErrSyntax) || errors.Is(errQuantity, strconv.ErrSyntax) {
		err = sqlreq.Errorf(http.StatusUnprocessableEntity, "The product and the quantity are numbers.")
	}
	var order shop.Order
	if err == nil {
		order, err = s.shop.PlaceOrder(r.Context(), product, quantity)
	}
	if status := (*sqlreq.StatusError)(nil); errors.As(err, &status) {
		// A page of our own for this error, with the form filled in. Its status rolls back as the error would; the
		// form's key is as new.
		return s.renderShop(w, r, status.Code, orderForm{
			Key: r.PostFormValue(keyField), Product: product, Quantity: r.PostFormValue("quantity"), Problem: web.Message(err),
		})
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, fmt.Sprintf("/%s/orders/%d", order.Tenant, order.ID), http.StatusSeeOther)
	return nil
}

// ordersPage is for somebody who asks again for the address of a form that was refused: it leads to the shop.
func (s *server) ordersPage(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, "/"+tenant.Of(r.Context())+"/", http.StatusSeeOther)
	return nil
}

func (s *server) orderPage(w http.ResponseWriter, r *http.Request) error {
	order, err := s.order(r)
	if err != nil {
		return err
	}
	return web.Render(w, r, http.StatusOK, orderPage, map[string]any{"Order": order})
}

// keyFromForm copies the form's key to the header, where package idempotency looks for it: a form cannot set one.
func keyFromForm(next http.Handler) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/x-www-form-urlencoded" {
			return sqlreq.Errorf(http.StatusUnsupportedMediaType, "This is not the form of an order.")
		}
		body, err := readBody(r)
		if err != nil {
			return err
		}
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return sqlreq.Errorf(http.StatusBadRequest, "The form could not be read: %w.", err)
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
		if key := form.Get(keyField); key != "" {
			r.Header.Set("Idempotency-Key", key)
		}
		next.ServeHTTP(w, r)
		return nil
	})
}
