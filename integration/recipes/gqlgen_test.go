package recipes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/99designs/gqlgen/graphql"
	"github.com/99designs/gqlgen/graphql/handler"
	"github.com/99designs/gqlgen/graphql/handler/transport"
	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/ast"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// rollBackErrors is the recipe for gqlgen: an error of GraphQL has the status 200.
func rollBackErrors(ctx context.Context, next graphql.ResponseHandler) *graphql.Response {
	res := next(ctx)
	if res != nil && len(res.Errors) > 0 {
		_ = sqlreq.RollbackOnly(ctx, res.Errors)
	}
	return res
}

// perMessage is the recipe for gqlgen's websockets: each query and each mutation is a Do.
// In a request, which has a transaction, it is a part of that.
func perMessage(reg *sqlreq.Registry) graphql.OperationMiddleware {
	return func(ctx context.Context, next graphql.OperationHandler) graphql.ResponseHandler {
		if graphql.GetOperationContext(ctx).Operation.Operation == ast.Subscription {
			return next(ctx) // its resolver calls Registry.Do for each event
		}
		var res *graphql.Response
		err := reg.Atomic(ctx, func(ctx context.Context) error {
			res = next(ctx)(ctx)
			return nil
		})
		if err != nil && (res == nil || len(res.Errors) == 0) { // COMMIT has failed
			res = graphql.ErrorResponse(ctx, "the work could not be saved")
		}
		return graphql.OneShot(res)
	}
}

// gql is a schema as gqlgen generates it: the resolver of a mutation runs when the response
// is asked for, and not again; that of a subscription before its first response.
type gql struct {
	s   *adaptertest.Site
	ran atomic.Int32 // resolvers of mutations
}

const gqlSchema = `type Query { a: Int } type Mutation { note(text: String!): String } type Subscription { notes(text: String!): String }`

func (g *gql) exec(ctx context.Context) graphql.ResponseHandler {
	op := graphql.GetOperationContext(ctx).Operation
	text := op.SelectionSet[0].(*ast.Field).Arguments[0].Value.Raw
	if op.Operation == ast.Subscription {
		return g.subscribe(ctx, text)
	}
	first := true
	return func(ctx context.Context) *graphql.Response {
		if !first {
			return nil
		}
		first = false
		g.ran.Add(1)
		if err := g.note(ctx, text); err != nil {
			graphql.AddError(ctx, err)
			return &graphql.Response{Data: json.RawMessage(`{"note":null}`)}
		}
		return &graphql.Response{Data: json.RawMessage(`{"note":"saved"}`)}
	}
}

// note is the resolver of a mutation.
func (g *gql) note(ctx context.Context, text string) error {
	if err := g.s.Insert(ctx); err != nil {
		return err
	}
	switch text {
	case "invalid":
		return errPlain
	case "commit":
		return g.s.BreakCommit(ctx)
	case "conflict":
		if g.ran.Load() == 1 {
			return sqlreqtest.Conflict{}
		}
	}
	return nil
}

// subscribe is the resolver of a subscription: two events, each stored by a Do of its own.
// In between nothing is open, which a Key says.
func (g *gql) subscribe(ctx context.Context, text string) graphql.ResponseHandler {
	if err := g.s.Insert(ctx); err == nil || !strings.Contains(err.Error(), "Registry.Do") {
		graphql.AddErrorf(ctx, "a Key in a subscription: got %v, want an error that says what to do", err)
	}
	sent := 0
	return func(ctx context.Context) *graphql.Response {
		if sent++; sent > 2 {
			return nil
		}
		err := g.s.Reg.Do(ctx, func(ctx context.Context) error {
			if sent == 2 {
				return g.note(ctx, text)
			}
			return g.s.Insert(ctx)
		})
		if err != nil {
			return graphql.ErrorResponse(ctx, "event %d is lost", sent)
		}
		return &graphql.Response{Data: json.RawMessage(fmt.Sprintf(`{"notes":"%d"}`, sent))}
	}
}

func newGqlgen(t *testing.T) (*gql, *handler.Server) {
	g := &gql{s: adaptertest.NewSite(t)}
	schema := gqlparser.MustLoadSchema(&ast.Source{Input: gqlSchema})
	srv := handler.New(&graphql.ExecutableSchemaMock{
		SchemaFunc:     func() *ast.Schema { return schema },
		ComplexityFunc: func(context.Context, string, string, int, map[string]any) (int, bool) { return 0, false },
		ExecFunc:       g.exec,
	})
	srv.AddTransport(transport.POST{})
	srv.AddTransport(transport.Websocket{})
	srv.AroundOperations(perMessage(g.s.Reg))
	srv.AroundResponses(rollBackErrors)
	return g, srv
}

