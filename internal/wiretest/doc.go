// Package wiretest has no code, only tests: what clients of HTTP/1.0, 1.1 and 2
// are told, byte for byte, when a COMMIT succeeds and when it fails.
package wiretest
