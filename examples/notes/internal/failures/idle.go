package failures

import (
	"fmt"
	"net/http"
)

var idle = Failure{
	ID:    "idle",
	Title: "A transaction for requests that never query",
	Lead:  "A report reads, and holds the only connection of the pool. Meanwhile a load balancer asks ten times whether the service is alive, which needs no database.",
	Why:   "Each request begins a transaction, whether or not it will use one, and waits for a connection first.",
	Mend:  "Begin at the first statement: the transaction becomes something that every handler has to ask for, and that knows how to end if nobody has.",
	Well:  "No report meanwhile",
	Doc:   "3-a-request-that-does-not-use-the-database-takes-no-connection",

	guilty: "db.BeginTx(", file: "idle.go", handler: "health",
	conns:  1,
	schema: `CREATE TABLE notes (title TEXT NOT NULL);`,
	serve: func(s *stage, find finder) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("GET /report", report(s, find))
		mux.Handle("GET /health", health())
		return mux
	},
	play: func(s *stage, trouble bool) (o outcome, err error) {
		reported := make(chan Answer, 1)
		if trouble {
			go func() { reported <- s.ask(s.ctx, "GET", "/report", nil) }()
			select {
			case <-s.reading:
			case <-s.ctx.Done():
				return o, s.ctx.Err()
			}
		}
		before := s.db.Begun.Load()
		const asked = 10
		answered := 0
		var last Answer
		for range asked {
			last = s.askOrWait("GET", "/health")
			if last.code == http.StatusOK {
				answered++
			}
		}
		close(s.finished)
		if trouble {
			<-reported
			// Those that have waited begin now, though their clients have gone.
			until(s.ctx, func() bool { return s.db.Stats().InUse == 0 })
		}
		last.Request = fmt.Sprintf("GET /health, %d times", asked)
		o.told = []Answer{last}
		begun := s.db.Begun.Load() - before
		o.facts = []Fact{
			{"of ten requests were answered", fmt.Sprint(answered)},
			{"transactions begun for them", fmt.Sprint(begun)},
		}
		switch o.good = answered == asked; {
		case !o.good:
			o.verdict = "The service looks dead, because somebody reads a report."
		case begun > 0:
			o.verdict = "All were answered, each with a BEGIN and a COMMIT for nothing."
		default:
			o.verdict = "All were answered, and the database was not asked."
		}
		return o, nil
	},
}

func health() http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "alive")
	}
}

// report reads until the demo says that it may end.
func report(s *stage, find finder) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var n int
		if err := find(r.Context()).QueryRowContext(r.Context(), `SELECT count(*) FROM notes`).Scan(&n); err != nil {
			http.Error(w, "not read", http.StatusInternalServerError)
			return
		}
		s.reading <- struct{}{}
		select {
		case <-s.finished:
		case <-s.ctx.Done():
		}
		fmt.Fprintln(w, "Notes:", n)
	}
}
