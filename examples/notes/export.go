package main

import (
	"encoding/csv"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq"
)

// export streams all notes, however many there are, out of open rows: they stay open while the answer is already
// under way, and an error in the middle breaks the download off, so that nobody takes half of it for the whole.
//
// While it lasts it holds a connection of the pool, and its client decides how fast it reads. So there are few
// downloads at a time, and none takes for ever.
func (s *server) export(w http.ResponseWriter, r *http.Request) error {
	select {
	case s.exports <- struct{}{}:
		defer func() { <-s.exports }()
	default:
		return sqlreq.Errorf(http.StatusServiceUnavailable, "Others are downloading just now.")
	}
	if err := allow(w, 2*time.Minute); err != nil {
		return err
	}

	rows, err := sqlreq.DefaultKey.QueryContext(r.Context(),
		`SELECT id, title, body, tags, created_at FROM tagged_notes ORDER BY id`)
	if err != nil {
		return err
	}
	defer rows.Close()

	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="notes.csv"`)
	out := csv.NewWriter(w)
	if err := out.Write([]string{"id", "title", "body", "tags", "created_at"}); err != nil {
		return err
	}
	for rows.Next() {
		var (
			id                int64
			title, body, tags string
			created           time.Time
		)
		if err := rows.Scan(&id, &title, &body, &tags, &created); err != nil {
			return err
		}
		if err := out.Write([]string{
			strconv.FormatInt(id, 10), cell(title), cell(body), cell(tags), created.UTC().Format(time.RFC3339),
		}); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	out.Flush()
	return out.Error()
}

// allow replaces the server's time limits for this request. The one for reading counts too: when it passes, net/http
// takes the client for gone and cancels the request's context.
func allow(w http.ResponseWriter, d time.Duration) error {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return rc.SetWriteDeadline(time.Now().Add(d))
}

// Spreadsheets run a cell that begins like this as a formula (CWE-1236). An apostrophe in front makes it text; text
// that begins with an apostrophe itself gets a second one, so that uncell finds back what was there.
const formula = "=+-@\t\r\n'"

func cell(s string) string {
	if s != "" && strings.ContainsRune(formula, rune(s[0])) {
		return "'" + s
	}
	return s
}

func uncell(s string) string {
	if len(s) > 1 && s[0] == '\'' && strings.ContainsRune(formula, rune(s[1])) {
		return s[1:]
	}
	return s
}
