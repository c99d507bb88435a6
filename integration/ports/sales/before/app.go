package app

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/jmoiron/sqlx"

	"github.com/sqlreq/sqlreq/integration/ports/sales"
)

type app struct {
	users    UserBusiness
	products *Products
}

// New returns the program.
func New(pool *sql.DB) (http.Handler, error) {
	db := sqlx.NewDb(pool, "sqlite3")
	transaction := BeginCommitRollback(db)
	users := &Audited{&Users{db}, db}
	api := &app{users, &Products{users, db}}

	web := sales.NewApp(sales.Errors, Panics)
	web.HandlerFunc(http.MethodPost, "/users", api.createUser)
	web.HandlerFunc(http.MethodGet, "/users/{id}", api.queryUser)
	web.HandlerFunc(http.MethodPost, "/tran", api.createTran, transaction)
	web.RawHandlerFunc(http.MethodPost, "/users/{id}/products", api.importProducts, transaction)
	return web, nil
}

func (a *app) newWithTx(ctx context.Context) (*app, error) {
	tx, err := GetTran(ctx)
	if err != nil {
		return nil, err
	}
	return &app{a.users.NewWithTx(tx), a.products.NewWithTx(tx)}, nil
}

func (a *app) createUser(ctx context.Context, r *http.Request) sales.Encoder {
	var user sales.User
	if err := sales.Decode(r, &user); err != nil {
		return sales.NewError(http.StatusBadRequest, err)
	}
	if err := a.users.Create(ctx, &user); err != nil {
		return toError(err)
	}
	return sales.JSON{Value: user}
}

func (a *app) queryUser(ctx context.Context, r *http.Request) sales.Encoder {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		return sales.NewError(http.StatusBadRequest, err)
	}
	user, err := a.users.QueryByID(ctx, id)
	if err != nil {
		return toError(err)
	}
	return sales.JSON{Value: user}
}

// createTran creates a user and a product, or none of them.
func (a *app) createTran(ctx context.Context, r *http.Request) sales.Encoder {
	a, err := a.newWithTx(ctx)
	if err != nil {
		return sales.NewError(http.StatusInternalServerError, err)
	}
	var tran sales.NewTran
	if err := sales.Decode(r, &tran); err != nil {
		return sales.NewError(http.StatusBadRequest, err)
	}
	if err := a.users.Create(ctx, &tran.User); err != nil {
		return toError(err)
	}
	tran.Product.UserID = tran.User.ID
	if err := a.products.Create(ctx, &tran.Product); err != nil {
		return toError(err)
	}
	return sales.JSON{Value: tran.Product}
}

// importProducts creates a product for each line of the body, and answers with their numbers and names.
func (a *app) importProducts(w http.ResponseWriter, r *http.Request) {
	a, err := a.newWithTx(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	userID, _ := strconv.Atoi(r.PathValue("id"))
	var created []sales.Product
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		product := sales.Product{UserID: userID, Name: lines.Text()}
		if err := a.products.Create(r.Context(), &product); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		created = append(created, product)
	}
	w.Header().Set("Content-Type", "text/csv")
	w.WriteHeader(http.StatusCreated)
	for _, product := range created {
		fmt.Fprintf(w, "%d,%s\r\n", product.ID, product.Name)
	}
}

func toError(err error) *sales.Error {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, sales.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, sales.ErrUniqueEmail):
		status = http.StatusConflict
	case errors.Is(err, sales.ErrNoName):
		status = http.StatusBadRequest
	}
	return sales.NewError(status, err)
}
