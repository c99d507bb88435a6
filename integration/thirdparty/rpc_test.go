package thirdparty

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/99designs/gqlgen/graphql"
	"github.com/99designs/gqlgen/graphql/handler"
	"github.com/99designs/gqlgen/graphql/handler/transport"
	"github.com/gorilla/websocket"
	"github.com/twitchtv/twirp"
	"github.com/twitchtv/twirp/example"
	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"

	"github.com/sqlreq/sqlreq"
)

// rpcLibraries have protocols whose errors have the status 200, or may have: an interceptor calls RollbackOnly.
// "outside" is each procedure in a Middleware of its own, behind what finds the procedure.
var rpcLibraries = []library{
	around("connect", connectApp, connectScripts()),
	around("twirp", twirpApp, twirpScripts()),
	around("gqlgen", gqlApp, gqlScripts),
	onlyHTTP2(around("grpc-go", grpcApp, grpcScripts)),
}

// around is a library whose app puts each procedure in each.
func around(name string, app func(s *site, each func(http.Handler) http.Handler) http.Handler, scripts []script) library {
	return library{
		name: name, scripts: scripts,
		outside: func(s *site, _ http.Handler) http.Handler { return app(s, s.reg.Middleware) },
		inside:  func(s *site) http.Handler { return app(s, func(h http.Handler) http.Handler { return h }) },
	}
}

func onlyHTTP2(l library) library {
	l.only = "HTTP/2.0"
	return l
}

type text1 = wrapperspb.StringValue

// pieces of a large answer of a stream.
const pieces = 64

// errored tells the unit of an RPC's error, whose answer stands.
func errored(ctx context.Context, err error) error {
	if err != nil {
		sqlreq.RollbackOnly(ctx, err)
	}
	return err
}

type rollbackInterceptor struct{}

func (rollbackInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		a, err := next(ctx, r)
		return a, errored(ctx, err)
	}
}

