// Package modeltest tries everything that can end a transaction, in random order,
// against a simple model of what sqlreq promises. What is not a test in it is a
// database: a store of keys and values with transactions and savepoints, which
// fails when it is told to.
package modeltest

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"

	"github.com/sqlreq/sqlreq/internal/modeltest/mysqlite"
)

// Call is a kind of statement. Faults are counted by it.
type Call int

// The kinds of statements.
const (
	Begin Call = iota
	Exec
	Save
	Release
	Back
	Commit
	Rollback
	Calls // how many there are
)

func (c Call) String() string {
	return [...]string{"BEGIN", "statement", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "COMMIT", "ROLLBACK"}[c]
}

// What is a way to fail.
type What int

// The ways to fail.
const (
	Plain       What = iota + 1 // an error that says nothing; the transaction lives
	Conflict                    // SQLSTATE 40001; the transaction lives, of a COMMIT it is rolled back
	Full                        // an error that may end a transaction; it has
	FalseFull                   // an error that may end a transaction; it has not
	Deadlock                    // retryable, and the transaction has ended
	Unnoticed                   // an error that does not say that the transaction has ended
	DDL                         // no error; the transaction was committed on the way
	ContextEnds                 // the context of the statement ends, and the transaction with it
	BadConn                     // the connection is lost, the transaction rolled back
	BadAfter                    // of COMMIT: the connection is lost, the transaction committed
	LostBefore                  // of COMMIT: an error without an answer, rolled back
	LostAfter                   // of COMMIT: an error without an answer, committed
	Constraint                  // of COMMIT: SQLSTATE 23503, rolled back
	ClientGoes                  // of COMMIT: it succeeds, and the client goes meanwhile
	Whats
)

func (w What) String() string {
	return [...]string{"-", "Plain", "Conflict", "Full", "FalseFull", "Deadlock", "Unnoticed", "DDL", "ContextEnds",
		"BadConn", "BadAfter", "LostBefore", "LostAfter", "Constraint", "ClientGoes"}[w]
}

// Possible are the faults that a call can have.
var Possible = [Calls][]What{
	Begin:    {Plain, Conflict, BadConn},
	Exec:     {Plain, Conflict, Full, FalseFull, Deadlock, Unnoticed, DDL, ContextEnds, BadConn},
	Save:     {Plain, Full, BadConn},
	Release:  {Plain},
	Back:     {Plain},
	Commit:   {Constraint, Conflict, BadConn, BadAfter, LostBefore, LostAfter, ClientGoes},
	Rollback: {Plain, BadConn},
}

// Fault is what happens to the n-th call of a kind, from 0.
type Fault struct {
	Call Call
	Nth  int
	What What
}

// ErrFault is the error that says nothing.
var ErrFault = errors.New("fault")

// StateError is an error with an SQLSTATE.
type StateError string

func (e StateError) Error() string { return "SQLSTATE " + string(e) }

// SQLState is the method of pgx and lib/pq.
func (e StateError) SQLState() string { return string(e) }

// Server is a database.
type Server struct {
	Name   string
	Faults []Fault
	Strict bool              // COMMIT and ROLLBACK outside of a transaction are errors, as of SQLite; else accepted, as of MariaDB
	Log    func(line string) // of every statement
	Gone   func()            // what ClientGoes does

	mu       sync.Mutex
	data     map[string]string
	count    [Calls]int
	sessions []*Session
	faulty   []string // what a client did that no client may
}

// Session is a connection.
type Session struct {
	server *Server
	layers []layer // nil outside of a transaction; the first is the transaction, the others savepoints
	names  map[string]bool
	dead   bool // lost
	closed bool
}

type layer struct {
	name   string
	writes map[string]*string // nil is deleted
}

// Open returns a new connection.
func (s *Server) Open() *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Session{server: s}
	s.sessions = append(s.sessions, c)
	return c
}

// Data returns what is committed.
func (s *Server) Data() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.data)
}

// Faulty returns what is wrong with the connections when nobody should be at them.
func (s *Server) Faulty() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.faulty
	for i, c := range s.sessions {
		if c.layers != nil && !c.dead {
			found = append(found, fmt.Sprintf("%s: connection %d is inside a transaction", s.Name, i))
		}
		if c.closed && !c.dead {
			found = append(found, fmt.Sprintf("%s: connection %d was thrown away", s.Name, i))
		}
	}
	return found
}

