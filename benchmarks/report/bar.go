package main

import (
	"fmt"
	"strings"
)

// bar compares what is promised with what was measured.
func bar(r *results) string {
	var b strings.Builder
	b.WriteString("| promised | measured | |\n| --- | --- | --- |\n")
	row := func(promise, measured string, holds bool) {
		verdict := "holds"
		if !holds {
			verdict = "**does not hold**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", promise, measured, verdict)
	}
	at := func(group, work, by, unit string) float64 {
		v, _ := r.median(id{"sqlite", group, work, by}, unit)
		return v
	}
	more := func(group, work, unit string) float64 {
		return at(group, work, "sqlreq", unit) - at(group, work, "hand", unit)
	}
	ratio := func(group, work, by, than, unit string) float64 {
		v, _ := r.ratio(id{"sqlite", group, work, by}, than, unit)
		return v
	}
	for _, w := range []struct{ title, work string }{{"no database", "nothing"}, {"no database, three headers", "headers"}} {
		allocs, bytes := more("Request", w.work, "allocs/op"), more("Request", w.work, "B/op")
		row(w.title+": at most 2 allocations and under 640 B more than the bare handler", fmt.Sprintf("%.0f and %.0f B", allocs, bytes), allocs <= 2 && bytes < 640)
	}
	q := 1 / at("Turns", "nothing", "sqlreq", "of-eager")
	row("no database: at most a fifteenth of a middleware that begins for each", "1/"+times(q), q >= 15)
	for _, w := range inBudget {
		if w.promised == 0 {
			continue
		}
		q, promises := at("Budget", w.work, "sqlreq", "sqlreq-ratio"), at("Budget", w.work, "sqlreq", w.promises+"-ratio")
		measured := percent(q)
		if q > w.promised && promises > w.promised {
			measured += "; who keeps the promises by hand takes " + percent(promises)
		}
		row(fmt.Sprintf("%s: within %.0f %% of the same by hand", w.title, 100*(w.promised-1)), measured, q <= w.promised)
	}
	allocs := more("Request", "insert", "allocs/op")
	row("one INSERT: at most 12 allocations more", fmt.Sprintf("%.0f", allocs), allocs <= 12)
	one, many := at("Request", "keys=1", "sqlreq", "allocs/op"), at("Request", "keys=1000", "sqlreq", "allocs/op")
	row("1,000 keys: the same allocations as 1", fmt.Sprintf("%.0f and %.0f, %s and %s", one, many,
		duration([]float64{at("Request", "keys=1", "sqlreq", "ns/op")}), duration([]float64{at("Request", "keys=1000", "sqlreq", "ns/op")})), one == many)
	held := max(more("Stream", "answer=1GiB", "held-B"), more("Stream", "answer=1GiB", "B/op"))
	row("1 GiB streamed: under 1 MiB of memory more than by hand", memory([]float64{max(held, 0)}), held < 1<<20)
	q = ratio("Stream", "answer=1GiB", "sqlreq", "hand", "ns/op")
	row("1 GiB streamed: within 5 % of the time by hand", percent(q), q <= 1.05)
	if first, ok := r.median(id{"sqlite", "Once", "first", "sqlreq"}, "of-hand"); ok {
		row("`idempotency`, one INSERT, synchronous=FULL: at most 0.7 of the time of the same by hand, with the key in a transaction before", times(first), first <= 0.7)
	}
	q = ratio("Server", "clients=64", "sqlreq", "eager", "req/s")
	row("64 clients on 4 connections, a fifth use the database: 3 times the requests of a middleware that begins for each", times(q)+" times", q >= 3)
	return b.String() + "\n"
}

// percent says by how much a ratio is more than one.
func percent(q float64) string { return fmt.Sprintf("%+.1f %%", 100*(q-1)) }

// inTurns shows the works that were compared in one process.
func inTurns(r *results, database string) string {
	var b strings.Builder
	for _, k := range r.order {
		if k.group != "Turns" || k.database != database {
			continue
		}
		ofHand, _ := r.median(k, "of-hand")
		ofEager, _ := r.median(k, "of-eager")
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", k.work, times(ofHand), times(ofEager))
	}
	if b.Len() == 0 {
		return ""
	}
	return "`sqlreq` in turns with two others, in one process: how many times as long it takes as\n\n| | `hand` | `eager` |\n| --- | ---: | ---: |\n" + b.String() + "\n"
}

