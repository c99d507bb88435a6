// G6 One request, one outcome, one transaction for each pool, however applications
// are mounted: they nest by context alone, so that a plain http.StripPrefix nests as
// well as Mount, and Prefix is right in both, to any depth, escaped, with exactly one
// leading slash and no backslash. Mount answers "/admin" with a redirect to "/admin/",
// keeps the query, and puts the prefix back on the redirects of an inner ServeMux. An
// application's own redirects are its own business.

package guarantees

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest/fakedb"
)

// nestedRegistry returns a registry for an application that is about paths only.
func nestedRegistry(t testing.TB) *sqlreq.Registry {
	return sqlreqtest.NewRegistry(t, sqlreq.Binding{Key: sqlreq.Key(fmt.Sprintf("%p", t)), DB: (&fakedb.DB{}).Open(t)})
}

// nestedPrefix answers with the prefix, and the path that is left.
var nestedPrefix = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s|%s", sqlreq.Prefix(r.Context()), r.URL.EscapedPath())
})

func nestedStrip(t testing.TB) func(string, http.Handler) http.Handler {
	return func(prefix string, h http.Handler) http.Handler {
		return http.StripPrefix(prefix, nestedRegistry(t).Middleware(h))
	}
}

func nestedMount(t testing.TB) func(string, http.Handler) http.Handler {
	return func(prefix string, h http.Handler) http.Handler { return nestedRegistry(t).Mount(prefix, h) }
}

// TestG6Prefix: under Mount, under a plain StripPrefix, and both in turn, with and
// without a registry outside, whatever way the request came.
func TestG6Prefix(t *testing.T) {
	mount, strip := nestedMount(t), nestedStrip(t)
	same := nestedRegistry(t)
	apps := map[string]http.Handler{
		"Mount":           mount("/a", mount("/b", mount("/c", nestedPrefix))),
		"StripPrefix":     strip("/a", strip("/b", strip("/c", nestedPrefix))),
		"mixed":           strip("/a", mount("/b", strip("/c", nestedPrefix))),
		"mixed otherwise": mount("/a", strip("/b", mount("/c", nestedPrefix))),
		"one registry":    same.Mount("/a", same.Mount("/b", http.StripPrefix("/c", same.Middleware(nestedPrefix)))),
		"stripped twice":  http.StripPrefix("/a", http.StripPrefix("/b", strip("/c", nestedPrefix))),
	}
	tests := []struct{ target, want string }{
		{"/a/b/c/", "/a/b/c|/"},
		{"/a/b/c/x", "/a/b/c|/x"},
		{"/a/b/c/x/", "/a/b/c|/x/"},
		{"/a/b/c/a/b/c/", "/a/b/c|/a/b/c/"},
		{"/a/b/c/x?y=/a/b/c/x", "/a/b/c|/x"},
		{"/a/b/c/x%2Fy", "/a/b/c|/x%2Fy"},
		{"/a/b/c/x%20y", "/a/b/c|/x%20y"},
		{"/a/b/c/%C3%A9", "/a/b/c|/%C3%A9"},
		{"/a/b/c//x", "/a/b/c|//x"},
	}
	for name, app := range apps {
		for outside, h := range map[string]http.Handler{"alone": app, "registry outside": nestedRegistry(t).Middleware(app)} {
			one, two := sqlreqtest.Serve(t, h), sqlreqtest.ServeHTTP2(t, h)
			for _, test := range tests {
				for way, got := range map[string]string{
					"HTTP/1.1":            sqlreqtest.Fetch(t, one.Client(), one.URL+test.target),
					"HTTP/2":              sqlreqtest.Fetch(t, two.Client(), two.URL+test.target),
					"httptest.NewRequest": sqlreqtest.AskGet(h, test.target).Body.String(),
					"absolute form":       sqlreqtest.Ask(h, nestedAbsolute(test.target)).Body.String(),
				} {
					if got != test.want {
						t.Errorf("%s, %s, %s %s: got %q, want %q", name, outside, way, test.target, got, test.want)
					}
				}
			}
		}
	}
}

// nestedAbsolute is a request as a proxy gets it.
func nestedAbsolute(target string) *http.Request {
	r := httptest.NewRequest("GET", target, nil)
	r.RequestURI = "http://example.com" + target
	return r
}

