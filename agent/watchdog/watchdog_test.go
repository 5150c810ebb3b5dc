// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package watchdog

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
)

const (
	iron    = "iTCO_wdt"
	timeout = 8 * time.Second
	span    = 20 * time.Second
)

// board is an emulated watchdog: what a kernel makes of one. It resets the host when it was not fed in time.
type board struct {
	options  uint32
	identity string
	// takes is the timeout that it makes of the one that is wanted.
	takes func(int) int
	// lie is an error of the next feeds.
	lie error

	mu      sync.Mutex
	timer   *time.Timer
	seconds int
	opened  int
	fed     []time.Time
	stopped bool
	reset   time.Time
	closed  int
}

func newBoard() *board {
	return &board{options: unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING | unix.WDIOF_MAGICCLOSE, identity: iron, takes: func(s int) int { return s }, seconds: 30}
}

func (b *board) open(string) (handle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened++
	b.stopped = false
	b.count()
	return b, nil
}

// count is called with mu held.
func (b *board) count() {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.fed = append(b.fed, time.Now())
	b.timer = time.AfterFunc(time.Duration(b.seconds)*time.Second, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.stopped && b.reset.IsZero() {
			b.reset = time.Now()
		}
	})
}

func (b *board) support() (uint32, string, error) { return b.options, b.identity, nil }

func (b *board) set(seconds int) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seconds = b.takes(seconds)
	b.count()
	return b.seconds, nil
}

func (b *board) feed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lie != nil {
		return b.lie
	}
	b.count()
	return nil
}

func (b *board) close(stop bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed++
	if stop || b.options&unix.WDIOF_MAGICCLOSE == 0 { // the kernel stops what has no letter for it
		b.stopped = true
		b.timer.Stop()
	}
	return nil
}

func (b *board) resetAt() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reset
}

// hardware is the board as the kernel tells of it, in a machine that is one.
func (b *board) hardware(t *testing.T) Hardware {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "watchdog0"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "watchdog0", "identity"), b.identity+"\n")
	write(t, filepath.Join(dir, "cpuinfo"), "processor\t: 0\nflags\t\t: fpu vme sse2 constant_tsc\n")
	return Hardware{Path: "/dev/watchdog0", Identities: []string{iron}, Timeout: timeout, Sys: dir, CPU: filepath.Join(dir, "cpuinfo"), open: b.open}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// host is one on a leash, in a bubble of simulated time.
type host struct {
	*Leash
	board *board
	began time.Time
	// majority and guarded are what peers and the runtime say.
	mu       sync.Mutex
	majority bool
	guarded  bool
	cri      error
	bound    time.Duration
	asked    int
	end      context.CancelFunc
	tasks    sync.WaitGroup
}

func newHost(t *testing.T, b *board) *host { return newHostWith(t, b, func(*Config) {}) }

func newHostWith(t *testing.T, b *board, change func(*Config)) *host {
	hardware := b.hardware(t)
	h := &host{board: b, began: time.Now()}
	config := Config{
		Open: hardware.Open, Span: span, Log: logr.Discard(),
		Majority: func(context.Context) bool { h.mu.Lock(); defer h.mu.Unlock(); h.asked++; return h.majority },
		Guarded:  func() (bool, error) { h.mu.Lock(); defer h.mu.Unlock(); return h.guarded, h.cri },
		Armed:    func(bound time.Duration) { h.bound = bound },
		Now:      func() time.Duration { return time.Since(h.began) },
	}
	change(&config)
	h.Leash = New(config)
	ctx, end := context.WithCancel(t.Context())
	h.end = end
	h.tasks.Go(func() { h.Run(ctx) })
	return h
}

// api answers every two seconds for so long.
func (h *host) api(lasts time.Duration) {
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(2 * time.Second) {
		h.Asking()()
	}
}

func (h *host) leave(t *testing.T) {
	h.end()
	h.tasks.Wait()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func (h *host) peers(answer bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.majority = answer
}

func TestAHostThatTheAPIAnswersLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.api(10 * time.Minute)
		if !h.board.resetAt().IsZero() || h.LetGo() || h.bound != span+2*timeout {
			t.Errorf("reset at %v, let go %v, bound %s", h.board.resetAt(), h.LetGo(), h.bound)
		}
		if h.asked != 0 {
			t.Errorf("peers were asked %d times while the API answered", h.asked)
		}
		h.leave(t)
	})
}

