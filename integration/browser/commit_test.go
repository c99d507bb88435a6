package browser

import (
	"context"
	"database/sql"
	"net/url"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// holdCommits has PostgreSQL wait in the COMMIT of a note until nobody else holds the lock that is named by its title, and
// refuse the COMMIT of one with the title "refused".
const holdCommits = `
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.title = 'refused' THEN
		RAISE EXCEPTION 'refused, and only now';
	END IF;
	PERFORM pg_advisory_xact_lock(hashtext(NEW.title));
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()`

func query[T any](t *testing.T, conn *sql.Conn, statement string, args ...any) (value T) {
	t.Helper()
	if err := conn.QueryRowContext(t.Context(), statement, args...).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// connect connects to a database of the server.
func connect(t *testing.T, dsn string) *sql.Conn {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func execute(t *testing.T, conn *sql.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := conn.ExecContext(context.WithoutCancel(t.Context()), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// newDatabase makes a database on the server that all tests share.
func newDatabase(t *testing.T, name string) (dsn string) {
	t.Helper()
	server := servers.SharedPostgres(t).DSN
	drop := "DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"
	admin := connect(t, server)
	execute(t, admin, drop, "CREATE DATABASE "+name)
	t.Cleanup(func() { execute(t, admin, drop) })
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// TestNotesAnnouncedWhenCommitHasAnswered holds two COMMITs: a window hears of a note when the COMMIT has answered, and
// not while it is under way; and never of one that was refused.
func TestNotesAnnouncedWhenCommitHasAnswered(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t, "sqlreq_browser")
	s := start(t, "notes", "-db", dsn)
	conn := connect(t, dsn)
	execute(t, conn, holdCommits)
	for _, title := range []string{"first", "second"} {
		query[any](t, conn, "SELECT pg_advisory_lock(hashtext($1))", title)
	}
	p := person{t, open(t, Views[0])}
	p.goTo(s.URL+"/", 200)
	p.must(p.Listen())
	listening(t, p.Page)

	if err := postNote(s, "refused", ""); err == nil || !strings.Contains(err.Error(), "500") {
		t.Fatalf("the COMMIT that is refused is answered with %v, want 500", err)
	}
	answers := make(chan error, 2)
	for i, title := range []string{"first", "second"} {
		go func() { answers <- postNote(s, title, "") }()
		for query[int](t, conn, `SELECT count(*) FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND wait_event = 'advisory' AND query ILIKE 'commit%'`) != i+1 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	// Both COMMITs are under way. The second one would have been announced before the first one.
	for _, title := range []string{"first", "second"} {
		query[bool](t, conn, "SELECT pg_advisory_unlock(hashtext($1))", title)
		p.must(p.WaitSaid(title))
		said, err := p.Said()
		p.must(err)
		want := map[string]string{"first": "New: first", "second": "New: first|2 new notes, the last one: second"}[title]
		if got := strings.Join(said, "|"); got != want {
			t.Fatalf("after the COMMIT of the %s note the window has said %q, want %q", title, got, want)
		}
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
}
