package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sqlreq/sqlreq"
)

// The test program is the shop's too: with this variable it serves orders instead of
// running tests, until its input ends.
const shopVariable = "SQLREQ_TEST_SHOP"

// shopConfig is the variable's value.
type shopConfig struct {
	Driver, DSN string
	DieAt       int  // the call of the driver at which the process kills itself; 0: none
	DieAfter    bool // when the call was carried out, not before
}

// runShop is main of a shop's process.
func runShop() int {
	var c shopConfig
	err := json.Unmarshal([]byte(os.Getenv(shopVariable)), &c)
	if err == nil {
		err = c.run()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func (c shopConfig) run() error {
	db, err := openTap(c.Driver, c.DSN, c.call())
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(20)
	db.SetMaxIdleConns(20)
	h, err := newShop(database{driver: c.Driver}, db, 100)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the test's process, however that ends
		os.Exit(0)
	}()
	return http.Serve(l, h)
}

// call kills the process at one call of the driver, and says before which it is.
func (c shopConfig) call() func(*tapConn, string, func() error) error {
	b := &breaking{n: c.DieAt, after: c.DieAfter}
	die := func(name string) {
		fmt.Printf("killed at %s\n", name)
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Kill()
		}
		if err != nil {
			panic(err)
		}
		select {} // nothing goes on
	}
	return func(_ *tapConn, name string, do func() error) error {
		if b.fires(name, false) {
			die("before " + name)
		}
		err := do()
		if b.fires(name, true) {
			die("after " + name)
		}
		return err
	}
}

// shelves is how many rows the table of the stock has.
const shelves = 8

// openShop returns a database with the tables of a shop.
func openShop(t *testing.T, d database) *sql.DB {
	t.Helper()
	db := openOnce(t, d)
	tables(t, db, "sqlreq_order (name VARCHAR(100) NOT NULL, nonce VARCHAR(100) NOT NULL)", "sqlreq_stock (shelf INTEGER PRIMARY KEY, sold INTEGER NOT NULL)")
	for i := range shelves {
		exec(t, db, fmt.Sprintf("INSERT INTO sqlreq_stock VALUES (%d, 0)", i))
	}
	return db
}

// newShop returns a handler that takes orders. Lost connections count as errors after which
// a request may run again: it does, or without attempts left the answer is a 503. A field chooses the isolation level, another has a
// snapshot taken before the key is claimed.
func newShop(d database, db *sql.DB, attempts int) (http.Handler, error) {
	reg, err := sqlreq.New(sqlreq.Binding{DB: db, TxOptions: func(_ context.Context, r *http.Request) *sql.TxOptions {
		return &sql.TxOptions{Isolation: isolationOf(r.Header.Get("X-Isolation"))}
	}})
	if err != nil {
		return nil, err
	}
	reg.Logger = slog.New(slog.DiscardHandler)
	reg.Retry = sqlreq.Retry{Attempts: attempts, Within: patience, Retryable: func(err error) bool { return sqlreq.IsRetryable(err) || isLost(err) }}
	next := newOnce(d).Handler(sqlreq.HandlerFunc(takeOrder))
	return reg.Middleware(sqlreq.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if r.Header.Get("X-Snapshot") != "" {
			var n int
			if err := key.QueryRowContext(r.Context(), "SELECT count(*) FROM "+onceTable).Scan(&n); err != nil {
				return err
			}
		}
		next.ServeHTTP(w, r)
		return nil
	})), nil
}

// isLost reports whether an error of a statement says that its connection was lost. Which
// errors these are is the driver's.
func isLost(err error) bool {
	var network *net.OpError
	var state interface{ SQLState() string }
	switch {
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, mysql.ErrInvalidConn), pgconn.SafeToRetry(err), errors.As(err, &network):
		return true
	case errors.As(err, &state):
		return strings.HasPrefix(state.SQLState(), "57P") || strings.HasPrefix(state.SQLState(), "08")
	}
	return false
}

// isolationLevels are those that all databases but SQLite have.
var isolationLevels = []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}

func isolationOf(name string) sql.IsolationLevel {
	for _, l := range isolationLevels {
		if l.String() == name {
			return l
		}
	}
	if name != "" {
		panic("no isolation level: " + name)
	}
	return sql.LevelDefault
}

// large ends the name of an order whose answer is too large to be held.
const large = "-large"