func TestGqlgen(t *testing.T) {
	g, srv := newGqlgen(t)
	url := g.s.Serve(t, g.s.Reg.Middleware(srv))
	for _, test := range []struct {
		text, body string
		status     int
		rows       int
	}{
		{"invalid", `"on purpose"`, 200, 0},
		{"fine", `{"data":{"note":"saved"}}`, 200, 1},
		{"commit", "Internal Server Error", 500, 1},
	} {
		query, _ := json.Marshal(map[string]string{"query": `mutation { note(text: "` + test.text + `") }`})
		res, err := http.Post(url, "application/json", strings.NewReader(string(query)))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		<-g.s.Returned
		if res.StatusCode != test.status || err != nil || !strings.Contains(string(body), test.body) {
			t.Errorf("%s: got %d %q %v, want %d with %q", test.text, res.StatusCode, body, err, test.status, test.body)
		}
		g.s.WantRows(t, test.rows)
	}
	if got, want := g.s.Log.Events(), "main RolledBack 1, main Committed 1, main CommitFailed 1"; got != want {
		t.Errorf("got events %q, want %q: one transaction for each request", got, want)
	}
}

// gqlMessage is one of the protocol graphql-transport-ws.
type gqlMessage struct {
	ID      string          `json:"id,omitempty"`
	Type    string          `json:"type"`
	Payload json.RawMessage `json:"payload,omitempty"`
}

// dialGqlgen opens a connection, and returns a function that sends a query on it and
// returns the payloads that come until its end.
func dialGqlgen(t *testing.T, url string) (ask func(query string) []string) {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{Subprotocols: []string{"graphql-transport-ws"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(websocket.StatusNormalClosure, "") })
	send := func(m gqlMessage) {
		t.Helper()
		if err := wsjson.Write(t.Context(), conn, m); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() (m gqlMessage) {
		t.Helper()
		if err := wsjson.Read(t.Context(), conn, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	send(gqlMessage{Type: "connection_init"})
	if m := receive(); m.Type != "connection_ack" {
		t.Fatalf("got %+v, want connection_ack", m)
	}
	n := 0
	return func(query string) (payloads []string) {
		t.Helper()
		n++
		payload, _ := json.Marshal(map[string]string{"query": query})
		send(gqlMessage{ID: fmt.Sprint(n), Type: "subscribe", Payload: payload})
		for {
			m := receive()
			if m.ID != fmt.Sprint(n) {
				t.Fatalf("got %+v, want message %d", m, n)
			}
			if m.Type == "complete" {
				return payloads
			}
			payloads = append(payloads, m.Type+" "+string(m.Payload))
		}
	}
}

// Over a websocket each mutation is a Do: it is committed when its answer arrives, run
// again after a conflict, and an error, that of COMMIT too, leaves nothing. It is so inside
// of Middleware, whose request the connection has left, and outside.
func TestGqlgenWebsocket(t *testing.T) {
	for name, wrap := range map[string]func(*sqlreq.Registry) func(http.Handler) http.Handler{
		"inside": func(reg *sqlreq.Registry) func(http.Handler) http.Handler { return reg.Middleware },
		"outside": func(*sqlreq.Registry) func(http.Handler) http.Handler {
			return func(h http.Handler) http.Handler { return h }
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, srv := newGqlgen(t)
			g.s.Reg.Retry = sqlreqtest.Retries(3)
			ask := dialGqlgen(t, sqlreqtest.Serve(t, wrap(g.s.Reg)(srv)).URL)
			for _, test := range []struct {
				text, want string
				rows       int
			}{
				{"conflict", `next {"data":{"note":"saved"}}`, 1},
				{"invalid", `next {"errors":[{"message":"on purpose"}],"data":{"note":null}}`, 1},
				{"commit", `next {"errors":[{"message":"the work could not be saved"}],"data":null}`, 1},
				{"fine", `next {"data":{"note":"saved"}}`, 2},
			} {
				got := ask(`mutation { note(text: "` + test.text + `") }`)
				if len(got) != 1 || got[0] != test.want {
					t.Errorf("%s: got %q, want %q", test.text, got, test.want)
				}
				g.s.WantRows(t, test.rows)
			}
			if n := g.ran.Load(); n != 5 {
				t.Errorf("the resolver has run %d times, want 5: the conflict twice", n)
			}
			for text, want := range map[string][]string{
				"fine":   {`next {"data":{"notes":"1"}}`, `next {"data":{"notes":"2"}}`},
				"commit": {`next {"data":{"notes":"1"}}`, `next {"errors":[{"message":"event 2 is lost"}],"data":null}`},
			} {
				before := sqlreqtest.Count(t, g.s.DB, "work")
				if got := ask(`subscription { notes(text: "` + text + `") }`); !slices.Equal(got, want) {
					t.Errorf("%s: got %q, want %q", text, got, want)
				}
				rows := 2
				if text == "commit" {
					rows = 1
				}
				g.s.WantRows(t, before+rows)
			}
		})
	}
}