// TestG6PrefixWithoutRequestURI: a request made by http.NewRequest has none, and
// only a registry outside knows.
func TestG6PrefixWithoutRequestURI(t *testing.T) {
	r, err := http.NewRequest("GET", "http://example.com/a/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	app := nestedMount(t)("/a", nestedPrefix)
	if got := sqlreqtest.Ask(app, r).Body.String(); got != "|/x" {
		t.Errorf("alone: got %q, want %q", got, "|/x")
	}
	if got := sqlreqtest.Ask(nestedRegistry(t).Middleware(app), r).Body.String(); got != "/a|/x" {
		t.Errorf("with a registry outside: got %q, want %q", got, "/a|/x")
	}
}

// TestG6PrefixEscaped: prefixes that need escaping, as the client escaped them.
func TestG6PrefixEscaped(t *testing.T) {
	tests := []struct{ mounted, target, want string }{
		{"/myé", "/my%C3%A9/x", "/my%C3%A9|/x"},
		{"/myé", "/my%C3%A9/x%2Fy", "/my%C3%A9|/x%2Fy"},
		{"/é", "/%C3%A9/x", "/%C3%A9|/x"},
		{"/a/b", "/a/b/x%2Fy", "/a/b|/x%2Fy"},
		{"/a", "/%61/x", "/%61|/x"},
		{"/a", "/%61/x%2Fy", "/%61|/x%2Fy"},
		{"/a", "/a%2Fb/x", "404 page not found\n"},
		{"/a/b", "/a%2Fb/x", "404 page not found\n"},
		{"/a", "/ab/x", "404 page not found\n"},
		{"/a", "/b", "404 page not found\n"},
	}
	for _, test := range tests {
		for _, h := range []http.Handler{nestedMount(t)(test.mounted, nestedPrefix), nestedRegistry(t).Middleware(nestedMount(t)(test.mounted, nestedPrefix))} {
			if got := sqlreqtest.AskGet(h, test.target).Body.String(); got != test.want {
				t.Errorf("%q at %s: got %q, want %q", test.mounted, test.target, got, test.want)
			}
		}
	}
}

// TestG6PrefixAfterwards: in hooks, in Do and after the request it is what it was.
func TestG6PrefixAfterwards(t *testing.T) {
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: (&fakedb.DB{}).Open(t)})
	var hook, do string
	var ctx context.Context
	sqlreqtest.AskGet(reg.Mount("/a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
		if err := sqlreq.AfterCommit(ctx, func(ctx context.Context) { hook = sqlreq.Prefix(ctx) }); err != nil {
			t.Error(err)
		}
		_ = reg.Do(ctx, func(ctx context.Context) error { do = sqlreq.Prefix(ctx); return nil })
	})), "/a/x")
	if got := []string{hook, do, sqlreq.Prefix(ctx)}; got[0] != "/a" || got[1] != "/a" || got[2] != "/a" {
		t.Errorf("got %q, want /a thrice", got)
	}
}

// nestedLocal is a prefix that cannot lead to another host, nor end in a slash.
var nestedLocal = regexp.MustCompile(`^(/([^/\\]|[^/\\].*[^/]))?$`)

