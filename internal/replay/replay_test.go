package replay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

// script is a body whose Reads are functions, and which remembers what was asked of it.
type script struct {
	reads []func(p []byte) (int, error)
	sizes []int // of the buffers
}

func (s *script) Read(p []byte) (int, error) {
	s.sizes = append(s.sizes, len(p))
	if len(s.reads) == 0 {
		return 0, io.EOF
	}
	read := s.reads[0]
	s.reads = s.reads[1:]
	return read(p)
}

// gives is a Read that yields text, with err.
func gives(text string, err error) func([]byte) (int, error) {
	return func(p []byte) (int, error) { return copy(p, text), err }
}

func body(r io.Reader, limit int64) *Body { return New(io.NopCloser(r), limit) }

// read is one Read with a buffer of size bytes.
func read(t *testing.T, r io.Reader, size int, want string, wantErr error) {
	t.Helper()
	p := make([]byte, size)
	n, err := r.Read(p)
	if string(p[:n]) != want || err != wantErr {
		t.Errorf("Read of %d bytes: %q, %v, want %q, %v", size, p[:n], err, want, wantErr)
	}
}

func readAll(t *testing.T, r io.Reader, want string, wantErr error) {
	t.Helper()
	got, err := io.ReadAll(r)
	if string(got) != want || err != wantErr {
		t.Errorf("ReadAll: %q, %v, want %q, %v", got, err, want, wantErr)
	}
}

// result is what a Read in another goroutine returned.
type result struct {
	text string
	err  error
}

// start begins a Read and returns when it is blocked. Inside a synctest bubble.
func start(r io.Reader, size int) <-chan result {
	done := make(chan result, 1)
	go func() {
		p := make([]byte, size)
		n, err := r.Read(p)
		done <- result{string(p[:n]), err}
	}()
	synctest.Wait()
	return done
}

func wantBlocked(t *testing.T, done <-chan result) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-done:
		t.Errorf("Read returned %q, %v, want it to wait", r.text, r.err)
	default:
	}
}

func wantResult(t *testing.T, done <-chan result, want string, wantErr error) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-done:
		if r.text != want || r.err != wantErr {
			t.Errorf("Read: %q, %v, want %q, %v", r.text, r.err, want, wantErr)
		}
	default:
		t.Errorf("Read still waits, want %q, %v", want, wantErr)
	}
}

