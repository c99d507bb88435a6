package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/servers"
)

// Clients leave at a random moment around a COMMIT that takes its time. What the
// events and the hooks say must be what the database has.
func TestG4CancelStorm(t *testing.T) {
	for _, driver := range postgresDrivers {
		t.Run(driver, func(t *testing.T) { cancelStorm(t, driver) })
	}
}

const stormRequests = 2000

func cancelStorm(t *testing.T, driver string) {
	db := openDSN(t, driver, servers.SharedPostgres(t).DSN)
	db.SetMaxOpenConns(16)
	tables(t, db, "storm (id INTEGER PRIMARY KEY)")
	// A constraint that is checked at COMMIT, and takes two milliseconds.
	exec(t, db,
		"CREATE OR REPLACE FUNCTION storm_check() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN NULL; END $$",
		"CREATE CONSTRAINT TRIGGER storm_check AFTER INSERT ON storm DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION storm_check()")
	t.Cleanup(func() { exec(t, db, "DROP FUNCTION IF EXISTS storm_check() CASCADE") })

	var leaves sync.Map // by path: what lets its client leave, a random time later
	leave := func(r *http.Request, begin bool) {
		if l, ok := leaves.Load(r.URL.Path); ok && l.(leaving).atBegin == begin {
			time.AfterFunc(l.(leaving).after, l.(leaving).cancel)
		}
	}
	s := newService(t, sqlreq.Binding{DB: db}, sqlreq.Retry{}, func(w http.ResponseWriter, r *http.Request) error {
		leave(r, true)
		id, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			return err
		}
		_, err = key.ExecContext(r.Context(), "INSERT INTO storm (id) VALUES ($1)", id)
		leave(r, false)
		return err
	})
	answered := make([]bool, stormRequests)
	var wg sync.WaitGroup
	const clients = 8
	for c := range clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(c))) // seeded: what is random is the machine's part
			for id := c; id < stormRequests; id += clients {
				ctx, cancel := context.WithCancel(context.Background())
				path := fmt.Sprint("/", id)
				leaves.Store(path, leaving{random.IntN(4) == 0, time.Duration(random.Int64N(int64(6 * time.Millisecond))), cancel})
				status, err := s.post(ctx, path)
				cancel()
				answered[id] = err == nil && status < 400
			}
		})
	}
	wg.Wait()
	s.close() // some requests are still being served, though nobody waits for them
	idle(t, db)

	there := make(map[int]bool)
	rows, err := db.Query("SELECT id FROM storm")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		there[id] = true
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]int)
	for id := range stormRequests {
		r := s.of(fmt.Sprint("/", id))
		what := stormOutcome(r)
		counts[what]++
		if answered[id] {
			counts["answered"]++
			if !there[id] {
				t.Errorf("request %d was answered with success, its row is not there", id)
			}
		} else if there[id] {
			counts["committed, but the client had left"]++
		}
		committed := what == "Committed"
		if what != "Ambiguous" && there[id] != committed {
			t.Errorf("request %d: the event says %s, its row is there: %v", id, what, there[id])
		}
		if want := map[string]string{"Committed": "c", "RolledBack": "r", "CommitFailed": "r"}[what]; what != "nothing begun" && r.hooks != want {
			t.Errorf("request %d: %s, hooks %q, want %q", id, what, r.hooks, want)
		}
	}
	t.Logf("%d requests: %v; ambiguous: %d", stormRequests, counts, counts["Ambiguous"])
	if counts["Ambiguous"] != 0 {
		t.Error("nothing but clients was lost, and yet there are COMMITs of unknown outcome: a context has ended them")
	}
	for _, what := range []string{"answered", "committed, but the client had left", "RolledBack"} {
		if counts[what] == 0 {
			t.Errorf("no request was %s: the storm has missed the moment", what)
		}
	}
}

// stormOutcome names what the events say.
func stormOutcome(r record) string {
	switch {
	case len(r.events) == 0:
		return "nothing begun"
	case r.ambiguous():
		return "Ambiguous"
	}
	return r.last().Outcome.String()
}

// leaving is when a client leaves: that long after the handler begins, or has nothing left but COMMIT.
type leaving struct {
	atBegin bool
	after   time.Duration
	cancel  context.CancelFunc
}
