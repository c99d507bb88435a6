package browser

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Patience is how long a page may take for what it is waited for. No test measures time: this is for a machine that
// has much else to do, and ends a test that would wait for ever.
const Patience = 2 * time.Minute

// ErrNotInstalled is returned by Start where there is no Chromium.
var ErrNotInstalled = errors.New("chromium is not installed: apt-get install chromium")

// Browser is a Chromium without a window on the screen.
type Browser struct {
	ctx  context.Context
	stop []context.CancelFunc
}

// Start starts one with an empty profile, which is removed by Close.
func Start(ctx context.Context) (*Browser, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, ErrNotInstalled
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // the sandbox does not run as root, which CI is in its container
		chromedp.DisableGPU,
		chromedp.WSURLReadTimeout(Patience),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("lang", "en"),
	)
	allocator, stopAllocator := chromedp.NewExecAllocator(ctx, options...)
	browser, stopBrowser := chromedp.NewContext(allocator)
	b := &Browser{ctx: browser, stop: []context.CancelFunc{stopBrowser, stopAllocator}}
	if err := chromedp.Do(browser); err != nil {
		b.Close()
		return nil, fmt.Errorf("start chromium: %w", err)
	}
	return b, nil
}

// Close ends the browser and returns when its processes have ended.
func (b *Browser) Close() {
	for _, stop := range b.stop {
		stop()
	}
}

// View is how a page is looked at.
type View struct {
	Width int
	Dark  bool
}

// Views are those that every page is looked at in: a desktop's and a telephone's width, light and dark.
var Views = []View{{1280, false}, {1280, true}, {390, false}, {390, true}}

const telephone = 390

func (v View) String() string {
	if v.Dark {
		return fmt.Sprintf("%d px dark", v.Width)
	}
	return fmt.Sprintf("%d px light", v.Width)
}

func (v View) height() int64 {
	if v.Width <= telephone {
		return 844
	}
	return 900
}

// Page is a window with one page in it. It may be used by one goroutine at a time.
type Page struct {
	// Patience is how long Wait waits. NewPage sets it.
	Patience time.Duration

	ctx   context.Context
	close context.CancelFunc
	view  View

	mu       sync.Mutex                 // guards what the browser tells meanwhile
	errors   []string                   // of scripts, and of what the page wanted to load
	expected map[network.RequestID]bool // requests that may be answered with an error
	dialogs  []string                   // what confirm and alert have said
}

// NewPage opens a window that shares nothing, cookies for example, with any other.
func (b *Browser) NewPage(v View) (*Page, error) {
	p := &Page{Patience: Patience, expected: map[network.RequestID]bool{}}
	// The events of a page come before the answers to what is asked of it later, and are told to listen at once: what
	// has gone wrong up to the last answer is in errors.
	ctx, stop := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext(), chromedp.WithListener(p.listen))
	p.ctx, p.close = ctx, stop
	err := p.run(
		// Several windows are open at once, and each one is to be used as the one in front.
		command(emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}),
		command(network.Enable, network.EnableParams{}),
	)
	if err == nil {
		err = p.Show(v)
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("open a window: %w", err)
	}
	return p, nil
}

// Close closes the window.
func (p *Page) Close() { p.close() }

func (p *Page) run(steps ...chromedp.Action[chromedp.Void]) error {
	return chromedp.Do(p.ctx, steps...)
}

// Show changes the size of the window and the colours that are preferred, without loading the page again.
func (p *Page) Show(v View) error {
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	p.view = v
	return p.within(func(ctx context.Context) error {
		return chromedp.Do(ctx,
			command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
				Width: int64(v.Width), Height: v.height(), DeviceScaleFactor: 1, Mobile: v.Width <= telephone,
			}),
			command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme},
				{Name: "prefers-reduced-motion", Value: "reduce"}, // a picture and a colour that do not change meanwhile
			}}),
		)
	})
}

// Open loads an address, waits until the page and what belongs to it are there, and returns the status of the answer.
// What the errors of an earlier page were is forgotten.
func (p *Page) Open(address string) (status int, err error) {
	return p.load(chromedp.Navigate(address))
}

// load does something that loads a page, and waits for it.
func (p *Page) load(step chromedp.Action[chromedp.Void]) (status int, err error) {
	p.mu.Lock()
	p.errors = nil
	p.mu.Unlock()
	err = p.within(func(ctx context.Context) error {
		response, err := chromedp.RunResponse(ctx, step)
		if err == nil {
			status = int(response.Status)
		}
		return err
	})
	return status, err
}

// Eval returns the value of an expression in JavaScript. If it is a promise it is waited for.
func Eval[T any](p *Page, expression string) (value T, err error) {
	err = p.within(func(ctx context.Context) error {
		value, err = chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
		return err
	})
	if err != nil {
		return value, fmt.Errorf("%.200s: %w", strings.TrimSpace(expression), err)
	}
	return value, nil
}

// Wait returns when an expression in JavaScript is true, also if a page is loaded meanwhile.
func (p *Page) Wait(expression string) error {
	var last error
	for end := time.Now().Add(p.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var ok bool
		if ok, last = Eval[bool](p, "Boolean("+expression+")"); ok {
			return nil
		}
	}
	text, _ := Eval[string](p, "document.body.innerText")
	return errors.Join(fmt.Errorf("it never became true: %s\nthe page says: %s", expression, text), last)
}

// Errors are those of the page's scripts, and what it wanted to load or to do and was not allowed to.
func (p *Page) Errors() ([]string, error) {
	// All that has happened before this answer has been told by then.
	if _, err := Eval[int](p, "1"); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.errors), nil
}

// Dialogs returns what confirm and alert have said since it was called before. All of them were accepted, as by Enter.
func (p *Page) Dialogs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	said := p.dialogs
	p.dialogs = nil
	return said
}

// within runs f with a context that ends when all patience is at an end.
func (p *Page) within(f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(p.ctx, Patience, errors.New("the browser has not answered for minutes"))
	defer cancel()
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return err
}

// listen is called for every event, one at a time, and must not wait for the browser.
func (p *Page) listen(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if object := e.ExceptionDetails.Exception; object != nil && object.Description != "" {
			text += " " + object.Description
		}
		p.errors = append(p.errors, text)
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeAssert {
			p.errors = append(p.errors, fmt.Sprintf("console.%s: %s", e.Type, consoleText(e.Args)))
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError && !p.expected[e.Entry.NetworkRequestID] {
			p.errors = append(p.errors, strings.TrimSpace(fmt.Sprintf("%s %s", e.Entry.Text, e.Entry.URL)))
		}
	case *network.EventRequestWillBeSent:
		// That the page itself says 404 is no error of the page. The icon is of the type Other: the browser asks for it
		// some time after everything else, so there is a check of its own for it.
		if e.Type == network.ResourceTypeDocument || e.Type == network.ResourceTypeOther {
			p.expected[e.RequestID] = true
		}
	case *page.EventJavascriptDialogOpening:
		p.dialogs = append(p.dialogs, e.Message)
		go func() { // nothing else is answered before the dialog is
			_ = p.run(command(page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true}))
		}()
	}
}

func consoleText(args []*runtime.RemoteObject) string {
	var texts []string
	for _, arg := range args {
		if text := arg.Description; text != "" {
			texts = append(texts, text)
		} else {
			texts = append(texts, string(arg.Value))
		}
	}
	return strings.Join(texts, " ")
}

// command makes a step of a command of the protocol whose answer is of no interest.
func command[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, c, params)
		return chromedp.Void{}, err
	}
}
