package held

import (
	"net/http"
	"slices"
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

// change makes those changes to h that lead from s to later, and no others: a
// writer outside may have changed h too.
func (s *snapshot) change(h, later http.Header) {
	before := make(http.Header, len(s.keys))
	for i, k := range s.keys {
		before[k] = s.values(i)
		if _, ok := later[k]; !ok {
			delete(h, k)
		}
	}
	for k, v := range later {
		if was, ok := before[k]; !ok || !slices.Equal(was, v) {
			h[k] = append([]string(nil), v...)
		}
	}
}
