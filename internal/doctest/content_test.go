package doctest

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mustSay are the things that a user has to be told, each with the papers that tell
// it and what they say there.
var mustSay = []struct {
	what  string
	where map[string][]string
}{
	{"middlewares that look at the response go outside, where a status is final", map[string][]string{
		"README.md":      {"The order of middlewares, from the outside", "1. Logs, metrics, panic recovery, CORS, compression, sessions", "a 201 that may still become a 500"},
		"docs/limits.md": {"What looks at the response goes outside of Middleware: logs, metrics, CORS, sessions, compression, request IDs. Inside, a status is not final"},
		"doc.go":         {"logs, metrics, CORS, sessions, compression, request IDs", "a status is not final"}}},
	{"recovering middlewares go outside, answer 500 and pass ErrAbortHandler on", map[string][]string{
		"docs/limits.md": {"Recovering middlewares go outside too. They must answer 500 and pass http.ErrAbortHandler on", "commits half the work", "Around a HandlerFunc they are safe anywhere"},
		"doc.go":         {"pass http.ErrAbortHandler on"}}},
	{"caches, coalescing and h2c go outside", map[string][]string{
		"docs/limits.md": {"Caches, middlewares that join equal requests, and h2c.NewHandler go outside"},
		"doc.go":         {"h2c.NewHandler"}}},
	{"wrappers outside need Unwrap", map[string][]string{
		"docs/limits.md": {"A wrapper outside needs an Unwrap method"},
		"doc.go":         {"Unwrap"}}},
	{"errors with the status 200: RollbackOnly, neither Fail nor Rollback", map[string][]string{
		"docs/limits.md": {"gRPC, gRPC-Web, connect's streams, GraphQL, JSON-RPC, MCP", "Call sqlreq.RollbackOnly in an interceptor", "would cost the client its error code", "ends the transaction of one key only"},
		"docs/faq.md":    {"A 200 with an error inside", "sqlreq.RollbackOnly(ctx, err)"},
		"doc.go":         {"RollbackOnly"}}},
	{"each event of a stream is complete before COMMIT", map[string][]string{
		"docs/limits.md": {"Each event of a stream is complete to its reader before COMMIT"},
		"docs/faq.md":    {"The reader sees an event before COMMIT"}}},
	{"a 4xx whose work must stay", map[string][]string{
		"docs/migration.md": {"A 4xx whose work must stay", "failed sign-ins", "so commit it before", "Registry.CommitIf"},
		"docs/faq.md":       {"A 4xx whose work must stay"}}},
	{"an authentication that queries begins the transaction", map[string][]string{
		"README.md":         {"Authentication that queries"},
		"docs/migration.md": {"A query in an authentication middleware begins the request's transaction", "call sqlreq.Commit(ctx) at the end of the authentication, or run it in a reg.Do"}}},
	{"statements of one transaction do not overlap", map[string][]string{
		"docs/migration.md": {"With the drivers for PostgreSQL and MySQL they must not overlap. pgx panics"},
		"docs/databases.md": {"Statements of one transaction must not overlap. pgx panics"}}},
	{"the transaction, not the pool, and all users of a small pool at once", map[string][]string{
		"README.md":         {"In a handler use the transaction or the key, not db"},
		"docs/migration.md": {"Port all users of a small pool at once"},
		"docs/faq.md":       {"May a handler use db as well", "My pool has one connection"}}},
	{"DDL commits on MySQL, also before a retry", map[string][]string{
		"docs/databases.md": {"TRUNCATE, CREATE TABLE and other DDL commit what came before, also before a retry"},
		"docs/limits.md":    {"DDL commits on MySQL, also before a retry"}}},
	{"what is to be known of engines", map[string][]string{"docs/databases.md": {
		"Any driver\" means any with real transactions", "Use go-mssqldb v1.10.0 or newer. Before that, statements after a transaction that the server had aborted were committed one by one",
		"Spanner's driver runs transactions again by itself", "godror's isolation level stays with the connection",
		"TiDB in optimistic mode reports a duplicate key in COMMIT. It has no SERIALIZABLE", "On CockroachDB do not use force_savepoint_restart together with Guard",
		"libSQL's conflicts are text. Set Retry.Retryable", "go-mysql-server isolates nothing. It is no test double",
		"glebarez does not interrupt the first step of a SELECT", "DuckDB's COMMIT reports success in an aborted transaction"}}},
	{"where idempotency has no dialect", map[string][]string{
		"docs/exactly-once.md": {"A dialect would need", "SQL Server, Oracle, DuckDB"},
		"docs/databases.md":    {"has no dialect for SQL Server, Oracle, DuckDB"}}},
	{"session locks stay with the connection", map[string][]string{
		"docs/databases.md": {"What stays with the connection", "session locks"},
		"docs/faq.md":       {"Session locks"}}},
	{"what memory is bounded by", map[string][]string{
		"docs/limits.md": {"requests × (HoldLimit + Retry.BodyLimit + 64 KiB for TxFunc)", "no more than that, which is measured"},
		"doc.go":         {"requests × (HoldLimit + Retry.BodyLimit + 64 KiB for TxFunc)"}}},
	{"settings for SQLite writers", map[string][]string{
		"README.md":         {"_txlock=immediate&_pragma=busy_timeout"},
		"docs/databases.md": {"_txlock=immediate takes the write lock at BEGIN", "busy_timeout lets a writer wait"},
		"docs/faq.md":       {"SQLITE_BUSY"},
		"doc.go":            {"_txlock=immediate"}}},
	{"rows are closed before an explicit Commit; RawBytes", map[string][]string{
		"docs/limits.md": {"Call rows.Close before an explicit Commit", "sql.RawBytes", "for ever"},
		"doc.go":         {"Close rows before an explicit Commit", "sql.RawBytes"}}},
	{"what a retry repeats", map[string][]string{
		"README.md":      {"It does not undo what a handler does elsewhere. A retry does it again"},
		"docs/limits.md": {"A retry repeats everything that the handler does outside of the database"},
		"doc.go":         {"A retry repeats everything"}}},
	{"a client that shuts down its sending side counts as gone", map[string][]string{
		"docs/limits.md": {"A client that shuts down its sending side counts as gone. With a transaction open it gets a 503 and a rollback. net/http alone would answer it"}}},
	{"Transfer-Encoding is removed", map[string][]string{
		"docs/limits.md": {"A Transfer-Encoding that the handler sets is removed"}}},
	{"what the handler changes in its request is not seen outside", map[string][]string{
		"docs/limits.md": {"What the handler assigns to its request is not seen outside. Pattern and MultipartForm are copied back"}}},
	{"the writer always has CloseNotify", map[string][]string{
		"docs/limits.md": {"It always has CloseNotify"}}},
	{"files up to HoldLimit are held", map[string][]string{
		"docs/limits.md": {"Files of up to HoldLimit are held in memory, so sendfile is for larger ones"}}},
	// What the five questions of a reader need from README.md alone.
	{"what it is", map[string][]string{"README.md": {"gives each net/http request one database/sql transaction"}}},
	{"may I use it with X", map[string][]string{"README.md": {
		"net/http:", "chi:", "gin, adapters/gin:", "echo, adapters/echo4 or echo5:", "gorm, adapters/gorm:", "sqlc:", "pgx, adapters/pgx:", "bun:", "sqlx, adapters/sqlx:",
		"connect, adapters/connect:", "gRPC, adapters/grpc:", "A stream has no transaction; call reg.Do for each message", "go get github.com/sqlreq/sqlreq/adapters/gin",
		"PostgreSQL, MySQL, MariaDB, SQLite, and any database/sql driver with real transactions", "pgxpool", "gdb.DB() gives the pool"}}},
	{"what do I change in my code", map[string][]string{"README.md": {"To change a service you have", "Delete Commit and defer tx.Rollback()", "Statements must not overlap", "db takes a second connection", "set Guard: true in the binding then"}}},
	{"what becomes of errors, and who logs them", map[string][]string{
		"README.md":   {"your answer is dropped", "also sql.ErrNoRows", "your answer is sent as it is", "You ignore an error and write a 201", "It must log what it answers", "your own 4xx, or an error"},
		"docs/faq.md": {"Where did the text of my 422 go", "Why are my 500s no longer in the log"},
		"sqlreq.go":   {"also logs it", "With an ErrorHandler"}}},
	{"what does it cost", map[string][]string{"README.md": {"What it costs", "one allocation of 512 bytes", "holds one connection of the pool from its first statement to the end of its handler"}}},
	{"what does it not do", map[string][]string{"README.md": {"What it does not do", "no two-phase commit", "cannot take back a stream", "MayHaveCommitted"}}},
}

