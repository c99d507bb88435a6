module github.com/sqlreq/sqlreq/integration/pgx

go 1.25.0

replace (
	github.com/sqlreq/sqlreq => ../..
	github.com/sqlreq/sqlreq/adapters/pgx => ../../adapters/pgx
)

require (
	github.com/Masterminds/squirrel v1.5.4
	github.com/exaring/otelpgx v0.13.0
	github.com/georgysavva/scany/v2 v2.1.4
	github.com/jackc/pgx/v5 v5.12.0
	github.com/riverqueue/river v0.44.0
	github.com/riverqueue/river/riverdriver/riverpgxv5 v0.44.0
	github.com/sqlreq/sqlreq v0.1.0
	github.com/sqlreq/sqlreq/adapters/pgx v0.1.0
	go.opentelemetry.io/otel v1.43.0
	go.opentelemetry.io/otel/sdk v1.43.0
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/go-logr/logr v1.4.3 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/jackc/puddle/v2 v2.2.3 // indirect
	github.com/lann/builder v0.0.0-20180802200727-47ae307949d0 // indirect
	github.com/lann/ps v0.0.0-20150810152359-62de8c46ede0 // indirect
	github.com/riverqueue/river/riverdriver v0.44.0 // indirect
	github.com/riverqueue/river/rivershared v0.44.0 // indirect
	github.com/riverqueue/river/rivertype v0.44.0 // indirect
	github.com/stretchr/objx v0.5.2 // indirect
	github.com/tidwall/gjson v1.19.0 // indirect
	github.com/tidwall/match v1.2.0 // indirect
	github.com/tidwall/pretty v1.2.1 // indirect
	github.com/tidwall/sjson v1.2.5 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/otel/metric v1.43.0 // indirect
	go.opentelemetry.io/otel/trace v1.43.0 // indirect
	golang.org/x/sync v0.22.0 // indirect
	golang.org/x/sys v0.44.0 // indirect
	golang.org/x/text v0.41.0 // indirect
)
