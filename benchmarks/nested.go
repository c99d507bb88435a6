package benchmarks

import (
	"net/http"
	"strings"
)

// nest returns the application that does the work, at the bottom of so many
// applications under each other, each with a middleware of its own.
func (c contender) nest(s *site, j work, depth int) http.Handler {
	if c.middleware == nil {
		h := byHand(s, j)
		for range depth - 1 {
			h = http.StripPrefix("/app", h)
		}
		return h
	}
	h := c.plain(j)
	for range depth - 1 {
		if strings.HasPrefix(c.name, "sqlreq") {
			h = newRegistry(s, j.options).Mount("/app", h)
		} else {
			h = http.StripPrefix("/app", c.middleware(s, j.options)(h))
		}
	}
	return c.middleware(s, j.options)(h)
}

func nestedPath(depth int) string { return strings.Repeat("/app", depth-1) + "/" }
