package pgx

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var regenerate = flag.Bool("sqlc", false, "generate the code of notesdb anew, which takes minutes, and compare it")

// sqlc is the version that has generated the code; it is in the head of its files.
const sqlc = "github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1"

// The code of notesdb is what sqlc generates: go test -run TestSqlcGenerated -sqlc.
func TestSqlcGenerated(t *testing.T) {
	generated, err := filepath.Glob("notesdb/*.go")
	if err != nil || len(generated) == 0 {
		t.Fatal("no generated code", err)
	}
	if !*regenerate {
		return
	}
	dir := t.TempDir()
	for _, name := range []string{"sqlc.yaml", "schema.sql", "queries.sql"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", sqlc, "generate", "-f", filepath.Join(dir, "sqlc.yaml"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range generated {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != string(want) {
			t.Errorf("%s is not what sqlc generates (%v)", name, err)
		}
	}
}
