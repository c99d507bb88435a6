package structure

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// sound is a module in which nothing is out of place, though each rule is nearly broken.
var sound = map[string]string{
	"go.mod": "module example.org/m\n\ngo 1.25.0\n",
	"sqlreq.go": "package m\n\nimport (\n\t\"sync\"\n\n\t\"example.org/m/internal/held\"\n\t\"example.org/m/internal/unit\"\n)\n\n" +
		"type T struct {\n\tonce sync.Once\n\tw    held.Writer\n\tu    unit.Unit\n}\n",
	"sqlreq_test.go":                    "package m\n\nimport \"sync\"\n\nvar mu sync.Mutex\n\nfunc f() { mu.Lock() }\n" + lines(893),
	"example_test.go":                   "package m\n" + lines(2000),
	"internal/turn/turn.go":             "package turn\n\nimport \"sync\"\n\nvar mu sync.Mutex\n\nfunc f() { mu.Lock() }\n",
	"internal/held/held.go":             "package held\n\nimport \"net/http\"\n" + lines(647),
	"internal/held/held_test.go":        "package held\n\nimport _ \"example.org/m\"\n",
	"internal/txn/slot.go":              "package txn\n\nimport (\n\t_ \"example.org/m/internal/dialect\"\n\t_ \"example.org/m/internal/sqlerr\"\n\t_ \"example.org/m/internal/turn\"\n)\n",
	"internal/unit/unit.go":             "package unit\n\nimport (\n\t_ \"net\"\n\n\t_ \"example.org/m/internal/txn\"\n\t_ \"example.org/m/internal/unit/order\"\n)\n",
	"internal/retry/retry.go":           "package retry\n\nimport _ \"example.org/m/internal/replay\"\n\n" + function("long", 60),
	"idempotency/once.go":               "package idempotency\n\nimport (\n\t_ \"example.org/m\"\n\t_ \"example.org/m/internal/repeat\"\n)\n",
	"internal/sqlreqtest/sqlreqtest.go": "package sqlreqtest\n\nimport _ \"example.org/m\"\n",
	"public/public.go":                  "package public\n\nimport _ \"example.org/m\"\n",
	"examples/go.mod":                   "module example.org/m/examples\n",
	"examples/other.go":                 "package examples\n" + lines(1000),
	"internal/held/testdata/broken.go":  "no Go at all",
	".hidden/broken.go":                 "no Go at all",
	"_old/broken.go":                    "no Go at all",
}

func lines(n int) string { return strings.Repeat("\n", n) }

// function returns the source of a function of n lines.
func function(name string, n int) string {
	return "func " + name + "() {" + lines(n-1) + "}\n"
}

// tree is the sound module with some files replaced.
func tree(planted map[string]string) fs.FS {
	files := fstest.MapFS{}
	for name, src := range sound {
		files[name] = &fstest.MapFile{Data: []byte(src)}
	}
	for name, src := range planted {
		files[name] = &fstest.MapFile{Data: []byte(src)}
	}
	return files
}

func TestNothingIsOutOfPlace(t *testing.T) {
	found, err := Check(tree(nil))
	if len(found) > 0 || err != nil {
		t.Errorf("got %q %v, want nothing", found, err)
	}
}

