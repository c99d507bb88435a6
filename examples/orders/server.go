package main

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/orders/internal/admin"
	"github.com/sqlreq/sqlreq/examples/orders/internal/provider"
	"github.com/sqlreq/sqlreq/examples/orders/internal/shop"
	"github.com/sqlreq/sqlreq/examples/orders/internal/telemetry"
	"github.com/sqlreq/sqlreq/examples/orders/internal/tenant"
	"github.com/sqlreq/sqlreq/examples/orders/internal/web"
	"github.com/sqlreq/sqlreq/idempotency"
)

// server is the service: what its handlers share. There is no database in it: what they call finds the transaction by
// the request's context.
type server struct {
	store shop.Store
	shop  shop.Shop
	reg   *sqlreq.Registry
	once  *idempotency.Once
	otel  *telemetry.Telemetry
	admin http.Handler
}

func newServer(store shop.Store, otel *telemetry.Telemetry) (*server, error) {
	s := &server{store: store, shop: shop.Shop{Store: store}, otel: otel}
	var err error
	if s.reg, err = sqlreq.New(store.Binding()); err != nil {
		return nil, err
	}
	s.reg.ErrorHandler = web.Error
	// Within ends the attempts: it is longer than the failover of a database should take, and less than the server's
	// WriteTimeout. Conflicts over one product are over in milliseconds, so nobody waits long for the next attempt.
	s.reg.Retry = sqlreq.Retry{Attempts: 1000, Within: 20 * time.Second, Retryable: store.Retryable, Backoff: backoff}
	s.reg.Observe = otel.Observe()
	s.once = &idempotency.Once{Dialect: store.Dialect(), Scope: scope, Required: true}
	s.admin, err = admin.New("/admin", store)
	return s, err
}

// backoff waits up to 10, 20, 40, and then always up to 50 ms: at random, so that those in conflict do not meet again.
func backoff(attempt int) time.Duration {
	return rand.N(min(5*time.Millisecond<<min(attempt, 5), 50*time.Millisecond))
}

// scope says whose a key is: two tenants, and the payment provider, may choose the same one.
func scope(r *http.Request) (string, error) {
	if strings.HasPrefix(r.URL.Path, "/webhooks/") {
		return "provider", nil
	}
	return "tenant " + tenant.Of(r.Context()), nil
}

// handler puts the service together. What needs no transaction, and what must see the answer as the client gets it,
// stands outside of the registry's middleware.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /static/", http.StripPrefix("/static/", web.Static()))
	mux.HandleFunc("GET /healthz", s.health)
	mux.Handle("POST /provider/pay", limit(provider.Pay(web.Error)))
	mux.Handle("/", s.reg.Middleware(limit(s.routes())))

	csrf := http.NewCrossOriginProtection()
	csrf.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		web.Error(w, r, sqlreq.Errorf(http.StatusForbidden, "This form was sent by another site."))
	}))
	return s.otel.Handler(onlyHere(headers(csrf.Handler(mux))))
}

// routes are the handlers that have a transaction as soon as they ask for one.
func (s *server) routes() http.Handler {
	shops := http.NewServeMux()
	handle := func(pattern string, h http.Handler) { shops.Handle(pattern, ofTenant(h)) }
	handle("GET /{tenant}/api/products", sqlreq.HandlerFunc(s.listProducts))
	handle("POST /{tenant}/api/orders", s.once.Handler(sqlreq.HandlerFunc(s.createOrder)))
	handle("GET /{tenant}/api/orders/{id}", fresh(sqlreq.HandlerFunc(s.getOrder)))
	handle("GET /{tenant}/{$}", sqlreq.HandlerFunc(s.shopPage))
	handle("GET /{tenant}/orders", sqlreq.HandlerFunc(s.ordersPage))
	handle("POST /{tenant}/orders", keyFromForm(s.once.Handler(sqlreq.HandlerFunc(s.placeOrder))))
	handle("GET /{tenant}/orders/{id}", fresh(sqlreq.HandlerFunc(s.orderPage)))
	shops.Handle("/", sqlreq.HandlerFunc(notFound))

	mux := http.NewServeMux()
	mux.Handle("GET /{$}", sqlreq.HandlerFunc(s.home))
	mux.Handle("GET /api/stats", fresh(ofEveryTenant(sqlreq.HandlerFunc(s.stats))))
	mux.Handle("POST /webhooks/payments", ofEvent(s.once.Handler(sqlreq.HandlerFunc(s.paymentReceived))))
	mux.Handle("/admin", s.admin)
	mux.Handle("/admin/", s.admin)
	mux.Handle("/", shops) // a tenant's path may look like one of those above, which come first
	return mux
}

func notFound(http.ResponseWriter, *http.Request) error {
	return sqlreq.Errorf(http.StatusNotFound, "There is no such page.")
}

// ofTenant gives a handler the tenant of its path. In a service with users, whether this one may see that tenant is asked
// here: before the first statement, for BEGIN takes the tenant from the context.
func ofTenant(next http.Handler) http.Handler {
	return sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		name := r.PathValue("tenant")
		if !tenant.Known(name) {
			return sqlreq.Errorf(http.StatusNotFound, "There is no such shop.")
		}
		next.ServeHTTP(w, r.WithContext(tenant.With(r.Context(), name)))
		return nil
	})
}

// ofEveryTenant is for the operator's numbers.
func ofEveryTenant(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(tenant.Every(r.Context())))
	})
}

// fresh is for what a client asks for right after it was written: a standby may not have it yet.
func fresh(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(shop.Fresh(r.Context())))
	})
}

// health says whether the service can work.
func (s *server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.store.Ping(ctx); err != nil {
		http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
		return
	}
	w.Write([]byte("ok\n"))
}

// limit refuses bodies of more than 64 KiB: reading one fails, and that error is answered with 413.
func limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		next.ServeHTTP(w, r)
	})
}

// headers forbids what the pages don't need.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "+
			"base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// onlyHere refuses requests on loopback that name another host. Listening on localhost does not keep a web page out: it
// may have its own name resolve to 127.0.0.1, and is then of the same origin as the service (DNS rebinding). Behind a
// reverse proxy on the same machine the check has to know the public name.
func onlyHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); local != nil &&
			local.IP.IsLoopback() && !isLoopback(r.Host) {
			web.Error(w, r, sqlreq.Errorf(http.StatusMisdirectedRequest, "This is not %s.", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