// Run runs a statement. end ends its context.
func (c *Session) Run(query string, end func()) (string, error) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.dead {
		return "", driver.ErrBadConn
	}
	call, arg := parse(query)
	fault := s.fault(call)
	s.logLocked(c, call, query, arg, fault)
	switch call {
	case Begin:
		return "", c.begin(fault)
	case Commit:
		return "", c.commit(fault)
	case Rollback:
		return "", c.rollback(fault)
	case Exec:
		return c.statement(query, fault, end)
	}
	return "", c.savepoint(call, arg, fault)
}

func parse(query string) (call Call, arg string) {
	for prefix, call := range map[string]Call{"SAVEPOINT ": Save, "RELEASE SAVEPOINT ": Release, "ROLLBACK TO SAVEPOINT ": Back} {
		if arg, ok := strings.CutPrefix(query, prefix); ok {
			return call, arg
		}
	}
	switch query {
	case "BEGIN", "BEGIN READ ONLY":
		return Begin, ""
	case "COMMIT":
		return Commit, ""
	case "ROLLBACK":
		return Rollback, ""
	}
	return Exec, ""
}

func (s *Server) fault(call Call) What {
	n := s.count[call]
	s.count[call]++
	for _, f := range s.Faults {
		if f.Call == call && f.Nth == n {
			return f.What
		}
	}
	return 0
}

// logLocked logs names of savepoints as their depth: what they are called is the client's business.
func (s *Server) logLocked(c *Session, call Call, query, arg string, fault What) {
	line := s.Name + " " + query
	if call == Save || call == Release || call == Back {
		depth := len(c.layers)
		if call != Save {
			depth = c.find(arg)
		}
		line = fmt.Sprintf("%s %v %d", s.Name, call, depth)
	}
	if c.layers == nil && call != Begin {
		line += " (no transaction)"
	}
	if fault != 0 {
		line += fmt.Sprintf(" (%v)", fault)
	}
	s.Log(line)
}

// find returns the depth of a savepoint, -1 if there is none of that name.
func (c *Session) find(name string) int {
	for i := len(c.layers) - 1; i > 0; i-- {
		if c.layers[i].name == name {
			return i
		}
	}
	return -1
}

func (c *Session) begin(fault What) error {
	if c.layers != nil {
		c.server.faulty = append(c.server.faulty, c.server.Name+": BEGIN inside a transaction")
	}
	switch fault {
	case Plain:
		return ErrFault
	case Conflict:
		return StateError("40001")
	case BadConn:
		return c.lose()
	}
	c.layers = []layer{{writes: make(map[string]*string)}}
	c.names = make(map[string]bool)
	return nil
}

func (c *Session) lose() error {
	c.dead, c.layers = true, nil
	return driver.ErrBadConn
}

func (c *Session) commit(fault What) error {
	switch fault {
	case Constraint:
		c.layers = nil
		return StateError("23503")
	case Conflict:
		c.layers = nil
		return StateError("40001")
	case BadConn:
		return c.lose()
	case BadAfter:
		c.apply()
		return c.lose()
	case LostBefore:
		c.layers = nil
		return ErrFault
	case LostAfter:
		c.apply()
		return ErrFault
	case ClientGoes:
		c.server.Gone()
	}
	if c.layers == nil && c.server.Strict {
		return &mysqlite.NoTx{}
	}
	c.apply()
	return nil
}

// apply commits what is open.
func (c *Session) apply() {
	for _, l := range c.layers {
		for k, v := range l.writes {
			c.server.write(k, v)
		}
	}
	c.layers = nil
}

func (s *Server) write(k string, v *string) {
	if s.data == nil {
		s.data = make(map[string]string)
	}
	delete(s.data, k)
	if v != nil {
		s.data[k] = *v
	}
}

func (c *Session) rollback(fault What) error {
	none := c.layers == nil
	c.layers = nil
	switch {
	case fault == Plain:
		return ErrFault
	case fault == BadConn:
		return c.lose()
	case none && c.server.Strict:
		return &mysqlite.NoTx{}
	}
	return nil
}

