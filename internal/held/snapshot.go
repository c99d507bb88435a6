package held

import (
	"net/http"
	"slices"
	"strings"
	"sync"
)

// snapshot is a copy of a header at one moment. It lives in pooled memory that
// no handler ever sees: restore hands out fresh slices.
type snapshot struct {
	keys []string
	ends []int // values of keys[i] end at values[ends[i]]
	vals []string
}

var snapshots = sync.Pool{New: func() any { return new(snapshot) }}

// keepValues is the size up to which a snapshot goes back to the pool.
const keepValues = 128

func newSnapshot(h http.Header) *snapshot {
	s := snapshots.Get().(*snapshot)
	for k, v := range h {
		s.add(k, v...)
	}
	return s
}

func (s *snapshot) add(key string, values ...string) {
	s.keys = append(s.keys, key)
	s.vals = append(s.vals, values...)
	s.ends = append(s.ends, len(s.vals))
}

func (s *snapshot) free() {
	if s != nil { // this much is inlined: most responses have none
		s.putBack()
	}
}

func (s *snapshot) putBack() {
	if cap(s.vals) > keepValues || cap(s.keys) > keepValues {
		return
	}
	clear(s.keys)
	clear(s.vals)
	s.keys, s.vals, s.ends = s.keys[:0], s.vals[:0], s.ends[:0]
	snapshots.Put(s)
}

func (s *snapshot) has(key string) bool { return s != nil && slices.Contains(s.keys, key) }

// values returns the values of the i-th key. They belong to the snapshot.
func (s *snapshot) values(i int) []string {
	start := 0
	if i > 0 {
		start = s.ends[i-1]
	}
	return s.vals[start:s.ends[i]]
}

func (s *snapshot) equal(h http.Header) bool {
	if len(s.keys) != len(h) {
		return false
	}
	for i, k := range s.keys {
		v, ok := h[k]
		if !ok || !slices.Equal(v, s.values(i)) {
			return false
		}
	}
	return true
}

// restore makes h what it was. A nil snapshot is that of an empty header.
func (s *snapshot) restore(h http.Header) {
	clear(h)
	if s == nil {
		return
	}
	for i, k := range s.keys {
		// A key without values stays one: "Date": nil keeps net/http from adding a Date.
		h[k] = append([]string(nil), s.values(i)...)
	}
}

// setHeader makes dst a copy of src.
func setHeader(dst, src http.Header) {
	clear(dst)
	for k, v := range src {
		dst[k] = append([]string(nil), v...)
	}
}

// laterTrailers returns fresh slices of those values of later that are not in s, and
// that are trailers: declared in s, or by the prefix of their name. One that is no
// longer in later is nil. With unchanged, values that are in s count as well.
func (s *snapshot) laterTrailers(later http.Header, unchanged bool) http.Header {
	if len(later) == 0 && len(s.keys) == 0 {
		return nil // most responses of attempts
	}
	before := make(http.Header, len(s.keys))
	for i, k := range s.keys {
		before[k] = s.values(i)
	}
	var trailers http.Header
	for k, v := range later {
		if was, ok := before[k]; ok && !unchanged && slices.Equal(was, v) || !isTrailer(k, before["Trailer"]) {
			continue
		}
		if trailers == nil {
			trailers = make(http.Header)
		}
		trailers[k] = append([]string{}, v...)
	}
	for k := range before {
		if _, ok := later[k]; ok || !isTrailer(k, before["Trailer"]) {
			continue
		}
		if trailers == nil {
			trailers = make(http.Header)
		}
		trailers[k] = nil
	}
	return trailers
}

// setTrailers changes h by what laterTrailers returned.
func setTrailers(h, trailers http.Header) {
	for k, v := range trailers {
		if v == nil {
			delete(h, k) // over HTTP/2 net/http never ends a response with a trailer that has no values
			continue
		}
		h[k] = v
	}
}

// isTrailer reports whether key is that of a trailer, where fields were declared.
func isTrailer(key string, declared []string) bool {
	if strings.HasPrefix(key, http.TrailerPrefix) {
		return true
	}
	for _, list := range declared {
		for name := range strings.SplitSeq(list, ",") {
			if http.CanonicalHeaderKey(strings.TrimSpace(name)) == key {
				return true
			}
		}
	}
	return false
}
