// Package lifetest has no code, only tests: the life of a transaction between
// BEGIN and COMMIT, its savepoints, hooks, retries and guards, and what clients
// and databases can do to it meanwhile.
package lifetest