func TestAHostThatNobodyAnswersIsResetWithinTheBoundOfItsLastContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.api(time.Minute)
		last := time.Now().Add(-2 * time.Second)
		time.Sleep(2 * h.bound)
		if reset := h.board.resetAt(); reset.IsZero() || reset.Sub(last) > h.bound || reset.Sub(last) < span {
			t.Errorf("reset %s after the last contact; the bound is %s", reset.Sub(last), h.bound)
		}
		h.leave(t)
	})
}

func TestAMajorityOfPeersIsEnoughWhileTheAPIIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.api(time.Minute)
		h.peers(true)
		time.Sleep(time.Hour)
		if h.LetGo() || !h.board.resetAt().IsZero() {
			t.Error("an outage of the API reset a host that a majority answers")
		}
		h.peers(false)
		time.Sleep(2 * h.bound)
		if h.board.resetAt().IsZero() {
			t.Error("it lives with neither")
		}
		h.leave(t)
	})
}

// What was promised is kept: the manager may be counting.
func TestWhoLetsGoDoesNotFeedAgainWhateverAnswersThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.api(time.Minute)
		for !h.LetGo() {
			time.Sleep(100 * time.Millisecond)
		}
		fed := len(h.board.fed)
		h.peers(true)
		h.api(time.Minute)
		if got := len(h.board.fed); got != fed || h.board.resetAt().IsZero() {
			t.Errorf("it was fed %d times after it was let go; reset at %v", got-fed, h.board.resetAt())
		}
		h.leave(t)
	})
}

// The question counts, not the answer: whoever answered says nothing of later.
func TestAnAnswerCountsFromItsQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.api(time.Minute)
		answered := h.Asking()
		time.Sleep(span - time.Second)
		answered()
		time.Sleep(2 * timeout)
		if !h.LetGo() {
			t.Error("an answer that came late counts as if it had been asked for late")
		}
		h.leave(t)
	})
}

// A late answer to an early question does not make the contact older than a later one did.
func TestAnOldAnswerTakesNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		old := h.Asking()
		h.api(time.Minute)
		old()
		time.Sleep(timeout)
		if h.LetGo() {
			t.Error("it was let go for an old answer")
		}
		h.leave(t)
	})
}

// Opening a watchdog feeds it.
func TestNothingIsOpenedBeforeTheFirstContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.peers(true)
		time.Sleep(time.Hour)
		if h.board.opened != 0 {
			t.Error("it was opened by an agent that the API had not answered")
		}
		h.Asking()()
		synctest.Wait()
		if h.board.opened != 1 {
			t.Error("it was not opened by one that it had")
		}
		h.leave(t)
	})
}

// A feed that was decided upon in time and comes late, as of a process that was stopped in between, is within the bound too.
func TestTheBoundHoldsForAFeedThatComesAsLateAsItCan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.api(time.Minute)
		last := time.Now().Add(-2 * time.Second)
		for time.Since(last) <= span-timeout/feedsIn { // the last feed that is decided upon
			time.Sleep(time.Millisecond)
		}
		h.board.mu.Lock()
		h.board.timer.Reset(timeout - time.Millisecond)
		h.board.mu.Unlock()
		time.Sleep(timeout - 2*time.Millisecond)
		_ = h.board.feed()
		time.Sleep(2 * h.bound)
		if reset := h.board.resetAt(); reset.IsZero() || reset.Sub(last) > h.bound {
			t.Errorf("reset %s after the last contact; the bound is %s", reset.Sub(last), h.bound)
		}
		h.leave(t)
	})
}

func TestWhoLeavesDisarmsOnlyWhereNothingIsGuarded(t *testing.T) {
	for name, c := range map[string]struct {
		guarded, letGo bool
		cri            error
		disarms        bool
	}{
		"nothing guarded":         {disarms: true},
		"something guarded":       {guarded: true},
		"the runtime is silent":   {cri: errors.New("no answer")},
		"it has let the host go":  {letGo: true},
		"guarded, and let go too": {guarded: true, letGo: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, newBoard())
				h.api(time.Minute)
				h.mu.Lock()
				h.guarded, h.cri = c.guarded, c.cri
				h.mu.Unlock()
				for c.letGo && !h.LetGo() {
					time.Sleep(100 * time.Millisecond)
				}
				h.leave(t)
				time.Sleep(2 * timeout)
				if got := h.board.resetAt().IsZero(); got != c.disarms {
					t.Errorf("disarmed: %v", got)
				}
				if err := h.Close(); err != nil || h.board.closed != 1 {
					t.Errorf("closed %d times (%v)", h.board.closed, err)
				}
			})
		})
	}
}

