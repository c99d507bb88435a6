package idempotency_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/idempotency"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// rules are those of draft-ietf-httpapi-idempotency-key-header and of Stripe
// (https://docs.stripe.com/api/idempotent_requests, API v1). Each says how it is here.
var rules = []struct {
	of, rule, here string
	requests       []ruleRequest
}{
	{"draft 2.1", "the key is a structured-field string", "the same", []ruleRequest{
		{method: "POST", key: `"8e03978e-40d5-43e8-bc93-6894a57f9324"`, want: "201 order 1"}}},
	{"draft 2.6", "a first request is processed", "the same", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}}},
	{"draft 2.6", "a retry of a completed request gets its result", "the same", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}, {method: "POST", key: `"a"`, want: "201 order 1 (replayed)"}}},
	{"draft 2.6", "success or an error", "different: an error rolls back, so that the retry is a first request", []ruleRequest{
		{method: "POST", key: `"a"`, fail: 500, want: "500 no"}, {method: "POST", key: `"a"`, want: "201 order 1"}}},
	{"draft 2", "POST and PATCH become fault-tolerant", "the same, and every other unsafe method", []ruleRequest{
		{method: "PATCH", key: `"a"`, want: "201 order 1"}, {method: "PATCH", key: `"a"`, want: "201 order 1 (replayed)"},
		{method: "PUT", key: `"b"`, want: "201 order 2"}, {method: "PUT", key: `"b"`, want: "201 order 2 (replayed)"}}},
	{"draft 2.1", "parameters of the string have no meaning", "the same", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}, {method: "POST", key: `"a";v=2`, want: "201 order 1 (replayed)"}}},
	{"draft 2.2", "another key is another request", "the same", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}, {method: "POST", key: `"b"`, want: "201 order 2"}}},
	{"draft 2.2", "a key is not reused with another payload", "the same: a 422, and the key still has its answer", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}, {method: "POST", key: `"a"`, body: "y", want: "422 Idempotency-Key is already used"},
		{method: "POST", key: `"a"`, want: "201 order 1 (replayed)"}}},
	{"draft 2.3", "a key may expire, and the resource says when", "different: a key is honoured until the program cleans it, however old", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}, {method: "POST", key: `"a"`, aged: true, want: "201 order 1 (replayed)"}}},
	{"draft 2.4", "a fingerprint may tell another payload", "the same: method, path, query and body", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}, {method: "PUT", key: `"a"`, want: "422 Idempotency-Key is already used"}}},
	{"draft 2.6", "a retry while the first is outstanding: a conflict", "different: it waits for the first, up to Wait, and gets its answer", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1", atOnce: "201 order 1 (replayed)"}}},
	{"draft 2.7", "a retry while the first is outstanding: 409", "the same, when Wait is over, with Retry-After", []ruleRequest{
		{method: "POST", key: `"a"`, outstanding: true, want: "409 A request is outstanding for this Idempotency-Key"}}},
	{"draft 2.7", "a missing key of an operation that requires one: 400", "the same, with Required", []ruleRequest{
		{method: "POST", required: true, want: "400 Idempotency-Key is missing"}}},
	{"draft 2.7", "a key with another payload: 422", "the same", []ruleRequest{
		{method: "POST", key: `"a"`, want: "201 order 1"}, {method: "POST", key: `"a"`, body: "y", want: "422 Idempotency-Key is already used"}}},

	{"Stripe", "the status code and body of the first request are saved, whether it succeeds or fails, 500 included",
		"different: what failed has left nothing, so that it is done again", []ruleRequest{
			{method: "POST", key: "k", fail: 402, want: "402 no"}, {method: "POST", key: "k", want: "201 order 1"}, {method: "POST", key: "k", fail: 500, want: "201 order 1 (replayed)"}}},
	{"Stripe", "keys have up to 255 characters", "the same", []ruleRequest{
		{method: "POST", key: strings.Repeat("x", 255), want: "201 order 1"}, {method: "POST", key: strings.Repeat("x", 256), want: "400 Idempotency-Key is malformed"}}},
	{"Stripe", "keys are removed when they are 24 hours old, and then new", "different: only Clean removes them, at an age of the program's choice", []ruleRequest{
		{method: "POST", key: "k", want: "201 order 1"}, {method: "POST", key: "k", aged: true, want: "201 order 1 (replayed)"}, {method: "POST", key: "k", cleaned: true, want: "201 order 2"}}},
	{"Stripe", "other parameters with the key are an error", "the same, with 422", []ruleRequest{
		{method: "POST", key: "k", want: "201 order 1"}, {method: "POST", key: "k", body: "y", want: "422 Idempotency-Key is already used"}}},
	{"Stripe", "a request that conflicts with another one at once is not saved", "different: it waits for that, and gets its answer; a 409 is not saved either", []ruleRequest{
		{method: "POST", key: "k", want: "201 order 1", atOnce: "201 order 1 (replayed)"},
		{method: "POST", key: "l", outstanding: true, want: "409 A request is outstanding for this Idempotency-Key"},
		{method: "POST", key: "l", cleaned: true, want: "201 order 2"}}},
	{"Stripe", "keys are of an account", "the same: Scope", []ruleRequest{
		{method: "POST", key: "k", scope: "ann", want: "201 order 1"}, {method: "POST", key: "k", scope: "bob", want: "201 order 2"}}},
	{"Stripe", "all POST requests accept keys", "the same", []ruleRequest{
		{method: "POST", key: "k", want: "201 order 1"}, {method: "POST", want: "201 order 2"}}},
	{"Stripe", "a key is any string with enough entropy", "different: what the draft's syntax has, or a bare word of visible characters", []ruleRequest{
		{method: "POST", key: "a b", want: "400 Idempotency-Key is malformed"}, {method: "POST", key: `"a b"`, want: "201 order 1"}}},
	{"Stripe", "v2: a retry of what failed runs again, and has a new answer", "the same", []ruleRequest{
		{method: "POST", key: "k", fail: 503, want: "503 no"}, {method: "POST", key: "k", want: "201 order 1"}}},
	{"Stripe", "a request that fails validation is not saved", "the same", []ruleRequest{
		{method: "POST", key: "k", fail: 400, want: "400 no"}, {method: "POST", key: "k", body: "y", want: "201 order 1"}}},
	{"Stripe", "GET has no need of a key", "the same", []ruleRequest{
		{method: "GET", key: "k", want: "201 order 1"}, {method: "GET", key: "k", want: "201 order 2"}}},
	{"Stripe", "DELETE has no need of a key", "different: it is repeated safely too, with the answer of the first instead of a 404", []ruleRequest{
		{method: "DELETE", key: "k", want: "201 order 1"}, {method: "DELETE", key: "k", want: "201 order 1 (replayed)"}}},
	{"Stripe", "a replayed answer has Idempotent-Replayed: true", "the same", []ruleRequest{
		{method: "POST", key: "k", want: "201 order 1"}, {method: "POST", key: "k", want: "201 order 1 (replayed)"}}},
}

