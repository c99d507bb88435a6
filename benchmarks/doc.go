// Package benchmarks measures sqlreq side by side with the other ways to give a
// request its transaction, on the same works. README.md has the results and
// says how to repeat them.
package benchmarks
