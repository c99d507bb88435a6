package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqlreq/sqlreq"
)

func TestCounterLosesNothing(t *testing.T) {
	s := start(t)
	const clients, requests = 100, 3
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range requests {
				resp, err := http.Post(s.url+"/api/counter", "", nil)
				if err != nil {
					t.Error(err)
					return
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("%s: %s", resp.Status, body)
				}
			}
		})
	}
	wg.Wait()
	equal(t, "the counter", s.count(`SELECT value FROM counters WHERE name = 'clicks'`), clients*requests)
	t.Logf("%d transactions were begun again", s.again.Load())
}

func TestCounterRunsAgainAfterAConflict(t *testing.T) {
	s := start(t)
	var runs atomic.Int32
	handler := s.reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := s.notes.GetCounter(r.Context(), clicks); err != nil {
			return err
		}
		if runs.Add(1) == 1 { // somebody else is faster
			if _, err := s.dbs.notes.Exec(`UPDATE counters SET value = value + 10`); err != nil {
				return err
			}
		}
		_, err := s.increment(r.Context())
		return err
	}))
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest("POST", "/", nil))
	equal(t, "status", answer.Code, 200)
	equal(t, "runs", runs.Load(), 2)
	equal(t, "the counter", s.count(`SELECT value FROM counters WHERE name = 'clicks'`), 11)
	equal(t, "begun again", s.again.Load(), 1)
}

func TestCounterPage(t *testing.T) {
	s := start(t)
	got := s.form("/counter", nil)
	got.is(t, 303)
	got.leadsTo(t, "/counter")
	s.get("/counter").is(t, 200, `id="value">1<`, "/static/counter.js")
	s.json("POST", "/api/counter", "").is(t, 200, `"value":2`)
	s.get("/api/counter").is(t, 200, `"value":2`)
}
