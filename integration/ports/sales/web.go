// Package sales is what the editions of a program have in common: its framework and its models. It is written in the
// shape of service by Ardan Labs (https://github.com/ardanlabs/service, Apache License 2.0), which teaches a framework of
// one's own: a handler returns its answer, which the framework writes, and a middleware of the framework begins, commits
// and rolls back by hand.
package sales

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
)

// Encoder is an answer.
type Encoder interface {
	Encode() (data []byte, contentType string, err error)
}

// HandlerFunc handles a request.
type HandlerFunc func(ctx context.Context, r *http.Request) Encoder

// MidFunc is a middleware.
type MidFunc func(HandlerFunc) HandlerFunc

// App is the framework.
type App struct {
	mux *http.ServeMux
	mw  []MidFunc
}

// NewApp returns an App with middlewares for all routes, the outermost first.
func NewApp(mw ...MidFunc) *App { return &App{http.NewServeMux(), mw} }

func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Strict-Transport-Security", "max-age=63072000")
	a.mux.ServeHTTP(w, r)
}

type writerKey struct{}

// HandlerFunc registers a handler, whose answer is written when all middlewares have returned.
func (a *App) HandlerFunc(method, path string, handler HandlerFunc, mw ...MidFunc) {
	handler = wrap(a.mw, wrap(mw, handler))
	a.mux.HandleFunc(method+" "+path, func(w http.ResponseWriter, r *http.Request) {
		respond(w, handler(context.WithValue(r.Context(), writerKey{}, w), r))
	})
}

// RawHandlerFunc registers a handler that writes its answer.
func (a *App) RawHandlerFunc(method, path string, raw http.HandlerFunc, mw ...MidFunc) {
	handler := wrap(a.mw, wrap(mw, func(ctx context.Context, r *http.Request) Encoder {
		raw(ctx.Value(writerKey{}).(http.ResponseWriter), r.WithContext(ctx))
		return nil
	}))
	a.mux.HandleFunc(method+" "+path, func(w http.ResponseWriter, r *http.Request) {
		handler(context.WithValue(r.Context(), writerKey{}, w), r)
	})
}

func wrap(mw []MidFunc, handler HandlerFunc) HandlerFunc {
	for i := len(mw) - 1; i >= 0; i-- {
		handler = mw[i](handler)
	}
	return handler
}

func respond(w http.ResponseWriter, resp Encoder) {
	status := http.StatusOK
	if s, ok := resp.(interface{ HTTPStatus() int }); ok {
		status = s.HTTPStatus()
	}
	data, contentType, err := resp.Encode()
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

// Decode reads the JSON of a request.
func Decode(r *http.Request, v any) error { return json.NewDecoder(r.Body).Decode(v) }

// JSON is an answer of any value.
type JSON struct{ Value any }

// Encode encodes the value.
func (j JSON) Encode() ([]byte, string, error) {
	data, err := json.Marshal(j.Value)
	return data, "application/json", err
}

// Error is an error that is an answer.
type Error struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// HTTPStatus is the status of the answer.
func (e *Error) HTTPStatus() int { return e.Status }

// Encode encodes the error.
func (e *Error) Encode() ([]byte, string, error) { return JSON{e}.Encode() }

// NewError returns an Error whose code is the name of the status.
func NewError(status int, err error) *Error {
	return &Error{status, http.StatusText(status), err.Error()}
}

// CheckIsError returns the error that an answer is, nil if it is none.
func CheckIsError(resp Encoder) error {
	err, _ := resp.(error)
	return err
}

// Errors is a middleware that logs errors, and hides the text of those that are the server's fault.
func Errors(next HandlerFunc) HandlerFunc {
	return func(ctx context.Context, r *http.Request) Encoder {
		resp := next(ctx, r)
		err := CheckIsError(resp)
		if err == nil {
			return resp
		}
		slog.ErrorContext(ctx, "handled error during request", "err", err)
		status := http.StatusInternalServerError
		var told *Error
		if errors.As(err, &told) {
			status = told.Status
		}
		if status >= http.StatusInternalServerError {
			return NewError(status, errors.New("the server has failed"))
		}
		return resp
	}
}
