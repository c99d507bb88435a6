package failures

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"sync"
)

var conflict = Failure{
	ID:    "conflict",
	Title: "A conflict as a 500",
	Lead:  "Two people press “add one” at once. Both have read the number before either writes: the database lets one of them write.",
	Why:   "The database has refused the other one so that it comes again. The middleware passes it on as a 500.",
	Mend:  "Run the handler again: know the errors of the driver, keep the request's body, hold the answer back, wait a moment longer each time, and stop.",
	Well:  "One after the other",
	Doc:   "9-a-client-does-not-notice-a-retry",

	guilty: "if sw.status >= 400", file: "conflict.go", handler: "addOne",
	conns: 4,
	schema: `CREATE TABLE counter (n INTEGER NOT NULL);
INSERT INTO counter VALUES (0);`,
	serve: func(s *stage, find finder) http.Handler { return addOne(find, s.meet) },
	play: func(s *stage, trouble bool) (o outcome, err error) {
		o.told = make([]Answer, 2)
		if !trouble {
			close(s.met)
			for i := range o.told {
				o.told[i] = s.ask(s.ctx, "POST", "/counter", nil)
			}
		} else {
			var both sync.WaitGroup
			for i := range o.told {
				both.Go(func() { o.told[i] = s.ask(s.ctx, "POST", "/counter", nil) })
			}
			both.Wait()
			slices.SortFunc(o.told, func(a, b Answer) int { // who comes first is chance
				return cmp.Or(cmp.Compare(a.code, b.code), cmp.Compare(a.Body, b.Body))
			})
		}
		n, err := count(s.ctx, s.db.DB, `SELECT n FROM counter`)
		o.facts = []Fact{{"the counter", fmt.Sprint(n)}}
		if o.good = n == 2 && o.told[0].code == http.StatusOK && o.told[1].code == http.StatusOK; o.good {
			o.verdict = "Both were counted."
		} else {
			o.verdict = "One of two was turned away with an error, though nothing was wrong with the request."
		}
		return o, err
	},
}

func addOne(find finder, meet func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, db := r.Context(), find(r.Context())
		var n int
		err := db.QueryRowContext(ctx, `SELECT n FROM counter`).Scan(&n)
		meet() // both have read
		if err == nil {
			_, err = db.ExecContext(ctx, `UPDATE counter SET n = ?`, n+1)
		}
		if err != nil {
			http.Error(w, "not counted", http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "Now it is", n+1)
	}
}

// meet waits until it was called twice.
func (s *stage) meet() {
	s.meeting.Lock()
	if s.readers++; s.readers == 2 {
		select {
		case <-s.met:
		default:
			close(s.met)
		}
	}
	s.meeting.Unlock()
	select {
	case <-s.met:
	case <-s.ctx.Done():
	}
}
