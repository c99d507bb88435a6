package modeltest

// The journal is what a Server knows and its client does not: what became of each
// write, whatever the client was told. The oracle judges by it.

// Fate is what became of a write.
type Fate int

// The fates of a write.
const (
	Open   Fate = iota
	Stored      // committed, by whomever
	Undone      // the client went back to a savepoint before it
	Lost        // the transaction was rolled back, by whomever
)

func (f Fate) String() string { return [...]string{"open", "stored", "undone", "lost"}[f] }

// Write is a statement that has written.
type Write struct {
	Query string
	Fate  Fate
}

// Transaction is what was sent on a connection since a BEGIN: also what came after
// the transaction had ended and was committed by itself.
type Transaction struct {
	Unit      int  // Client.Unit at BEGIN
	ReadOnly  bool // a flag that no Server heeds
	RollsBack bool // read-only, and ends with ROLLBACK in any case
	Guarded   bool
	Writes    []*Write

	Refused   bool // Guard's savepoint failed: nobody was given it
	Committed bool // by the program's Key.Commit; it is for who judges to set

	Over     bool // the client has sent COMMIT or ROLLBACK
	Asked    bool // by its Key.Rollback
	Raw      bool // by *sql.Tx, behind the library's back
	Behind   bool // the server has ended it before that
	Unseen   bool // and no statement of a Key has told, or more was done after it by *sql.Tx
	Told     bool // a statement, or a savepoint, of a Key was answered with an error that may end a transaction
	Used     bool // a statement was run on *sql.Tx
	Reopened bool // then a SAVEPOINT began another one, as in SQLite
	Mute     bool // the server did not answer a statement that was to end it, or a savepoint
}

// Has reports whether a write has the fate.
func (t *Transaction) Has(f Fate) bool {
	for _, w := range t.Writes {
		if w.Fate == f {
			return true
		}
	}
	return false
}

// Client is what the program is doing: the server notes it in the journal, and
// does not behave differently for it.
type Client struct {
	Unit int  // the unit of work whose turn it is
	Raw  bool // it uses a *sql.Tx
	Asks bool // it asks for a rollback
}

// Journal returns the transactions in the order of their BEGINs.
func (s *Server) Journal() []*Transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal
}

// Last returns the last transaction that the unit has begun, nil if there is none.
func (s *Server) Last(unit int) *Transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.journal) - 1; i >= 0; i-- {
		if s.journal[i].Unit == unit && !s.journal[i].Refused {
			return s.journal[i]
		}
	}
	return nil
}

// noteBegin begins a page of the journal.
func (c *Session) noteBegin() {
	c.tx = &Transaction{Unit: c.server.Client.Unit}
	c.server.journal = append(c.server.journal, c.tx)
}

// noteEnd notes that the client has sent COMMIT or ROLLBACK.
func (c *Session) noteEnd(call Call) {
	if c.tx == nil {
		return
	}
	c.tx.Over = true
	c.tx.Raw = c.tx.Raw || c.server.Client.Raw
	c.tx.Asked = c.tx.Asked || call == Rollback && c.server.Client.Asks
}

// noteBehind notes that the server ends the transaction by itself.
func (c *Session) noteBehind(unseen bool) {
	if c.layers != nil {
		c.tx.Behind = true
		c.tx.Unseen = c.tx.Unseen || unseen || c.server.Client.Raw
	}
}

// noteMute notes that the client will not learn what came of the call.
func (c *Session) noteMute(call Call) {
	if c.tx != nil && (call == Commit || call == Rollback || call == Back || call == Release) {
		c.tx.Mute = true
	}
}

// noteStatement notes who has sent a statement, and what was said to it.
func (c *Session) noteStatement(fault What) {
	switch {
	case c.server.Client.Raw:
		c.tx.Used = true
	case fault == Full, fault == FalseFull, fault == Deadlock, fault == Timeout, fault == FalseTimeout, fault == ContextEnds, fault == BadConn:
		c.tx.Told = true
	}
}

func (c *Session) noteWrite(query string) {
	w := &Write{Query: query}
	c.tx.Writes = append(c.tx.Writes, w)
	if c.layers == nil {
		w.Fate = Stored
		c.tx.Unseen = c.tx.Unseen || c.server.Client.Raw
		return
	}
	top := &c.layers[len(c.layers)-1]
	top.log = append(top.log, w)
}

func (l *layer) note(f Fate) {
	for _, w := range l.log {
		w.Fate = f
	}
}
