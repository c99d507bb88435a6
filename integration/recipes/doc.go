// Package recipes has a test for each recipe of docs/frameworks.md that needs no adapter. It has no code but tests.
package recipes
