package txn

import "testing"

// A savepoint in a transaction that an error may have ended is refused, as any
// other use is: between Use and Save a statement of another goroutine may have
// met the error. Otherwise going back to it makes the transaction sound again.
func TestSlotSaveInAnAborted(t *testing.T) {
	w := newWorld(t, plain)
	tx := w.begin()
	w.Note(background, tx, false, errFull)
	sp, err := w.Save(background, background, tx, "k")
	if err == nil {
		t.Errorf("it began, in a transaction that is aborted; RollBack: %v", sp.RollBack("k"))
	}
	w.inState("aborted")
	w.End(true)
	if r := w.Last(); r.Outcome != RolledBack {
		t.Errorf("got %s", describeResult(r, "returned"))
	}
	w.d.CheckLog(t, "BEGIN", "ROLLBACK")
}

// A statement beside the one that met the error may have run after the server had
// ended the transaction, whether it returns before the error is noted or after it.
func TestSlotNoteBesideAStatement(t *testing.T) {
	for _, row := range []struct {
		name  string
		calls string // s: a statement starts, d: one is done, n: an error that ends transactions is noted
		want  Outcome
	}{
		{"alone", "snd", RolledBack},
		{"after one that is done", "sdsnd", RolledBack},
		{"beside one under way", "ssndd", Ended},
		{"beside one that returns first", "ssdnd", Ended},
		{"after two that overlapped", "ssddsnd", RolledBack},
		{"beside the second of two", "ssdsdnd", Ended},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, plain)
			w.at("ROLLBACK", fails(errNoTx))
			tx := w.begin()
			for _, call := range row.calls {
				switch call {
				case 's':
					if joined, _ := w.Join(&w.key); joined != tx {
						t.Fatal("it has not joined")
					}
				case 'd':
					w.Done()
				case 'n':
					w.Note(background, tx, false, errFull)
				}
			}
			w.End(true)
			if r := w.Last(); r.Outcome != row.want {
				t.Errorf("got %s", describeResult(r, "returned"))
			}
		})
	}
}

// Where the server has rolled back by itself, that is known of a transaction in which
// nothing can have run since, or have ended it before.
func TestSlotNoteByPurpose(t *testing.T) {
	for _, row := range []struct {
		statement string // "": not for a statement
		why       Purpose
		want      Outcome
	}{
		{"INSERT INTO t VALUES (1)", ForStatement, RolledBack},
		{"DROP TABLE t", ForCommitting, Ended},
		{"", ForPrepare, Ended},
		{"", ForCaller, Ended},
	} {
		if row.statement != "" && PurposeOf(row.statement) != row.why {
			t.Errorf("%s is for %d, want %d", row.statement, PurposeOf(row.statement), row.why)
		}
		w := newWorld(t, plain)
		w.at("ROLLBACK", fails(errNoTx))
		tx := must(w.Use(background, w.ask(row.why)))(t)
		if row.why != ForCaller {
			w.Done()
		}
		w.Note(background, tx, false, errFull)
		w.End(true)
		if r := w.Last(); r.Outcome != row.want {
			t.Errorf("for %d: got %s", row.why, describeResult(r, "returned"))
		}
	}
}
