// Package web is what all pages and answers have in common, those of the mounted admin application too: the layout, the
// style, and how an error looks.
package web

import (
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/idempotency"
)

//go:embed layout.html error.html
var files embed.FS

//go:embed style.css icon.svg
var static embed.FS

// Static serves the style and the icon. They are asked for by name: a folder is none.
func Static() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if info, err := fs.Stat(static, r.URL.Path); err != nil || info.IsDir() {
			Error(w, r, sqlreq.Errorf(http.StatusNotFound, "There is no such file."))
			return
		}
		http.ServeFileFS(w, r, static, r.URL.Path)
	})
}

var layout = template.Must(template.New("").Funcs(template.FuncMap{"money": shop.Money, "name": Name}).ParseFS(files, "layout.html"))

var errorPage = Parse(files, "error.html")

// Parse returns a page of a file that defines "title" and "main". It panics if there is a mistake in it.
func Parse(fsys fs.FS, name string) *template.Template {
	return template.Must(template.Must(layout.Clone()).ParseFS(fsys, name))
}

// Name is what a tenant calls itself.
func Name(tenant string) string { return strings.ToUpper(tenant[:1]) + tenant[1:] }

type link struct{ URL, Text, Class, Current string }

func links(r *http.Request) []link {
	all := []link{{URL: "/", Text: "Orders", Class: "brand"}}
	for _, name := range tenant.All {
		all = append(all, link{URL: "/" + name + "/", Text: Name(name)})
	}
	all = append(all, link{URL: "/admin/", Text: "Admin", Class: "out"})
	here := sqlreq.Prefix(r.Context()) + r.URL.Path
	for i := range all {
		switch {
		case here == all[i].URL:
			all[i].Current = "page"
		case all[i].URL != "/" && strings.HasPrefix(here, all[i].URL):
			all[i].Current = "true"
		}
	}
	return all
}

// Render writes straight to w. A template that fails half-way does no harm: what it has written is held back until the
// transaction is committed, and replaced by the error page.
func Render(w http.ResponseWriter, r *http.Request, code int, page *template.Template, data any) error {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// A browser that goes back shows the page that it has, with the key of its form.
	w.Header().Set("Cache-Control", "private, no-cache")
	w.WriteHeader(code)
	return page.ExecuteTemplate(w, "layout", struct {
		Links []link
		Data  any
	}{links(r), data})
}

// JSON writes an answer of the API.
func JSON(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	return json.NewEncoder(w).Encode(v)
}

// Error is the one place where an error becomes an answer. When it is called the transaction has been rolled back and
// nothing of what the handler wrote is left.
func Error(w http.ResponseWriter, r *http.Request, err error) {
	code := sqlreq.StatusCode(err)
	path := sqlreq.Prefix(r.Context()) + r.URL.Path // as the client named it, also in an application that is mounted
	if code >= 500 && r.Context().Err() == nil {
		slog.ErrorContext(r.Context(), "orders: request failed", "method", r.Method, "path", path, "status", code, "error", err)
	}
	if isAPI(r) {
		JSON(w, code, map[string]string{"error": Message(err)})
		return
	}
	kept := "Nothing of this request was kept."
	switch {
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		kept = ""
	case errors.Is(err, idempotency.ErrMismatch):
		kept = "Nothing else was ordered. For another order, load the shop's page again."
	case sqlreq.MayHaveCommitted(err):
		kept = "Whether this request was stored is not known. Sending the same form again is safe: it orders once."
	case code == http.StatusBadGateway:
		kept = "Whether the payment was booked is not known. Paying again is safe: it is booked once."
	}
	home := "/"
	if name, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/"); tenant.Known(name) || name == "admin" {
		home += name + "/"
	}
	if err := Render(w, r, code, errorPage, map[string]any{"Code": code, "Message": Message(err), "Kept": kept, "Home": home}); err != nil {
		slog.ErrorContext(r.Context(), "orders: error page", "error", err)
	}
}

// isAPI says whether a program has sent the request.
func isAPI(r *http.Request) bool {
	return strings.Contains(r.URL.Path, "/api/") || strings.HasPrefix(r.URL.Path, "/webhooks/")
}

// texts are for the errors that were not written for clients of this service.
var texts = map[error]string{
	idempotency.ErrMissing:    "The request has no Idempotency-Key.",
	idempotency.ErrMalformed:  "The Idempotency-Key is malformed.",
	idempotency.ErrMismatch:   "This key has come with another request already.",
	idempotency.ErrInProgress: "The same request is still under way.",
	idempotency.ErrNotKept:    "The request was done, but its answer was not kept.",
}

// Message is what the client may read of an error: the text of a StatusError was written for it, any other is for the
// log only.
func Message(err error) string {
	for known, text := range texts {
		if errors.Is(err, known) {
			return text
		}
	}
	var status *sqlreq.StatusError
	if errors.As(err, &status) && status.Code < 500 {
		return status.Err.Error()
	}
	return http.StatusText(sqlreq.StatusCode(err))
}