// Whoever counts does not hear peers.
func TestWithoutAMajorityNothingButTheAPICounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHostWith(t, newBoard(), func(c *Config) { c.Majority = nil })
		h.peers(true)
		h.api(time.Minute)
		last := time.Now().Add(-2 * time.Second)
		time.Sleep(2 * h.bound)
		if reset := h.board.resetAt(); reset.IsZero() || reset.Sub(last) > h.bound || h.asked != 0 {
			t.Errorf("reset %s after the API's last answer, peers asked %d times", reset.Sub(last), h.asked)
		}
		h.leave(t)
	})
}

func TestTheBoundIsSaidWhileTheDeviceCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		if got := h.Bound(); got != 0 {
			t.Errorf("%s before anything was opened", got)
		}
		h.api(time.Minute)
		if got := h.Bound(); got != span+2*timeout {
			t.Errorf("%s while it counts", got)
		}
		h.leave(t)
		if got := h.Bound(); got != 0 {
			t.Errorf("%s after it was closed", got)
		}
	})
}

// Somebody may be counting: who cannot say that the device counts no more lets it count.
func TestWhoDisarmsHasSaidSo(t *testing.T) {
	for name, refused := range map[string]error{"taken": nil, "not taken": errors.New("no answer")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, said := newBoard(), 0
				h := newHostWith(t, b, func(c *Config) {
					c.Disarming = func(context.Context) error {
						said++
						if b.closed != 0 {
							t.Error("it is said after it was done")
						}
						return refused
					}
				})
				h.api(time.Minute)
				h.leave(t)
				time.Sleep(2 * timeout)
				if disarmed := b.resetAt().IsZero(); disarmed != (refused == nil) || said != 1 {
					t.Errorf("disarmed %v, said %d times", disarmed, said)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		h := newHostWith(t, newBoard(), func(c *Config) {
			c.Disarming = func(context.Context) error { t.Error("what is not done is said"); return nil }
		})
		h.guarded = true
		h.api(time.Minute)
		h.leave(t)
	})
}

// A successor has the timeout to reach the API; then it goes on feeding what its predecessor left.
func TestASuccessorTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		first := newHost(t, b)
		first.guarded = true
		first.api(time.Minute)
		first.leave(t)
		time.Sleep(timeout / 2)
		second := newHost(t, b)
		second.api(time.Minute)
		if !b.resetAt().IsZero() || b.opened != 2 {
			t.Errorf("reset at %v, opened %d times", b.resetAt(), b.opened)
		}
		second.leave(t)
	})
}

func TestADeviceThatCannotBeFedIsNoReasonToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, newBoard())
		h.api(time.Minute)
		time.Sleep(time.Second) // between two feeds
		h.board.mu.Lock()
		h.board.lie = errors.New("busy")
		h.board.mu.Unlock()
		h.api(timeout / 2)
		h.board.mu.Lock()
		h.board.lie = nil
		h.board.mu.Unlock()
		h.api(time.Minute)
		if !h.board.resetAt().IsZero() || h.LetGo() {
			t.Error("the host was lost for an error that went by")
		}
		h.leave(t)
	})
}

