// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package selffence has the agent's own code feed an emulated watchdog, through an API that is cut, slow and late, while the manager's own code watches the Lease:
// whatever happens, the manager concludes that the host was reset only after it was.
package selffence

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/lease"
	"github.com/holdfast-dev/holdfast/agent/watchdog"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

const (
	seeds = 400
	lasts = 6 * time.Minute
	boot  = "b1"
)

// dice are what everything random is drawn from, in a bubble where many goroutines draw.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func (d *dice) within(most time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Duration(d.rng.Int64N(int64(most) + 1))
}

// oneIn is true once in n times.
func (d *dice) oneIn(n int64) bool { return d.within(time.Duration(n-1)) == 0 }

// server is an API server with one Lease. What it was sent it takes, sooner or later, also if nobody waits for the answer any more.
type server struct {
	*dice
	mu      sync.Mutex
	cut     bool
	lease   *coordinationv1.Lease
	version int
	under   sync.WaitGroup
}

func (s *server) set(cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = cut
}

var errConflict = errors.New("somebody else has written")

// apply takes a Lease, if the version is that of the one that stands there, or none is given.
func (s *server) apply(ctx context.Context, wanted *coordinationv1.Lease, version int) (int, error) {
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	if cut && !s.oneIn(20) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	way := s.within(200 * time.Millisecond)
	if s.oneIn(8) {
		way = s.within(90 * time.Second)
	}
	type answer struct {
		version int
		err     error
	}
	back := make(chan answer, 1)
	s.under.Go(func() {
		time.Sleep(way)
		s.mu.Lock()
		defer s.mu.Unlock()
		if version != 0 && version != s.version {
			back <- answer{0, errConflict}
			return
		}
		s.version++
		s.lease = wanted
		s.lease.ResourceVersion = strconv.Itoa(s.version)
		back <- answer{s.version, nil}
	})
	select {
	case a := <-back:
		if time.Sleep(s.within(200 * time.Millisecond)); s.oneIn(10) {
			<-ctx.Done() // the answer is lost
		}
		return a.version, errors.Join(a.err, ctx.Err())
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (s *server) read() *coordinationv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease
}

// writer is the agent's way to the server: as cmd/witness, whose requests are HTTP.
type writer struct {
	*server
	version int
}

func (w *writer) write(ctx context.Context, word lease.Word) error {
	said := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "host", Annotations: map[string]string{}}, Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(word.BootID),
		RenewTime: ptr.To(metav1.NewMicroTime(word.At)), LeaseDurationSeconds: ptr.To(int32((word.Every + time.Second - 1) / time.Second))}}
	version := 0
	if word.Bound > 0 && w.version != 0 {
		version = w.version
		said.Annotations[wire.AnnotationSelfFence] = strconv.Itoa(int((word.Bound + time.Second - 1) / time.Second))
	}
	taken, err := w.apply(ctx, said, version)
	if errors.Is(err, errConflict) {
		w.version = 0
	}
	if err == nil {
		w.version = taken
	}
	return err
}

// hardware is an emulated watchdog in a host whose clocks are all slow by the same.
type hardware struct {
	*dice
	slow    float64
	timeout time.Duration

	mu    sync.Mutex
	timer *time.Timer
	opens bool
	reset time.Time
}

func (h *hardware) truly(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + h.slow))
}

func (h *hardware) open() (watchdog.Device, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.opens {
		return nil, errors.New("busy")
	}
	h.opens = true
	h.count()
	return &device{hardware: h}, nil
}

// count is called with mu held.
func (h *hardware) count() {
	if h.timer != nil {
		h.timer.Stop()
	}
	h.timer = time.AfterFunc(h.truly(h.timeout), func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.reset = time.Now()
	})
}

func (h *hardware) resetAt() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reset
}

type device struct {
	*hardware
	closed bool
}

// Feed may come late: its process was stopped after it had decided to, and not for longer than the device allows.
func (d *device) Feed() error {
	late := time.Duration(0)
	if d.oneIn(2) {
		late = d.within(d.truly(d.hardware.timeout))
	}
	time.AfterFunc(late, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.reset.IsZero() && !d.closed {
			d.count()
		}
	})
	return nil
}

func (d *device) Timeout() time.Duration { return d.hardware.timeout }

func (d *device) Close(disarm bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opens, d.closed = false, true
	if disarm {
		d.timer.Stop()
	}
	return nil
}