// FuzzG6Prefix: whatever is stripped of whatever path, the prefix stays on this host.
func FuzzG6Prefix(f *testing.F) {
	for _, path := range []string{"//evil.com/a/x", `/\evil.com/a/x`, `/\/evil.com/x`, "/%5Cevil.com/a/x", "/%2F/evil.com/a", "///a/", "/a//", "/.//evil.com", "/..//x", "/a%2F%2Fb/x", "/\t/evil.com/x", "/a\\/x", "/;//x", "/a?b", "*"} {
		for cut := range 12 {
			f.Add(path, cut)
		}
	}
	reg := nestedRegistry(f)
	f.Fuzz(func(t *testing.T, path string, cut int) {
		if cut < 0 || cut > len(path) {
			return
		}
		u := &url.URL{Path: path}
		if parsed, err := url.ParseRequestURI(path); err == nil {
			u = parsed
		}
		for _, outside := range []bool{false, true} {
			for _, uri := range []string{path, u.RequestURI(), ""} {
				r := (&http.Request{Method: "GET", URL: u, RequestURI: uri, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(t.Context())
				ran := false
				var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					nestedCut(r, cut, reg.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						ran = true
						if p := sqlreq.Prefix(r.Context()); !nestedLocal.MatchString(strings.ReplaceAll(p, "\n", "")) || strings.Contains(p, `\`) {
							t.Errorf("%q cut at %d, URI %q: got the prefix %q", path, cut, uri, p)
						}
					})))
				})
				if outside {
					h = reg.Middleware(h)
				}
				h.ServeHTTP(httptest.NewRecorder(), r)
				if !ran {
					t.Error("the handler did not run")
				}
			}
		}
	})
}

// nestedCut serves r without the first bytes of its path, as a middleware may.
func nestedCut(r *http.Request, cut int, h http.Handler) {
	r2 := new(http.Request)
	*r2 = *r
	r2.URL = new(url.URL)
	*r2.URL = *r.URL
	r2.URL.Path = r.URL.Path[min(cut, len(r.URL.Path)):]
	r2.URL.RawPath = r.URL.RawPath[min(cut, len(r.URL.RawPath)):]
	h.ServeHTTP(httptest.NewRecorder(), r2)
}

// nestedLocation returns status and Location of a request that is not followed.
func nestedLocation(t testing.TB, srv *httptest.Server, method, target string) (int, string, string) {
	t.Helper()
	r, err := http.NewRequest(method, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque = "//" + strings.TrimPrefix(srv.URL, "http://") + target // sent as it is
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("%s: %v", target, err)
	}
	return res.StatusCode, res.Header.Get("Location"), string(body)
}

// TestG6MountRedirectsToItself: the prefix alone is answered with a redirect into
// the application, the query kept, and never to another host.
func TestG6MountRedirectsToItself(t *testing.T) {
	mount := nestedMount(t)
	deep := mount("/a", mount("/b", mount("/c", nestedPrefix)))
	outside := http.NewServeMux()
	outside.Handle("/a", deep)
	outside.Handle("/a/", deep)
	tests := []struct {
		h            http.Handler
		target, want string
	}{
		{mount("/admin", nestedPrefix), "/admin", "/admin/"},
		{mount("/admin", nestedPrefix), "/admin?x=1&y=//evil.com", "/admin/?x=1&y=//evil.com"},
		{mount("/myé", nestedPrefix), "/my%C3%A9?q", "/my%C3%A9/?q"},
		{deep, "/a", "/a/"},
		{deep, "/a/b", "/a/b/"},
		{deep, "/a/b/c?x=1", "/a/b/c/?x=1"},
		{outside, "/a", "/a/"},
		{outside, "/a/b?x", "/a/b/?x"},
		{http.StripPrefix("/v1", mount("/admin", nestedPrefix)), "/v1/admin?x=1", "/v1/admin/?x=1"},
		{http.StripPrefix("//evil.com", mount("/admin", nestedPrefix)), "//evil.com/admin", "/evil.com/admin/"},
		{http.StripPrefix(`/\evil.com`, mount("/admin", nestedPrefix)), "/%5Cevil.com/admin", "/%5Cevil.com/admin/"},
	}
	for _, test := range tests {
		for name, h := range map[string]http.Handler{"alone": test.h, "registry outside": nestedRegistry(t).Middleware(test.h)} {
			status, to, _ := nestedLocation(t, sqlreqtest.Serve(t, h), "POST", test.target)
			if status != 307 || to != test.want {
				t.Errorf("%s, %s: got %d %q, want 307 %q", test.target, name, status, to, test.want)
			}
		}
	}
}

// nestedMux is an application whose ServeMux redirects, and that redirects itself.
func nestedMux(levels ...http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/dir/", func(w http.ResponseWriter, r *http.Request) { nestedPrefix(w, r) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) { nestedPrefix(w, r) })
	mux.HandleFunc("/own", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusTemporaryRedirect)
	})
	for _, h := range levels {
		mux.Handle("/sub/", h)
	}
	return mux
}

// TestG6MountPutsThePrefixBack on the redirects that a ServeMux makes, on each
// level, whatever is held and whoever is in between; and on no other.
func TestG6MountPutsThePrefixBack(t *testing.T) {
	between := map[string]func(http.Handler) http.Handler{
		"nothing": func(h http.Handler) http.Handler { return h },
		"TimeoutHandler": func(h http.Handler) http.Handler {
			return http.TimeoutHandler(h, time.Hour, "")
		},
	}
	for name, wrap := range between {
		for _, limit := range []int{0, 1} {
			mount := func(prefix string, h http.Handler) http.Handler {
				reg := nestedRegistry(t)
				reg.HoldLimit = limit
				return wrap(reg.Mount(prefix, h))
			}
			outer := nestedRegistry(t)
			outer.HoldLimit = limit
			app := nestedMux(mount("/sub", nestedMux(mount("/sub", nestedMux()))))
			for _, h := range []http.Handler{mount("/admin", app), outer.Middleware(mount("/admin", app))} {
				srv := sqlreqtest.Serve(t, h)
				for _, prefix := range []string{"/admin", "/admin/sub", "/admin/sub/sub"} {
					nestedRedirects(t, fmt.Sprintf("%s between, limit %d", name, limit), srv, prefix)
				}
			}
		}
	}
}

func nestedRedirects(t *testing.T, name string, srv *httptest.Server, prefix string) {
	t.Helper()
	tests := []struct{ target, want string }{
		{"/dir", prefix + "/dir/"},
		{"/dir?x=1&y=/dir", prefix + "/dir/?x=1&y=/dir"},
		{"/x//page", prefix + "/x/page"},
		{"//page?q", prefix + "/page?q"},
		{"//evil.com/page", prefix + "/evil.com/page"},
		{"/dir/../page", prefix + "/page"},
		{"/dir/./%C3%A9//", ""},
		{"/own?to=/login", "/login"},
		{"/own?to=/own/", "/own/"},
		{"/own?to=https://example.com/x", "https://example.com/x"},
	}
	for _, test := range tests {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			status, to, body := nestedLocation(t, srv, method, prefix+test.target)
			switch {
			case test.want == "": // escapes are the mux's own business
				if !strings.HasPrefix(to, prefix+"/dir/") {
					t.Errorf("%s: %s %s: got %q, want it under %s/dir/", name, method, prefix+test.target, to, prefix)
				}
			case to != test.want || status != 307 && status != 301:
				t.Errorf("%s: %s %s: got %d %q, want %q", name, method, prefix+test.target, status, to, test.want)
			}
			if own := strings.HasPrefix(test.target, "/own"); method == "GET" && (body == "") == own {
				t.Errorf("%s: %s: got the body %q", name, prefix+test.target, body)
			}
		}
	}
}

// TestG6MountLeavesRedirectsThatNoMuxMakes: to the very path that was asked for,
// which is the site's own, and with another status.
func TestG6MountLeavesRedirectsThatNoMuxMakes(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(r.URL.Query().Get("status"))
		if err != nil {
			t.Error(err)
		}
		to := *r.URL
		if r.URL.Query().Has("slash") {
			to.Path += "/"
		}
		w.Header().Set("Location", to.RequestURI())
		w.WriteHeader(status)
	})
	status := http.StatusTemporaryRedirect
	if strings.HasPrefix(runtime.Version(), "go1.25") {
		status = http.StatusMovedPermanently
	}
	srv := sqlreqtest.Serve(t, nestedMount(t)("/admin", mux))
	tests := []struct {
		target string
		status int
		to     string // "" is the target itself, with its query
	}{
		{"/login", status, ""},
		{"/login/", status, ""},
		{"/login", 302, ""},
		{"/login", 302, "/login/?status=302&slash=1"},
		{"/login", 308, "/login/?status=308&slash=1"},
		{"/login", 301 + 307 - status, fmt.Sprintf("/login/?status=%d&slash=1", 301+307-status)},
	}
	for _, test := range tests {
		target := fmt.Sprintf("%s?status=%d", test.target, test.status)
		if test.to == "" {
			test.to = target
		} else {
			target += "&slash=1"
		}
		if got, to, _ := nestedLocation(t, srv, "GET", "/admin"+target); got != test.status || to != test.to {
			t.Errorf("%s: got %d %q, want %d %q", target, got, to, test.status, test.to)
		}
	}
}

// TestG6MountServesWhatIsThere: nothing is rewritten that is no redirect.
func TestG6MountServesWhatIsThere(t *testing.T) {
	srv := sqlreqtest.Serve(t, nestedMount(t)("/admin", nestedMux()))
	for target, want := range map[string]string{
		"/admin/dir/":    "/admin|/dir/",
		"/admin/page":    "/admin|/page",
		"/admin/dir/x/y": "/admin|/dir/x/y",
		"/admin/nope":    "404 page not found\n",
		"/other":         "404 page not found\n",
	} {
		if _, body, err := sqlreqtest.Get(t, srv.URL+target); body != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", target, body, err, want)
		}
	}
}

// TestG6MountTakesNoEscapedSlashForOneOfThePrefix: nor does it redirect there.
func TestG6MountTakesNoEscapedSlashForOneOfThePrefix(t *testing.T) {
	srv := sqlreqtest.Serve(t, nestedMount(t)("/a/b", nestedMux()))
	for _, target := range []string{"/a%2Fb", "/a%2Fb/", "/a%2Fb/page", "/%61%2Fb"} {
		if status, to, _ := nestedLocation(t, srv, "GET", target); status != 404 || to != "" {
			t.Errorf("%s: got %d %q, want 404", target, status, to)
		}
	}
	for target, want := range map[string]string{"/%61/b/page": "/%61/b|/page", "/a/%62/dir/x%2Fy": "/a/%62|/dir/x%2Fy"} {
		if _, body, err := sqlreqtest.Get(t, srv.URL+target); body != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", target, body, err, want)
		}
	}
}

// TestG6MountTellsThePattern: middlewares outside see the route of the inner mux.
func TestG6MountTellsThePattern(t *testing.T) {
	app := nestedRegistry(t).Middleware(nestedMount(t)("/admin", nestedMux()))
	r := httptest.NewRequest("GET", "/admin/page", nil)
	app.ServeHTTP(httptest.NewRecorder(), r)
	if r.Pattern != "/page" {
		t.Errorf("got the pattern %q, want /page", r.Pattern)
	}
}

// TestG6MountInsideItself: the same registry on each level is one transaction.
func TestG6MountInsideItself(t *testing.T) {
	f := &fakedb.DB{}
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: f.Open(t)})
	work := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sqlreqtest.Exec(t, r.Context(), sqlreqtest.Main, "INSERT "+sqlreq.Prefix(r.Context()))
	})
	o := sqlreqtest.AskGet(reg.Mount("/a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		work(w, r)
		reg.Mount("/a", work).ServeHTTP(w, r)
		work(w, r)
	})), "/a/a/")
	if o.Code != 200 {
		t.Errorf("got %d, want 200", o.Code)
	}
	f.Check(t, "BEGIN", "INSERT /a", "INSERT /a/a", "INSERT /a", "COMMIT")
}

// TestG6MountRewritesOnlyInside: a redirect that the application outside makes
// when the mounted one has returned is its own, whatever it looks like.
func TestG6MountRewritesOnlyInside(t *testing.T) {
	silent := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	between := map[string]func(http.Handler) http.Handler{
		"nothing":      func(h http.Handler) http.Handler { return h },
		"a middleware": nestedRegistry(t).Middleware,
	}
	for name, wrap := range between {
		mounted := nestedMount(t)("/admin", wrap(silent))
		srv := sqlreqtest.Serve(t, nestedRegistry(t).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mounted.ServeHTTP(w, r)
			http.Redirect(w, r, "/dir/", http.StatusTemporaryRedirect)
		})))
		status, to, body := nestedLocation(t, srv, "GET", "/admin/dir")
		if status != 307 || to != "/dir/" || !strings.Contains(body, "/dir/") {
			t.Errorf("%s between: got %d %q with the body %q, want 307 %q with one", name, status, to, body, "/dir/")
		}
	}
}

// TestG6MountAnswerThatReplacesARedirect: the body of a redirect of the ServeMux is
// dropped, not that of an answer that takes its place.
func TestG6MountAnswerThatReplacesARedirect(t *testing.T) {
	broken := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			http.Error(w, "broken", 500)
		})
	}
	mount := nestedMount(t)
	outer := nestedRegistry(t)
	for name, h := range map[string]http.Handler{
		"inside":                   mount("/admin", broken(nestedMux())),
		"inside, registry outside": outer.Middleware(mount("/admin", broken(nestedMux()))),
		"outside":                  outer.Middleware(broken(mount("/admin", nestedMux()))),
	} {
		status, _, body := nestedLocation(t, sqlreqtest.Serve(t, h), "GET", "/admin/dir")
		if status != 500 || body != "broken\n" {
			t.Errorf("%s: got %d %q, want 500 %q", name, status, body, "broken\n")
		}
	}
}
