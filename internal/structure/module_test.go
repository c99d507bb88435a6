package structure

import (
	"os"
	"testing"
)

func TestNothingInThisModuleIsOutOfPlace(t *testing.T) {
	found, err := Check(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range found {
		t.Error(what)
	}
}