type ruleRequest struct {
	method, key, body string
	required          bool
	fail              int  // status of the handler, if it fails
	aged, cleaned     bool // before the request
	scope             string
	outstanding       bool // a row without an answer is there before the request
	want              string
	atOnce            string // what the same request gets that comes while this one runs; "" if there is none
}

func TestI2RulesOfOthers(t *testing.T) {
	for _, rule := range rules {
		t.Run(rule.of+"/"+rule.rule, func(t *testing.T) {
			if !strings.HasPrefix(rule.here, "the same") && !strings.HasPrefix(rule.here, "different: ") {
				t.Errorf("the rule is neither the same here nor different: %q", rule.here)
			}
			db := open(t)
			once := newOnce()
			good, fail := new(work), 0
			var scope string
			var running func() // called by the handler
			once.Scope = func(*http.Request) (string, error) { return scope, nil }
			for _, q := range rule.requests {
				once.Required = once.Required || q.required
			}
			srv := serve(t, sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db}), once, handle(func(w http.ResponseWriter, r *http.Request) {
				if running != nil {
					running()
				}
				if fail != 0 {
					insertWork(t, r.Context())
					http.Error(w, "no", fail)
					return
				}
				good.ServeHTTP(w, r)
			}))
			for i, q := range rule.requests {
				fail, scope = q.fail, q.scope
				second := make(chan string, 1)
				if running = nil; q.atOnce != "" {
					waits := make(chan struct{})
					once.OnWait(sync.OnceFunc(func() { close(waits) }))
					running = func() {
						go func() { second <- ruleReply(t, srv.URL, q) }()
						<-waits
					}
				}
				if q.outstanding {
					_, err := db.Exec("INSERT INTO idempotency_keys (scope, idempotency_key, created_at) VALUES ('', ?, 0)", strings.Trim(q.key, `"`))
					must(t, err)
				}
				if q.aged || q.cleaned {
					_, err := db.Exec("UPDATE idempotency_keys SET created_at = 0")
					must(t, err)
				}
				if q.cleaned {
					_, err := once.Clean(t.Context(), db, 1)
					must(t, err)
				}
				got := ruleReply(t, srv.URL, q)
				if got != q.want {
					t.Errorf("request %d: got %q, want %q", i+1, got, q.want)
				}
				if q.atOnce != "" {
					if got := <-second; got != q.atOnce {
						t.Errorf("at once with request %d: got %q, want %q", i+1, got, q.atOnce)
					}
				}
			}
		})
	}
}

