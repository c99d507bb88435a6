// Package telemetry has the traces: a span for each request, and below it one for each of its transactions.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/sqlreq/sqlreq"
	sqlreqotel "github.com/sqlreq/sqlreq/adapters/otel"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/trace"
)

// Telemetry is a provider of traces. A real service would have metrics from the same Observe.
type Telemetry struct{ provider *trace.TracerProvider }

// New returns one that exports to where the flag says: "off", or "stdout", which is out.
func New(to string, out io.Writer) (*Telemetry, error) {
	switch to {
	case "off":
		return Export(), nil
	case "stdout":
		exporter, err := stdouttrace.New(stdouttrace.WithWriter(out))
		if err != nil {
			return nil, err
		}
		return Export(trace.WithBatcher(exporter)), nil
	}
	return nil, fmt.Errorf("-otel %q: off or stdout", to)
}

// Export returns one with these options, for tests an exporter in memory.
func Export(options ...trace.TracerProviderOption) *Telemetry {
	return &Telemetry{trace.NewTracerProvider(options...)}
}

// Close exports what is left.
func (t *Telemetry) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Handler has a span for each request. It belongs outside of the registry's middleware: it sees the status that the client
// gets, after COMMIT.
func (t *Telemetry) Handler(next http.Handler) http.Handler {
	return otelhttp.NewHandler(next, "request", otelhttp.WithTracerProvider(t.provider),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()))
}

// Observe has a span for each transaction.
func (t *Telemetry) Observe() func(context.Context, sqlreq.Event) {
	return sqlreqotel.Observe(t.provider, noop.NewMeterProvider())
}
