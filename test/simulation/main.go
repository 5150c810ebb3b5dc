// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command simulation runs as many agents as asked for in one process, over a network that loses packets, and measures what docs/spec/witness.md says of many hosts:
// how soon all know of a loss, how often a host that lives is suspected, and what the gossip and a manager's questions weigh. The agents are those of agent/gossip, with
// their own timings; the network, and that all of them share one machine, is what is simulated.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/test/results"
)

// options of one run.
type options struct {
	hosts  int
	loss   float64
	delay  time.Duration
	rest   time.Duration
	losses int
}

func main() {
	var o options
	hosts := flag.String("hosts", "10,30,100", "how many agents: a run for each of these numbers")
	loss := flag.String("loss", "0,0.01,0.05", "share of packets that vanish: a run for each")
	flag.DurationVar(&o.delay, "delay", 250*time.Microsecond, "a packet's least delay; the most is twice that")
	flag.DurationVar(&o.rest, "rest", time.Minute, "how long all is well while traffic and suspicions are counted")
	flag.IntVar(&o.losses, "losses", 20, "how many hosts are lost, one after the other; of few hosts no more than half")
	out := flag.String("out", "docs/results/simulation/rows.csv", "table to append rows to; what has a row of this commit is left out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := all(ctx, o, *hosts, *loss, *out); err != nil {
		fmt.Fprintln(os.Stderr, "simulation:", err)
		os.Exit(1)
	}
}

// all runs what has no row.
func all(ctx context.Context, o options, hosts, loss, out string) error {
	commit, err := results.Commit(".")
	if err != nil {
		return err
	}
	lines, err := results.Read(out)
	if err != nil {
		return err
	}
	for _, n := range strings.Split(hosts, ",") {
		if o.hosts, err = strconv.Atoi(n); err != nil || o.hosts < 3 {
			return fmt.Errorf("--hosts %q: numbers from 3 on are wanted, separated by commas", hosts)
		}
		for _, share := range strings.Split(loss, ",") {
			if o.loss, err = strconv.ParseFloat(share, 64); err != nil || o.loss < 0 || o.loss >= 1 {
				return fmt.Errorf("--loss %q: shares from 0 to 1 are wanted, separated by commas", loss)
			}
			key := figures{options: o}.cells(commit)[:3]
			if slices.ContainsFunc(lines, func(line []string) bool { return slices.Equal(line[:3], key) }) {
				continue
			}
			f, err := run(ctx, o)
			if err != nil {
				return fmt.Errorf("%d hosts, loss %s: %w", o.hosts, share, err)
			}
			fmt.Println(f)
			if err := results.Append(out, header, f.cells(commit)); err != nil {
				return err
			}
		}
	}
	return nil
}

// agent is one of the circle.
type agent struct {
	*gossip.Member
	node string
	link *link
}

// circle is all of them.
type circle struct {
	options
	network *network
	agents  []agent
	dir     string
}

