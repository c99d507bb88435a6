// Package doctest has no code, only tests: what the papers of the repository
// link to is there.
package doctest