// takeOrder writes an order, whose name is the request's body, and takes it from the stock. No two answers are the
// same: one that is there twice was recorded.
func takeOrder(w http.ResponseWriter, r *http.Request) error {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	name, nonce := string(b), rand.Text()
	if strings.ContainsAny(name, `'\`) {
		return sqlreq.Errorf(http.StatusBadRequest, "no name: %q", name)
	}
	if _, err := key.ExecContext(r.Context(), fmt.Sprintf("INSERT INTO sqlreq_order VALUES ('%s', '%s')", name, nonce)); err != nil {
		return err
	}
	shelf := int(nonce[0]) % shelves
	if _, err := key.ExecContext(r.Context(), fmt.Sprintf("UPDATE sqlreq_stock SET sold = sold + 1 WHERE shelf = %d", shelf)); err != nil {
		return err
	}
	size := 0
	if strings.HasSuffix(name, large) {
		size = 100_000
	}
	w.Header().Set("Location", "/orders/"+nonce)
	w.WriteHeader(http.StatusCreated)
	_, err = fmt.Fprintf(w, "%s \x00\xff%s", nonce, strings.Repeat("x", size))
	return err
}

// shopProcess is a running shop.
type shopProcess struct {
	cmd    *osexec.Cmd
	in     io.Closer
	url    string
	stderr bytes.Buffer
	said   string        // its last line; to be read when done is closed
	done   chan struct{} // closed when it has ended
}

// startShop starts a process and returns when it serves. It ends with the test.
func startShop(t testing.TB, c shopConfig) (*shopProcess, error) {
	value, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &shopProcess{cmd: osexec.Command(self), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), shopVariable+"="+string(value))
	p.cmd.Stderr = &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	if lines.Scan() {
		p.url = lines.Text()
	}
	go func() {
		for lines.Scan() {
			p.said = lines.Text()
		}
		_ = p.cmd.Wait() // after the last read of its output
		close(p.done)
	}()
	if !strings.HasPrefix(p.url, "http://") {
		p.end()
		return nil, fmt.Errorf("no URL in %q\n%s", p.url, &p.stderr)
	}
	t.Cleanup(p.end)
	return p, nil
}

// end ends the process and waits for that.
func (p *shopProcess) end() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	<-p.done
}

// reply is what all answers of a key must be.
type reply struct {
	status         int
	location, body string
}

// String returns the beginning of it.
func (r reply) String() string { return fmt.Sprintf("%d %s %.60q", r.status, r.location, r.body) }

// shopClient sends orders until they are answered.
type shopClient struct {
	*http.Client
	header http.Header
	mayBe  []int // the statuses after which it sends the order again

	mu     sync.Mutex
	asks   int
	others map[int]int // the answers that were none, by status; 0: an error
}

// once sends an order, and reports whether there was an answer.
func (c *shopClient) once(ctx context.Context, url, name string) (got reply, replayed bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(name))
	if err != nil {
		return reply{}, false, err
	}
	for field, values := range c.header {
		req.Header[field] = values
	}
	req.Header.Set("Idempotency-Key", `"`+name+`"`)
	res, err := c.Do(req)
	if err != nil {
		return reply{}, false, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header.Get("Location"), string(b)}, res.Header.Get("Idempotent-Replayed") == "true", err
}

// until sends an order until there is an answer.
func (c *shopClient) until(ctx context.Context, url func() string, name string) (reply, error) {
	for {
		got, _, err := c.once(ctx, url(), name)
		if ctx.Err() != nil {
			return reply{}, fmt.Errorf("order %s is not answered: %w", name, errors.Join(ctx.Err(), err))
		}
		c.mu.Lock()
		c.asks++
		if err != nil {
			got.status = 0
		}
		if got.status != http.StatusCreated {
			if c.others == nil {
				c.others = make(map[int]int)
			}
			c.others[got.status]++
		}
		c.mu.Unlock()
		if got.status == http.StatusCreated {
			return got, nil
		}
		if err == nil && !slices.Contains(c.mayBe, got.status) {
			return reply{}, fmt.Errorf("order %s: got %v", name, got)
		}
	}
}

// orders are the clients of a test that are sending orders.
type orders struct {
	t      *testing.T
	done   atomic.Int32 // how many are answered
	stop   chan struct{}
	finish func() // lets each client end its last order, and waits for that
}

// startOrders has clients send orders, each by a call of ask with the numbers of both.
func startOrders(t *testing.T, clients int, ask func(ctx context.Context, client, order int) error) *orders {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	o := &orders{t: t, stop: make(chan struct{})}
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-o.stop:
					return
				default:
				}
				if err := ask(ctx, i, j); err != nil {
					t.Error(err)
					return
				}
				o.done.Add(1)
			}
		})
	}
	o.finish = func() {
		defer cancel()
		close(o.stop)
		wg.Wait()
	}
	return o
}

// more waits until there are n more answers.
func (o *orders) more(n int32) {
	o.t.Helper()
	before := o.done.Load()
	eventually(o.t, fmt.Sprint(n, " more orders are answered"), func() bool { return o.done.Load() >= before+n })
}

// checkShop compares the answers, by the name of the order, with what the database has.
func checkShop(t *testing.T, db *sql.DB, answers map[string]reply) {
	t.Helper()
	rows, err := db.Query("SELECT name, nonce FROM sqlreq_order")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	there := make(map[string]int)
	for rows.Next() {
		var name, nonce string
		if err := rows.Scan(&name, &nonce); err != nil {
			t.Fatal(err)
		}
		there[name]++
		if a, ok := answers[name]; !ok || a.location != "/orders/"+nonce {
			t.Errorf("order %s is there with %s, its answer was %v", name, nonce, a)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for name, a := range answers {
		if there[name] != 1 {
			t.Errorf("order %s was answered with %d, and is there %d times", name, a.status, there[name])
		}
	}
	if n := number(t, db, "SELECT sum(sold) FROM sqlreq_stock"); n != len(answers) {
		t.Errorf("%d were taken from the stock for %d orders", n, len(answers))
	}
	if n := number(t, db, "SELECT count(*) FROM "+onceTable); n != len(answers) {
		t.Errorf("%d records for %d orders", n, len(answers))
	}
}
