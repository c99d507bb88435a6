package idempotency

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/repeat"
)

// Once keeps, for each key, that its work is done once and what was answered. Its
// fields are set before the first use, like those of [http.Server]; a mistake in them
// panics in Handler and Do. After that it may be used from several goroutines at once. Use
// one Once for a table: it knows the keys that are in progress in this process, so that
// repeats wait without a connection.
type Once struct {
	// Dialect is that of the database: SQLite, PostgreSQL or MySQL. The zero Dialect is the
	// one that the type of the driver tells, also below a wrapper, and for a
	// [sqlreq.Binding] with a Route that of the pool that it has chosen. Where the driver is
	// not known, or its database is none of the three (SQL Server, Oracle, DuckDB), CreateTable
	// and Clean return an error that says so, and so do Do and each request with a key, as
	// soon as the transaction has begun. One that is set is used whatever the driver is.
	Dialect Dialect

	// Scope tells who asks: the user, a tenant; not a token that is renewed. Keys of
	// different scopes have nothing to do with each other, byte by byte. It is called
	// before the database is used, for requests with a key only. Its error is that of the
	// request. "" is a scope too. It has up to 255 bytes of UTF-8 without NUL; anything
	// else is a 500. Handler requires it.
	Scope func(*http.Request) (string, error)

	// Header is the field with the key; "" means Idempotency-Key. Senders with ids of
	// their own use others: webhook-id, X-GitHub-Delivery, PayPal-Request-Id.
	Header string

	// Database is the key of the database of the work, and of the record; "" means
	// sqlreq.DefaultKey.
	Database sqlreq.Key

	// Table is that of the records; "" means idempotency_keys. It has letters, digits,
	// _ and one dot for a schema, and is never quoted.
	Table string

	// Required refuses unsafe requests without a key, with ErrMissing.
	Required bool

	// Limit is how many bytes of an answer's body are kept; 0 means 1 MiB. A larger
	// one is sent as ever, and a repeat of its request gets ErrNotKept.
	Limit int64

	// Wait is how long a request waits for one with the same key that is in progress;
	// 0 means 10 s. Then it gets ErrInProgress.
	Wait time.Duration

	// ErrorHandler answers a request that is refused because of its key: with one of
	// this package's errors, or that of Scope. Retry-After is set already. A Write without
	// WriteHeader has the status of the error, and if nothing is written the default
	// answer is given. nil means that of the registry if it has one, otherwise
	// application/problem+json (RFC 9457). What the database fails in is answered by the
	// registry in any case, which may run the request again.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)

	setUp   sync.Once
	sql     [MySQL + 1]statements // of each Dialect that may be needed; written by setUp
	flights flights               // the keys in progress in this process
}

// The errors of requests that are refused because of their key.
var (
	// ErrMissing: a key is required, and the request has none.
	ErrMissing error = &sqlreq.StatusError{Code: http.StatusBadRequest, Err: errors.New("idempotency: the request has no idempotency key")}
	// ErrMalformed: the key is no structured-field string (RFC 9651) and no bare word, or
	// there are several.
	ErrMalformed error = &sqlreq.StatusError{Code: http.StatusBadRequest, Err: errors.New("idempotency: the idempotency key is malformed")}
	// ErrMismatch: the key was used for another request.
	ErrMismatch error = &sqlreq.StatusError{Code: http.StatusUnprocessableEntity, Err: errors.New("idempotency: the idempotency key was used for another request")}
	// ErrInProgress: another request, or Do, with the key has not ended. It is answered
	// with Retry-After.
	ErrInProgress error = &sqlreq.StatusError{Code: http.StatusConflict, Err: &repeat.Later{Text: "idempotency: another use of the idempotency key is in progress"}}
	// ErrNotKept: the request was done, but its answer was too large to keep, or the
	// connection was hijacked.
	ErrNotKept error = &sqlreq.StatusError{Code: http.StatusGone, Err: errors.New("idempotency: the request was done, its answer was not kept")}
)

const defaultHeader = "Idempotency-Key"

// prepare checks the fields, and computes at the first call what follows from them.
func (o *Once) prepare() {
	switch {
	case o == nil:
		panic("idempotency: the *Once is nil")
	case o.Dialect != 0 && !o.Dialect.valid():
		panic(fmt.Sprintf("idempotency: Once.Dialect is %d; choose SQLite, PostgreSQL or MySQL, or leave it zero and the driver tells", o.Dialect))
	case o.Header != "" && !isToken(o.Header):
		panic(fmt.Sprintf("idempotency: Once.Header %q is no name of a header field", o.Header))
	case o.Limit < 0:
		panic("idempotency: Once.Limit is negative; 0 means 1 MiB")
	case o.Wait < 0:
		panic("idempotency: Once.Wait is negative; 0 means 10 s")
	}
	checkTable("Once.Table", o.table())
	o.setUp.Do(func() {
		for d := SQLite; d <= MySQL; d++ {
			if o.Dialect == 0 || o.Dialect == d {
				o.sql[d] = d.statements(o.table())
			}
		}
	})
}

func (o *Once) header() string {
	if o.Header == "" {
		return defaultHeader
	}
	return textproto.CanonicalMIMEHeaderKey(o.Header)
}

func (o *Once) database() sqlreq.Key {
	if o.Database == "" {
		return sqlreq.DefaultKey
	}
	return o.Database
}

func (o *Once) table() string {
	if o.Table == "" {
		return defaultTable
	}
	return o.Table
}

func (o *Once) limit() int64 {
	if o.Limit == 0 {
		return 1 << 20
	}
	return o.Limit
}

func (o *Once) wait() time.Duration {
	if o.Wait == 0 {
		return 10 * time.Second
	}
	return o.Wait
}

// checkText returns an error if s cannot be a scope, or an id of Do: every database
// keeps up to 255 bytes of UTF-8 without NUL as they are.
func checkText(what, s string) error {
	switch {
	case len(s) > maxText:
		return fmt.Errorf("idempotency: %s has %d bytes, at most %d are allowed; use a hash of it", what, len(s), maxText)
	case !utf8.ValidString(s):
		return fmt.Errorf("idempotency: %s is no valid UTF-8; use a hash of it", what)
	}
	for i := range len(s) {
		if s[i] == 0 {
			return fmt.Errorf("idempotency: %s has a NUL byte; use a hash of it", what)
		}
	}
	return nil
}

const maxText = 255
