package doctest

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rowModules says, for each row of the matrix in docs/frameworks.md, whose versions it
// names: modules, in the order of the versions, and where they are required. A row without
// modules is of no module: sqlc's code is generated, and net/http has Go's version.
var rowModules = map[string]struct {
	in      string // the folder of the go.mod
	modules []string
}{
	"gin":            {"adapters/gin", []string{"github.com/gin-gonic/gin"}},
	"echo 4":         {"adapters/echo4", []string{"github.com/labstack/echo/v4"}},
	"echo 5":         {"adapters/echo5", []string{"github.com/labstack/echo/v5"}},
	"chi":            {"integration/recipes", []string{"github.com/go-chi/chi/v5"}},
	"huma":           {"integration/recipes", []string{"github.com/danielgtaylor/huma/v2"}},
	"oapi-codegen":   {"integration/recipes/oapi", []string{"github.com/oapi-codegen/oapi-codegen/v2"}}, // in the generated code
	"gorm":           {"adapters/gorm", []string{"gorm.io/gorm"}},
	"sqlx":           {"adapters/sqlx", []string{"github.com/jmoiron/sqlx"}},
	"bun":            {"integration/recipes", []string{"github.com/uptrace/bun"}},
	"sqlc":           {},
	"pgx":            {"adapters/pgx", []string{"github.com/jackc/pgx/v5"}},
	"connect":        {"adapters/connect", []string{"connectrpc.com/connect"}},
	"grpc-go":        {"adapters/grpc", []string{"google.golang.org/grpc"}},
	"gqlgen":         {"integration/recipes", []string{"github.com/99designs/gqlgen"}},
	"templ":          {"integration/recipes", []string{"github.com/a-h/templ"}},
	"datastar":       {"integration/recipes", []string{"github.com/starfederation/datastar-go"}},
	"MCP (go-sdk)":   {"integration/recipes", []string{"github.com/modelcontextprotocol/go-sdk"}},
	"OpenTelemetry":  {"adapters/otel", []string{"go.opentelemetry.io/otel"}},
	"scs":            {"integration", []string{"github.com/alexedwards/scs/v2"}},
	"River, scany, squirrel": {"integration/pgx", []string{"github.com/riverqueue/river", "github.com/georgysavva/scany/v2", "github.com/Masterminds/squirrel"}},
	"gin-contrib/gzip, echo's Gzip":                                         {"integration/adapters", []string{"github.com/gin-contrib/gzip", "github.com/labstack/echo/v4", "github.com/labstack/echo/v5"}},
	"sentry (gin, echo 5)":                                                  {"integration/adapters", []string{"github.com/getsentry/sentry-go"}},
	"gorilla/websocket, coder/websocket":                                    {"integration", []string{"github.com/gorilla/websocket", "github.com/coder/websocket"}},
	"`http.TimeoutHandler`, `httputil.ReverseProxy`, `http.FileServer`": {},
}
