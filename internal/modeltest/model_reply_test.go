package modeltest

import (
	"fmt"
	"net/http"
	"slices"
)

// reply is the response as it is put together.
type reply struct {
	req       *request
	header    int // Content-Length in the header, -1: none
	declared  int // in the header as it was at WriteHeader
	status    int
	body      string
	written   int
	streaming bool
	hijacked  bool
	stands    bool // an answer of 400 or more was flushed, and no CommitIf is asked
	flushed   int  // bytes of the body that the last Flush has sent for certain
	late      bool // a status of 400 or more was set while one below 400 streamed
}

func (r *reply) noBody() bool { return r.status == 204 || r.status == 304 }

func (r *reply) set(status int) {
	r.status, r.declared = status, r.header
}

func (r *reply) writeHeader(status int) {
	if status >= 400 {
		r.header = -1
	}
	switch {
	case r.hijacked:
	case r.status == 0:
		r.set(status)
	case r.streaming:
		r.late = r.late || r.status < 400 && status >= 400
	case status >= 400:
		r.body, r.written = "", 0
		r.set(status)
	}
}

func (r *reply) write(s string) *failure {
	if r.hijacked {
		return refused
	}
	if r.status == 0 {
		r.set(200)
	}
	if r.noBody() {
		return refused
	}
	r.written += len(s)
	if r.req.method != "HEAD" {
		r.body += s
		r.streaming = r.streaming || len(r.body) > holdLimit
	}
	return nil
}

// flush is Flush. final says that nothing can make an answer of 400 or more a success.
func (r *reply) flush(final bool) {
	if r.status == 0 {
		r.set(200)
	}
	if final && r.status >= 400 {
		r.stands, r.streaming, r.flushed = true, true, len(r.body)
		return
	}
	completes := r.req.method == "HEAD" || r.noBody() || r.declared >= 0 && r.written >= r.declared
	r.streaming = r.streaming || !completes
}

// complete reports whether the response is complete once it is let go.
func (r *reply) complete() bool {
	return r.declared < 0 || r.req.method == "HEAD" || r.noBody() || r.written == r.declared
}

// serve is what becomes of a request.
func (m *model) serve(req *request) {
	m.req, m.gone = req, false
	a := &m.p.apps[0]
	retries := a.attempts > 1 && !a.never
	over := false // the limit of the body
	for n := 1; ; n++ {
		u := &unit{model: m, attempt: n, gone: &m.gone, apps: []int{0}}
		res := &reply{req: req, header: -1, declared: -1}
		if req.declare {
			res.header = req.block.total()
		}
		body := req.body
		m.read = 0
		e := &menv{unit: u, doors: []door{{app: 0}}, handles: make(map[string]*tx), body: &body, res: res}
		f, ex := e.block(&req.block)
		over = over || m.read > bodyLimit
		if ex != stays {
			u.panicked = true
			u.end(false)
			m.want = append(m.want, u.left(res, ex))
			return
		}
		if f != nil && req.plain {
			res.writeHeader(500)
			u.heedLate(res)
		} else {
			u.fail(f, 0)
		}
		u.answered = res.status != 0 || res.hijacked
		if res.status == 0 {
			res.set(200)
		}
		status := res.status
		u.end(u.err == nil && !u.late && u.wants(status))
		if retries && !res.streaming && !res.hijacked && u.conflict(status) && !u.committed && n < a.attempts && !over && !m.gone {
			continue
		}
		m.want = append(m.want, u.answer(res, retries && !over))
		return
	}
}

// heedLate makes the unit fail because of a late status, if a transaction was begun.
func (u *unit) heedLate(res *reply) {
	u.late = u.late || res.late
	if u.late && u.begun {
		u.fail(&failure{"!", false, 0, false}, 0)
	}
}

// conflict reports whether that is what the unit failed on. A failure that looks like
// one of the server's own may hide one that a statement met; status is that of a plain handler.
func (u *unit) conflict(status int) bool {
	if u.err == nil {
		return status >= 500 && u.met
	}
	return u.err.retry || u.met && (u.err.status == 0 || u.err.status >= 500)
}

