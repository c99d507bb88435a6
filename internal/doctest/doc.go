// Package doctest has no code, only tests of the papers of the repository: what they
// link to is there, their Go code compiles, they say what they must, and they can be
// read.
package doctest
