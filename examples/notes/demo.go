package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/examples/notes/internal/audit"
	"github.com/sqlreq/sqlreq/examples/notes/internal/failures"
	"github.com/sqlreq/sqlreq/examples/notes/internal/once"
	"github.com/sqlreq/sqlreq/examples/notes/internal/source"
)

// card is a failure on the page, with what came of it if it was just run.
type card struct {
	*failures.Failure
	Result *failures.Result
}

// demoPage shows the five failures. Nothing runs until somebody presses a button.
func (s *server) demoPage(w http.ResponseWriter, _ *http.Request) error {
	return s.renderDemo(w, nil)
}

// runDemo runs one of them, or all. It asks for no transaction of its own, so it holds no connection meanwhile.
func (s *server) runDemo(w http.ResponseWriter, r *http.Request) error {
	leave, err := enter(s.demos)
	if err != nil {
		return err
	}
	defer leave()
	trouble := r.PostFormValue("run") != "well"
	wanted := failures.All
	if id := r.PathValue("failure"); id != "all" {
		f := failures.Find(id)
		if f == nil {
			return sqlreq.Errorf(http.StatusNotFound, "There is no such failure.")
		}
		wanted = []*failures.Failure{f}
	}
	results := map[string]*failures.Result{}
	for _, f := range wanted {
		result, err := f.Run(r.Context(), trouble)
		if err != nil {
			return failed(err)
		}
		results[f.ID] = &result
	}
	return s.renderDemo(w, results)
}

func (s *server) renderDemo(w http.ResponseWriter, results map[string]*failures.Result) error {
	var cards []card
	for _, f := range failures.All {
		cards = append(cards, card{f, results[f.ID]})
	}
	return s.render(w, http.StatusOK, "demo", cards)
}

// showCard is for somebody who asks again for the address of a result: it leads to the card, or to the page.
func (s *server) showCard(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("failure")
	switch {
	case id == "all" || id == "fail":
		http.Redirect(w, r, "/demo", http.StatusSeeOther)
	case failures.Find(id) != nil:
		http.Redirect(w, r, "/demo#"+id, http.StatusSeeOther)
	default:
		return sqlreq.Errorf(http.StatusNotFound, "There is no such failure.")
	}
	return nil
}

// oncePage shows what a repeat does after its server was killed. Nothing is killed until somebody presses a button.
func (s *server) oncePage(w http.ResponseWriter, _ *http.Request) error {
	return s.renderOnce(w, nil)
}

// runOnce starts and kills processes. They end with the request at the latest, also when this process is killed.
func (s *server) runOnce(w http.ResponseWriter, r *http.Request) error {
	leave, err := enter(s.kills)
	if err != nil {
		return err
	}
	defer leave()
	result, err := once.Run(r.Context(), r.PostFormValue("run") != "well")
	if err != nil {
		return failed(err)
	}
	return s.renderOnce(w, &result)
}

// failed is the error of a demo that could not run. It does not wrap the cause: a conflict in a database of the demo is
// no reason to run this request again.
func failed(err error) error { return fmt.Errorf("demo: %v", err) }

func (s *server) renderOnce(w http.ResponseWriter, result *once.Result) error {
	code := once.Code()
	return s.render(w, http.StatusOK, "once", struct {
		Result       *once.Result
		ByHand, Ours source.Code
	}{result, code[0], code[1]})
}

// enter takes one of a few places, and returns the function that gives it back.
func enter(places chan struct{}) (leave func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, sqlreq.Errorf(http.StatusTooManyRequests, "Others run the demo just now. Press the button again in a moment.")
	}
}

// failAfterInsert shows the error page. The note is written, and then something goes wrong.
func (s *server) failAfterInsert(_ http.ResponseWriter, r *http.Request) error {
	if err := audit.Record(r.Context(), s.reg, "add note", "one that will fail"); err != nil {
		return err
	}
	if _, err := s.add(r.Context(), draft{Title: "You will never see this note"}); err != nil {
		return err
	}
	return errors.New("something went wrong after the note was written, as this button promised")
}