func TestPapersSayWhatTheyMust(t *testing.T) {
	repo := os.DirFS(root)
	for _, must := range mustSay {
		if len(must.where) == 0 {
			t.Errorf("nobody tells: %s", must.what)
		}
		for file, phrases := range must.where {
			text, err := read(repo, file)
			if err != nil {
				t.Fatal(err)
			}
			for _, phrase := range phrases {
				if !containsPhrase(text, phrase) {
					t.Errorf("%s: %s has not %q", must.what, file, phrase)
				}
			}
		}
	}
}

// testsIn is a line of docs/guarantees.md: a link to a file, and names of tests in it.
var (
	testsIn  = regexp.MustCompile(`(?m)^- \[[^\]]+\]\(\.\./([^)]+)\): (.+)$`)
	testName = regexp.MustCompile("`(Test\\w+)`")
)

// TestGuaranteesNameTests: each guarantee is named with tests of its own, which are in
// the files that the page says.
func TestGuaranteesNameTests(t *testing.T) {
	repo := os.DirFS(root)
	text, err := read(repo, "docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	guaranteed := make(map[string]bool)
	number := regexp.MustCompile(`^TestG(\d+)`)
	for _, match := range testsIn.FindAllStringSubmatch(text, -1) {
		source, err := read(repo, match[1])
		if err != nil {
			t.Error(err)
			continue
		}
		for _, name := range testName.FindAllStringSubmatch(match[2], -1) {
			if !strings.Contains(source, "\nfunc "+name[1]+"(") {
				t.Errorf("docs/guarantees.md names %s in %s, which has it not", name[1], match[1])
			}
			if n := number.FindStringSubmatch(name[1]); n != nil {
				guaranteed[n[1]] = true
			}
		}
	}
	if len(guaranteed) != 12 {
		t.Errorf("docs/guarantees.md names tests of %d guarantees, want 12", len(guaranteed))
	}
	other := testName.FindAllStringSubmatch(testsIn.ReplaceAllString(text, ""), -1)
	if sources := goSources(t, repo); len(other) > 0 {
		for _, name := range other {
			defined := func(s string) bool { return strings.Contains(s, "\x00func\x00"+name[1]+"\x00") }
			if !slices.ContainsFunc(slices.Collect(maps.Values(sources)), defined) {
				t.Errorf("docs/guarantees.md names %s, which is nowhere", name[1])
			}
		}
	}
}

// exampleLink is an address of an example on pkg.go.dev, which makes the end of it of
// the example's name.
var exampleLink = regexp.MustCompile(`https://pkg\.go\.dev/github\.com/sqlreq/sqlreq(/[\w/]+)?#example-([\w.-]+)`)

// TestLinkedExamplesExist: every example that a paper links to is there.
func TestLinkedExamplesExist(t *testing.T) {
	repo := os.DirFS(root)
	anchors := make(map[string]bool)
	for _, file := range []string{"example_test.go", "idempotency/example_test.go"} {
		text, err := read(repo, file)
		if err != nil {
			if os.IsNotExist(err) {
				continue
			}
			t.Fatal(err)
		}
		for _, name := range exampleNames(t, text) {
			anchors[strings.TrimPrefix(path.Dir(file), ".")+"#"+anchorOfExample(name)] = true
		}
	}
	links := 0
	for _, pattern := range papers {
		files, err := fs.Glob(repo, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := read(repo, file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range exampleLink.FindAllStringSubmatch(text, -1) {
				links++
				if !anchors[strings.TrimPrefix(match[1], "/")+"#"+match[2]] {
					t.Errorf("%s: no example for %s", file, match[0])
				}
			}
		}
	}
	if links < 8 {
		t.Errorf("found %d links to examples: the test reads them wrongly", links)
	}
}

func exampleNames(t *testing.T, text string) (names []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "", text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range doc.Examples([]*ast.File{file}...) {
		names = append(names, e.Name)
	}
	return names
}

// anchorOfExample is pkg.go.dev's rule for the name of an example without "Example":
// what it is of, with dots, and the suffix, which begins with a small letter in Go and
// with a capital there.
func anchorOfExample(name string) string {
	parts := strings.Split(name, "_")
	suffix := ""
	if last := parts[len(parts)-1]; last != "" && last[0] >= 'a' && last[0] <= 'z' {
		suffix, parts = "-"+strings.ToUpper(last[:1])+last[1:], parts[:len(parts)-1]
	}
	of := strings.Join(parts, ".")
	if of == "" {
		of = "package"
	}
	return of + suffix
}