func ruleReply(t *testing.T, url string, q ruleRequest) string {
	t.Helper()
	req, _ := http.NewRequest(q.method, url, strings.NewReader("x"+q.body))
	if q.key != "" {
		req.Header.Set("Idempotency-Key", q.key)
	}
	r, err := send(req)
	if err != nil {
		t.Error(err)
	}
	if r.header.Get("Content-Type") == "application/problem+json" {
		var problem struct {
			Title, Detail string
			Status        int
		}
		if err := json.Unmarshal([]byte(r.body), &problem); err != nil || problem.Status != r.status || problem.Detail == "" {
			t.Errorf("got the problem %q: %v", r.body, err)
		}
		r.body = problem.Title
	}
	return r.String()
}

func TestErrorHandlers(t *testing.T) {
	var told error
	write := func(status int, body string) func(http.ResponseWriter, *http.Request, error) {
		return func(w http.ResponseWriter, r *http.Request, err error) {
			told = err
			if err == idempotency.ErrInProgress && w.Header().Get("Retry-After") != "1" {
				t.Error("Retry-After is not set")
			}
			if status != 0 {
				w.WriteHeader(status)
			}
			if body != "" {
				w.Write([]byte(body))
			}
		}
	}
	for name, c := range map[string]struct {
		once, registry func(http.ResponseWriter, *http.Request, error)
		want           string
	}{
		"neither":              {nil, nil, "Idempotency-Key is already used"},
		"the registry's":       {nil, write(422, "registry"), "422 registry"},
		"its own":              {write(422, "own"), write(422, "registry"), "422 own"},
		"its own status":       {write(400, "own"), nil, "400 own"},
		"its own, no status":   {write(0, "own"), nil, "422 own"},
		"silence":              {write(0, ""), nil, "Idempotency-Key is already used"},
		"the registry's, mute": {nil, write(0, ""), "422 Unprocessable Entity"},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			once, reg := newOnce(), sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: db})
			once.ErrorHandler, reg.ErrorHandler = c.once, c.registry
			// Nothing of a request that is refused stays, whatever CommitIf says.
			reg.CommitIf = func(int, http.Header) bool { return true }
			h := once.Handler(new(work))
			srv := sqlreqtest.Serve(t, reg.Middleware(handle(func(w http.ResponseWriter, r *http.Request) {
				insertWork(t, r.Context())
				h.ServeHTTP(w, r)
			})))
			want(t, post(t, srv.URL, "k", "x"), "201 order 1")
			told = nil
			if got := post(t, srv.URL, "k", "y"); !strings.Contains(got.String(), c.want) || got.status == 200 {
				t.Errorf("got %v, want %q", got, c.want)
			}
			if (c.once != nil || c.registry != nil) && told != idempotency.ErrMismatch {
				t.Errorf("the ErrorHandler was told %v", told)
			}
			rows(t, db, 2, 1)

			if _, err := db.Exec("UPDATE idempotency_keys SET status = 0"); err != nil {
				t.Fatal(err)
			}
			if got := post(t, srv.URL, "k", "x"); got.header.Get("Retry-After") != "1" {
				t.Errorf("in progress: got %v without Retry-After", got)
			}
		})
	}
}