func TestWhatIsOutOfPlaceIsFound(t *testing.T) {
	const root, internal = "package m\n\n", "package x\n\n"
	cases := map[string]struct {
		file, src string
		want      string // how the only finding begins
		do        string // what it says to do
	}{
		"a Go file in the root":          {"retry.go", root, "retry.go is a Go file of the root", "put it into one of these"},
		"a test file in the root":        {"retry_test.go", root, "retry_test.go is a Go file of the root", "a package below internal/"},
		"a lock taken":                   {"keys.go", root + "func f() { x.y.mu.Lock() }\n", "keys.go:3 takes or gives back a lock (Lock)", "into internal/unit or internal/txn"},
		"a lock given back":              {"keys.go", root + "func f() {\n\tdefer mu.Unlock()\n}\n", "keys.go:4 takes or gives back a lock (Unlock)", "into internal/unit or internal/txn"},
		"a lock tried":                   {"nested.go", root + "var ok = mu.TryLock()\n", "nested.go:3 takes or gives back a lock (TryLock)", "into internal/unit or internal/txn"},
		"a lock for reading":             {"handlers.go", root + "func f() { mu.RLock() }\n", "handlers.go:3 takes or gives back a lock (RLock)", "into internal/unit or internal/txn"},
		"a lock given back from reading": {"handlers.go", root + "func f() { mu.RUnlock() }\n", "handlers.go:3 takes or gives back a lock (RUnlock)", "into internal/unit or internal/txn"},
		"a lock for reading tried":       {"handlers.go", root + "func f() { mu.TryRLock() }\n", "handlers.go:3 takes or gives back a lock (TryRLock)", "into internal/unit or internal/txn"},
		"a lock with a context":          {"keys.go", root + "func f() { _ = t.Lock(ctx) }\n", "keys.go:3 takes or gives back a lock (Lock)", "into internal/unit or internal/txn"},
		"a lock's method as a value":     {"keys.go", root + "var give = mu.Unlock\n", "keys.go:3 takes or gives back a lock (Unlock)", "into internal/unit or internal/txn"},
		"a mutex":                        {"keys.go", root + "import \"sync\"\n\ntype T struct {\n\tmu sync.Mutex\n}\n", "keys.go:6 has a sync.Mutex", "into internal/unit or internal/txn"},
		"a mutex embedded":               {"keys.go", root + "import \"sync\"\n\ntype T struct{ *sync.RWMutex }\n", "keys.go:5 has a sync.RWMutex", "into internal/unit or internal/txn"},
		"a mutex by another name":        {"keys.go", root + "import s \"sync\"\n\nvar mu s.Mutex\n", "keys.go:5 has a sync.Mutex", "into internal/unit or internal/txn"},
		"a long file":                    {"keys.go", root + lines(649), "keys.go has 651 lines, at most 650", "split it by job"},
		"a long internal file":           {"internal/held/body.go", internal + lines(700), "internal/held/body.go has 702 lines, at most 650", "split it by job"},
		"a long test file":               {"internal/held/body_test.go", internal + lines(899), "internal/held/body_test.go has 901 lines, at most 900", "move tests"},
		"a long function":                {"keys.go", root + function("f", 61), "keys.go:3 has f of 61 lines, at most 60", "a function with a name of its own"},
		"a long method":                  {"internal/held/body.go", internal + "\n" + strings.Replace(function("f", 61), "func ", "func (T) ", 1), "internal/held/body.go:4 has f of 61 lines", "a function with a name of its own"},
		"a long function without a name": {"keys.go", root + "var f = " + function("", 61), "keys.go:3 has a function of 61 lines", "a function with a name of its own"},
		"the root below":                 {"internal/new/new.go", internal + "import _ \"example.org/m\"\n", "internal/new/new.go:3 imports the root", "an argument or a small interface"},
		"two layers up":                  {"internal/txn/end.go", internal + "import _ \"example.org/m/internal/unit\"\n", "internal/txn/end.go:3 imports internal/unit", "internal/txn may import only internal/turn, internal/sqlerr, internal/dialect, internal/reason of the module; move what it needs down"},
		"a layer left out":               {"internal/unit/end.go", internal + "import _ \"example.org/m/internal/dialect\"\n", "internal/unit/end.go:3 imports internal/dialect", "internal/unit may import only internal/txn, internal/turn, internal/sqlerr, internal/reason, internal/repeat of the module"},
		"what a package asks":            {"internal/repeat/end.go", internal + "import _ \"example.org/m/internal/unit\"\n", "internal/repeat/end.go:3 imports internal/unit", "internal/repeat may import only internal/dialect of the module"},
		"a public package on the unit":   {"idempotency/once.go", "package idempotency\n\nimport _ \"example.org/m/internal/unit\"\n", "idempotency/once.go:3 imports internal/unit", "idempotency may import only internal/repeat of the module"},
		"a package below another":        {"internal/retry/wait.go", internal + "import _ \"example.org/m/internal/turn\"\n", "internal/retry/wait.go:3 imports internal/turn", "internal/retry may import only internal/replay, internal/sqlerr of the module"},
		"a package inside another":       {"internal/txn/deep/deep.go", internal + "import _ \"example.org/m/internal/held\"\n", "internal/txn/deep/deep.go:3 imports internal/held", "internal/txn may import only"},
	}
	for _, alone := range []string{"turn", "sqlerr", "dialect", "replay", "held"} {
		cases[alone+" with another"] = struct{ file, src, want, do string }{
			"internal/" + alone + "/other.go", internal + "import _ \"example.org/m/internal/unit\"\n",
			"internal/" + alone + "/other.go:3 imports internal/unit", "internal/" + alone + " may import nothing of the module",
		}
	}
	for _, http := range []string{"net/http", "net/http/httptrace"} {
		for _, pkg := range []string{"unit", "txn", "turn", "sqlerr", "dialect", "repeat", "retry"} {
			cases[pkg+" with "+http] = struct{ file, src, want, do string }{
				"internal/" + pkg + "/other.go", internal + "import _ \"" + http + "\"\n",
				"internal/" + pkg + "/other.go:3 imports " + http + ", but internal/" + pkg + " knows no requests", "let the root tell it",
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			c := cases[name]
			found, err := Check(tree(map[string]string{c.file: c.src}))
			if len(found) != 1 || err != nil || !strings.HasPrefix(found[0], c.want) || !strings.Contains(found[0], c.do) {
				t.Errorf("got %q %v, want one that begins with %q and says %q", found, err, c.want, c.do)
			}
		})
	}
}

func TestModuleThatCannotBeRead(t *testing.T) {
	cases := map[string]map[string]string{
		"no module in go.mod": {"go.mod": "go 1.25.0\n"},
		"not Go":              {"keys.go": "no Go at all"},
	}
	for name, planted := range cases {
		if found, err := Check(tree(planted)); err == nil {
			t.Errorf("%s: got %q, want an error", name, found)
		}
	}
	if found, err := Check(fstest.MapFS{}); err == nil {
		t.Errorf("no go.mod: got %q, want an error", found)
	}
}