// agent is one life of the host's agent.
type agent struct {
	leash *watchdog.Leash
	dev   *device
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

func (w *world) start() *agent {
	a := &agent{}
	out := &writer{server: w.api}
	began := time.Now()
	a.leash = watchdog.New(watchdog.Config{
		Open: func() (watchdog.Device, error) {
			d, err := w.hardware.open()
			if err == nil {
				a.dev = d.(*device)
			}
			return d, err
		},
		Span: w.span, Log: logr.Discard(), Armed: func(time.Duration) {},
		Guarded: func() (bool, error) { return w.oneIn(2), nil },
		Disarming: func(ctx context.Context) error {
			return out.write(ctx, lease.Word{BootID: boot, At: time.Now(), Every: time.Second, Pulse: true})
		},
		Now: func() time.Duration { return time.Duration(float64(time.Since(began)) / (1 + w.hardware.slow)) },
	})
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	missed := make(chan struct{})
	a.tasks.Go(func() { w.miss(ctx, missed) })
	a.tasks.Go(func() { a.leash.Run(ctx) })
	a.tasks.Go(func() {
		lease.Keep(ctx, lease.Config{BootID: boot, Standing: func() gossip.Standing { return gossip.Standing{} }, Write: out.write, Clock: clock.RealClock{}, Log: logr.Discard(), Touch: missed,
			Pulse: lease.Pulse{Every: w.span / 4, Asking: a.leash.Asking, Bound: a.leash.Bound}})
	})
	return a
}

// miss has the agent touch its Lease from time to time, as the manager does that has it look for others in vain.
func (w *world) miss(ctx context.Context, missed chan<- struct{}) {
	for {
		select {
		case <-time.After(w.within(15 * time.Second)):
		case <-ctx.Done():
			return
		}
		select {
		case missed <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// kill ends the process; the kernel closes the descriptor, and the device counts on.
func (a *agent) kill() {
	a.stop()
	a.tasks.Wait()
	if a.dev != nil {
		_ = a.dev.Close(false)
	}
}

func (a *agent) leave() error {
	a.stop()
	a.tasks.Wait()
	return a.leash.Close()
}

type world struct {
	*dice
	api      *server
	hardware *hardware
	span     time.Duration
	// proven is when the manager concluded, and zero before.
	proven time.Time
}

// live has things happen to the agent and its way to the API until the host is reset or the time is over.
func (w *world) live(t *testing.T) {
	end := time.Now().Add(lasts)
	a := w.start()
	for w.hardware.resetAt().IsZero() && time.Now().Before(end) {
		time.Sleep(w.within(20 * time.Second))
		switch what := w.within(9); {
		case what < 3:
			w.api.set(true)
		case what < 6:
			w.api.set(false)
		case what < 7:
			a.kill()
			time.Sleep(w.within(w.hardware.timeout))
			a = w.start()
		case what < 8:
			if err := a.leave(); err != nil {
				t.Error(err)
			}
			time.Sleep(w.within(2 * w.hardware.timeout))
			if w.oneIn(2) {
				time.Sleep(w.within(lasts)) // nobody comes for long
			}
			a = w.start()
		}
	}
	w.api.set(true)
	a.kill()
}

// watch is a leader's: it reads the Lease live, and concludes. Another leader begins anew.
func (w *world) watch(t *testing.T, until <-chan struct{}) {
	leases, now := w.lead()
	for {
		select {
		case <-until:
			return
		case <-time.After(time.Second):
		}
		if w.oneIn(300) {
			leases, now = w.lead()
		}
		asked := now.Instant()
		time.Sleep(w.within(300 * time.Millisecond))
		found := w.api.read()
		time.Sleep(w.within(300 * time.Millisecond))
		if found == nil {
			continue
		}
		leases.SeeAgent(found, asked, true)
		l := leases.Agent("host", true, false, asked)
		if l.Due() == 0 || l.BootID != boot || l.Stood() < l.Due() || l.Outlived {
			continue
		}
		if reset := w.hardware.resetAt(); reset.IsZero() {
			t.Errorf("the word has stood for %s of %s, and the host lives", l.Stood(), l.Due())
			return
		}
		if w.proven.IsZero() {
			w.proven = time.Now()
		}
	}
}

func (w *world) lead() (*sight.Leases, *sight.Clock) {
	now := sight.NewClock(clock.RealClock{})
	return sight.NewLeases(now), now
}

// TestNobodyConcludesBeforeTheReset over many histories. Most of those in which the host is reset are found out.
func TestNobodyConcludesBeforeTheReset(t *testing.T) {
	resets, proofs := 0, 0
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &dice{rng: rand.New(rand.NewPCG(seed, 1))}
				w := &world{dice: d, api: &server{dice: d}, span: 10*time.Second + d.within(20*time.Second),
					hardware: &hardware{dice: d, timeout: (4 + d.within(16)) * time.Second, slow: float64(d.within(2)) * 0.045}}
				over := make(chan struct{})
				var watching sync.WaitGroup
				watching.Go(func() { w.watch(t, over) })
				w.live(t)
				time.Sleep(2 * evidence.AgentLease{Bound: watchdog.Bound(w.span, w.hardware.timeout)}.Due())
				close(over)
				watching.Wait()
				w.api.under.Wait()
				if reset := w.hardware.resetAt(); !reset.IsZero() {
					resets++
					if !w.proven.IsZero() {
						proofs++
					}
				}
			})
		})
	}
	t.Logf("%d hosts were reset, and %d of these were concluded to have been", resets, proofs)
	if proofs == 0 || 2*proofs < resets {
		t.Errorf("of %d resets %d were found out", resets, proofs)
	}
}
