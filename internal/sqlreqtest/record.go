package sqlreqtest

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
)

// Recorder keeps, in order, what it is told: events of Observe, words of hooks,
// log records. Its zero value is empty; it may be used from several goroutines.
type Recorder struct {
	mu      sync.Mutex
	all     []string
	events  []sqlreq.Event
	words   []string
	records []slog.Record
}

// Watch makes r the Observe and the Logger of reg.
func (r *Recorder) Watch(reg *sqlreq.Registry) {
	reg.Observe, reg.Logger = r.Observe, r.Logger()
}

// Observe is for [sqlreq.Registry.Observe].
func (r *Recorder) Observe(_ context.Context, e sqlreq.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	r.all = append(r.all, eventText(e))
}

func eventText(e sqlreq.Event) string { return fmt.Sprintf("%s %v %d", e.Key, e.Outcome, e.Attempt) }

// Add adds a word.
func (r *Recorder) Add(word string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.words = append(r.words, word)
	r.all = append(r.all, word)
}

// Hooks registers an AfterCommit and an AfterRollback function, which add
// "commit" and "rollback" with the name behind.
func (r *Recorder) Hooks(t testing.TB, ctx context.Context, k sqlreq.Key, name string) {
	t.Helper()
	if err := k.AfterCommit(ctx, func(context.Context) { r.Add("commit" + name) }); err != nil {
		t.Errorf("AfterCommit: %v", err)
	}
	if err := k.AfterRollback(ctx, func(context.Context) { r.Add("rollback" + name) }); err != nil {
		t.Errorf("AfterRollback: %v", err)
	}
}

// Logger returns a logger that writes to r.
func (r *Recorder) Logger() *slog.Logger { return slog.New(recorderHandler{r}) }

type recorderHandler struct{ r *Recorder }

func (h recorderHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h recorderHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h recorderHandler) WithGroup(string) slog.Handler            { return h }

func (h recorderHandler) Handle(_ context.Context, rec slog.Record) error {
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	h.r.records = append(h.r.records, rec)
	h.r.all = append(h.r.all, rec.Level.String()+" "+rec.Message)
	return nil
}

// Told returns the events.
func (r *Recorder) Told() []sqlreq.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// Events returns key, outcome and attempt of each event.
func (r *Recorder) Events() string {
	var s []string
	for _, e := range r.Told() {
		s = append(s, eventText(e))
	}
	return strings.Join(s, ", ")
}

// Words returns the words, with a space between.
func (r *Recorder) Words() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.words, " ")
}

// Records returns the log records: "level", "msg" and the attributes as text.
func (r *Recorder) Records() (all []map[string]string) {
	for _, rec := range r.Slog() {
		attrs := map[string]string{"level": rec.Level.String(), "msg": rec.Message}
		rec.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
		all = append(all, attrs)
	}
	return all
}

// Slog returns the log records as they came.
func (r *Recorder) Slog() []slog.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.records)
}

// String returns everything in the order in which it came.
func (r *Recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.all, ", ")
}

// Reset forgets everything.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all, r.events, r.words, r.records = nil, nil, nil, nil
}
