package browser

import "testing"

func TestNotesPages(t *testing.T) {
	s := start(t, "notes")
	crawl(t, s, "/", "/notes/new", "/import", "/counter", "/demo", "/admin/", "/admin/audit/")
}