// onceInTurns shows what a key costs, by comparisons in one process.
func onceInTurns(r *results, database string) string {
	var b strings.Builder
	for _, c := range []struct{ title, work, unit string }{
		{"a request with a new key, synchronous=FULL, to the same by hand in two transactions", "first", "of-hand"},
		{"the same with synchronous=NORMAL", "first-normal", "of-hand"},
		{"a request with a new key, synchronous=FULL, to one without `Handler`", "first", "of-keyless"},
		{"the same with synchronous=NORMAL", "first-normal", "of-keyless"},
		{"a repeat, synchronous=FULL, to a request with a new key", "repeat", "of-first"},
		{"a request without a key, synchronous=NORMAL, to one without `Handler`", "keyless", "of-without"},
	} {
		if v, ok := r.median(id{database, "Once", c.work, "sqlreq"}, c.unit); ok {
			fmt.Fprintf(&b, "| %s | %s |\n", c.title, times(v))
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "`idempotency.Once.Handler` around one INSERT, in turns: the ratio of\n\n| | |\n| --- | ---: |\n" + b.String() + "\n"
}

// why explains where a contender is faster, by the beginning of the work's name.
var why = []struct{ work, reason string }{
	{"nothing", "By hand, nothing is made for such a request. sqlreq makes the context and the copy of the request that carries it, and holds the answer, because a handler may ask for a transaction, or fail, after it has answered."},
	{"headers", "As above; and the header is noted as it is at WriteHeader, because what is changed later must not be sent."},
	{"insert", "A wait for the pool that ends with the request, and a transaction that does not, take a context of their own. The others bind the life of the transaction to the request's context: a client that leaves costs the connection, and some drivers report work that is committed as cancelled. It is the same few microseconds whatever the transaction itself costs: little where COMMIT waits for a disk or a network, a good deal of one that stays in memory, as with synchronous=NORMAL."},
	{"durable", "As above. What has slept in fsync finds the processor's caches cold, so that each line of code and memory more costs more."},
	{"statements", "As for one INSERT. Statements on a Key (`sqlreq-key`) find the request's transaction each time, under a lock."},
	{"read", "As for one INSERT. The rows are copied into memory, each under a lock, because the answer waits until the transaction is over."},
	{"keys", "As for one INSERT, whatever the number."},
	{"nested", "Each application makes a context and a copy of the request: they say which keys are open in it and what its prefix is."},
	{"conflicts", "Each attempt gets a clone of the request and headers of its own, so that nothing of a failed one is seen in the next. By hand a loop around the transaction does."},
	{"answer", "Up to 64 KiB are copied and sent when COMMIT has succeeded, so that a client waits for both one after the other; a larger answer streams when it has outgrown that. The others, except `buffered`, send at once, and cannot take it back when COMMIT fails."},
	{"clients", "A handler that does it by hand commits before it waits for something else. In a middleware the transaction is open until the handler returns, unless it calls `sqlreq.Commit`."},
	{"slow", "Nobody here waits for a slow client; what differs is what a request costs, and how 100 other clients are scheduled."},
}

// lossesFrom is the ratio that is worth a line.
const lossesFrom = 1.03

// losses lists the works that somebody does faster, and says why.
func losses(r *results) string {
	var b strings.Builder
	for _, w := range why {
		var lines []string
		for _, k := range r.order {
			if text := faster(r, k); k.by == "sqlreq" && k.group != growth && text != "" && strings.HasPrefix(k.work, w.work) {
				lines = append(lines, text)
			}
		}
		if len(lines) > 0 {
			fmt.Fprintf(&b, "- %s.\n  %s\n", strings.Join(lines, "; "), w.reason)
		}
	}
	if b.Len() == 0 {
		return "Nowhere.\n\n"
	}
	return fmt.Sprintf("Who is faster by more than %.0f %%, in three of four rounds at least, and how many times as long sqlreq takes:\n\n%s\n", 100*(lossesFrom-1), b.String())
}

// faster lists the contenders that are faster than k.
func faster(r *results, k id) string {
	unit := "ns/op"
	if k.group == "SlowClients" {
		unit = "p50-ns"
	}
	var by []string
	for _, c := range contenders {
		ratios := r.ratios(k, c, unit)
		if k.group != "Turns" && len(ratios) > 0 && !strings.HasPrefix(c, "sqlreq") && median(ratios) > lossesFrom && ratios[len(ratios)/4] >= 1 {
			by = append(by, fmt.Sprintf("`%s` %s", c, times(median(ratios))))
		}
	}
	if len(by) == 0 {
		return ""
	}
	name := "`" + k.work + "`"
	if k.group == "Stream" {
		name = "the stream"
	}
	if k.database != "sqlite" {
		name += " on " + k.database
	}
	return name + ": " + strings.Join(by, ", ")
}
