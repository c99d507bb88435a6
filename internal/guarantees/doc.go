// Package guarantees has no code, only tests. They are laid out by what sqlreq
// promises: those of guarantee G1 are in the files whose names begin with "g01_",
// and so on. A file begins with the clause that it guards; the name of each test
// begins with the guarantee (TestG1…). Versions of HTTP are subtests: http1.0,
// http1.1, http2, tls1.0 (HTTP/1.0 over TLS).
//
// What a test needs more than a registry and a handler comes from
// internal/sqlreqtest. What several tests on real connections share is in wire_helper_test.go, and the
// ways to answer that they go through are in wire_cases_test.go. What can happen to a
// transaction behind sqlreq's back is told in every place in which one can stand, as
// tables, in g04_, g06_, g09_ and g11_places_test.go; places_test.go has the places.
package guarantees
