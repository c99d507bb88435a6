package doctest

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// rowModules are the modules whose versions a row of the matrix in docs/frameworks.md
// names, in their order. Rows without are of no module: net/http, and what sqlc generates.
var rowModules = map[string][]string{
	"gin":                           {"github.com/gin-gonic/gin"},
	"echo 4":                        {"github.com/labstack/echo/v4"},
	"echo 5":                        {"github.com/labstack/echo/v5"},
	"chi":                           {"github.com/go-chi/chi/v5"},
	"huma":                          {"github.com/danielgtaylor/huma/v2"},
	"oapi-codegen":                  {"github.com/oapi-codegen/oapi-codegen/v2"},
	"gorm":                          {"gorm.io/gorm"},
	"sqlx":                          {"github.com/jmoiron/sqlx"},
	"bun":                           {"github.com/uptrace/bun"},
	"sqlc":                          nil,
	"pgx":                           {"github.com/jackc/pgx/v5"},
	"River, scany, squirrel":        {"github.com/riverqueue/river", "github.com/georgysavva/scany/v2", "github.com/Masterminds/squirrel"},
	"connect":                       {"connectrpc.com/connect"},
	"grpc-go":                       {"google.golang.org/grpc"},
	"gqlgen":                        {"github.com/99designs/gqlgen"},
	"templ":                         {"github.com/a-h/templ"},
	"datastar":                      {"github.com/starfederation/datastar-go"},
	"MCP (go-sdk)":                  {"github.com/modelcontextprotocol/go-sdk"},
	"gin-contrib/gzip, echo's Gzip": {"github.com/gin-contrib/gzip", "github.com/labstack/echo/v4", "github.com/labstack/echo/v5"},
	"sentry (gin, echo 5)":          {"github.com/getsentry/sentry-go"},
	"OpenTelemetry, otelhttp":       {"go.opentelemetry.io/otel", "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"},
	"scs":                           {"github.com/alexedwards/scs/v2"},
	"gorilla/handlers, gziphandler, go-http-metrics, negroni": {"github.com/gorilla/handlers", "github.com/NYTimes/gziphandler", "github.com/slok/go-http-metrics", "github.com/urfave/negroni/v3"},
	"twirp":                              {"github.com/twitchtv/twirp"},
	"gorilla/websocket, coder/websocket": {"github.com/gorilla/websocket", "github.com/coder/websocket"},
	"`http.TimeoutHandler`, `httputil.ReverseProxy`, `http.FileServer`": nil,
}

// recipes is where the tests are that are named without a folder.
const recipes = "integration/recipes"

// TestMatrixOfFrameworks: each row of the matrix names the versions that are required
// where its tests are, and tests that are there, in a folder that uses the library. Each
// adapter has a row. So a row cannot be true of another version, or of no program at all.
func TestMatrixOfFrameworks(t *testing.T) {
	repo := os.DirFS(root)
	text, err := read(repo, "docs/frameworks.md")
	if err != nil {
		t.Fatal(err)
	}
	faults, rows := checkMatrix(repo, text)
	for _, fault := range faults {
		t.Error(fault)
	}
	if rows != len(rowModules) {
		t.Errorf("docs/frameworks.md has %d rows, this test knows %d", rows, len(rowModules))
	}
	adapters, err := fs.Glob(repo, "adapters/*/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, mod := range adapters {
		if link := "../" + path.Dir(mod) + "/README.md"; !strings.Contains(text, "("+link+")") {
			t.Errorf("docs/frameworks.md has no row that links to %s", link)
		}
	}
}

// checkMatrix returns what is wrong with the rows, and how many there are.
func checkMatrix(repo fs.FS, text string) (faults []string, rows int) {
	_, table, _ := strings.Cut(text, "\n# What goes where\n")
	table, _, _ = strings.Cut(table, "\n# ")
	for line := range strings.Lines(table) {
		row, isRow := strings.CutPrefix(line, "| ")
		if !isRow || strings.HasPrefix(row, "library |") || strings.HasPrefix(row, "--- |") {
			continue
		}
		rows++
		cells := strings.Split(row, "|")
		if len(cells) != 7 { // with what is behind the last bar
			faults = append(faults, "docs/frameworks.md has a row without six cells: "+line)
			continue
		}
		library, versions := strings.TrimSpace(cells[0]), strings.TrimSpace(cells[1])
		for _, fault := range checkRow(repo, library, versions, cells[5]) {
			faults = append(faults, "docs/frameworks.md, "+library+" "+versions+": "+fault)
		}
	}
	return faults, rows
}

var (
	shownBy  = regexp.MustCompile("`([^`]+)`")
	requires = regexp.MustCompile(`(?m)^(?:require )?\s*(\S+) v(\S+)( // indirect)?$`)
)

