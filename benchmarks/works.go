package benchmarks

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"sync/atomic"
)

const (
	insertWork = "INSERT INTO sqlreq_bench_work (note) VALUES ('x')"
	// breakCommit is accepted, and makes COMMIT fail.
	breakCommit = "INSERT INTO sqlreq_bench_child (parent) VALUES (404)"

	items = 100
	chunk = 32 << 10
)

// work is what a request has to do.
type work struct {
	name string
	options

	when   func(*http.Request) bool // which requests use the database; nil: all
	use    func(ctx context.Context, tx dbtx, w http.ResponseWriter) error
	answer []byte                 // after use; by hand after COMMIT
	header func(http.Header)      // set before answer
	before func(i int) (rows int) // the i-th request; what it leaves beyond rows

	rows  int   // what a request leaves in the database
	bytes int64 // of the answer, all in all
}

func (j work) reply(w http.ResponseWriter) {
	if j.header != nil {
		j.header(w.Header())
	}
	if j.answer != nil {
		_, _ = w.Write(j.answer)
	}
}

var (
	page1KiB  = bytes.Repeat([]byte("0123456789abcde\n"), 64)
	page32KiB = bytes.Repeat(page1KiB, 32)
)

// answering gives the work an answer of 1 KiB.
func (j work) answering() work {
	j.answer, j.bytes = page1KiB, int64(len(page1KiB))
	return j
}

// nothing is a request that has no use for the database.
func nothing() work { return work{name: "nothing"}.answering() }

func headers() work {
	j := nothing()
	j.name = "headers"
	j.header = func(h http.Header) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("Etag", `"1"`)
	}
	return j
}

// inserts is n statements.
func inserts(n int) work {
	j := work{name: "insert", rows: n}.answering()
	if n > 1 {
		j.name = fmt.Sprintf("statements=%d", n)
	}
	j.use = func(ctx context.Context, tx dbtx, _ http.ResponseWriter) error {
		for range n {
			if _, err := tx.ExecContext(ctx, insertWork); err != nil {
				return err
			}
		}
		return nil
	}
	return j
}

// durable is one INSERT on a database whose COMMIT waits for the disk.
func durable() work {
	j := inserts(1)
	j.name = "durable"
	return j
}

// read is rows in a read-only transaction.
func read() work {
	j := rows()
	j.name, j.tx = "read", &sql.TxOptions{ReadOnly: true}
	return j
}

// rows answers with the 100 rows as it reads them.
func rows() work {
	j := work{name: "rows", bytes: items * int64(len("something to be read\n"))}
	j.use = func(ctx context.Context, tx dbtx, w http.ResponseWriter) error {
		rows, err := tx.QueryContext(ctx, "SELECT note FROM sqlreq_bench_item")
		if err != nil {
			return err
		}
		defer rows.Close()
		var raw sql.RawBytes
		var note []byte
		for rows.Next() {
			if err := rows.Scan(&raw); err != nil {
				return err
			}
			note = append(append(note[:0], raw...), '\n')
			if _, err := w.Write(note); err != nil {
				return err
			}
		}
		return rows.Err()
	}
	return j
}

// answers writes size bytes while the transaction is open. probe is called
// whenever twice as much is written, and at the end.
func answers(size int64, probe func()) work {
	j := work{name: "answer=" + sizeName(size), rows: 1, bytes: size}
	j.use = func(ctx context.Context, tx dbtx, w http.ResponseWriter) error {
		if _, err := tx.ExecContext(ctx, insertWork); err != nil {
			return err
		}
		return writeAnswer(w, size, probe)
	}
	return j
}

// writeAnswer writes size bytes.
func writeAnswer(w http.ResponseWriter, size int64, probe func()) error {
	for written, next := int64(0), int64(chunk); written < size; {
		n := min(size-written, chunk)
		if _, err := w.Write(page32KiB[:n]); err != nil {
			return err
		}
		written += n
		if probe != nil && (written >= next || written == size) {
			next *= 2
			probe()
		}
	}
	return nil
}

func sizeName(size int64) string {
	for _, unit := range []string{"B", "KiB", "MiB"} {
		if size < 1024 {
			return fmt.Sprintf("%d%s", size, unit)
		}
		size >>= 10
	}
	return fmt.Sprintf("%dGiB", size)
}

// conflicts reads a row and writes it. In so many requests of a hundred another
// program writes it in between, at the first attempt.
func conflicts(s *site, percent int) work {
	j := work{name: fmt.Sprintf("conflicts=%d", percent), rows: 1}.answering()
	j.tx, j.attempts = s.snapshot, 3
	var armed atomic.Bool
	j.before = func(i int) int {
		meet := (i+1)*percent/100 > i*percent/100
		armed.Store(meet)
		if meet {
			return 1
		}
		return 0
	}
	j.use = func(ctx context.Context, tx dbtx, _ http.ResponseWriter) error {
		rows, err := tx.QueryContext(ctx, "SELECT n FROM sqlreq_bench_counter")
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		if err := rows.Close(); err != nil {
			return err
		}
		const add = "UPDATE sqlreq_bench_counter SET n = n + 1"
		if armed.CompareAndSwap(true, false) {
			if _, err := s.rival.ExecContext(ctx, add); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, add)
		return err
	}
	return j
}
