// Package goget holds a test that a program outside of this repository can use each
// adapter: it has no code.
package goget