func checkRow(repo fs.FS, library, versions, shown string) (faults []string) {
	if library == "echo" {
		library += " " + versions[:1]
	}
	modules, ok := rowModules[library]
	if !ok {
		return []string{"this test does not know the library"}
	}
	folder, folders, tests := recipes, []string(nil), 0
	for _, name := range shownBy.FindAllStringSubmatch(shown, -1) {
		if !strings.HasPrefix(name[1], "Test") {
			folder = name[1]
			continue
		}
		tests++
		folders = append(folders, folder)
		if !hasTest(repo, folder, name[1]) {
			faults = append(faults, folder+" has no "+name[1])
		}
	}
	if tests == 0 {
		faults = append(faults, "it names no test")
	}
	told := strings.Split(versions, ", ")
	if len(modules) == 0 {
		return faults
	}
	if len(told) != len(modules) {
		return append(faults, "it has another number of versions than of modules")
	}
	for i, module := range modules {
		required, used := versionsOf(repo, folders, module)
		if !used {
			faults = append(faults, "no Go file where its tests are imports "+module)
		}
		if len(required) != 1 || required[0] != told[i] {
			faults = append(faults, "where its tests are, "+module+" is required as "+strings.Join(required, " and ")+", not as "+told[i])
		}
	}
	return faults
}

// hasTest reports whether a folder has a test of that name, or one that begins so if the
// name ends in an ellipsis.
func hasTest(repo fs.FS, folder, name string) bool {
	files, _ := fs.Glob(repo, folder+"/*_test.go")
	text := "\nfunc " + name + "("
	if begin, isBegin := strings.CutSuffix(name, "…"); isBegin {
		text = "\nfunc " + begin
	}
	return slices.ContainsFunc(files, func(file string) bool {
		source, err := fs.ReadFile(repo, file)
		return err == nil && strings.Contains(string(source), text)
	})
}

// versionsOf returns the versions that the modules of the folders require, or that code
// generated there names, and whether a Go file there imports the module.
func versionsOf(repo fs.FS, folders []string, module string) (required []string, used bool) {
	add := func(version string) {
		if !slices.Contains(required, version) {
			required = append(required, version)
		}
	}
	generated := regexp.MustCompile(regexp.QuoteMeta(module) + ` version v(\S+) DO NOT EDIT`)
	for _, folder := range folders {
		for _, line := range requires.FindAllStringSubmatch(modFile(repo, folder), -1) {
			if line[1] == module && line[3] == "" {
				add(line[2])
			}
		}
		_ = fs.WalkDir(repo, folder, func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || path.Ext(file) != ".go" {
				return err
			}
			source, err := fs.ReadFile(repo, file)
			used = used || strings.Contains(string(source), `"`+module+`"`) || strings.Contains(string(source), `"`+module+`/`)
			if version := generated.FindStringSubmatch(string(source)); version != nil {
				add(version[1])
				used = true
			}
			return err
		})
	}
	return required, used
}

// modFile returns the go.mod of the module that a folder is in.
func modFile(repo fs.FS, folder string) string {
	for ; ; folder = path.Dir(folder) {
		text, err := fs.ReadFile(repo, path.Join(folder, "go.mod"))
		if err == nil || folder == "." {
			return string(text)
		}
	}
}

// TestStaleRowsAreFound shows that check red.
func TestStaleRowsAreFound(t *testing.T) {
	repo := fstest.MapFS{
		"adapters/gin/go.mod":      {Data: []byte("module x\n\nrequire (\n\tgithub.com/gin-gonic/gin v1.12.0\n)\n")},
		"adapters/gin/gin_test.go": {Data: []byte("package x\n\nimport _ \"github.com/gin-gonic/gin\"\n\nfunc TestCells(\n")},
		"other/gin_test.go":        {Data: []byte("package x\n\nfunc TestCells(\n")},
	}
	for row, want := range map[string]string{
		"| gin | 1.12.0 | a | b | c | `adapters/gin`: `TestCells` |":    "",
		"| gin | 1.12.0 | a | b | c | `adapters/gin`: `TestCel…` |":     "",
		"| gin | 1.11.0 | a | b | c | `adapters/gin`: `TestCells` |":    "not as 1.11.0",
		"| gin | 1.12.0, 2 | a | b | c | `adapters/gin`: `TestCells` |": "number of versions",
		"| gin | 1.12.0 | a | b | c | `adapters/gin`: `TestGone` |":     "has no TestGone",
		"| gin | 1.12.0 | a | b | c | `TestCells` |":                    "integration/recipes has no",
		"| gin | 1.12.0 | a | b | c | `adapters/gin` |":                 "names no test",
		"| gin | 1.12.0 | a | b | c | `other`: `TestCells` |":           "no Go file",
		"| chi | 5.5.0 | a | b | c | `adapters/gin`: `TestCells` |":     "is required as ,",
		"| unknown | 5.5.0 | a | b | c | `adapters/gin`: `TestCells` |": "does not know",
		"| gin | 1.12.0 | a | c | `adapters/gin`: `TestCells` |":        "without six cells",
	} {
		faults, rows := checkMatrix(repo, "\n# What goes where\n\n| library | version | outside | inside | why | shown by |\n| --- | --- | --- | --- | --- | --- |\n"+row+"\n\n# Next\n| x | y |\n")
		got := strings.Join(faults, "; ")
		if (want == "") != (got == "") || !strings.Contains(got, want) || rows > 1 {
			t.Errorf("%s: got %d rows, %q, want %q", row, rows, got, want)
		}
	}
}