func (c *Session) savepoint(call Call, name string, fault What) error {
	switch fault {
	case Plain:
		return ErrFault
	case Full:
		c.layers = nil
		return &mysqlite.Full{}
	case BadConn:
		return c.lose()
	}
	if call == Save {
		if c.layers == nil {
			return nil // MariaDB forgets it at once
		}
		if c.names[name] {
			c.server.faulty = append(c.server.faulty, c.server.Name+": the name of a savepoint was used twice: "+name)
		}
		c.names[name] = true
		c.layers = append(c.layers, layer{name, make(map[string]*string)})
		return nil
	}
	depth := c.find(name)
	if depth < 0 {
		if c.server.Strict {
			return &mysqlite.NoSavepoint{}
		}
		return mysqlite.NewDoesNotExist()
	}
	released := c.layers[depth:]
	c.layers = c.layers[:depth:depth]
	if call == Back {
		c.layers = append(c.layers, layer{name, make(map[string]*string)})
		return nil
	}
	for _, l := range released {
		maps.Copy(c.layers[depth-1].writes, l.writes)
	}
	return nil
}

// statement is PUT key value, DEL key or GET key.
func (c *Session) statement(query string, fault What, end func()) (string, error) {
	switch fault {
	case Plain:
		return "", ErrFault
	case Conflict:
		return "", StateError("40001")
	case Full:
		c.layers = nil
		return "", &mysqlite.Full{}
	case FalseFull:
		return "", &mysqlite.Full{}
	case Deadlock:
		c.layers = nil
		return "", mysqlite.NewDeadlock()
	case Unnoticed:
		c.layers = nil
		return "", ErrFault
	case DDL:
		c.apply()
	case ContextEnds:
		c.layers = nil
		end()
		return "", context.Canceled
	case BadConn:
		return "", c.lose()
	}
	words := strings.Fields(query)
	switch words[0] {
	case "GET":
		return c.get(words[1]), nil
	case "PUT":
		c.put(words[1], &words[2])
	case "DEL":
		c.put(words[1], nil)
	default:
		return "", fmt.Errorf("syntax error: %s", query)
	}
	return "", nil
}

func (c *Session) get(k string) string {
	for i := len(c.layers) - 1; i >= 0; i-- {
		if v, ok := c.layers[i].writes[k]; ok {
			if v == nil {
				return ""
			}
			return *v
		}
	}
	return c.server.data[k]
}

// put writes by itself outside of a transaction.
func (c *Session) put(k string, v *string) {
	if c.layers == nil {
		c.server.write(k, v)
		return
	}
	c.layers[len(c.layers)-1].writes[k] = v
}

// Connector is a Server as a driver of database/sql.
type Connector struct{ *Server }

// Connect is that of driver.Connector.
func (c Connector) Connect(context.Context) (driver.Conn, error) { return &conn{c.Open()}, nil }

// Driver is that of driver.Connector.
func (c Connector) Driver() driver.Driver { return nil }

// EndKey is the key of a context's value that is the func() which ends the context.
type EndKey struct{}

type conn struct{ *Session }

func (c *conn) run(ctx context.Context, query string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	end, _ := ctx.Value(EndKey{}).(func())
	return c.Run(query, end)
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	query := "BEGIN"
	if opts.ReadOnly {
		query = "BEGIN READ ONLY" // and not heeded
	}
	_, err := c.run(ctx, query)
	return c, err
}

func (c *conn) Commit() error {
	_, err := c.Run("COMMIT", nil)
	return err
}

func (c *conn) Rollback() error {
	_, err := c.Run("ROLLBACK", nil)
	return err
}

func (c *conn) ExecContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	_, err := c.run(ctx, query)
	return driver.ResultNoRows, err
}

func (c *conn) QueryContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	v, err := c.run(ctx, query)
	if err != nil {
		return nil, err
	}
	return &rows{value: v}, nil
}

func (c *conn) ResetSession(context.Context) error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.layers != nil {
		c.server.faulty = append(c.server.faulty, c.server.Name+": a connection came out of the pool inside a transaction")
	}
	return nil
}

func (c *conn) Close() error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.closed = true
	c.layers = nil
	return nil
}

func (c *conn) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }
func (c *conn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }

type rows struct {
	value string
	done  bool
}

func (r *rows) Columns() []string { return []string{"value"} }
func (r *rows) Close() error      { return nil }

func (r *rows) Next(dest []driver.Value) error {
	if r.done {
		return io.EOF
	}
	r.done, dest[0] = true, r.value
	return nil
}
