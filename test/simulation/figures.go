// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plan is what one row is about.
type plan struct {
	commit string
	seed   uint64
	hosts  int
	loss   float64
	// rest is how long all is well while everything is counted; then single hosts are lost, one after the other, and groups of several at once.
	rest           time.Duration
	single, groups int
}

// atOnce is how many hosts a group has: one of a hundred, and two at least.
func (p plan) atOnce() int { return max(2, p.hosts/100) }

// noticeWithin bounds the wait for a loss to be known to all.
const noticeWithin = time.Minute

// delays are, for each host that was lost, how long it took the first, the median and the last of the others to call it dead.
type delays struct{ first, median, last []time.Duration }

// figures are what came of a plan.
type figures struct {
	plan
	// packets and bytes are what a host sends each second at rest; cpu is the share of a core that an agent takes, and heap its part of all memory.
	packets, bytes, cpu float64
	heap                uint64
	// suspicions, deaths are of hosts that live: at rest, and in the whole of the plan; views is how often an agent's view changes at rest, each second.
	suspicions, deaths int
	views              float64
	single, several    delays
	unnoticed          int
	dropped            int64
	// asked is the manager at rest, each second, and doubting while hosts are doubted; view is how long one agent's is, encoded.
	asked, doubting polls
	view            int
}

// polls are requests and their bytes each second.
type polls struct{ requests, bytes float64 }

// measure does what the plan says.
func (c *circle) measure(p plan) (f figures, err error) {
	f.plan = p
	if err := c.settle(); err != nil {
		return f, err
	}
	c.draw(p.seed)
	c.network.worsen(p.loss)
	m, err := c.manage()
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	time.Sleep(breath) // for its first views
	dropped := c.dropped()
	if err := c.atRest(&f, m); err != nil {
		return f, err
	}
	var doubt time.Duration
	requests, bytes := int64(0), int64(0)
	for i := range p.single + p.groups {
		hosts, into := 1, &f.single
		if i >= p.single {
			hosts, into = p.atOnce(), &f.several
		}
		r, b, began := m.requests.Load(), m.bytes.Load(), time.Now()
		lost := c.notice(&f, m, hosts, into)
		doubt, requests, bytes = doubt+time.Since(began), requests+m.requests.Load()-r, bytes+m.bytes.Load()-b
		if err := c.back(lost); err != nil {
			return f, err
		}
	}
	if doubt > 0 {
		f.doubting = polls{float64(requests) / doubt.Seconds(), float64(bytes) / doubt.Seconds()}
	}
	f.dropped = c.dropped() - dropped
	return f, nil
}

// atRest counts while nothing happens.
func (c *circle) atRest(f *figures, m *manager) error {
	w := c.watch()
	sent, bytes := c.traffic()
	requests, polled := m.requests.Load(), m.bytes.Load()
	used := cpu()
	time.Sleep(f.rest)
	each := f.rest.Seconds() * float64(c.hosts)
	f.cpu = (cpu() - used).Seconds() / each
	sent2, bytes2 := c.traffic()
	f.packets, f.bytes = float64(sent2-sent)/each, float64(bytes2-bytes)/each
	f.asked = polls{float64(m.requests.Load()-requests) / f.rest.Seconds(), float64(m.bytes.Load()-polled) / f.rest.Seconds()}
	w.close()
	f.suspicions, f.deaths, f.views = w.suspicions, w.deaths, float64(w.views)/each
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	f.heap = (stats.HeapInuse + stats.StackInuse) / uint64(c.hosts) //nolint:gosec // positive
	text, err := json.Marshal(c.agents[0].View())
	f.view = len(text)
	return err
}

// notice loses hosts at once, and waits for all others to know.
func (c *circle) notice(f *figures, m *manager, hosts int, into *delays) []*agent {
	w := c.watch()
	lost := c.lose(hosts)
	w.expect(lost)
	m.doubted.Store(&lost)
	end := time.NewTimer(noticeWithin)
	defer end.Stop()
	for waiting := true; waiting && w.unaware(lost, c.agents) > 0; {
		select {
		case <-w.news:
		case <-end.C:
			waiting = false
		}
	}
	m.doubted.Store(nil)
	w.close()
	for _, a := range lost {
		after := w.noticed(a.node, c.agents)
		f.unnoticed += len(c.agents) - len(after)
		if len(after) == 0 {
			continue
		}
		slices.Sort(after)
		into.first, into.median, into.last = append(into.first, after[0]), append(into.median, after[len(after)/2]), append(into.last, after[len(after)-1])
	}
	f.suspicions += w.suspicions
	f.deaths += w.deaths
	return lost
}

// unaware is how many times an agent has yet to call a host dead.
func (w *watch) unaware(lost, agents []*agent) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(lost) * len(agents)
	for _, a := range lost {
		n -= len(w.knows[a.node])
	}
	return n
}

// cpu is what this process has used.
func cpu() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var header = []string{"commit", "seed", "hosts", "loss", "rest s", "packets/s", "bytes/s", "cpu %", "KiB", "views/s", "suspicions", "deaths",
	"single", "first p50", "first max", "median p50", "median max", "last p50", "last max",
	"several", "first p50", "first max", "median p50", "median max", "last p50", "last max", "unnoticed", "dropped",
	"view KiB", "polls/s", "poll KiB/s", "doubt polls/s", "doubt poll KiB/s"}

// keyCells is how many cells say what a row is about.
const keyCells = 4

func (p plan) key() []string {
	return []string{p.commit, strconv.FormatUint(p.seed, 10), strconv.Itoa(p.hosts), number(p.loss, 2)}
}

func number(x float64, places int) string { return strconv.FormatFloat(x, 'f', places, 64) }

func (f figures) cells() []string {
	out := append(f.key(), number(f.rest.Seconds(), 0), number(f.packets, 2), number(f.bytes, 0), number(100*f.cpu, 3), strconv.FormatUint(f.heap/1024, 10),
		number(f.views, 4), strconv.Itoa(f.suspicions), strconv.Itoa(f.deaths), strconv.Itoa(f.plan.single))
	out = append(out, f.single.cells()...)
	out = append(out, fmt.Sprintf("%dx%d", f.groups, f.atOnce()))
	out = append(out, f.several.cells()...)
	return append(out, strconv.Itoa(f.unnoticed), strconv.FormatInt(f.dropped, 10), number(float64(f.view)/1024, 1),
		number(f.asked.requests, 2), number(f.asked.bytes/1024, 2), number(f.doubting.requests, 2), number(f.doubting.bytes/1024, 2))
}

func (d delays) cells() (out []string) {
	for _, of := range [][]time.Duration{d.first, d.median, d.last} {
		if len(of) == 0 {
			out = append(out, "", "")
			continue
		}
		slices.Sort(of)
		out = append(out, number(of[len(of)/2].Seconds(), 2), number(of[len(of)-1].Seconds(), 2))
	}
	return out
}

func (f figures) String() string {
	var out []string
	for i, cell := range f.cells()[1:] {
		out = append(out, header[i+1]+" "+cell)
	}
	return strings.Join(out, ", ")
}
