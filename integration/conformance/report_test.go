package conformance

import (
	"errors"
	"strings"
	"testing"
)

// report is one in which every check has come to a yes, but for some.
func report(f facts, verdicts map[string]verdict) Report {
	r := Report{facts: f, ran: len(checks)}
	for _, c := range checks {
		v := yes
		for part, other := range verdicts {
			if strings.Contains(c.name, part) {
				v = other
			}
		}
		r.Results = append(r.Results, Result{c.guarantee, c.name, v.text, v.note})
	}
	return r
}

// What is printed of databases that none of those in testdata/found is.
func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		report Report
		want   []string
	}{
		"an engine that is not known, and has little": {
			report(facts{driver: "*mine.Driver", noSavepoints: true, noGuard: errors.New("no"), ddlCommits: true, refusesFlag: true},
				map[string]verdict{"a conflict in COMMIT": without("why not"), "Guard finds out": without("no Guard"), "Binding.Tx": without("no savepoints")}),
			[]string{"| not known, *mine.Driver | run once | no | run once | run once | no | no | no | run once |\n", "taken for the standard's", "- savepoints: none.",
				"- a conflict in COMMIT: not provoked: why not.", "BEGIN is sent without it", "commits what came before", "left out, 3 of 27 checks: "},
		},
		"one whose conflicts are not recognized": {
			func() Report {
				r := report(facts{driver: "*mine.Driver"}, map[string]verdict{"in conflict in a statement": no, "increments": no})
				r.strange = "*mine.Error: conflict"
				return r
			}(),
			[]string{"| run once | run once | failed | run once |", "provoked, and not recognized; Retry.Retryable can name it: *mine.Error: conflict.", "with Retry: failed", "left out, 0 of 27 checks: none"},
		},
		"one whose COMMIT lies": {
			report(facts{aborts: true, lies: true}, map[string]verdict{"constraint error": no}),
			[]string{"| failed | run once |", "COMMIT: reports success in an aborted transaction and stores nothing: do not use sqlreq with it"},
		},
		"nothing that ran": {
			Report{},
			[]string{"| failed | failed | failed | failed | failed | failed | failed | run once |", "a conflict in a statement: failed"},
		},
	} {
		got := c.report.String()
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: got\n%s\nwant %q", name, got, want)
			}
		}
	}
	if (Report{}).Complete() || !report(facts{}, nil).Complete() {
		t.Error("Complete")
	}
	if n := report(facts{}, map[string]verdict{"Binding.Tx": without("no")}).LeftOut(); n != 1 {
		t.Errorf("%d left out, want 1", n)
	}
}
