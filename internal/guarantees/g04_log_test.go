// G4 No success by accident, and no failure in silence: failures from 500 up are
// logged as errors, those of a client that has gone for debugging, a COMMIT that
// failed as an error all the same.

package guarantees

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// TestG4Log: failures from 500 up are logged with method, path and key; the body has nothing of them.
func TestG4Log(t *testing.T) {
	gone, leave := context.WithCancel(context.Background())
	leave()
	tests := []struct {
		name  string
		ctx   context.Context
		err   error
		level string // "" means no record
		body  string
	}{
		{"500", context.Background(), errors.New("secret"), "ERROR", "Internal Server Error\n"},
		{"502", context.Background(), sqlreq.Errorf(502, "secret"), "ERROR", "Bad Gateway\n"},
		{"404", context.Background(), sqlreq.Errorf(404, "secret"), "", "Not Found\n"},
		{"gone", gone, errors.New("secret"), "DEBUG", "Service Unavailable\n"},
	}
	for _, test := range tests {
		log := &sqlreqtest.Recorder{}
		reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "books", DB: (&fakedb.DB{}).Open(t)})
		reg.Logger = log.Logger()
		o := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if _, err := sqlreq.Key("books").Tx(r.Context()); err != nil && r.Context().Err() == nil {
				t.Error(err)
			}
			return test.err
		})), httptest.NewRequest("PUT", "/shelf?x=1", nil).WithContext(test.ctx))
		if o.Body.String() != test.body {
			t.Errorf("%s: got body %q, want %q", test.name, o.Body, test.body)
		}
		if test.level == "" {
			if len(log.Records()) != 0 {
				t.Errorf("%s: got %v, want no record", test.name, log.Records())
			}
			continue
		}
		want := map[string]string{"level": test.level, "method": "PUT", "path": "/shelf", "key": "books", "attempt": "1", "err": "secret", "msg": "sqlreq: request failed"}
		if len(log.Records()) != 1 || !reflect.DeepEqual(log.Records()[0], want) {
			t.Errorf("%s: got %v, want %v", test.name, log.Records(), want)
		}
	}
}

// TestG4LogOfAHandlersAnswer: its answer stands, the error is logged all the same.
func TestG4LogOfAHandlersAnswer(t *testing.T) {
	log := &sqlreqtest.Recorder{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	reg.Logger = log.Logger()
	sqlreqtest.AskGet(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(503)
		return sqlreqtest.ErrTest
	})), "/")
	if len(log.Records()) != 1 || log.Records()[0]["level"] != "ERROR" || log.Records()[0]["err"] != "test" {
		t.Errorf("got %v, want one record of the error", log.Records())
	}
}

// TestG4LogWhenAnInnerContextEnds: only the client's going makes a failure a
// matter of debugging, not the cancel of a middleware that has returned.
func TestG4LogWhenAnInnerContextEnds(t *testing.T) {
	log := &sqlreqtest.Recorder{}
	outer := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	inner := sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: "inner", DB: (&fakedb.DB{}).Open(t)})
	outer.Logger, inner.Logger = log.Logger(), log.Logger()
	h := inner.Middleware(sqlreq.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return sqlreqtest.ErrTest }))
	o := sqlreqtest.AskGet(outer.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
		defer cancel()
		h.ServeHTTP(w, r.WithContext(ctx))
	})), "/")
	if o.Code != 500 || len(log.Records()) != 1 || log.Records()[0]["level"] != "ERROR" {
		t.Errorf("got %d and %v, want 500 and a record at level ERROR", o.Code, log.Records())
	}
}

func TestG4LoggerAttributes(t *testing.T) {
	tests := map[string]struct {
		key     sqlreq.Key
		attempt int64
		err     error
		stream  bool
	}{
		"an error":               {sqlreqtest.Main, 1, sqlreqtest.ErrTest, false},
		"of the second attempt":  {sqlreqtest.Main, 2, sqlreqtest.ErrTest, false},
		"of COMMIT":              {"other", 1, &sqlreq.CommitError{}, false},
		"after streaming began":  {sqlreqtest.Main, 1, sqlreqtest.ErrTest, true},
		"after several attempts": {sqlreqtest.Main, 2, sqlreqtest.Conflict{}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log sqlreqtest.Recorder
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: sqlreqtest.OpenDB(t)}, sqlreq.Binding{Key: "other", DB: sqlreqtest.OpenDB(t)})
			reg.Logger = log.Logger()
			reg.Retry = sqlreqtest.Retries(2)
			runs := int64(0)
			func() {
				defer func() { _ = recover() }()
				sqlreqtest.Do(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					runs++
					sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, sqlreqtest.InsertWork)
					if tt.stream {
						w.(http.Flusher).Flush()
					}
					if tt.key == "other" {
						sqlreqtest.Exec(t, r.Context(), "other", sqlreqtest.BreakCommit)
						return nil
					}
					if runs < tt.attempt {
						return sqlreqtest.Conflict{}
					}
					return tt.err
				})))
			}()
			all := log.Slog()
			if len(all) != 1 {
				t.Fatalf("%d records, want 1: %v", len(all), all)
			}
			attrs := make(map[string]slog.Value)
			all[0].Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value; return true })
			err, _ := attrs["err"].Any().(error)
			_, isCommit := tt.err.(*sqlreq.CommitError)
			is := errors.Is(err, tt.err)
			if isCommit {
				var c *sqlreq.CommitError
				is = errors.As(err, &c)
			}
			if all[0].Level != slog.LevelError || attrs["method"].String() != "POST" || attrs["path"].String() != "/path" ||
				attrs["key"].String() != string(tt.key) || attrs["attempt"].Int64() != tt.attempt || !is {
				t.Errorf("got %v %v", all[0].Level, attrs)
			}
		})
	}
}

// A COMMIT that failed is somebody's fault, also if its client has gone meanwhile.
func TestG4LogOfACommitWhoseClientHasGone(t *testing.T) {
	for name, explicit := range map[string]bool{"at the end": false, "explicit": true} {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(context.Background())
			d := &fakedb.DB{Commit: func() error { leave(); return sqlreqtest.ErrTest }}
			reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: d.Open(t)})
			var log sqlreqtest.Recorder
			reg.Logger = log.Logger()
			sqlreqtest.Ask(reg.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT")
				if explicit {
					_ = sqlreq.Commit(r.Context())
				}
			})), httptest.NewRequest("POST", "/", nil).WithContext(ctx))
			if all := log.Records(); len(all) != 1 || all[0]["level"] != "ERROR" || !strings.Contains(all[0]["err"], "commit") {
				t.Errorf("got %v, want one record of the commit at level ERROR", all)
			}
		})
	}
}
