package sqlreqotel

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	_ "modernc.org/sqlite"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// observed is a program with providers that keep what they are told.
type observed struct {
	*adaptertest.Site
	url    string
	spans  *tracetest.SpanRecorder
	reader *sdkmetric.ManualReader
	tp     *sdktrace.TracerProvider
}

func start(t *testing.T) *observed {
	o := &observed{Site: adaptertest.NewSite(t), spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader()}
	o.tp = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(o.spans))
	o.Reg.Observe = Observe(o.tp, sdkmetric.NewMeterProvider(sdkmetric.WithReader(o.reader)))
	web := adaptertest.Plain(func(_ testing.TB, s *adaptertest.Site) adaptertest.Work {
		return adaptertest.Work{
			Insert: func(ctx context.Context, k sqlreq.Key) error {
				_, err := k.ExecContext(ctx, sqlreqtest.InsertWork)
				return err
			},
			BreakCommit: s.BreakCommit,
		}
	})
	h := web.New(t, o.Site)
	// As otelhttp does: a span of the request outside.
	o.url = o.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, span := o.tp.Tracer("http").Start(r.Context(), "request")
		defer span.End()
		h.ServeHTTP(w, r.WithContext(ctx))
	}))
	return o
}

func value(attrs []attribute.KeyValue, key string) string {
	for _, a := range attrs {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

// told returns the spans of transactions, and forgets them.
func (o *observed) told(t *testing.T) (all []string) {
	t.Helper()
	var request trace.SpanID
	for _, s := range o.spans.Ended() {
		if s.Name() == "request" {
			request = s.SpanContext().SpanID()
		}
	}
	for _, s := range o.spans.Ended() {
		if s.Name() == "request" {
			continue
		}
		if s.Parent().SpanID() != request || s.SpanKind() != trace.SpanKindClient {
			t.Errorf("%s is not below the request's span, or no client's", s.Name())
		}
		if s.EndTime().Before(s.StartTime()) || len(s.Events()) != 2 {
			t.Errorf("%s: from %v to %v, events %v", s.Name(), s.StartTime(), s.EndTime(), s.Events())
		}
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s: %s %s %s %v %s", s.Name(), value(s.Attributes(), "db.operation.name"),
			value(s.Attributes(), "sqlreq.outcome"), value(s.Attributes(), "sqlreq.attempt"), s.Status().Code, value(s.Attributes(), "error.type"))))
	}
	o.spans.Reset()
	return all
}