func TestEveryViewReadsTheWholeBodyHoweverItArrives(t *testing.T) {
	const text = "the body streams to the handler as it arrives"
	tests := []struct {
		name string
		wrap func(io.Reader) io.Reader
	}{
		{"at once", func(r io.Reader) io.Reader { return r }},
		{"byte by byte", iotest.OneByteReader},
		{"by halves", iotest.HalfReader},
		{"with EOF at the last bytes", iotest.DataErrReader},
		{"byte by byte, with EOF at the last", func(r io.Reader) io.Reader { return iotest.DataErrReader(iotest.OneByteReader(r)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := body(tt.wrap(strings.NewReader(text)), int64(len(text)))
			for _, part := range []int{0, 1, 10, len(text)} {
				if _, err := io.ReadFull(b.View(), make([]byte, part)); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				if err := iotest.TestReader(b.View(), []byte(text)); err != nil {
					t.Error(err)
				}
			}
			if !b.Replayable() {
				t.Error("not replayable, with exactly the limit read")
			}
		})
	}
}

func TestNothingIsReadAheadAndOneReadIsOneReadOfTheBody(t *testing.T) {
	src := &script{reads: []func([]byte) (int, error){gives("ab", nil), gives("", nil), gives("c", nil)}}
	b := body(src, 100)
	v := b.View()
	if len(src.sizes) != 0 {
		t.Errorf("View read %v", src.sizes)
	}
	read(t, v, 3, "ab", nil)
	read(t, v, 5, "", nil)
	v = b.View()
	read(t, v, 9, "ab", nil)
	read(t, v, 7, "c", nil)
	if want := []int{3, 5, 7}; !slices.Equal(src.sizes, want) {
		t.Errorf("buffers that the body saw: %v, want %v", src.sizes, want)
	}
}

func TestAReadOfNoBytesDoesNotTouchTheBody(t *testing.T) {
	src := &script{}
	v := body(src, 1).View()
	read(t, v, 0, "", nil)
	if len(src.sizes) != 0 {
		t.Errorf("the body was read: %v", src.sizes)
	}
}

func TestANilBodyIsEmpty(t *testing.T) {
	readAll(t, New(nil, 1).View(), "", nil)
}

func TestABodyBeyondTheLimitArrivesWholeAndRulesOutAnotherView(t *testing.T) {
	const text = "0123456789"
	for _, limit := range []int64{-1, 0, 1, 8, 9} {
		b := body(iotest.OneByteReader(strings.NewReader(text)), limit)
		if !b.Replayable() {
			t.Errorf("limit %d: not replayable before anything was read", limit)
		}
		if _, err := io.ReadFull(b.View(), make([]byte, max(0, limit))); err != nil {
			t.Fatal(err)
		}
		if !b.Replayable() {
			t.Errorf("limit %d: not replayable at the limit", limit)
		}
		readAll(t, b.View(), text, nil)
		if b.Replayable() {
			t.Errorf("limit %d: replayable beyond it", limit)
		}
		readAll(t, b.View(), "", errOutgrown)
	}
}

func TestMemoryStaysWithinTheLimitAndOneRead(t *testing.T) {
	const limit, chunk = 1000, 64
	b := body(strings.NewReader(strings.Repeat("x", 100*limit)), limit)
	v := b.View()
	p := make([]byte, chunk)
	for {
		_, err := v.Read(p)
		if b.record.size > limit || b.over && b.record.list != nil {
			t.Fatalf("%d bytes recorded, over the limit: %v", b.record.size, b.over)
		}
		if err == io.EOF {
			return
		}
	}
}

func TestAViewThatIsReplacedIsCutOff(t *testing.T) {
	b := body(strings.NewReader("abcdef"), 100)
	first := b.View()
	read(t, first, 2, "ab", nil)
	second := b.View()
	read(t, first, 2, "", ErrCutOff)
	read(t, second, 4, "ab", nil)
	third := b.View()
	read(t, second, 4, "", ErrCutOff)
	if err := second.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	read(t, second, 4, "", ErrCutOff)
	readAll(t, third, "abcdef", nil)
}

func TestAClosedViewLeavesTheBodyOpen(t *testing.T) {
	src := &closer{Reader: strings.NewReader("abcdef")}
	b := New(src, 100)
	first := b.View()
	read(t, first, 2, "ab", nil)
	for range 2 {
		if err := first.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	read(t, first, 2, "", http.ErrBodyReadAfterClose)
	readAll(t, b.View(), "abcdef", nil)
	b.Stop()
	if src.closed {
		t.Error("the body was closed")
	}
}

type closer struct {
	io.Reader
	closed bool
}

func (c *closer) Close() error { c.closed = true; return nil }

func TestTheEndOfTheBodyIsTheSameInEveryView(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name  string
		reads []func([]byte) (int, error)
		want  error
	}{
		{"EOF alone", []func([]byte) (int, error){gives("abc", nil), gives("", io.EOF)}, io.EOF},
		{"EOF with the last bytes", []func([]byte) (int, error){gives("abc", io.EOF)}, io.EOF},
		{"unexpected EOF", []func([]byte) (int, error){gives("abc", nil), gives("", io.ErrUnexpectedEOF)}, io.ErrUnexpectedEOF},
		{"another error with bytes", []func([]byte) (int, error){gives("abc", broken)}, broken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := &script{reads: append(tt.reads, gives("bytes after the end", nil))}
			b := body(src, 3)
			for range 3 {
				v := b.View()
				p := make([]byte, 10)
				n, err := v.Read(p)
				if err == nil {
					_, err = v.Read(p[n:])
				}
				if string(p[:n]) != "abc" || err != tt.want {
					t.Errorf("%q, %v, want %q, %v", p[:n], err, "abc", tt.want)
				}
				read(t, v, 1, "", tt.want)
			}
		})
	}
}

