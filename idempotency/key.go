package idempotency

import (
	"encoding/base64"
	"strings"
)

// parseKey returns the key in the values of a header field: a structured-field string
// (RFC 9651, section 3.3.3), whose parameters are ignored, or a bare word. ok is false
// for anything else, for several values in particular.
func parseKey(values []string) (key string, ok bool) {
	if len(values) != 1 {
		return "", false
	}
	s := strings.Trim(values[0], " \t")
	if !strings.HasPrefix(s, `"`) {
		return s, isBare(s)
	}
	key, rest, ok := cutString(s)
	return key, ok && key != "" && len(key) <= maxText && areParameters(rest)
}

// isBare reports whether s is a key without quotes: visible characters, but for those
// that mean something in a structured field.
func isBare(s string) bool {
	if s == "" || len(s) > maxText {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`",;\`, c) >= 0 {
			return false
		}
	}
	return true
}

// cutString cuts a string in quotes off the front of s, and returns what it stands for.
func cutString(s string) (value, rest string, ok bool) {
	escaped := false
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ' || c >= 0x7f:
			return "", "", false
		case c == '"':
			value, rest = s[1:i], s[i+1:]
			if escaped {
				value = unescape(value)
			}
			return value, rest, true
		case c == '\\':
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", "", false
			}
			escaped = true
		}
	}
	return "", "", false
}

// unescape takes the backslashes out that stand before others and before quotes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// areParameters reports whether s, which may be empty, is a list of parameters (RFC
// 9651, section 3.1.2).
func areParameters(s string) bool {
	for s != "" {
		rest, ok := strings.CutPrefix(s, ";")
		if !ok {
			return false
		}
		rest = strings.TrimLeft(rest, " ")
		n := 0
		for n < len(rest) && isKeyByte(rest[n], n == 0) {
			n++
		}
		if n == 0 {
			return false
		}
		if s, ok = strings.CutPrefix(rest[n:], "="); !ok {
			continue // without a value
		}
		if s, ok = cutItem(s); !ok {
			return false
		}
	}
	return true
}

func isKeyByte(c byte, first bool) bool {
	return c == '*' || 'a' <= c && c <= 'z' || !first && (isDigit(c) || c == '_' || c == '-' || c == '.')
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// cutItem cuts a bare item off the front of s (RFC 9651, section 3.3).
func cutItem(s string) (rest string, ok bool) {
	if s == "" {
		return "", false
	}
	switch c := s[0]; {
	case c == '"':
		_, rest, ok = cutString(s)
		return rest, ok
	case c == ':':
		encoded, rest, ok := strings.Cut(s[1:], ":")
		_, err := base64.StdEncoding.DecodeString(encoded)
		return rest, ok && err == nil
	case c == '?':
		return s[min(2, len(s)):], len(s) > 1 && (s[1] == '0' || s[1] == '1')
	case c == '-' || isDigit(c):
		return cutNumber(s)
	case c == '*' || isAlpha(c):
		n := 1
		for n < len(s) && (isTokenByte(s[n]) || s[n] == ':' || s[n] == '/') {
			n++
		}
		return s[n:], true
	}
	return "", false
}

// cutNumber cuts an integer of up to 15 digits, or a decimal of up to 12 and 3, off the
// front of s.
func cutNumber(s string) (rest string, ok bool) {
	s = strings.TrimPrefix(s, "-")
	whole := digits(s)
	if rest, ok = strings.CutPrefix(s[whole:], "."); !ok {
		return s[whole:], whole >= 1 && whole <= 15
	}
	part := digits(rest)
	return rest[part:], whole >= 1 && whole <= 12 && part >= 1 && part <= 3
}

// digits returns how many digits s begins with.
func digits(s string) (n int) {
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return n
}

// isTokenByte is tchar of RFC 9110, section 5.6.2.
func isTokenByte(c byte) bool {
	return isAlpha(c) || isDigit(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func isToken(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}
