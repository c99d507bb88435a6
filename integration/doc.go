// Package integration tests sqlreq on real database servers, with the common
// drivers; see README.md.
package integration
