package thirdparty

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"testing"
)

// proxyTo passes requests on to srv.
func proxyTo(t *testing.T, srv *httptest.Server) *httputil.ReverseProxy {
	t.Helper()
	target, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{
		Rewrite:  func(p *httputil.ProxyRequest) { p.SetURL(target) },
		ErrorLog: discardLog,
	}
}

// upstream is a service behind the proxy, with what a proxy has to pass on.
func upstream(t *testing.T) *httputil.ReverseProxy {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(path, body string) {
		mux.HandleFunc("/"+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(markHeader, mark)
			io.WriteString(w, body)
		})
		mux.HandleFunc("/"+path+"/hints", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload; as=style")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set(markHeader, mark)
			io.WriteString(w, body)
		})
		mux.HandleFunc("/"+path+"/trailers", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(markHeader, mark)
			w.Header().Set("Trailer", "X-Declared")
			io.WriteString(w, body)
			w.Header().Set("X-Declared", "declared")
			w.Header().Set(http.TrailerPrefix+"X-Late", "late")
		})
	}
	mux.HandleFunc("/sized", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(markHeader, mark)
		w.Header().Set("Content-Length", strconv.Itoa(large))
		io.WriteString(w, text(large))
	})
	answer("small", mark+text(small))
	answer("large", mark+text(large))
	mux.HandleFunc("/none", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/refused", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "refused by the upstream", http.StatusForbidden)
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, mark)
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	return proxyTo(t, serve(t, "HTTP/1.1", mux))
}

// sendHinted is send, and what the 103 responses said.
func sendHinted(t *testing.T, srv *httptest.Server, method, path string) (answer, []string) {
	t.Helper()
	var hints []string
	req := newRequest(t, method, srv.URL+path, "")
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints {
				hints = append(hints, header.Get("Link"))
			}
			return nil
		},
	}))
	return readAnswer(srv.Client().Do(req)), hints
}

var proxied = []struct {
	path   string
	status int
	hints  int
}{
	{"/small", 200, 0},
	{"/large", 200, 0},
	{"/sized", 200, 0},
	{"/small/hints", 200, 1},
	{"/large/hints", 200, 1},
	{"/small/trailers", 200, 0},
	{"/large/trailers", 200, 0},
	{"/none", 204, 0},
	{"/refused", 403, 0},
}

func TestReverseProxyPassesEverythingOn(t *testing.T) {
	proxy := upstream(t)
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			plain := serve(t, proto, proxy)
			idle := serve(t, proto, s.reg.Middleware(proxy))
			open := serve(t, proto, s.reg.Middleware(s.adding(false, proxy)))
			want := 0
			for _, c := range proxied {
				for _, method := range []string{"GET", "HEAD"} {
					t.Run(method+" "+c.path, func(t *testing.T) {
						reference, hints := sendHinted(t, plain, method, c.path)
						reference.wantStatus(t, c.status)
						if len(hints) != c.hints {
							t.Fatalf("hints without sqlreq: got %q, want %d", hints, c.hints)
						}
						for _, srv := range []*httptest.Server{idle, open} {
							got, hints := sendHinted(t, srv, method, c.path)
							got.wantSame(t, reference)
							if len(hints) != c.hints {
								t.Errorf("hints: got %q, want %d", hints, c.hints)
							}
						}
						if c.status < 400 {
							want++
						}
						s.wantNotes(t, want)
					})
				}
			}
		})
	}
}

func TestReverseProxyNoCompleteSuccessWhenCommitFails(t *testing.T) {
	proxy := upstream(t)
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			srv := serve(t, proto, s.reg.Middleware(s.adding(true, proxy)))
			for _, c := range proxied {
				for _, method := range []string{"GET", "HEAD"} {
					t.Run(method+" "+c.path, func(t *testing.T) {
						got, hints := sendHinted(t, srv, method, c.path)
						if len(hints) != c.hints {
							t.Errorf("hints: got %q, want %d", hints, c.hints)
						}
						switch {
						case c.status >= 400:
							got.wantStatus(t, c.status)
						case got.err == nil:
							got.wantError(t)
							if len(got.trailer) > 0 {
								t.Errorf("trailers of the error answer: got %v, want none", got.trailer)
							}
						}
						s.wantNotes(t, 0)
					})
				}
			}
		})
	}
}

// The proxy panics with http.ErrAbortHandler when the upstream breaks off.
func TestReverseProxyUpstreamBreaksOff(t *testing.T) {
	proxy := upstream(t)
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			h, left := finishing(s.reg.Middleware(s.adding(false, proxy)))
			srv := serve(t, proto, h)
			send(t, srv, "GET", "/broken").wantBroken(t)
			await(t, left, "the handler to end")
			s.wantNotes(t, 0)
		})
	}
}

func TestReverseProxyUpstreamIsDown(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	s := newSite(t)
	srv := serve(t, "HTTP/1.1", s.reg.Middleware(s.adding(false, proxyTo(t, gone))))
	send(t, srv, "GET", "/small").wantStatus(t, http.StatusBadGateway)
	s.wantNotes(t, 0)
}

// The proxy flushes what says that it is an event stream.
func TestReverseProxyServerSentEvents(t *testing.T) {
	for _, proto := range protocols {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s COMMIT fails %t", proto, commitFails), func(t *testing.T) {
				s := newSite(t)
				asked := make(chan struct{}, 1)
				upstream := serve(t, "HTTP/1.1", events(asked, flushers[0].flush))
				srv := serve(t, proto, s.reg.Middleware(s.adding(commitFails, proxyTo(t, upstream))))
				asked <- struct{}{}
				wantEvents(t, s, srv, "/", asked, commitFails)
			})
		}
	}
}
