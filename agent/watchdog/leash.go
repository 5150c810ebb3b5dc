// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package watchdog lets the host be reset that nobody reaches: it feeds a hardware watchdog only while the API, or if so asked a majority of the other agents, answers. See
// docs/spec/witness.md, "Letting go", and docs/adr/0015-a-host-that-fences-itself.md.
package watchdog

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
)

// Device is a watchdog that counts: it resets the host when nothing feeds it for Timeout.
type Device interface {
	Feed() error
	Timeout() time.Duration
	// Close leaves it. Disarmed it counts no more, which not every device can; else it goes on counting, and resets the host unless somebody opens it in time.
	Close(disarm bool) error
}

// Config of a leash. All but Majority, Disarming, Log and Now must be given.
type Config struct {
	// Open begins to count, and opening feeds; it is called after the first contact with the API, and again a second after an error.
	Open func() (Device, error)
	// Span is how old the last contact may be for the device to be fed.
	Span time.Duration
	// Majority asks the other agents until more than half of all that are known, this one included, have answered, or ctx ends. Where it is nil, nothing but the API's
	// answers counts. Who announces [Leash.Bound] must give none: whoever counts does not see what they answer.
	Majority func(ctx context.Context) bool
	// Guarded reports whether something runs here that is guarded. An error counts as yes.
	Guarded func() (bool, error)
	// Armed is told, once, the bound of [Leash.Bound], when the device counts.
	Armed func(bound time.Duration)
	// Disarming says to whoever counts that the device will count no more, before it is disarmed. Unless that was taken for certain, which no error says, the device
	// counts on. It is nil where the bound was announced to nobody.
	Disarming func(ctx context.Context) error
	Log       logr.Logger
	// Now is a clock that goes on while the host sleeps; CLOCK_BOOTTIME where it is nil.
	Now func() time.Duration
}

// Leash holds the host. Once it has let go it never feeds again.
type Leash struct {
	config Config

	mu      sync.Mutex
	touched bool
	contact time.Duration
	device  Device
	gone    bool
	// touch wakes Run at the first contact.
	touch chan struct{}
}

const (
	// feedsIn is how many times a device is fed in its timeout, and asksIn how many times in a span peers are asked.
	feedsIn = 4
	asksIn  = 4
	// openAgain is how long after an error the device is tried again, and disarmingFor bounds the last word.
	openAgain    = time.Second
	disarmingFor = time.Second
)

// New returns a leash that does nothing until it runs.
func New(config Config) *Leash {
	if config.Now == nil {
		config.Now = sinceBoot
	}
	return &Leash{config: config, touch: make(chan struct{}, 1)}
}

// sinceBoot counts the time that the host slept, too.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("this kernel has no CLOCK_BOOTTIME, which Linux 2.6.39 brought: " + err.Error())
	}
	return time.Duration(t.Nano())
}

// Bound is the longest that a host lives after the beginning of the last question that anybody answered it: the span, and twice the timeout, since one feed that was
// decided upon in time may come late, but not later than the device allows.
func Bound(span, timeout time.Duration) time.Duration { return span + 2*timeout }

// Bound is that of [Bound] while the device counts, and zero while it does not. It is so from before it is said until Close.
func (l *Leash) Bound() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.device == nil {
		return 0
	}
	return Bound(l.config.Span, l.device.Timeout())
}

// Asking is called when the API is about to be asked, and what it returns when the API has answered. What counts is when it was asked.
func (l *Leash) Asking() (answered func()) {
	asked := l.config.Now()
	return func() { l.reached(asked) }
}

func (l *Leash) reached(asked time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.touched || asked > l.contact {
		l.touched, l.contact = true, asked
	}
	select {
	case l.touch <- struct{}{}:
	default:
	}
}

// age is how long ago the last contact was.
func (l *Leash) age() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config.Now() - l.contact
}

// LetGo reports whether the host will be reset.
func (l *Leash) LetGo() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}

// Run opens the device after the first contact, and feeds it until ctx ends or there is no contact. It returns at once when ctx ends; Close is then to be called.
func (l *Leash) Run(ctx context.Context) {
	if !l.arm(ctx) {
		return
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	var peers sync.WaitGroup
	defer peers.Wait()
	if l.config.Majority != nil {
		peers.Go(func() { l.askPeers(ctx) })
	}
	feed := time.NewTicker(l.device.Timeout() / feedsIn)
	defer feed.Stop()
	for l.feed() {
		select {
		case <-feed.C:
		case <-ctx.Done():
			return
		}
	}
	<-ctx.Done()
}

// arm opens the device, which counts from then on. Not before a contact: opening feeds, and an agent that starts anew on a host that was let go would save it.
func (l *Leash) arm(ctx context.Context) bool {
	select {
	case <-l.touch:
	case <-ctx.Done():
		return false
	}
	for {
		if l.age() <= l.config.Span {
			device, err := l.config.Open()
			if err == nil {
				l.mu.Lock()
				l.device = device
				l.mu.Unlock()
				bound := Bound(l.config.Span, device.Timeout())
				l.config.Log.Info("This host resets itself when it is not answered", "boundSeconds", bound.Seconds(), "majorityCounts", l.config.Majority != nil)
				l.config.Armed(bound)
				return true
			}
			l.config.Log.Error(err, "The watchdog cannot be used; this host does not fence itself")
		}
		select {
		case <-time.After(openAgain):
		case <-ctx.Done():
			return false
		}
	}
}

// feed feeds, or lets go for good.
func (l *Leash) feed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	age := l.config.Now() - l.contact
	if l.gone || age > l.config.Span {
		l.gone = true
		l.config.Log.Info("Nobody answers: the watchdog is not fed any more, and resets this host", "silentSeconds", age.Seconds())
		return false
	}
	if err := l.device.Feed(); err != nil {
		l.config.Log.Error(err, "The watchdog was not fed")
	}
	return true
}

// askPeers asks the other agents while the API is silent.
func (l *Leash) askPeers(ctx context.Context) {
	period := l.config.Span / asksIn
	every := time.NewTicker(period)
	defer every.Stop()
	for {
		if l.age() >= period {
			asked := l.config.Now()
			patience, done := context.WithTimeout(ctx, period)
			if l.config.Majority(patience) {
				l.reached(asked)
			}
			done()
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// Close leaves the device when the agent ends in order. It is disarmed only if nothing that is guarded runs here, the host was not let go, and whoever counts was told so;
// else it goes on counting, and the next agent has its timeout to reach the API and feed it.
func (l *Leash) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.device == nil {
		return nil
	}
	guarded, err := l.config.Guarded()
	disarm := !guarded && err == nil && !l.gone
	if disarm && l.config.Disarming != nil {
		word, said := context.WithTimeout(context.Background(), disarmingFor)
		defer said()
		err = l.config.Disarming(word)
		disarm = err == nil
	}
	if !disarm {
		l.config.Log.Info("The watchdog goes on counting: guarded pods may run here, this host was let go, or that it is disarmed could not be said", "timeoutSeconds", l.device.Timeout().Seconds(), "why", errorText(err))
	}
	if err := l.device.Close(disarm); err != nil {
		return fmt.Errorf("leave the watchdog: %w", err)
	}
	l.device = nil
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
