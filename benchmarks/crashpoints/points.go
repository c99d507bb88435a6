package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
)

// point is a moment of the request that makes the order.
type point string

const (
	beforeBegin  point = "before BEGIN"
	afterBegin   point = "after BEGIN"
	afterInsert  point = "after the order's INSERT"
	beforeCommit point = "before its COMMIT"
	afterCommit  point = "after its COMMIT"
	beforeAnswer point = "before the answer"
	halfAnswer   point = "in the middle of the answer"
	afterAnswer  point = "after the answer"
)

// points are in the order of a request's life.
var points = []point{beforeBegin, afterBegin, afterInsert, beforeCommit, afterCommit, beforeAnswer, halfAnswer, afterAnswer}

// stopAt is the header by which a client says where the server has to stop. It serves one request at a time.
const stopAt = "Stop-At"

// stops lets the process stop at a point. Whoever comes by a point asks it.
type stops struct{ at atomic.Pointer[point] }

func (s *stops) arm(p point) { s.at.Store(&p) }

// pass stops the process for good, if it is to stop here: it says so and waits to be killed.
func (s *stops) pass(p point) {
	if at := s.at.Load(); at != nil && *at == p {
		fmt.Println(stopped)
		select {}
	}
}

// step and stepped are called by the driver of the database, before and after each call.
func (s *stops) step(_ context.Context, text string) error {
	switch text {
	case "BEGIN":
		s.pass(beforeBegin)
	case "COMMIT":
		s.pass(beforeCommit)
	}
	return nil
}

func (s *stops) stepped(_ context.Context, text string) error {
	switch {
	case text == "BEGIN":
		s.pass(afterBegin)
	case strings.HasPrefix(text, "INSERT INTO orders"):
		s.pass(afterInsert)
	case text == "COMMIT":
		s.pass(afterCommit)
	}
	return nil
}

// around arms the points for a request, and stops where its answer leaves.
func (s *stops) around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := point(r.Header.Get(stopAt)); slices.Contains(points, p) {
			s.arm(p)
		}
		next.ServeHTTP(&leaving{w, s}, r)
	})
}

// leaving is a response on its way out.
type leaving struct {
	http.ResponseWriter
	stops *stops
}

func (l *leaving) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l *leaving) WriteHeader(status int) {
	l.stops.pass(beforeAnswer)
	l.ResponseWriter.WriteHeader(status)
}

func (l *leaving) Write(p []byte) (int, error) {
	l.stops.pass(beforeAnswer)
	if at := l.stops.at.Load(); at != nil && *at == halfAnswer {
		l.ResponseWriter.Write(p[:len(p)/2])
		http.NewResponseController(l.ResponseWriter).Flush()
		l.stops.pass(halfAnswer)
	}
	return l.ResponseWriter.Write(p)
}
