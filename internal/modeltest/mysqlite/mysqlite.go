// Package mysqlite has errors in the shape of two families of drivers, which
// sqlreq knows by the package path of their types: "mysql" and "sqlite".
package mysqlite

// Full is SQLITE_FULL, after which SQLite may have rolled the transaction back.
type Full struct{}

func (*Full) Error() string { return "database or disk is full (13)" }

// Code is the method of modernc.org/sqlite.
func (*Full) Code() int { return 13 }

// IOErr is SQLITE_IOERR, after which a COMMIT may be on the disk or not.
type IOErr struct{}

func (*IOErr) Error() string { return "disk I/O error (10)" }

// Code is the method of modernc.org/sqlite.
func (*IOErr) Code() int { return 10 }

// NoTx is what SQLite answers a COMMIT or ROLLBACK outside of a transaction.
type NoTx struct{}

func (*NoTx) Error() string { return "SQL logic error: no transaction is active (1)" }

// Code is the method of modernc.org/sqlite.
func (*NoTx) Code() int { return 1 }

// NoSavepoint is what SQLite answers a ROLLBACK TO or RELEASE of a savepoint that it
// does not have.
type NoSavepoint struct{}

func (*NoSavepoint) Error() string { return "SQL logic error: no such savepoint (1)" }

// Code is the method of modernc.org/sqlite.
func (*NoSavepoint) Code() int { return 1 }

// DoesNotExist is the same of MariaDB.
type DoesNotExist struct {
	Number   uint16
	SQLState [5]byte
}

// NewDoesNotExist returns error 1305.
func NewDoesNotExist() *DoesNotExist { return &DoesNotExist{1305, [5]byte([]byte("42000"))} }

func (*DoesNotExist) Error() string { return "Error 1305 (42000): SAVEPOINT does not exist" }

// Deadlock has the fields of go-sql-driver/mysql.
type Deadlock struct {
	Number   uint16
	SQLState [5]byte
}

// NewDeadlock returns error 1213, after which MariaDB has ended the transaction.
func NewDeadlock() *Deadlock { return &Deadlock{1213, [5]byte([]byte("40001"))} }

func (*Deadlock) Error() string { return "Error 1213 (40001): Deadlock found" }

// Timeout has the fields of go-sql-driver/mysql.
type Timeout struct {
	Number   uint16
	SQLState [5]byte
}

// NewTimeout returns error 1205, after which MariaDB has ended the transaction if
// innodb_rollback_on_timeout is on.
func NewTimeout() *Timeout { return &Timeout{1205, [5]byte([]byte("HY000"))} }

func (*Timeout) Error() string { return "Error 1205 (HY000): Lock wait timeout exceeded" }
