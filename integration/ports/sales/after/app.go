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

	"github.com/sqlreq/sqlreq"
	sqlreqsqlx "github.com/sqlreq/sqlreq/adapters/sqlx"
	"github.com/sqlreq/sqlreq/integration/ports/sales"
)

type app struct {
	users    UserBusiness
	products *Products
}

// New returns the program.
func New(pool *sql.DB) (http.Handler, error) {
	reg, err := sqlreq.New(sqlreq.Binding{DB: pool})
	if err != nil {
		return nil, err
	}
	db := sqlreqsqlx.New(sqlx.NewDb(pool, "sqlite3"), sqlreq.DefaultKey)
	transaction := Transaction(reg)
	users := &Audited{&Users{db}, db}
	api := &app{users, &Products{users, db}}

	web := sales.NewApp(sales.Errors, Panics)
	web.HandlerFunc(http.MethodPost, "/users", api.createUser, transaction)
	web.HandlerFunc(http.MethodGet, "/users/{id}", api.queryUser, transaction)
	web.HandlerFunc(http.MethodPost, "/tran", api.createTran, transaction)
	web.RawHandlerFunc(http.MethodPost, "/users/{id}/products", reg.Middleware(http.HandlerFunc(api.importProducts)).ServeHTTP)
	return web, nil
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
