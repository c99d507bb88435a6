package thirdparty

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"testing"

	"github.com/alexedwards/scs/v2"
)

// The session is a cookie that scs adds when the first byte leaves: outside of Middleware it is there on an error
// answer too, which takes the handler's own headers away.
func TestSessionsOutside(t *testing.T) {
	for _, proto := range protocols {
		for _, commitFails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s COMMIT fails %t", proto, commitFails), func(t *testing.T) {
				s := newSite(t)
				sessions := scs.New()
				sessions.Cookie.Secure = proto == "HTTP/2.0"
				mux := http.NewServeMux()
				mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
					sessions.Put(r.Context(), "name", "Ada")
					w.Header().Set(markHeader, mark)
					http.SetCookie(w, &http.Cookie{Name: "handler", Value: "yes"})
					s.adding(commitFails, answerText(small)).ServeHTTP(w, r)
				})
				mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
					io.WriteString(w, sessions.GetString(r.Context(), "name"))
				})
				srv := serve(t, proto, sessions.LoadAndSave(s.reg.Middleware(mux)))
				jar, err := cookiejar.New(nil)
				if err != nil {
					t.Fatal(err)
				}
				srv.Client().Jar = jar

				got := send(t, srv, "POST", "/")
				var cookies []string
				for _, cookie := range (&http.Response{Header: got.header}).Cookies() {
					cookies = append(cookies, cookie.Name)
				}
				if commitFails {
					got.wantError(t)
					s.wantNotes(t, 0)
					if fmt.Sprint(cookies) != "[session]" {
						t.Errorf("cookies of the error answer: got %v, want [session]", cookies)
					}
				} else {
					got.wantStatus(t, 200)
					s.wantNotes(t, 1)
					if len(cookies) != 2 {
						t.Errorf("cookies: got %v, want the handler's and the session's", cookies)
					}
				}
				if got := send(t, srv, "GET", "/"); got.body != "Ada" {
					t.Errorf("the session's name: got %q, want Ada", got.body)
				}
			})
		}
	}
}

// A large answer that breaks off leaves the session as it was stored when the first byte left.
func TestSessionsOutsideLargeAnswer(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			s := newSite(t)
			sessions := scs.New()
			srv := serve(t, proto, sessions.LoadAndSave(s.reg.Middleware(s.adding(true, answerText(large)))))
			send(t, srv, "POST", "/").wantBroken(t)
			s.wantNotes(t, 0)
		})
	}
}
