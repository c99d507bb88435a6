// Package adapters tries libraries of others with the adapters for frameworks and databases:
// compression, sentry, scany. It has no code but tests.
package adapters