func (rollbackInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (rollbackInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error { return errored(ctx, next(ctx, c)) }
}

func connectApp(s *site, each func(http.Handler) http.Handler) http.Handler {
	mux, option := http.NewServeMux(), connect.WithInterceptors(rollbackInterceptor{})
	mux.Handle("/n.N/Unary", each(connect.NewUnaryHandler("/n.N/Unary", func(ctx context.Context, r *connect.Request[text1]) (*connect.Response[text1], error) {
		body, err := s.typed(ctx, r.Msg.Value)
		return connect.NewResponse(&text1{Value: body}), err
	}, option)))
	mux.Handle("/n.N/Stream", each(connect.NewServerStreamHandler("/n.N/Stream", func(ctx context.Context, r *connect.Request[text1], out *connect.ServerStream[text1]) error {
		if err := s.add(ctx, strings.HasSuffix(r.Msg.Value, "commit")); err != nil {
			return err
		}
		for range pieces {
			if err := out.Send(&text1{Value: text(tableLarge / pieces)}); err != nil {
				return err
			}
		}
		if strings.HasSuffix(r.Msg.Value, "error") {
			return errOnPurpose
		}
		return nil
	}, option)))
	return mux
}

// connectScripts are calls in each of its three protocols. gRPC wants HTTP/2, which connect's client for it knows.
func connectScripts() (all []script) {
	for name, options := range map[string][]connect.ClientOption{"connect": nil, "grpc-web": {connect.WithGRPCWeb()}, "grpc": {connect.WithGRPC()}} {
		for _, do := range []string{"ok", "error", "commit", "panic"} {
			all = append(all, script{name + " " + do, do != "ok", func(_ *testing.T, srv *httptest.Server, _ string) (bool, string) {
				a, err := connect.NewClient[text1, text1](srv.Client(), srv.URL+"/n.N/Unary", options...).CallUnary(context.Background(), connect.NewRequest(&text1{Value: do}))
				return err == nil && a.Msg.Value == text(small), fmt.Sprint(err)
			}})
		}
		for _, do := range []string{"large", "large, error", "large, commit"} {
			all = append(all, script{name + " " + do, do != "large", func(_ *testing.T, srv *httptest.Server, _ string) (bool, string) {
				stream, err := connect.NewClient[text1, text1](srv.Client(), srv.URL+"/n.N/Stream", options...).CallServerStream(context.Background(), connect.NewRequest(&text1{Value: do}))
				if err != nil {
					return false, err.Error()
				}
				defer stream.Close()
				n := 0
				for stream.Receive() {
					n++
				}
				return stream.Err() == nil && n == pieces, fmt.Sprint(n, " messages, ", stream.Err())
			}})
		}
	}
	return all
}

type hats struct{ s *site }

// hatSizes are what the caller wants, by the size of the hat.
var hatSizes = []string{"ok", "error", "commit", "panic", "large", "large, commit"}

func (h hats) MakeHat(ctx context.Context, size *example.Size) (*example.Hat, error) {
	body, err := h.s.typed(ctx, hatSizes[size.Inches])
	if err != nil {
		return nil, twirp.InvalidArgumentError("inches", err.Error())
	}
	return &example.Hat{Name: body}, nil
}

func twirpApp(s *site, each func(http.Handler) http.Handler) http.Handler {
	server := example.NewHaberdasherServer(hats{s})
	mux := http.NewServeMux()
	mux.Handle(server.PathPrefix(), each(server))
	return mux
}

func twirpScripts() (all []script) {
	for i, do := range hatSizes {
		for name, client := range map[string]func(string, example.HTTPClient, ...twirp.ClientOption) example.Haberdasher{
			"protobuf": example.NewHaberdasherProtobufClient, "JSON": example.NewHaberdasherJSONClient,
		} {
			all = append(all, script{name + " " + do, do != "ok" && do != "large", func(_ *testing.T, srv *httptest.Server, _ string) (bool, string) {
				_, err := client(srv.URL, srv.Client()).MakeHat(context.Background(), &example.Size{Inches: int32(i)})
				var told twirp.Error
				if do == "panic" && !(errors.As(err, &told) && told.Code() == twirp.Internal) {
					return true, fmt.Sprintf("%v: twirp has flushed an error before it panics on", err)
				}
				return err == nil, fmt.Sprint(err)
			}})
		}
	}
	return all
}

var gqlSchema = gqlparser.MustLoadSchema(&ast.Source{Input: `
	type Query { note(do: String!): String! }
	type Mutation { note(do: String!): String! }
	type Subscription { note(do: String!): String! }`})

// gqlMessages are what a subscription sends.
const gqlMessages = 3

func gqlApp(s *site, each func(http.Handler) http.Handler) http.Handler {
	srv := handler.New(&graphql.ExecutableSchemaMock{
		SchemaFunc:     func() *ast.Schema { return gqlSchema },
		ComplexityFunc: func(context.Context, string, string, int, map[string]any) (int, bool) { return 0, false },
		ExecFunc: func(ctx context.Context) graphql.ResponseHandler {
			op := graphql.GetOperationContext(ctx).Operation
			do := op.SelectionSet[0].(*ast.Field).Arguments[0].Value.Raw
			if op.Operation == ast.Subscription {
				return s.subscription(do)
			}
			return graphql.OneShot(s.gqlAnswer(ctx, do))
		},
	})
	srv.AddTransport(transport.Websocket{})
	srv.AddTransport(transport.POST{})
	srv.SetRecoverFunc(func(context.Context, any) error { return errOnPurpose })
	srv.AroundResponses(func(ctx context.Context, next graphql.ResponseHandler) *graphql.Response {
		a := next(ctx)
		if a != nil && len(a.Errors) > 0 {
			_ = errored(ctx, a.Errors)
		}
		return a
	})
	return each(srv)
}

func (s *site) gqlAnswer(ctx context.Context, do string) *graphql.Response {
	body, err := s.typed(ctx, do)
	if err != nil {
		return &graphql.Response{Errors: gqlerror.List{gqlerror.Wrap(err)}}
	}
	data, _ := json.Marshal(map[string]string{"note": body})
	return &graphql.Response{Data: data}
}

// subscription writes one note in all, in a Do, and sends more messages: after the Hijack the request has no
// transaction of its own any more.
func (s *site) subscription(do string) graphql.ResponseHandler {
	sent := 0
	return func(ctx context.Context) *graphql.Response {
		if sent++; sent > gqlMessages {
			return nil
		}
		if err := s.add(ctx, false); !errors.Is(err, sqlreq.ErrFinished) {
			return &graphql.Response{Errors: gqlerror.List{gqlerror.Errorf("after Hijack: got %v, want ErrFinished", err)}}
		}
		if sent == 1 {
			if err := s.reg.Do(ctx, func(ctx context.Context) error { return s.add(ctx, do == "commit") }); err != nil {
				return &graphql.Response{Errors: gqlerror.List{gqlerror.Wrap(err)}}
			}
		}
		return &graphql.Response{Data: []byte(`{"note":"x"}`)}
	}
}

var gqlScripts = []script{
	{"ok", false, gqlPost}, {"error", true, gqlPost}, {"commit", true, gqlPost}, {"panic", true, gqlPost},
	{"large", false, gqlPost}, {"large, commit", true, gqlPost},
	{"websocket ok", false, gqlSubscribe}, {"websocket commit", true, gqlSubscribe},
}

func gqlQuery(kind, do string) string {
	b, _ := json.Marshal(map[string]string{"query": fmt.Sprintf("%s { note(do: %q) }", kind, do)})
	return string(b)
}

func gqlPost(t *testing.T, srv *httptest.Server, do string) (success bool, seen string) {
	req := newRequest(t, "POST", srv.URL, gqlQuery("mutation", do))
	req.Header.Set("Content-Type", "application/json")
	a := readAnswer(srv.Client().Do(req))
	return a.err == nil && a.status == 200 && !strings.Contains(a.body, `"errors"`), fmt.Sprintf("%d %.100q %v", a.status, a.body, a.err)
}

// gqlSubscribe is over HTTP/1.1 always: a websocket is.
func gqlSubscribe(t *testing.T, srv *httptest.Server, name string) (success bool, seen string) {
	dialer := websocket.Dialer{Subprotocols: []string{"graphql-transport-ws"}}
	if transport, ok := srv.Client().Transport.(*http.Transport); ok && srv.TLS != nil {
		dialer.TLSClientConfig = transport.TLSClientConfig.Clone()
		dialer.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	conn, _, err := dialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	send := func(message string) {
		if err := conn.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
			t.Error(err)
		}
	}
	send(`{"type":"connection_init"}`)
	send(`{"type":"subscribe","id":"1","payload":` + gqlQuery("subscription", strings.TrimPrefix(name, "websocket ")) + `}`)
	for n := 0; ; {
		var m struct {
			Type    string
			Payload json.RawMessage
		}
		if err := conn.ReadJSON(&m); err != nil {
			return false, err.Error()
		}
		switch {
		case m.Type == "next" && !strings.Contains(string(m.Payload), "errors"):
			n++
		case m.Type == "complete":
			return n == gqlMessages, fmt.Sprint(n, " messages")
		case m.Type != "connection_ack":
			return false, string(m.Payload)
		}
	}
}

// grpcApp is called beside a page on the same port, as grpc-go's documentation shows.
func grpcApp(s *site, each func(http.Handler) http.Handler) http.Handler {
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			a, err := next(ctx, r)
			return a, errored(ctx, err)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return errored(stream.Context(), next(srv, stream))
		}),
	)
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "n.N", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: grpcUnary}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: grpcStream}},
	}, s)
	inner := each(srv)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") != "application/grpc" {
			http.NotFound(w, r)
			return
		}
		inner.ServeHTTP(w, r)
	})
}