func TestOnlyHardwareThatIsAllowedIsOpened(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*testing.T, *board, *Hardware)
		want   string
		opened bool
	}{
		"a device by its old name": {func(_ *testing.T, _ *board, h *Hardware) { h.Path = "/dev/watchdog" }, "/dev/watchdogN", false},
		"a path out of /dev":       {func(_ *testing.T, _ *board, h *Hardware) { h.Path = "/dev/../tmp/watchdog0" }, "/dev/watchdogN", false},
		"nothing allowed":          {func(_ *testing.T, _ *board, h *Hardware) { h.Identities = nil }, "none is allowed", false},
		"a timeout too short":      {func(_ *testing.T, _ *board, h *Hardware) { h.Timeout = time.Second }, "whole seconds", false},
		"a timeout too long":       {func(_ *testing.T, _ *board, h *Hardware) { h.Timeout = time.Hour }, "whole seconds", false},
		"half seconds":             {func(_ *testing.T, _ *board, h *Hardware) { h.Timeout = 4500 * time.Millisecond }, "whole seconds", false},
		"softdog allowed":          {func(_ *testing.T, _ *board, h *Hardware) { h.Identities = []string{"Software Watchdog"} }, "never fed", false},
		"another device there": {func(t *testing.T, _ *board, h *Hardware) {
			write(t, filepath.Join(h.Sys, "watchdog0", "identity"), "HPE iLO2+ HW Watchdog Timer\n")
		}, "allowed are \"iTCO_wdt\"", false},
		"softdog there": {func(t *testing.T, _ *board, h *Hardware) {
			write(t, filepath.Join(h.Sys, "watchdog0", "identity"), "Software Watchdog\n")
		}, "no hardware of its own", false},
		"the kernel knows none": {func(t *testing.T, _ *board, h *Hardware) {
			if err := os.RemoveAll(filepath.Join(h.Sys, "watchdog0")); err != nil {
				t.Fatal(err)
			}
		}, "whose watchdog is /dev/watchdog0", false},
		"a virtual machine": {func(t *testing.T, _ *board, h *Hardware) {
			write(t, h.CPU, "flags\t\t: fpu vme hypervisor sse2\n")
		}, "virtual machine", false},
		"a processor of another kind": {func(t *testing.T, _ *board, h *Hardware) {
			write(t, h.CPU, "Features\t: fp asimd evtstrm\n")
		}, "does not say whether", false},
		"it stops with its agent":   {func(_ *testing.T, b *board, _ *Hardware) { b.options &^= unix.WDIOF_MAGICCLOSE }, "stop with its agent", true},
		"no word of the processor":  {func(_ *testing.T, _ *board, h *Hardware) { h.CPU += "-none" }, "is this a virtual machine?", false},
		"the driver says otherwise": {func(_ *testing.T, b *board, _ *Hardware) { b.identity = "Software Watchdog" }, "no hardware of its own", true},
		"its timeout is fixed":      {func(_ *testing.T, b *board, _ *Hardware) { b.options &^= unix.WDIOF_SETTIMEOUT }, "cannot be set", true},
		"an alarm only":             {func(_ *testing.T, b *board, _ *Hardware) { b.options |= unix.WDIOF_ALARMONLY }, "resets nothing", true},
		"it takes longer":           {func(_ *testing.T, b *board, _ *Hardware) { b.takes = func(s int) int { return 2 * s } }, "it takes 16 s where 8 s were set", true},
		"it takes nothing":          {func(_ *testing.T, b *board, _ *Hardware) { b.takes = func(int) int { return 0 } }, "it takes 0 s", true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard()
			h := b.hardware(t)
			c.change(t, b, &h)
			_, err := h.Open()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			if b.opened > 0 != c.opened {
				t.Errorf("opened %d times: opening starts it", b.opened)
			}
			if c.opened && !b.stopped {
				t.Error("it was left counting")
			}
		})
	}
}

// A device of another kind answers none of the questions that are put to a watchdog.
func TestWhatIsNoWatchdogIsRefusedByTheKernel(t *testing.T) {
	h := newBoard().hardware(t)
	h.open = func(string) (handle, error) { return openKernel("/dev/null") }
	if _, err := h.Open(); !errors.Is(err, unix.ENOTTY) || !strings.Contains(err.Error(), "/dev/watchdog0") {
		t.Error(err)
	}
	h.open = func(string) (handle, error) { return openKernel(filepath.Join(h.Sys, "none")) }
	if _, err := h.Open(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "RuntimeWatchdogSec") {
		t.Error(err)
	}
}

var (
	deviceFlag   = flag.String("device", "", "a real /dev/watchdogN to try, too; it is stopped at the end, if it can be: on a host whose reset does no harm")
	identityFlag = flag.String("identity", "", "its identity")
)

// TestConformance is what every watchdog must do: the emulated one, and the real one that a flag names.
func TestConformance(t *testing.T) {
	devices := map[string]Hardware{"emulated": newBoard().hardware(t)}
	if *deviceFlag != "" {
		devices[*deviceFlag] = Hardware{Path: *deviceFlag, Identities: []string{*identityFlag}, Timeout: 30 * time.Second}
	}
	for name, hardware := range devices {
		t.Run(name, func(t *testing.T) {
			for range 2 { // what was closed can be opened again
				device, err := hardware.Open()
				if err != nil {
					t.Fatal(err)
				}
				if got := device.Timeout(); got <= 0 || got > hardware.Timeout {
					t.Errorf("its timeout is %s where %s was set", got, hardware.Timeout)
				}
				for range 3 {
					if err := device.Feed(); err != nil {
						t.Error(err)
					}
				}
				if err := device.Close(true); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// What the agent refuses by its name, the GuardConfig refuses before it comes to that.
func TestTheAPIRefusesByNameWhatTheAgentDoes(t *testing.T) {
	definition, err := os.ReadFile("../../config/crd/bases/guard.holdfast.dev_guardconfigs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Join(strings.Fields(string(definition)), " ") // however it is folded
	for _, name := range virtual {
		if !strings.Contains(said, "'"+name+"'") {
			t.Errorf("a GuardConfig may name %q, which no agent arms", name)
		}
	}
}
