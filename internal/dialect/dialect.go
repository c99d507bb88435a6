// Package dialect knows what a database engine has, by the type of its driver, and
// spells the statements about savepoints (ISO/IEC 9075-2, 17.5 to 17.7). The names are
// made by this library and need no quoting. Of a program's statements it knows the first
// word.
package dialect

import "strings"

// committing are the first words of statements that commit by themselves on MySQL and
// MariaDB, or may contain one that does
// (https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/).
var committing = map[string]bool{
	"ALTER": true, "ANALYZE": true, "BEGIN": true, "CACHE": true, "CALL": true, "CHANGE": true, "CHECK": true,
	"COMMIT": true, "CREATE": true, "DROP": true, "END": true, "EXECUTE": true, "FLUSH": true, "GRANT": true,
	"INSTALL": true, "LOAD": true, "LOCK": true, "OPTIMIZE": true, "RENAME": true, "REPAIR": true,
	"RESET": true, "REVOKE": true, "START": true, "STOP": true, "TRUNCATE": true, "UNINSTALL": true,
	"UNLOCK": true, "XA": true,
}

// MayCommit reports whether a statement may commit by itself. It is true also for
// what may be more than one.
func MayCommit(statement string) bool {
	if isPlain(statement) && strings.IndexByte(statement, ';') < 0 {
		return false // most statements: no look at a table
	}
	statement = strings.TrimRight(skipComments(statement), "; \t\r\n")
	if strings.HasPrefix(statement, "/*") || strings.IndexByte(statement, ';') >= 0 {
		return true
	}
	var word [len("UNINSTALL")]byte // no allocation
	n := 0
	for n < len(statement) && 'a' <= statement[n]|0x20 && statement[n]|0x20 <= 'z' {
		if n == len(word) {
			return false
		}
		word[n] = statement[n] &^ 0x20
		n++
	}
	return committing[string(word[:n])]
}

// isPlain reports whether a statement begins with one of the words of most statements.
func isPlain(statement string) bool {
	if len(statement) < len("SELECT") {
		return false
	}
	switch statement[:len("SELECT")] {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "select", "insert", "update", "delete":
		return true
	}
	return false
}

// skipComments returns the statement without what is before its first word. A
// comment that MySQL runs ("/*! ... */") is none.
func skipComments(s string) string {
	for {
		s = strings.TrimLeft(s, "( \t\r\n")
		var end string
		switch {
		case strings.HasPrefix(s, "--"), strings.HasPrefix(s, "#"):
			end = "\n"
		case strings.HasPrefix(s, "/*") && !strings.HasPrefix(s, "/*!") && !strings.HasPrefix(s, "/*M!"):
			end = "*/"
		default:
			return s
		}
		_, s, _ = strings.Cut(s, end)
	}
}