func grpcUnary(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	in := new(text1)
	if err := decode(in); err != nil {
		return nil, err
	}
	return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/n.N/Unary"}, func(ctx context.Context, r any) (any, error) {
		body, err := srv.(*site).typed(ctx, r.(*text1).Value)
		return &text1{Value: body}, err
	})
}

// grpcStream ends after one message of the client, which goes on: with Retry it used to hang.
func grpcStream(srv any, stream grpc.ServerStream) error {
	in := new(text1)
	if err := stream.RecvMsg(in); err != nil {
		return err
	}
	if err := srv.(*site).add(stream.Context(), strings.HasSuffix(in.Value, "commit")); err != nil {
		return err
	}
	n := pieces
	if !strings.HasPrefix(in.Value, "large") {
		n = 1
	}
	for range n {
		if err := stream.SendMsg(&text1{Value: text(tableLarge / pieces)}); err != nil {
			return err
		}
	}
	if strings.HasSuffix(in.Value, "error") {
		return status.Error(codes.FailedPrecondition, "on purpose")
	}
	return nil
}

var grpcScripts = []script{
	{"ok", false, grpcCall}, {"error", true, grpcCall}, {"commit", true, grpcCall},
	{"stream ok", false, grpcCall}, {"stream error", true, grpcCall}, {"stream commit", true, grpcCall},
	{"stream large", false, grpcCall}, {"stream large, error", true, grpcCall}, {"stream large, commit", true, grpcCall},
}

// grpcCall is by grpc-go's own client.
func grpcCall(t *testing.T, srv *httptest.Server, name string) (success bool, seen string) {
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	conn, err := grpc.NewClient(srv.Listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "example.com")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	do, streams := strings.CutPrefix(name, "stream ")
	if !streams {
		out := new(text1)
		err := conn.Invoke(ctx, "/n.N/Unary", &text1{Value: do}, out)
		wantCode(t, do, err)
		return err == nil && out.Value == text(small), fmt.Sprint(err)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/n.N/Stream")
	if err == nil {
		err = stream.SendMsg(&text1{Value: do}) // and no CloseSend
	}
	n := 0
	for ; err == nil; n++ {
		err = stream.RecvMsg(new(text1))
	}
	wantCode(t, do, err)
	return err == io.EOF && (n == pieces+1 || n == 2), fmt.Sprint(n-1, " messages, ", err)
}

// wantCode: the error of a handler keeps its code, and nobody waited for the time to run out.
func wantCode(t *testing.T, do string, err error) {
	code := status.Code(err)
	if code == codes.DeadlineExceeded {
		t.Error("it hung")
	}
	if strings.HasSuffix(do, "error") && code != codes.FailedPrecondition && code != codes.Unknown {
		t.Errorf("got %v, want the handler's code", err)
	}
}
