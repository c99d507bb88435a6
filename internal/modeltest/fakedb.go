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
	Plain        What = iota + 1 // an error that says nothing; the transaction lives
	Conflict                     // SQLSTATE 40001; the transaction lives, of a COMMIT it is rolled back
	Full                         // an error that may end a transaction; it has
	FalseFull                    // an error that may end a transaction; it has not
	Deadlock                     // retryable, and the transaction has ended
	Unnoticed                    // an error that does not say that the transaction has ended
	DDL                          // no error; the transaction was committed on the way
	ContextEnds                  // the context of the statement ends, and the transaction with it
	BadConn                      // the connection is lost, the transaction rolled back
	BadAfter                     // of COMMIT: the connection is lost, the transaction committed
	LostBefore                   // of COMMIT: an error without an answer, rolled back
	LostAfter                    // of COMMIT: an error without an answer, committed
	Constraint                   // of COMMIT: SQLSTATE 23503, rolled back
	ClientGoes                   // of COMMIT: it succeeds, and the client goes meanwhile
	Timeout                      // an error that may end a transaction, and is retryable; it has
	FalseTimeout                 // the same; it has not
	IOErr                        // of COMMIT: an I/O error, committed
)

func (w What) String() string {
	return [...]string{"-", "Plain", "Conflict", "Full", "FalseFull", "Deadlock", "Unnoticed", "DDL", "ContextEnds",
		"BadConn", "BadAfter", "LostBefore", "LostAfter", "Constraint", "ClientGoes", "Timeout", "FalseTimeout", "IOErr"}[w]
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

// Behind are the faults that end a transaction behind the library's back, and those
// that take the answer from it.
var Behind = [Calls][]What{
	Begin:    {BadConn},
	Exec:     {Unnoticed, Deadlock, DDL, Full, Timeout, FalseTimeout},
	Save:     {Full, Plain},
	Release:  {Plain, BadConn},
	Back:     {Plain, BadConn},
	Commit:   {IOErr, LostBefore, LostAfter},
	Rollback: {Plain, BadConn},
}

// Engine is a kind of database.
type Engine int

// The kinds of databases.
const (
	// MariaDB accepts COMMIT, ROLLBACK and SAVEPOINT outside of a transaction.
	MariaDB Engine = iota
	// SQLite answers a COMMIT or ROLLBACK outside of a transaction with an error;
	// SAVEPOINT begins one there.
	SQLite
	// PostgreSQL never ends a transaction by itself: an error aborts it, and it knows
	// nothing but going back.
	PostgreSQL
)

func (e Engine) String() string { return [...]string{"MariaDB", "SQLite", "PostgreSQL"}[e] }

// takes returns what becomes of a fault of a statement.
func (e Engine) takes(w What) What {
	if e != PostgreSQL {
		return w
	}
	switch w {
	case Full, FalseFull, Unnoticed, Timeout, FalseTimeout:
		return Plain
	case Deadlock:
		return Conflict
	case DDL:
		return 0
	}
	return w
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
	Engine Engine
	Every  int // each n-th statement ends its transaction, in one of the ways of Behind; 0: none does
	Client *Client
	Log    func(line string) // of every statement
	Gone   func()            // what ClientGoes does

	mu       sync.Mutex
	data     map[string]string
	count    [Calls]int
	sessions []*Session
	journal  []*Transaction
	faulty   []string // what a client did that no client may
}

// Session is a connection.
type Session struct {
	server *Server
	layers []layer // nil outside of a transaction; the first is the transaction, the others savepoints
	names  map[string]bool
	tx     *Transaction // that of the last BEGIN

	implicit bool // the transaction was begun by a SAVEPOINT
	aborted  bool // of PostgreSQL: only going back is left
	dead     bool // lost
	closed   bool
}

type layer struct {
	name   string
	writes map[string]*string // nil is deleted
	log    []*Write
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
	call, arg := parse(query)
	if call == Commit || call == Rollback {
		c.noteEnd(call)
	}
	if c.dead {
		c.noteMute(call)
		return "", driver.ErrBadConn
	}
	fault := s.Engine.takes(s.fault(call))
	s.logLocked(c, call, query, arg, fault)
	if fault == Plain || fault == BadConn {
		c.noteMute(call)
	}
	if c.aborted && (call == Exec || call == Save || call == Release) {
		return "", StateError("25P02")
	}
	if call == Save && c.tx != nil {
		c.noteStatement(fault) // its error tells the library as much
	}
	value, err := c.carryOut(call, query, arg, fault, end)
	if err != nil && c.layers != nil && s.Engine == PostgreSQL {
		c.aborted = true
	}
	if err != nil && call == Save && isGuard(arg) {
		c.tx.Refused = true
	}
	return value, err
}

func (c *Session) carryOut(call Call, query, arg string, fault What, end func()) (string, error) {
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
	if call == Exec && s.Every > 0 && n%s.Every == s.Every-1 {
		return Behind[Exec][n/s.Every%len(Behind[Exec])]
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
	c.open(false)
	c.names = make(map[string]bool)
	c.noteBegin()
	return nil
}

func (c *Session) open(implicit bool) {
	c.layers = []layer{{writes: make(map[string]*string)}}
	c.implicit, c.aborted = implicit, false
}

// drop rolls back what is open.
func (c *Session) drop() {
	for _, l := range c.layers {
		l.note(Lost)
	}
	c.layers, c.aborted = nil, false
}

func (c *Session) lose() error {
	c.drop()
	c.dead = true
	return driver.ErrBadConn
}

// ErrRolledBack is pgx's for a COMMIT that PostgreSQL has answered with ROLLBACK.
var ErrRolledBack = errors.New("commit unexpectedly resulted in rollback")

func (c *Session) commit(fault What) error {
	if c.aborted && fault != BadConn {
		c.drop()
		return ErrRolledBack
	}
	if c.layers == nil && (fault == Constraint || fault == Conflict) {
		fault = 0 // there is nothing to refuse
	}
	switch fault {
	case Constraint:
		c.drop()
		return StateError("23503")
	case Conflict:
		c.drop()
		return StateError("40001")
	case BadConn:
		return c.lose()
	case BadAfter:
		c.apply()
		return c.lose()
	case LostBefore:
		c.drop()
		return ErrFault
	case LostAfter:
		c.apply()
		return ErrFault
	case IOErr:
		c.apply()
		return &mysqlite.IOErr{}
	case ClientGoes:
		c.server.Gone()
	}
	if c.layers == nil && c.server.Engine == SQLite {
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
		l.note(Stored)
	}
	c.layers, c.aborted = nil, false
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
	c.drop()
	switch {
	case fault == Plain:
		return ErrFault
	case fault == BadConn:
		return c.lose()
	case none && c.server.Engine == SQLite:
		return &mysqlite.NoTx{}
	}
	return nil
}

func (c *Session) savepoint(call Call, name string, fault What) error {
	switch fault {
	case Plain:
		return ErrFault
	case Full:
		c.noteBehind(false)
		c.drop()
		return &mysqlite.Full{}
	case BadConn:
		return c.lose()
	}
	if call == Save {
		return c.save(name)
	}
	depth := c.find(name)
	if depth < 0 {
		return c.noSavepoint()
	}
	above := c.layers[depth:]
	c.layers = c.layers[:depth:depth]
	if call == Back {
		for _, l := range above {
			l.note(Undone)
		}
		c.layers = append(c.layers, layer{name: name, writes: make(map[string]*string)})
		c.aborted = false
		return nil
	}
	around := &c.layers[depth-1]
	for _, l := range above {
		maps.Copy(around.writes, l.writes)
		around.log = append(around.log, l.log...)
	}
	if c.implicit && depth == 1 {
		c.apply()
	}
	return nil
}

func (c *Session) save(name string) error {
	if c.layers == nil {
		switch c.server.Engine {
		case MariaDB:
			return nil // it forgets it at once
		case PostgreSQL:
			return StateError("25P01")
		}
		c.open(true)
		c.tx.Reopened = true
	}
	if c.names[name] {
		c.server.faulty = append(c.server.faulty, c.server.Name+": the name of a savepoint was used twice: "+name)
	}
	c.names[name] = true
	c.layers = append(c.layers, layer{name: name, writes: make(map[string]*string)})
	c.tx.Guarded = c.tx.Guarded || isGuard(name)
	return nil
}

func isGuard(name string) bool { return strings.HasSuffix(name, "guard") }

func (c *Session) noSavepoint() error {
	switch {
	case c.server.Engine == SQLite:
		return &mysqlite.NoSavepoint{}
	case c.server.Engine == MariaDB:
		return mysqlite.NewDoesNotExist()
	case c.layers == nil:
		return StateError("25P01")
	}
	return StateError("3B001")
}

// statement is PUT key value, DEL key or GET key.
func (c *Session) statement(query string, fault What, end func()) (string, error) {
	c.noteStatement(fault)
	switch fault {
	case Full, Deadlock, Timeout:
		c.noteBehind(false)
		c.drop()
	case Unnoticed:
		c.noteBehind(true)
		c.drop()
	case DDL:
		c.noteBehind(true)
		c.apply()
	case ContextEnds:
		if c.server.Engine != PostgreSQL {
			c.noteBehind(false)
			c.drop()
		}
		end()
	case BadConn:
		return "", c.lose()
	}
	if err := errorOf(fault); err != nil {
		return "", err
	}
	words := strings.Fields(query)
	if words[0] != "GET" {
		c.noteWrite(query)
	}
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

// errorOf is what a statement that met the fault says.
func errorOf(fault What) error {
	switch fault {
	case Plain, Unnoticed:
		return ErrFault
	case Conflict:
		return StateError("40001")
	case Full, FalseFull:
		return &mysqlite.Full{}
	case Deadlock:
		return mysqlite.NewDeadlock()
	case Timeout, FalseTimeout:
		return mysqlite.NewTimeout()
	case ContextEnds:
		return context.Canceled
	}
	return nil
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
