// Package engines runs the suite of conformance on database engines and drivers that cannot be
// together with those of package integration, because they take the same name in database/sql or
// take long to build, and looks at the types of drivers whose servers are not at hand.
package engines
