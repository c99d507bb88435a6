// Package guarantees has no code, only tests. They are laid out by what sqlreq
// promises: those of guarantee G1 are in the files whose names begin with "g01_",
// and so on. A file begins with the clause that it guards; the name of each test
// begins with the guarantee (TestG1…). Versions of HTTP are subtests: http1.0,
// http1.1, http2, tls1.0 (HTTP/1.0 over TLS).
//
// What a test needs more than a registry and a handler comes from
// internal/sqlreqtest. What several tests on real connections share is in wire_helper_test.go, and the
// ways to answer that they go through are in wire_cases_test.go.
package guarantees
