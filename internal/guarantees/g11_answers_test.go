package guarantees

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/internal/sqlreqtest"
)

// No success is false, and no hook lies: over every fault, wherever the handler meets it and
// whatever it makes of it, with and without Guard, a Savepoint and Retry.
func TestG11AnswersOfOtherEngines(t *testing.T) {
	cases := 0
	for _, e := range engines() {
		for _, fault := range []string{"", "BROKEN", "CONFLICT", "LATE", "RAW COMMIT"} {
			for way, run := range map[string]through{"Key": throughKey, "Tx": throughTx} {
				for bits := range 1 << 5 {
					c := answerCase{
						engine: e.name, fault: fault, way: way, run: run,
						guard: bits&1 != 0, savepoint: bits&2 != 0, returns: bits&4 != 0, refuses: bits&8 != 0, retries: bits&16 != 0,
					}
					if c.guard && !e.guards || c.savepoint && (!e.savepoints || fault == "RAW COMMIT") {
						continue // refused; and a savepoint does not outlive its transaction
					}
					cases++
					c.check(t)
				}
			}
		}
	}
	if cases < 592 {
		t.Errorf("%d cases", cases)
	}
}

type answerCase struct {
	engine, fault, way string
	run                through
	guard              bool
	savepoint          bool // the fault is met in one
	returns            bool // the handler returns the error
	refuses            bool // the handler ends with a 422
	retries            bool
}

func (c answerCase) String() string {
	return fmt.Sprintf("%s, %q through %s, Guard %t, Savepoint %t, returned %t, then a 422 %t, Retry %t", c.engine, c.fault, c.way, c.guard, c.savepoint, c.returns, c.refuses, c.retries)
}

func (c answerCase) check(t *testing.T) {
	t.Helper()
	e := pick(c.engine)
	reg := sqlreqtest.NewRegistry(t, sqlreq.Binding{DB: e.db(t), Guard: c.guard})
	if c.retries {
		reg.Retry = sqlreqtest.Retries(3)
	}
	var log sqlreqtest.Recorder
	log.Watch(reg)
	attempt := 0
	var told []string // what the last attempt was told to be done
	a := sqlreqtest.Ask(reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		attempt++
		told = nil
		log.Hooks(t, r.Context(), sqlreqtest.Main, "")
		err := c.work(r.Context(), attempt, &told)
		switch {
		case c.returns && err != nil:
			return err
		case c.refuses:
			return sqlreq.Errorf(422, "no")
		}
		w.WriteHeader(201)
		return nil
	})), httptest.NewRequest("POST", "/", nil))
	words, stored := strings.Fields(log.Words()), e.Stored()
	last := ""
	if len(words) > 0 {
		last = words[len(words)-1]
	}
	// Oracle does not tell that a statement has ended the transaction: see docs/databases.md.
	silent := c.engine == "Oracle" && c.fault == "RAW COMMIT"
	switch {
	case (a.Code < 400 || last == "commit") && stored != strings.Join(told, ", "):
		t.Errorf("%v: got %d, hooks %q, stored %q, told %q", c, a.Code, words, stored, told)
	case last == "commit" != (a.Code < 400):
		t.Errorf("%v: got %d, hooks %q", c, a.Code, words)
	case last == "rollback" && stored != "" && !silent:
		t.Errorf("%v: got %d, hooks %q, stored %q", c, a.Code, words, stored)
	case c.fault == "" && !c.refuses && a.Code != 201, c.refuses && a.Code < 400:
		t.Errorf("%v: got %d", c, a.Code)
	case attempt > 1 && !c.retries, attempt > 2:
		t.Errorf("%v: %d attempts", c, attempt)
	}
}

// work inserts a row, and two around the fault, which only the first attempt meets.
func (c answerCase) work(ctx context.Context, attempt int, told *[]string) error {
	insert := func(ctx context.Context, name string, told *[]string) error {
		text := fmt.Sprintf("INSERT %s of attempt %d", name, attempt)
		err := c.run(ctx, text)
		if err == nil {
			*told = append(*told, text)
		}
		return err
	}
	part := func(ctx context.Context, told *[]string) error {
		err := insert(ctx, "b", told)
		if c.fault != "" && attempt == 1 {
			err = errors.Join(err, c.run(ctx, c.fault))
		}
		return errors.Join(err, insert(ctx, "c", told))
	}
	err := insert(ctx, "a", told)
	if !c.savepoint {
		return errors.Join(err, part(ctx, told))
	}
	var inside []string
	undone := sqlreq.Savepoint(ctx, func(ctx context.Context) error { return part(ctx, &inside) })
	if undone == nil {
		*told = append(*told, inside...)
	}
	return errors.Join(err, undone, insert(ctx, "d", told))
}
