package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// newsroom announces titles that are posted: those that begin with "No" are rolled back.
type newsroom struct {
	region string // the element that announcements stand in
	early  bool   // it announces before it knows
	never  bool   // it announces nothing
	news   chan string
}

func (n *newsroom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/":
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, `<!doctype html><title>News</title><main>%s</main><script>
			new EventSource("/events").onmessage = (e) => { document.getElementById("live").textContent = "New: " + e.data; };
			</script>`, n.region)
	case "/post":
		title := r.URL.Query().Get("title")
		committed := !strings.HasPrefix(title, "No")
		if !n.never && (committed || n.early) {
			n.news <- title
		}
		if !committed {
			w.WriteHeader(http.StatusConflict)
		}
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for {
			select {
			case title := <-n.news:
				fmt.Fprintf(w, "data: %s\n\n", title)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}
}

// TestAnnounced shows the check of announcements red in three ways.
func TestAnnounced(t *testing.T) {
	t.Parallel()
	const live = `<p id="live" role="status"></p>`
	for _, c := range []struct {
		name string
		room *newsroom
		want string // a part of what is found; "" for nothing
	}{
		{"right", &newsroom{region: live}, ""},
		{"before COMMIT", &newsroom{region: live, early: true}, `the window says "New: No"`},
		{"never", &newsroom{region: live, never: true}, `"Yes" was committed and is not announced`},
		{"for the eyes only", &newsroom{region: `<p id="live"></p>`}, `"Yes" was committed and is not announced`},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			c.room.news = make(chan string)
			srv := httptest.NewServer(c.room)
			t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
			window := open(t, Views[0])
			if _, err := window.Open(srv.URL); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(c.want, "not announced") {
				window.Patience = 2 * time.Second // for what never comes
			}
			post := func(title string) func() error {
				return func() error {
					res, err := http.Get(srv.URL + "/post?title=" + title)
					if err != nil {
						return err
					}
					return res.Body.Close()
				}
			}
			found, err := Announced(window, []string{"No"}, "Yes", post("No"), post("Yes"))
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" && len(found) > 0 || c.want != "" && (len(found) != 1 || !strings.Contains(found[0], c.want)) {
				t.Errorf("found %q, want …%s…", found, c.want)
			}
		})
	}
}
