package idempotency

import (
	"strings"
	"testing"
)

func TestI7ParseKey(t *testing.T) {
	long := strings.Repeat("x", 255)
	for in, want := range map[string]string{
		// The draft's examples, and bare words of services in use.
		`"8e03978e-40d5-43e8-bc93-6894a57f9324"`: "8e03978e-40d5-43e8-bc93-6894a57f9324",
		"KG5LxwFBepaKHyUD":                       "KG5LxwFBepaKHyUD",
		"msg_2KWPBgLlAfxdpx2AI54pPJ85f4W":        "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W",

		"a": "a", " a\t": "a", "!~#'()*+/:<=>?@[]^_`{|}-.": "!~#'()*+/:<=>?@[]^_`{|}-.", long: long,
		`"a"`: "a", ` "a" `: "a", `"a b, c; d"`: "a b, c; d", `"a\"b\\c"`: `a"b\c`, `" "`: " ", `"` + long + `"`: long, `"\\` + long[1:] + `"`: `\` + long[1:],
		`"a";b`: "a", `"a";b=1;c=-1.5;d="x;\"y";e=tok:en/*;f=?1;g=:aGVsbG8=:;*h`: "a", `"a"; b`: "a", `"a";b=*`: "a", `"a";b=123456789012345`: "a", `"a";b=123456789012.123`: "a",
	} {
		if got, ok := parseKey([]string{in}); got != want || !ok {
			t.Errorf("%q: got %q %v, want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{
		"", " ", `""`, `"`, `"a`, `a"`, `"a""`, `"a"b`, `"a" b`, "a b", "a,b", "a;b", `a\b`, `"a", "b"`, `"a",`, `"a\b"`, `"a\`, `"a\"`, "ä", `"ä"`, "a\x00", "\"a\x01\"", "\"\x7f\"", "\x7f",
		long + "x", `"` + long + `x"`, `"a";`, `"a";=`, `"a";B`, `"a";b=`, `"a";b=,`, `"a";b="c`, `"a";b=?2`, `"a";b=?`, `"a";b=:a`, `"a";b=:a:`, `"a";b=-`, `"a";b=1.`, `"a";b=1.1234`,
		`"a";b=1234567890123456`, `"a";b=1234567890123.1`, `"a" ;b`, `"a";b c`, `"a";b =1`,
	} {
		if got, ok := parseKey([]string{in}); ok {
			t.Errorf("%q: got %q, want none", in, got)
		}
	}
	if _, ok := parseKey([]string{"a", "a"}); ok {
		t.Error("two fields: got a key")
	}
	if _, ok := parseKey(nil); ok {
		t.Error("no field: got a key")
	}
}

func FuzzI7ParseKey(f *testing.F) {
	for _, s := range []string{"a", `"a"`, `"a\"b\\";c=1;d="e"`, `"a";b=:aGVsbG8=:;c=?0`, `"`, "a,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, ok := parseKey([]string{s})
		if !ok {
			return
		}
		if checkText("the key", key) != nil || key == "" {
			t.Fatalf("%q: got %q", s, key)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		if again, ok := parseKey([]string{quoted}); again != key || !ok {
			t.Fatalf("%q: got %q from its form in quotes %q, %v", s, again, quoted, ok)
		}
		if isBare(key) {
			if again, ok := parseKey([]string{key}); again != key || !ok {
				t.Fatalf("%q: got %q from its bare form, %v", s, again, ok)
			}
		}
	})
}