func TestABodyTooLargeForMaxBytesReaderIsSoInEveryView(t *testing.T) {
	b := New(http.MaxBytesReader(httptest.NewRecorder(), io.NopCloser(strings.NewReader("abcdef")), 4), 100)
	for range 2 {
		got, err := io.ReadAll(b.View())
		var tooLarge *http.MaxBytesError
		if string(got) != "abcd" || !errors.As(err, &tooLarge) || tooLarge.Limit != 4 {
			t.Errorf("%q, %v, want %q and a *http.MaxBytesError", got, err, "abcd")
		}
	}
}

func TestADeadlineThatPassedIsNotTheEndOfTheBody(t *testing.T) {
	late := fmt.Errorf("read tcp: %w", os.ErrDeadlineExceeded)
	b := body(&script{reads: []func([]byte) (int, error){gives("ab", late), gives("cd", nil)}}, 100)
	v := b.View()
	read(t, v, 2, "ab", late)
	read(t, v, 2, "cd", nil)
	readAll(t, b.View(), "abcd", nil)
}

func TestALateReadOfAnEarlierAttemptStealsNothing(t *testing.T) {
	tests := []struct {
		name       string
		limit      int64
		replayable bool
	}{
		{"within the limit", 100, true},
		{"beyond the limit", 4, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, w := io.Pipe()
				b := New(r, tt.limit)
				first := b.View()
				go io.WriteString(w, "abc")
				read(t, first, 10, "abc", nil)
				stale := start(first, 10)

				second := b.View()
				read(t, second, 2, "ab", nil)
				read(t, second, 2, "c", nil) // while the stale Read is blocked
				waiting := start(second, 2)
				wantBlocked(t, waiting)
				wantBlocked(t, stale)

				go io.WriteString(w, "defg")
				wantResult(t, stale, "", ErrCutOff)
				wantResult(t, waiting, "de", nil)
				if got := b.Replayable(); got != tt.replayable {
					t.Errorf("Replayable: %v, want %v", got, tt.replayable)
				}
				if b.record.list == nil {
					t.Error("the record was let go before the view had it all")
				}
				read(t, second, 9, "fg", nil)
				if !tt.replayable && b.record.list != nil {
					t.Error("the record is kept for nobody")
				}
				go func() {
					io.WriteString(w, "h")
					w.Close()
				}()
				readAll(t, second, "h", nil)
				if tt.replayable {
					readAll(t, b.View(), "abcdefgh", nil)
				} else {
					readAll(t, b.View(), "", errOutgrown)
				}
			})
		})
	}
}

func TestALateReadAlsoPassesOnTheEndOfTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		b := New(r, 100)
		stale := start(b.View(), 10)
		waiting := start(b.View(), 10)
		w.CloseWithError(io.ErrUnexpectedEOF)
		wantResult(t, stale, "", ErrCutOff)
		wantResult(t, waiting, "", io.ErrUnexpectedEOF)
	})
}

func TestALateReadThatFillsAViewNobodyReadsKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		b := New(r, 2)
		v := b.View()
		stale := start(v, 10)
		v.Close()
		io.WriteString(w, "abc")
		wantResult(t, stale, "", http.ErrBodyReadAfterClose)
		if b.record.list != nil || b.Replayable() {
			t.Errorf("record %q, Replayable %v, want none and false", b.record.list, b.Replayable())
		}
	})
}

func TestTheRecordBeyondTheLimitGoesWithTheViewThatItWasKeptFor(t *testing.T) {
	tests := []struct {
		name string
		end  func(*Body, io.Closer)
	}{
		{"closed", func(_ *Body, v io.Closer) { v.Close() }},
		{"replaced", func(b *Body, _ io.Closer) { b.View() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, w := io.Pipe()
				b := New(r, 2)
				stale := start(b.View(), 10)
				v := b.View()
				io.WriteString(w, "abc")
				wantResult(t, stale, "", ErrCutOff)
				read(t, v, 1, "a", nil)
				tt.end(b, v)
				if b.record.list != nil {
					t.Errorf("record %q, want none", b.record.list)
				}
			})
		})
	}
}