func run(ctx context.Context, o options) (f figures, err error) {
	dir, err := os.MkdirTemp("", "holdfast-simulation-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := &circle{options: o, network: newNetwork(o.loss, o.delay), dir: dir}
	defer func() { err = errors.Join(err, c.close()) }()
	began := time.Now()
	if err := c.gather(ctx); err != nil {
		return f, err
	}
	fmt.Printf("%d agents know each other after %.0f s\n", o.hosts, time.Since(began).Seconds())
	if f, err = c.atRest(ctx); err != nil {
		return f, err
	}
	err = c.lose(ctx, &f)
	return f, err
}

// seedsOfAll is how many hosts a cluster's agents begin with: as many as controllers/witness names.
const seedsOfAll = 16

// gather starts all agents and waits until each hears all.
func (c *circle) gather(ctx context.Context) error {
	keys := filepath.Join(c.dir, "keys")
	if err := os.Mkdir(keys, 0o700); err != nil {
		return err
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(keys, gossip.Primary), []byte(base64.StdEncoding.EncodeToString(key)), 0o600); err != nil {
		return err
	}
	seeds := filepath.Join(c.dir, "seeds")
	var list strings.Builder
	for i := range c.hosts {
		a := agent{node: "node-" + strconv.Itoa(i+1), link: c.network.attach(i + 1)}
		c.agents = append(c.agents, a)
		if i < seedsOfAll {
			fmt.Fprintln(&list, a.link.ip)
		}
	}
	if err := os.WriteFile(seeds, []byte(list.String()), 0o600); err != nil {
		return err
	}
	for i := range c.agents {
		a := &c.agents[i]
		facts := wire.Facts{Node: a.node, BootID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Kubelet: wire.Alive, Runtime: wire.Alive, API: wire.Alive}
		var err error
		if a.Member, err = gossip.Start(gossip.Config{Facts: facts, BindPort: port, AdvertiseAddress: a.link.ip.String(), KeyDir: keys, SeedsFile: seeds,
			Transport: a.link, Log: logr.Discard()}); err != nil {
			c.agents = c.agents[:i]
			return err
		}
	}
	// Not by waiting for changes: there are as many as hosts, at every agent, and each would be a view of all.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for _, a := range c.agents {
		for count(a.View(), wire.StateAlive) < c.hosts {
			select {
			case <-look.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// each does something with every agent at the same time.
func (c *circle) each(ctx context.Context, do func(context.Context, agent) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, a := range c.agents {
		group.Go(func() error { return do(ctx, a) })
	}
	return group.Wait()
}

// until returns when the view is as wanted, or with the context's error.
func until(ctx context.Context, a agent, wanted func(wire.View) bool) (time.Time, error) {
	v := a.View()
	for !wanted(v) {
		if ctx.Err() != nil {
			return time.Time{}, fmt.Errorf("%s: %w", a.node, ctx.Err())
		}
		v = a.Await(ctx, v.Index)
	}
	return time.Now(), nil
}

func count(v wire.View, state wire.State) int {
	n := 0
	for _, h := range v.Hosts {
		if h.State == state {
			n++
		}
	}
	return n
}

// figures of a run.
type figures struct {
	options
	// packets and bytes that a host sends each second at rest, suspicions and deaths of hosts that live, and views that changed, each by all agents together.
	packets, bytes      float64
	suspicions, deaths  int
	changes             int
	cpu                 float64
	resident, view      int
	half, most, whole   []time.Duration
	overruns, unnoticed int
}

// atRest counts while nothing happens.
func (c *circle) atRest(ctx context.Context) (figures, error) {
	f := figures{options: c.options}
	sent, bytes := c.traffic()
	used := cpu()
	ctx, cancel := context.WithTimeout(ctx, c.rest)
	defer cancel()
	type tally struct{ suspicions, deaths, changes int }
	tallies := make([]tally, len(c.agents))
	group := errgroup.Group{}
	for i, a := range c.agents {
		group.Go(func() error {
			before := a.View()
			for {
				now := a.Await(ctx, before.Index)
				if ctx.Err() != nil {
					return nil
				}
				tallies[i].changes++
				tallies[i].suspicions += max(0, count(now, wire.StateSuspect)-count(before, wire.StateSuspect))
				tallies[i].deaths += max(0, count(now, wire.StateDead)-count(before, wire.StateDead))
				before = now
			}
		})
	}
	err := group.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
		return f, cause
	}
	for _, t := range tallies {
		f.suspicions, f.deaths, f.changes = f.suspicions+t.suspicions, f.deaths+t.deaths, f.changes+t.changes
	}
	sent2, bytes2 := c.traffic()
	f.packets = float64(sent2-sent) / c.rest.Seconds() / float64(c.hosts)
	f.bytes = float64(bytes2-bytes) / c.rest.Seconds() / float64(c.hosts)
	f.cpu = (cpu() - used).Seconds() / c.rest.Seconds() / float64(c.hosts)
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	f.resident = int(stats.HeapInuse+stats.StackInuse) / c.hosts
	text, wrong := json.Marshal(c.agents[0].View())
	f.view = len(text)
	return f, errors.Join(err, wrong)
}

func (c *circle) traffic() (packets, bytes int64) {
	for _, a := range c.agents {
		packets, bytes = packets+a.link.sent.Load(), bytes+a.link.bytes.Load()
	}
	return packets, bytes
}

// cpu is what this process has used.
func cpu() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// noticeWithin bounds the wait for a loss to be known to all.
const noticeWithin = time.Minute

// lose pulls one cable after the other, and waits for all others to know.
func (c *circle) lose(ctx context.Context, f *figures) error {
	for range min(c.losses, c.hosts/2) {
		lost := c.agents[len(c.agents)-1]
		c.agents = c.agents[:len(c.agents)-1]
		began := time.Now()
		lost.link.pull()
		known := make([]time.Duration, len(c.agents))
		bounded, cancel := context.WithTimeout(ctx, noticeWithin)
		group := errgroup.Group{}
		for i, a := range c.agents {
			group.Go(func() error {
				at, err := until(bounded, a, func(v wire.View) bool {
					j := slices.IndexFunc(v.Hosts, func(h wire.Host) bool { return h.Node == lost.node })
					return j >= 0 && v.Hosts[j].State == wire.StateDead
				})
				if err == nil {
					known[i] = at.Sub(began)
				}
				return nil
			})
		}
		err := errors.Join(group.Wait(), lost.Close())
		cancel()
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		f.unnoticed += len(known)
		known = slices.DeleteFunc(known, func(d time.Duration) bool { return d == 0 })
		f.unnoticed -= len(known)
		if len(known) == 0 {
			continue
		}
		slices.Sort(known)
		f.half = append(f.half, known[len(known)/2])
		f.most = append(f.most, known[len(known)*99/100])
		f.whole = append(f.whole, known[len(known)-1])
	}
	for _, a := range c.agents {
		f.overruns += int(a.link.overrun.Load())
	}
	return nil
}

func (c *circle) close() error {
	return c.each(context.Background(), func(_ context.Context, a agent) error { return a.Close() })
}

var header = []string{"commit", "hosts", "loss", "delay ms", "packets/s", "bytes/s", "cpu %", "KiB", "suspicions", "deaths", "changes/s", "view KiB",
	"half p50", "half max", "99% p50", "99% max", "all p50", "all max", "unnoticed", "dropped"}

func (f figures) cells(commit string) []string {
	number := func(x float64, places int) string { return strconv.FormatFloat(x, 'f', places, 64) }
	out := []string{commit, strconv.Itoa(f.hosts), number(f.loss, 3), number(f.delay.Seconds()*1000, 2), number(f.packets, 1), number(f.bytes, 0), number(100*f.cpu, 3),
		strconv.Itoa(f.resident / 1024), strconv.Itoa(f.suspicions), strconv.Itoa(f.deaths), number(float64(f.changes)/f.rest.Seconds()/float64(f.hosts), 3), strconv.Itoa(f.view / 1024)}
	for _, d := range [][]time.Duration{f.half, f.most, f.whole} {
		slices.Sort(d)
		if len(d) == 0 {
			out = append(out, "", "")
			continue
		}
		out = append(out, number(d[len(d)/2].Seconds(), 2), number(d[len(d)-1].Seconds(), 2))
	}
	return append(out, strconv.Itoa(f.unnoticed), strconv.Itoa(f.overruns))
}

func (f figures) String() string {
	var out bytes.Buffer
	for i, cell := range f.cells("")[1:] {
		fmt.Fprintf(&out, "%s %s, ", header[i+1], cell)
	}
	return strings.TrimSuffix(out.String(), ", ")
}
