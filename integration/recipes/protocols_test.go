package recipes

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/starfederation/datastar-go/datastar"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/adaptertest"
)

// datastar: an event is complete to the browser before COMMIT, so Commit comes before the event that tells of success.
func TestDatastar(t *testing.T) {
	s := adaptertest.NewSite(t)
	h := func(breaks bool) http.Handler {
		return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if err := s.Insert(r.Context()); err != nil {
				return err
			}
			if breaks {
				if err := s.BreakCommit(r.Context()); err != nil {
					return err
				}
			}
			if err := sqlreq.Commit(r.Context()); err != nil {
				return err
			}
			sse := datastar.NewSSE(w, r)
			return sse.PatchElements(`<p id="state">saved</p>`)
		})
	}
	mux := http.NewServeMux()
	mux.Handle("/ok", h(false))
	mux.Handle("/breaks", h(true))
	url := s.Serve(t, s.Reg.Middleware(mux))
	if got := s.Send(t, "POST", url+"/ok"); got.Status != 200 || got.Err != nil || !strings.Contains(got.Body, ">saved<") {
		t.Errorf("got %d %q %v", got.Status, got.Body, got.Err)
	}
	s.WantRows(t, 1)
	if got := s.Send(t, "POST", url+"/breaks"); strings.Contains(got.Body, ">saved<") {
		t.Errorf("got %q though nothing was saved", got.Body)
	}
	s.WantRows(t, 1)
}

// perCall is the recipe for MCP: each call of a tool is a Do, for its context is that of a session, not of a request.
// A result that is an error rolls back, as an error does.
func perCall(reg *sqlreq.Registry) mcp.Middleware {
	return func(next mcp.MethodHandler) mcp.MethodHandler {
		return func(ctx context.Context, method string, req mcp.Request) (res mcp.Result, err error) {
			if method != "tools/call" {
				return next(ctx, method, req)
			}
			isError := errors.New("the tool has answered an error")
			err = reg.Do(ctx, func(ctx context.Context) error {
				var err error
				res, err = next(ctx, method, req)
				if call, ok := res.(*mcp.CallToolResult); ok && err == nil && call.IsError {
					return isError
				}
				return err
			})
			if errors.Is(err, isError) {
				return res, nil
			}
			return res, err
		}
	}
}

func TestMCP(t *testing.T) {
	s := adaptertest.NewSite(t)
	server := mcp.NewServer(&mcp.Implementation{Name: "notes", Version: "1"}, nil)
	server.AddReceivingMiddleware(perCall(s.Reg))
	type input struct {
		Do string `json:"do"`
	}
	mcp.AddTool(server, &mcp.Tool{Name: "save"}, func(ctx context.Context, _ *mcp.CallToolRequest, in input) (*mcp.CallToolResult, any, error) {
		err := s.Insert(ctx)
		switch in.Do {
		case "fail":
			err = errors.Join(err, errPlain)
		case "commit":
			err = errors.Join(err, s.BreakCommit(ctx))
		}
		return nil, nil, err
	})
	web := sqlreqtest.Serve(t, mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil))
	client := mcp.NewClient(&mcp.Implementation{Name: "client", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: web.URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	for _, test := range []struct {
		do      string
		isError bool
		rows    int
	}{{"", false, 1}, {"fail", true, 1}, {"commit", true, 1}, {"", false, 2}} {
		res, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "save", Arguments: map[string]any{"do": test.do}})
		if failed := err != nil || res.IsError; failed != test.isError {
			t.Errorf("%q: got %v %v, want an error %t", test.do, res, err, test.isError)
		}
		s.WantRows(t, test.rows)
	}
}
