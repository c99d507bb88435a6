package modeltest

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var (
	requests = flag.Int("requests", 10_000, "how many requests TestRequestsAgainstTheModel makes")
	seed     = flag.Uint64("seed", 1, "of the first program of TestRequestsAgainstTheModel; the next is one more")
)

// compare returns how what was seen differs from what the model says.
func compare(m *model, s seen) (diff []string) {
	diff = append(diff, s.faulty...)
	diff = append(diff, compareLines("trace", s.trace, m.trace)...)
	diff = append(diff, compareLines("events", s.events, m.events)...)
	for i, want := range m.want {
		diff = append(diff, want.compare(i, s.responses[i])...)
	}
	for i := range m.data {
		if !maps.Equal(s.data[i], m.data[i]) {
			diff = append(diff, fmt.Sprintf("db%d holds %v, want %v", i, s.data[i], m.data[i]))
		}
	}
	return diff
}

// compareLines returns the first difference.
func compareLines(what string, got, want []string) []string {
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if !matches(g, w) {
			return []string{fmt.Sprintf("%s, line %d:\n\t%s\nwant\n\t%s", what, i, g, w)}
		}
	}
	return nil
}

// matches reports whether a line is the wanted one, in which "!" is any error.
func matches(got, want string) bool {
	if got == want {
		return true
	}
	prefix, any := strings.CutSuffix(want, "!")
	rest, ok := strings.CutPrefix(got, prefix)
	if !any || !ok {
		return false
	}
	return strings.HasPrefix(prefix, "app") || rest != "ok"
}

func (a *answer) compare(i int, got response) (diff []string) {
	wrong := func(format string, args ...any) {
		diff = append(diff, fmt.Sprintf("response %d: ", i)+fmt.Sprintf(format, args...))
	}
	if got.left != a.left {
		wrong("the middleware was left by %s, want %s", got.left, a.left)
	}
	if got.complete != a.complete {
		wrong("%+v, want complete %v %v", got, a.complete, a.statuses)
		return diff
	}
	if !a.complete {
		if a.silent && !got.nothing || !strings.HasPrefix(a.written, got.body) {
			wrong("%+v left, want a part of %q, nothing: %v", got, a.written, a.silent)
		}
		return diff
	}
	if !slices.Contains(a.statuses, got.status) {
		wrong("status %d, want %v", got.status, a.statuses)
	}
	if !got.noBody && !slices.Contains(a.bodies, got.body) {
		wrong("body %.100q, want %.100q", got.body, a.bodies)
	}
	if strings.Join(got.handler, ",") != a.handler {
		wrong("the handler's header is %v, want %q", got.handler, a.handler)
	}
	if got.inUse != 0 && !a.streamed {
		wrong("%d connections in use while it is sent", got.inUse)
	}
	return diff
}

// check runs the program of data and reports what is wrong with it.
func check(p *program) []string {
	diff, _ := checked(p)
	return diff
}

func checked(p *program) ([]string, seen) {
	s := run(p)
	return compare(expect(p), s), s
}

// report leaves out of p what makes no difference, and fails.
func report(t *testing.T, p *program, name string) {
	for again := true; again; {
		again = false
		for _, cut := range p.smaller() {
			if undo := cut(); undo == nil {
				continue
			} else if len(check(p)) == 0 {
				undo()
			} else {
				again = true
				break
			}
		}
	}
	m, s := expect(p), run(p)
	t.Errorf("%s\n%v\n%s\ntrace:\n\t%s\nevents:\n\t%s", name, p, strings.Join(compare(m, s), "\n"), strings.Join(s.trace, "\n\t"), strings.Join(s.events, "\n\t"))
}

// bytesOf are the choices of a seed.
func bytesOf(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, seed))
	data := make([]byte, 60+r.IntN(400))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func TestRequestsAgainstTheModel(t *testing.T) {
	failed, behind, byServer := 0, 0, 0
	for n, seed := 0, *seed; n < *requests; seed++ {
		p := generate(bytesOf(seed))
		n += len(p.requests)
		diff, s := checked(p)
		behind, byServer = behind+s.behind, byServer+s.behindByServer
		if len(diff) > 0 {
			if failed++; failed <= 5 {
				report(t, p, fmt.Sprintf("-seed=%d -requests=1", seed))
			}
		}
	}
	if failed > 5 {
		t.Errorf("%d programs failed", failed)
	}
	t.Logf("in %d requests a transaction was ended behind the library's back, in %d of them by the server", behind, byServer)
}

func FuzzRequests(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(bytesOf(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p := generate(data); len(check(p)) > 0 {
			report(t, p, "")
		}
	})
}
