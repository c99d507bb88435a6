package idempotency

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/repeat"
)

// refuse answers a request that is not done because of its key, and has it roll back
// whatever CommitIf says. What is a server's fault is the registry's to answer.
func (o *Once) refuse(w http.ResponseWriter, r *http.Request, err error) {
	code := sqlreq.StatusCode(err)
	request := repeat.Of(r.Context())
	if o.ErrorHandler == nil && (code >= 500 || request != nil && request.HasErrorHandler()) {
		fail(w, r, err)
		return
	}
	_ = sqlreq.Fail(r.Context(), err) // without a registry there is nothing to roll back
	var later *repeat.Later
	if errors.As(err, &later) {
		w.Header().Set("Retry-After", "1") // seconds
	}
	if o.ErrorHandler != nil {
		rw := &refusal{ResponseWriter: w, code: code}
		if o.ErrorHandler(rw, r, err); rw.answered {
			return
		}
	}
	o.problem(w, code, err)
}

// refusal is the writer of an ErrorHandler.
type refusal struct {
	http.ResponseWriter
	code     int
	answered bool
}

// WriteHeader notes that there is an answer.
func (w *refusal) WriteHeader(status int) {
	w.answered = w.answered || status >= 200
	w.ResponseWriter.WriteHeader(status)
}

// Write has the status of the error where none was set.
func (w *refusal) Write(p []byte) (int, error) {
	if !w.answered {
		w.WriteHeader(w.code)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *refusal) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// problem is the default answer (RFC 9457). Its texts are those of the draft.
func (o *Once) problem(w http.ResponseWriter, code int, err error) {
	title, detail := http.StatusText(code), ""
	name := o.header()
	switch {
	case errors.Is(err, ErrMissing):
		title = name + " is missing"
		detail = "This operation requires the header field " + name + "."
	case errors.Is(err, ErrMalformed):
		title = name + " is malformed"
		detail = "The field has one string in quotes, or one word without quotes, of 1 to 255 characters."
	case errors.Is(err, ErrMismatch):
		title = name + " is already used"
		detail = "The key was used for another request. It must not be used again with another method, path, query or body."
	case errors.Is(err, ErrInProgress):
		title = "A request is outstanding for this " + name
		detail = "A request with the same key is being processed. Repeat this one a little later."
	case errors.Is(err, ErrNotKept):
		title = "The answer for this " + name + " was not kept"
		detail = "The request was done once, and is not done again. Its answer is not known any more."
	}
	body, _ := json.Marshal(struct { // of texts and a number: no error
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}{title, code, detail})
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the client has gone
}