// mayVeto reports whether a registry that was entered has a CommitIf.
func (u *unit) mayVeto() bool {
	return slices.ContainsFunc(u.apps, func(app int) bool { return u.p.apps[app].commitIf != 0 })
}

// wants asks who may veto.
func (u *unit) wants(status int) bool {
	asked := false
	for _, app := range u.apps {
		if f := commitIfs[u.p.apps[app].commitIf]; f != nil {
			asked = true
			if !f(status) {
				return false
			}
		}
	}
	return asked || status < 400
}

// left is the answer when a panic, or Goexit, left the middleware.
func (u *unit) left(res *reply, ex exit) answer {
	if res.stands {
		return u.leftStanding(res, ex)
	}
	if res.hijacked {
		return answer{complete: true, statuses: []int{200}, bodies: []string{"hijacked"}, left: pick(ex == panics, programPanic, "exit")}
	}
	a := answer{silent: !res.streaming, written: res.body, left: pick(ex == panics, programPanic, "exit")}
	if ex == panics && u.req.recover && !res.streaming {
		return answer{complete: true, statuses: []int{500}, bodies: []string{"recovered\n"}, left: a.left}
	}
	return a
}

// leftStanding is left for an answer that stands. Where its end is sent after the
// handler, net/http does not send it, and keeps what was not flushed.
func (u *unit) leftStanding(res *reply, ex exit) answer {
	a := answer{
		complete: true, streamed: true, statuses: []int{res.status}, bodies: []string{res.body},
		handler: fmt.Sprint(u.attempt), left: pick(ex == panics, programPanic, "exit"),
	}
	switch {
	case res.req.method == "HEAD":
	case ex == panics && res.req.recover:
		a.bodies[0] += "recovered\n"
	case res.req.old:
		for n := res.flushed; n < len(res.body); n++ {
			a.bodies = append(a.bodies, res.body[:n])
		}
	default:
		return answer{written: res.body, left: a.left}
	}
	return a
}

func (u *unit) answer(res *reply, repeated bool) answer {
	stands := u.err == nil || u.only || res.stands || res.status >= 400 && !u.commitFailed
	switch {
	case res.hijacked:
		return answer{complete: true, statuses: []int{200}, bodies: []string{"hijacked"}, left: "returned"}
	case stands && res.complete():
		a := answer{complete: true, statuses: []int{res.status}, bodies: []string{res.body}, handler: fmt.Sprint(u.attempt), left: "returned", streamed: res.streaming}
		return a
	case stands: // shorter than declared: net/http closes the connection
		return answer{written: res.body, left: "returned"}
	case res.streaming:
		return answer{written: res.body, left: "abort"}
	}
	a := answer{complete: true, left: "returned"}
	switch {
	case u.err.status > 0:
		a.statuses = []int{u.err.status}
	case u.committed: // it must not be invited to come again
		a.statuses = []int{500}
	case *u.gone || u.err.unavailable || u.err.retry && repeated:
		a.statuses = []int{503}
	case u.err.retry || u.met:
		a.statuses = []int{500, 503} // without a retry the contract does not say
	default:
		a.statuses = []int{500}
	}
	for _, app := range u.errApps {
		if u.p.apps[app].custom {
			a.bodies = append(a.bodies, fmt.Sprintf("custom %d", app))
			continue
		}
		for _, status := range a.statuses {
			a.bodies = append(a.bodies, http.StatusText(status)+"\n")
		}
	}
	return a
}

// expect returns what must come of p.
func expect(p *program) *model {
	m := &model{p: p}
	note := func(line string) { m.trace = append(m.trace, line) }
	for i := range m.servers {
		m.servers[i] = newServer(p, i, note)
		m.servers[i].Gone = func() { m.gone = true }
	}
	for _, req := range p.requests {
		note("request")
		m.serve(req)
	}
	for i, s := range m.servers {
		m.data[i] = s.Data()
	}
	return m
}
