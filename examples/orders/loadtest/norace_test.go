//go:build linux && !race

package loadtest

// race says whether this program has the race detector.
const race = false
