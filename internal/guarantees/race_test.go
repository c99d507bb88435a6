package guarantees

import (
	"runtime/debug"
	"slices"
)

// raceDetector reports whether the race detector is on: sync.Pool forgets at
// random then, so that allocations are not exact, and all is slower.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// manyRounds is how often a moment is tried that no hook leads to: a right
// program passes each time, a wrong one fails in some of them.
func manyRounds() int {
	if raceDetector() {
		return 4_000
	}
	return 50_000
}
