// Command observability draws the pictures of docs/observability.md: a trace, and the
// four numbers of a dashboard.
//
//	go run .         draws them from the data beside them
//	go run . -run    runs a service on PostgreSQL for a minute before, and writes that data
//
// The data is what OpenTelemetry's SDK exports while adapters/otel tells it of the
// transactions of real requests.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sqlreq/sqlreq/internal/servers"
)

func main() {
	run := flag.Bool("run", false, "run the service, and write its data")
	docs := flag.String("docs", filepath.Join("..", "..", "docs"), "the folder of the data and the pictures")
	flag.Parse()
	err := errors.Join(write(*docs, *run), servers.Stop())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// phaseSeconds is how long each phase of the run is.
const phaseSeconds = 15

func write(docs string, run bool) error {
	if run {
		if err := measure(context.Background(), docs); err != nil {
			return err
		}
	}
	drawn, err := pictures(os.DirFS(docs))
	if err != nil {
		return err
	}
	for name, svg := range drawn {
		if err := os.WriteFile(filepath.Join(docs, name), svg, 0o666); err != nil {
			return err
		}
	}
	return nil
}

// measure writes the data.
func measure(ctx context.Context, docs string) error {
	s, err := start(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	spans, err := traces(ctx, s)
	if err != nil {
		return err
	}
	all, err := observe(ctx, s, phaseSeconds)
	if err != nil {
		return err
	}
	var trace, dashboard bytes.Buffer
	if err := errors.Join(writeTraces(&trace, spans), writeDashboard(&dashboard, all)); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(docs, traceData), trace.Bytes(), 0o666),
		os.WriteFile(filepath.Join(docs, dashboardData), dashboard.Bytes(), 0o666))
}