func TestAWaitingReadReturnsWhenItsViewEnds(t *testing.T) {
	tests := []struct {
		name string
		end  func(*Body, io.Closer)
		want error
	}{
		{"by a new view", func(b *Body, _ io.Closer) { b.View() }, ErrCutOff},
		{"by Close", func(_ *Body, v io.Closer) { v.Close() }, http.ErrBodyReadAfterClose},
		{"by Stop", func(b *Body, _ io.Closer) { b.Stop() }, ErrCutOff},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, w := io.Pipe()
				b := New(r, 100)
				stale := start(b.View(), 10)
				v := b.View()
				waiting := start(v, 10)
				tt.end(b, v)
				wantResult(t, waiting, "", tt.want)
				wantBlocked(t, stale)
				w.Close()
				wantResult(t, stale, "", ErrCutOff)
			})
		})
	}
}

func TestStopDoesNotWaitForABlockedReadAndKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		b := New(r, 100)
		v := b.View()
		go io.WriteString(w, "abc")
		read(t, v, 10, "abc", nil)
		stale := start(v, 10)
		b.Stop()
		b.Stop()
		wantBlocked(t, stale)
		read(t, v, 1, "", ErrCutOff)
		if b.Replayable() {
			t.Error("replayable after Stop")
		}
		read(t, b.View(), 1, "", ErrCutOff)
		io.WriteString(w, "def")
		wantResult(t, stale, "", ErrCutOff)
		if b.record.list != nil {
			t.Errorf("record %q after Stop, want none", b.record.list)
		}
	})
}

func TestStopBeforeAnyViewLeavesNothingToRead(t *testing.T) {
	b := body(strings.NewReader("abc"), 100)
	b.Stop()
	readAll(t, b.View(), "", ErrCutOff)
}

func TestABodyWhoseReadNeverReturnsNormallyBlocksNobody(t *testing.T) {
	tests := []struct {
		name string
		end  func()
	}{
		{"panic", func() { panic(http.ErrAbortHandler) }},
		{"Goexit", runtime.Goexit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := make(chan struct{})
				b := body(&script{reads: []func([]byte) (int, error){
					func([]byte) (int, error) { <-gate; tt.end(); return 0, nil },
					gives("abc", io.EOF),
				}}, 100)
				first := b.View()
				recovered := make(chan any, 1)
				go func() {
					defer func() { recovered <- recover() }()
					first.Read(make([]byte, 10))
				}()
				synctest.Wait()
				waiting := start(b.View(), 10)
				wantBlocked(t, waiting)
				close(gate)
				wantResult(t, waiting, "abc", io.EOF)
				if got := <-recovered; tt.name == "panic" && got != http.ErrAbortHandler {
					t.Errorf("recovered %v, want the panic of the body's Read", got)
				}
			})
		})
	}
}

// exclusive is a body on which the race detector sees two Reads that overlap, by n.
type exclusive struct {
	r io.Reader
	n int
}

func (e *exclusive) Read(p []byte) (int, error) { e.n++; return e.r.Read(p) }

func TestReadsOfOneViewFromSeveralGoroutinesShareTheBytes(t *testing.T) {
	var want []byte
	for i := range 256 {
		want = append(want, byte(i))
	}
	for _, limit := range []int64{1000, 100} {
		b := body(&exclusive{r: iotest.OneByteReader(bytes.NewReader(want))}, limit)
		v := b.View()
		var (
			wg  sync.WaitGroup
			mu  sync.Mutex
			got []byte
		)
		for range 4 {
			wg.Go(func() {
				p := make([]byte, 3)
				for {
					n, err := v.Read(p)
					mu.Lock()
					got = append(got, p[:n]...)
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		slices.Sort(got)
		if !bytes.Equal(got, want) {
			t.Errorf("limit %d: %d bytes %v, want each byte once", limit, len(got), got)
		}
	}
}

func TestAStormOfAttemptsLosesNoByte(t *testing.T) {
	want := strings.Repeat("0123456789", 100)
	src := &exclusive{r: iotest.OneByteReader(strings.NewReader(want))}
	b := body(src, int64(len(want)))
	var wg sync.WaitGroup
	for range 50 {
		v := b.View()
		wg.Go(func() { // still reads while the next attempt begins
			got, err := io.ReadAll(v)
			if !strings.HasPrefix(want, string(got)) || err != nil && err != ErrCutOff {
				t.Errorf("an earlier attempt read %q, %v", got, err)
			}
		})
	}
	readAll(t, b.View(), want, nil)
	wg.Wait()
}
