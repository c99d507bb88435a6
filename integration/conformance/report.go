package conformance

import (
	"fmt"
	"slices"
	"strings"
)

// Report is what came of a run.
type Report struct {
	Results []Result
	facts   facts
	strange string // an error of a conflict that was not recognized
	ran     int    // checks
}

// Complete reports whether all checks have run: none was left out by only, or by the flag -run.
func (r Report) Complete() bool { return r.ran == len(checks) }

// LeftOut returns how many checks are of something that the database does not have.
func (r Report) LeftOut() (n int) {
	for _, result := range r.Results {
		if result.Verdict == without("").text {
			n++
		}
	}
	return n
}

// Capabilities are the columns of the table of engines, in docs/databases.md.
var Capabilities = []string{"commits held", "savepoints", "retry", "read-only", "Guard", "Binding.Tx", "DDL"}

// Cells returns what the engine has of the Capabilities: how for what the run has shown, "no" for
// what there is not, "failed" for what the run has shown not to hold.
func (r Report) Cells(how string) []string {
	cells := make([]string, len(Capabilities))
	for i, c := range []struct {
		has    bool
		checks []check
	}{
		{true, r.checks("G1", "G2", "G4")},
		{!r.facts.noSavepoints, r.checks("G8")},
		{true, r.checks("G9")},
		{true, r.named("read-only")},
		{r.facts.noGuard == nil, r.named("Guard finds out")},
		{!r.facts.noSavepoints, r.checks("Tx")},
		{!r.facts.ddlCommits, r.named("DDL")},
	} {
		switch {
		case !c.has:
			cells[i] = "no"
		case r.shown(c.checks):
			cells[i] = how
		default:
			cells[i] = "failed"
		}
	}
	return cells
}

func (r Report) checks(guarantees ...string) (all []check) {
	for _, c := range checks {
		if slices.Contains(guarantees, c.guarantee) {
			all = append(all, c)
		}
	}
	return all
}

func (r Report) named(part string) (all []check) {
	for _, c := range checks {
		if strings.Contains(c.name, part) {
			all = append(all, c)
		}
	}
	return all
}

// shown reports whether one of the checks has come to a yes at least, and none to a no.
func (r Report) shown(checks []check) bool {
	shown := false
	for _, c := range checks {
		switch r.result(c.name).Verdict {
		case yes.text:
			shown = true
		case without("").text:
		default:
			return false
		}
	}
	return shown
}

// result returns that of the check whose name has a part, a zero Result if it did not run.
func (r Report) result(part string) Result {
	i := slices.IndexFunc(r.Results, func(result Result) bool { return strings.Contains(result.Check, part) })
	if i < 0 {
		return Result{Verdict: no.text}
	}
	return r.Results[i]
}

// Header returns the head of the table of engines.
func Header() string {
	return Line("engine, driver", append(slices.Clone(Capabilities), "tested")...) + Line("---", slices.Repeat([]string{"---"}, len(Capabilities)+1)...)
}

// Line returns one line of a table.
func Line(first string, cells ...string) string {
	return "| " + strings.Join(append([]string{first}, cells...), " | ") + " |\n"
}

// String returns what was found, in the form of the table in docs/databases.md.
func (r Report) String() string {
	f := &r.facts
	name := f.engine.Name()
	if name == "" {
		name = "not known"
	}
	var b strings.Builder
	b.WriteString(Header() + Line(name+", "+f.driver, append(r.Cells("run once"), "run once")...) + "\n")
	say := func(what, found string) { fmt.Fprintf(&b, "- %s: %s.\n", what, found) }
	say("engine", or(f.engine.Name() != "", "told by the type of the driver", "not told by the type of the driver, so that it is taken for the standard's"))
	say("savepoints", r.savepoints())
	say("a conflict in a statement", r.conflict("in conflict in a statement"))
	say("a conflict in COMMIT", r.conflict("a conflict in COMMIT"))
	say("8 × 15 increments with Retry", or(r.result("increments").Verdict == yes.text, "120 of 120", "failed"))
	say("a statement that fails", or(f.aborts, "leaves only a rollback", "is undone alone"))
	say("COMMIT", r.believed())
	say("read-only", r.readOnly())
	say("DDL", or(f.ddlCommits, "commits what came before, and ends the transaction", "is rolled back with the rest"))
	say("what ends the transaction behind sqlreq's back", or(f.silentCommit || f.silentRollback,
		"found out with Guard only, for COMMIT and ROLLBACK report success where none is open", "found out by the answer to COMMIT and ROLLBACK"))
	var left []string
	for _, result := range r.Results {
		if result.Verdict == without("").text {
			left = append(left, fmt.Sprintf("%s (%s)", result.Check, result.Note))
		}
	}
	say(fmt.Sprintf("left out, %d of %d checks", len(left), len(r.Results)), or(len(left) > 0, strings.Join(left, "; "), "none"))
	return b.String()
}

func or(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}

func (r Report) savepoints() string {
	if r.facts.noSavepoints {
		return "none"
	}
	texts := []string{r.facts.engine.Savepoint("…"), r.facts.engine.Release("…"), r.facts.engine.RollbackTo("…")}
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), ", ")
}

// conflict says whether a conflict was provoked, and recognized.
func (r Report) conflict(part string) string {
	result := r.result(part)
	switch result.Verdict {
	case yes.text:
		return "provoked, recognized, and the request was run again"
	case without("").text:
		return "not provoked: " + result.Note
	}
	if r.strange == "" {
		return "failed"
	}
	return "provoked, and not recognized; Retry.Retryable can name it: " + r.strange
}

// believed says what of COMMIT's success is.
func (r Report) believed() string {
	f := &r.facts
	switch check := f.engine.CommitCheck(); {
	case f.lies && check != "":
		return "not believed: it reports success in an aborted transaction and stores nothing, so that " + check + " is sent before it"
	case f.lies:
		return "reports success in an aborted transaction and stores nothing: do not use sqlreq with it"
	case f.aborts:
		return "believed: in an aborted transaction it is an error"
	}
	return "believed"
}

func (r Report) readOnly() string {
	switch {
	case r.facts.refusesFlag:
		return "the driver refuses the flag, so that BEGIN is sent without it; what is written is rolled back"
	case r.facts.refusesToWrite:
		return "the flag is taken, and to write is refused"
	}
	return "the flag is taken, and what is written is rolled back"
}