// want sends requests, and compares the spans.
func (o *observed) want(t *testing.T, path string, want ...string) {
	t.Helper()
	o.Send(t, "POST", o.url+path)
	if got := o.told(t); !slices.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

const (
	committed  = "transaction main: COMMIT committed 1 Unset"
	rolledBack = "transaction main: ROLLBACK rolled_back 1 Unset"
	failed     = "transaction main: ROLLBACK rolled_back 1 Error *errors.errorString"
	notCommit  = "transaction main: COMMIT commit_failed 1 Error *sqlite.Error"
)

func TestCells(t *testing.T) {
	cell := func(path string, want ...string) func(*testing.T) {
		return func(t *testing.T) { start(t).want(t, path, want...) }
	}
	adaptertest.Run(t, map[string]func(*testing.T){
		"ok":           cell("/ok", committed),
		"4xx returned": cell("/returned", rolledBack),
		"4xx written":  cell("/written", rolledBack),
		"5xx":          cell("/fails", failed),
		"late error":   cell("/late/large", failed),
		"panic":        cell("/panic", failed),
		"failed COMMIT": func(t *testing.T) {
			o := start(t)
			o.want(t, "/commit", notCommit)
			o.want(t, "/large/commit", notCommit)
		},
		"client gone": func(t *testing.T) {
			o := start(t)
			o.Gone(t, o.url+"/gone")
			if got := o.told(t); !slices.Equal(got, []string{rolledBack}) {
				t.Errorf("got %q, want a rollback that is no error", got)
			}
		},
		"stream over HoldLimit": cell("/large", committed),
		"Retry": func(t *testing.T) {
			o := start(t)
			o.Reg.Retry = sqlreqtest.Retries(3)
			o.want(t, "/conflict", "transaction main: ROLLBACK rolled_back 1 Error 40001", "transaction main: COMMIT committed 2 Unset")
		},
		"nested": cell("/group/ok", committed, "transaction reports: COMMIT committed 1 Unset"),
		"once": func(t *testing.T) {
			o := start(t)
			o.Send(t, "POST", o.url+"/once/ok", "Idempotency-Key", "a")
			o.Send(t, "POST", o.url+"/once/ok", "Idempotency-Key", "a")
			all := []string{}
			for _, s := range o.spans.Ended() {
				all = append(all, value(s.Attributes(), "sqlreq.outcome"))
			}
			all = slices.DeleteFunc(all, func(s string) bool { return s == "" }) // the requests' spans
			if !slices.Equal(all, []string{"committed", "rolled_back"}) {
				t.Errorf("got outcomes %q, want the work committed, and the look at its record rolled back", all)
			}
		},
	}, nil)
}

// The times of the span are those of the event, whatever the time is now.
func TestTimes(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	reader := sdkmetric.NewManualReader()
	observe := Observe(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := sqlreq.Event{Key: "main", Outcome: sqlreq.Committed, Attempt: 2, Wait: time.Second, Open: 2 * time.Second, End: 4 * time.Second, Began: began}
	observe(t.Context(), e)
	s := spans.Ended()[0]
	if s.StartTime() != began || s.EndTime() != began.Add(7*time.Second) {
		t.Errorf("got from %v to %v, want 7 s from %v", s.StartTime(), s.EndTime(), began)
	}
	for _, event := range s.Events() {
		if want := map[string]time.Duration{"begun": time.Second, "ending": 3 * time.Second}[event.Name]; event.Time != began.Add(want) {
			t.Errorf("%s: got %v, want %v behind the begin", event.Name, event.Time, want)
		}
	}
	var data metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range data.ScopeMetrics[0].Metrics {
		switch d := m.Data.(type) {
		case metricdata.Histogram[float64]:
			p := d.DataPoints[0]
			got[m.Name] = fmt.Sprintf("%v %s %s", p.Sum, m.Unit, attrsText(p.Attributes))
		case metricdata.Sum[int64]:
			p := d.DataPoints[0]
			got[m.Name] = fmt.Sprintf("%v %s %s", p.Value, m.Unit, attrsText(p.Attributes))
		}
	}
	const common = "db.operation.name=COMMIT db.system.name=other_sql"
	want := map[string]string{
		"db.client.connection.wait_time": "1 s db.client.connection.pool.name=main " + common + " sqlreq.key=main sqlreq.outcome=committed",
		"db.client.connection.use_time":  "6 s db.client.connection.pool.name=main " + common + " sqlreq.key=main sqlreq.outcome=committed",
		"db.client.operation.duration":   "4 s " + common + " sqlreq.key=main sqlreq.outcome=committed",
		"sqlreq.transactions":            "1 {transaction} " + common + " sqlreq.attempt=2 sqlreq.key=main sqlreq.outcome=committed",
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: got  %s\nwant %s", name, got[name], text)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d metrics, want %d", len(got), len(want))
	}
}

func attrsText(set attribute.Set) string {
	var all []string
	for _, a := range set.ToSlice() {
		all = append(all, string(a.Key)+"="+a.Value.String())
	}
	return strings.Join(all, " ")
}

type state struct{}

func (state) Error() string    { return "secret" }
func (state) SQLState() string { return "23505" }

// Errors are named by their kind, and no text of one is anywhere.
func TestClasses(t *testing.T) {
	for _, test := range []struct {
		outcome sqlreq.Outcome
		err     error
		want    string // "" if it is no error
	}{
		{sqlreq.Committed, nil, ""},
		{sqlreq.RolledBack, nil, ""},
		{sqlreq.RolledBack, sqlreq.Errorf(404, "secret"), ""},
		{sqlreq.RolledBack, fmt.Errorf("secret: %w", context.Canceled), ""},
		{sqlreq.RolledBack, fmt.Errorf("secret: %w", context.DeadlineExceeded), "context.DeadlineExceeded"},
		{sqlreq.RolledBack, sqlreq.Errorf(502, "secret"), "502"},
		{sqlreq.RolledBack, fmt.Errorf("secret: %w", errors.New("secret")), "*errors.errorString"},
		{sqlreq.RolledBack, fmt.Errorf("secret: %w", driver.ErrBadConn), "*errors.errorString"},
		{sqlreq.CommitFailed, &sqlreq.CommitError{Key: "main", Err: state{}}, "23505"},
		{sqlreq.Ended, fmt.Errorf("secret: %w", sqlreq.ErrTxEnded), "sqlreq.ErrTxEnded"},
		{sqlreq.Ended, nil, "_OTHER"},
	} {
		spans := tracetest.NewSpanRecorder()
		Observe(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)), nil)(t.Context(), sqlreq.Event{Key: "main", Outcome: test.outcome, Err: test.err})
		s := spans.Ended()[0]
		if got := value(s.Attributes(), "error.type"); got != test.want || (s.Status().Code == codes.Error) != (test.want != "") {
			t.Errorf("%v %v: got error.type %q and status %v, want %q", test.outcome, test.err, got, s.Status(), test.want)
		}
		if strings.Contains(fmt.Sprint(s.Attributes(), s.Status(), s.Events(), s.Name()), "secret") {
			t.Errorf("%v: a text of the error was told", test.err)
		}
	}
}

// nil providers are the global ones, those of the moment when Observe is called.
func TestGlobalProviders(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	reader := sdkmetric.NewManualReader()
	tp, mp := otel.GetTracerProvider(), otel.GetMeterProvider()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	defer func() {
		otel.SetTracerProvider(tp)
		otel.SetMeterProvider(mp)
	}()
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	reg.Observe = Observe(nil, nil)
	err := reg.Do(t.Context(), func(ctx context.Context) error {
		_, err := sqlreq.DefaultKey.ExecContext(ctx, "INSERT")
		return err
	})
	var data metricdata.ResourceMetrics
	if collect := reader.Collect(t.Context(), &data); err != nil || collect != nil || len(spans.Ended()) != 1 || len(data.ScopeMetrics) != 1 {
		t.Errorf("got %v %v, %d spans, %d scopes of metrics, want one each", err, collect, len(spans.Ended()), len(data.ScopeMetrics))
	}
}
