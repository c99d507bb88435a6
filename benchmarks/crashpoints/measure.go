package main

import (
	"context"
	"database/sql"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// outcome is what came of one kill.
type outcome struct {
	point  point
	way    way
	first  string // what the client saw when the server was killed
	repeat string // and at its repeat; "": it had its answer, and repeated nothing
	orders int    // how many orders there are then
}

// row is an outcome, and how often it was met.
type row struct {
	outcome
	kills int
}

// measure kills at each point, for each way, and returns what came of it in the order of points and ways.
func measure(ctx context.Context, kills int) ([]row, error) {
	var rows []row
	for _, at := range points {
		for _, by := range ways {
			more, err := measureOne(ctx, at, by, kills)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", at, by, err)
			}
			rows = append(rows, more...)
		}
	}
	return rows, nil
}

// measureOne kills at one point. A server that has answered a repeat is the next one to be killed.
func measureOne(ctx context.Context, at point, by way, kills int) (rows []row, err error) {
	dir, err := os.MkdirTemp("", "crashpoints-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "orders.db")
	s, err := start(ctx, by, file)
	if err != nil {
		return nil, err
	}
	defer func() { s.kill() }()
	db, err := sql.Open("sqlite", dsn(file))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for i := range kills {
		o := outcome{point: at, way: by}
		item := fmt.Sprintf("item-%d", i)
		if o.first, err = s.askAndDie(ctx, item, at); err != nil {
			return nil, err
		}
		if s, err = start(ctx, by, file); err != nil {
			return nil, err
		}
		if o.first == nothing || o.first == half {
			if o.repeat, err = s.ask(ctx, item, ""); err != nil {
				return nil, err
			}
		}
		if err := db.QueryRowContext(ctx, `SELECT count(*) FROM orders WHERE item = ?`, item).Scan(&o.orders); err != nil {
			return nil, err
		}
		rows = add(rows, o)
	}
	return rows, nil
}

// askAndDie sends the order, kills the server where it stops, and returns what the client saw.
func (s *server) askAndDie(ctx context.Context, item string, at point) (string, error) {
	if at == afterAnswer {
		seen, err := s.ask(ctx, item, "")
		s.kill()
		return seen, err
	}
	type told struct {
		seen string
		err  error
	}
	answer := make(chan told, 1)
	go func() {
		seen, err := s.ask(ctx, item, at)
		answer <- told{seen, err}
		s.cmd.Process.Kill() // an answer where it should have stopped: let nobody wait for that
	}()
	err := s.expect(stopped)
	s.kill()
	t := <-answer
	return t.seen, errors.Join(err, t.err)
}

func add(rows []row, o outcome) []row {
	i := slices.IndexFunc(rows, func(r row) bool { return r.outcome == o })
	if i < 0 {
		return append(rows, row{o, 1})
	}
	rows[i].kills++
	return rows
}

var head = []string{"point", "way", "kills", "the client saw", "its repeat saw", "orders"}

func writeCSV(name string, rows []row) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := csv.NewWriter(f)
	lines := [][]string{head}
	for _, r := range rows {
		lines = append(lines, []string{string(r.point), string(r.way), strconv.Itoa(r.kills), r.first, r.repeat, strconv.Itoa(r.orders)})
	}
	return w.WriteAll(lines)
}

func readCSV(name string) ([]row, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(lines) == 0 || !slices.Equal(lines[0], head) {
		return nil, fmt.Errorf("%s has no line %q", name, head)
	}
	var rows []row
	for _, l := range lines[1:] {
		r := row{outcome: outcome{point: point(l[0]), way: way(l[1]), first: l[3], repeat: l[4]}}
		var kills, orders error
		r.kills, kills = strconv.Atoi(l[2])
		r.orders, orders = strconv.Atoi(l[5])
		if err := errors.Join(kills, orders); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}
