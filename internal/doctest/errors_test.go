package doctest

// What README.md and docs/faq.md say of errors, with their ErrorHandlers.

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// README.md: Errors.
func answerJSON(reg *sqlreq.Registry) {
	reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) { // errors as JSON
		status := sqlreq.StatusCode(err)
		if status >= 500 {
			slog.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "status", status, "error", err)
		}
		w.Header().Set("Content-Type", "application/json") // the status is that of err
		json.NewEncoder(w).Encode(map[string]string{"error": http.StatusText(status)})
	}
}

// docs/faq.md: the text of a 4xx for the client.
func answerText(reg *sqlreq.Registry) {
	reg.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) {
		status := sqlreq.StatusCode(err)
		text := http.StatusText(status)
		if own := new(sqlreq.StatusError); status < 500 && errors.As(err, &own) {
			text = own.Error() // what you gave to Errorf
		}
		if status >= 500 {
			slog.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
		}
		http.Error(w, text, status)
	}
}

// errorKinds are the ways of a handler to fail, and what each comes to.
var errorKinds = map[string]struct {
	handler          sqlreq.HandlerFunc
	code, rows       int
	text, own        string // what the default says, and answerText
	log, handlersLog string // the level of the line of sqlreq, and of that of an ErrorHandler
	stands           bool   // the answer is the handler's own
}{
	"an error": {func(w http.ResponseWriter, r *http.Request) error {
		add(r)
		fmt.Fprint(w, "done")
		return errors.New("on purpose")
	}, 500, 0, "Internal Server Error", "Internal Server Error", "ERROR", "ERROR", false},
	"no rows": {func(_ http.ResponseWriter, r *http.Request) error {
		return sqlreq.DefaultKey.QueryRowContext(r.Context(), `SELECT 1 WHERE 1 = 0`).Scan(new(int))
	}, 500, 0, "Internal Server Error", "Internal Server Error", "ERROR", "ERROR", false},
	"Errorf": {func(_ http.ResponseWriter, r *http.Request) error {
		add(r)
		id, err := 7, sql.ErrNoRows
		return sqlreq.Errorf(404, "note %d: %w", id, err)
	}, 404, 0, "Not Found", "note 7: sql: no rows in result set", "DEBUG", "", false},
	"an own 404": {func(w http.ResponseWriter, r *http.Request) error {
		add(r)
		own(w)
		return nil
	}, 404, 0, `{"mine":1}`, `{"mine":1}`, "", "", true},
	"an own 404 and an error": {func(w http.ResponseWriter, r *http.Request) error {
		add(r)
		own(w)
		return errors.New("on purpose")
	}, 404, 0, `{"mine":1}`, `{"mine":1}`, "DEBUG", "", true},
	"an error that is ignored": {func(w http.ResponseWriter, r *http.Request) error {
		add(r)
		if _, err := sqlreq.DefaultKey.ExecContext(r.Context(), `INSERT INTO work (note) VALUES (NULL)`); err == nil {
			return errors.New("NULL is accepted")
		}
		w.WriteHeader(201)
		return nil
	}, 201, 1, "", "", "", "", true},
	"a COMMIT that fails": {func(w http.ResponseWriter, r *http.Request) error {
		_, err := sqlreq.DefaultKey.ExecContext(r.Context(), sqlreqtest.BreakCommit)
		w.WriteHeader(201)
		return err
	}, 500, 0, "Internal Server Error", "Internal Server Error", "ERROR", "ERROR", false},
}

// add adds a row in the request's transaction. Without it the count of rows is wrong.
func add(r *http.Request) {
	_, _ = sqlreq.DefaultKey.ExecContext(r.Context(), sqlreqtest.InsertWork)
}

func own(w http.ResponseWriter) { http.Error(w, `{"mine":1}`, http.StatusNotFound) }

// TestErrorsOfTheReadme: what a client gets for each kind of error, what of it is
// committed, and which lines are in the log, without an ErrorHandler and with the
// two of the pages.
func TestErrorsOfTheReadme(t *testing.T) {
	for name, kind := range errorKinds {
		for _, set := range []struct {
			name string
			on   func(*sqlreq.Registry)
		}{{"default", func(*sqlreq.Registry) {}}, {"JSON", answerJSON}, {"text", answerText}} {
			t.Run(name+"/"+set.name, func(t *testing.T) {
				db := sqlreqtest.OpenDB(t)
				reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
				set.on(reg)
				var sqlreqs, handlers strings.Builder
				reg.Logger = levels(&sqlreqs)
				defer slog.SetDefault(slog.Default())
				slog.SetDefault(levels(&handlers))
				rec := sqlreqtest.Do(reg.Middleware(kind.handler))

				text, log, handlersLog := kind.text, kind.log, ""
				if set.name != "default" {
					handlersLog = kind.handlersLog
					if name != "a COMMIT that fails" && !kind.stands {
						log = "" // what the ErrorHandler answers it logs
					}
				}
				switch {
				case set.name == "JSON" && !kind.stands:
					text = `{"error":"` + text + `"}`
				case set.name == "text":
					text = kind.own
				}
				if got := strings.TrimSpace(rec.Body.String()); rec.Code != kind.code || got != text {
					t.Errorf("got %d %q, want %d %q", rec.Code, got, kind.code, text)
				}
				if n := sqlreqtest.Count(t, db, "work"); n != kind.rows {
					t.Errorf("%d rows, want %d", n, kind.rows)
				}
				if levelsIn(&sqlreqs) != log || levelsIn(&handlers) != handlersLog {
					t.Errorf("logged %q, and the ErrorHandler %q, want %q and %q", levelsIn(&sqlreqs), levelsIn(&handlers), log, handlersLog)
				}
			})
		}
	}
}

// levels returns a logger that writes the level of each line.
func levels(to io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key != slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func levelsIn(b *strings.Builder) string {
	return strings.ReplaceAll(strings.TrimSpace(b.String()), "level=", "")
}
