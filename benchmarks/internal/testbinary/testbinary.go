// Package testbinary builds the benchmarks once, for commands that run them many times.
package testbinary

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build builds the test binary of the package in the folder it is called in, as a file in a new folder, which the
// caller removes.
func Build() (dir, binary string, err error) {
	dir, err = os.MkdirTemp("", "sqlreq-benchmarks")
	if err != nil {
		return "", "", err
	}
	binary = filepath.Join(dir, "benchmarks.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", "", errors.Join(fmt.Errorf("go test -c: %w", err), os.RemoveAll(dir))
	}
	return dir, binary, nil
}
