// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package agents lets real agents watch the lab's hosts while these are broken.
package agents

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
)

// patience bounds what takes seconds.
const patience = time.Minute

// circle is a lab with an agent on each host, and who asks them from outside the hosts as the manager would.
type circle struct {
	testing.TB
	lab       *lab.Lab
	program   string
	dir       string
	authority *authority.Authority
	who       *identity.Source
	agents    map[string]*exec.Cmd
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// found makes the lab and starts the agents.
func found(t testing.TB) *circle {
	t.Helper()
	name := fmt.Sprintf("t%d-agents", os.Getpid())
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Hosts: 3, Timings: lab.FastTimings, Progress: t.Output()})
	t.Cleanup(func() {
		if _, err := lab.Down(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	must(t, err)
	c := &circle{TB: t, lab: l, dir: t.TempDir(), agents: map[string]*exec.Cmd{}}
	c.program = filepath.Join(c.dir, "witness")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", c.program, "./cmd/witness")
	build.Dir, build.Env = l.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, text)
	}
	c.authority, err = authority.New(time.Now())
	must(t, err)
	c.write("keys/primary", key(t))
	var seeds string
	for _, h := range l.Hosts() {
		seeds += h.Address() + "\n"
		c.certify(h.Name(), wire.WitnessName(h.Name()))
	}
	c.write("seeds", []byte(seeds))
	c.certify("manager", wire.ManagerName)
	c.who, err = c.identity("manager")
	must(t, err)
	for _, h := range l.Hosts() {
		c.start(h)
	}
	return c
}

func key(t testing.TB) []byte {
	t.Helper()
	raw := make([]byte, 32)
	_, err := rand.Read(raw)
	must(t, err)
	return []byte(base64.StdEncoding.EncodeToString(raw) + "\n")
}

func (c *circle) path(names ...string) string {
	return filepath.Join(append([]string{c.dir}, names...)...)
}

func (c *circle) write(name string, text []byte) {
	c.Helper()
	must(c, os.MkdirAll(filepath.Dir(c.path(name)), 0o700))
	must(c, os.WriteFile(c.path(name), text, 0o600))
}

// certify writes a certificate in a name.
func (c *circle) certify(dir, name string) {
	c.Helper()
	certificate, private, err := c.authority.Pair(name, time.Now())
	must(c, err)
	ca, _, err := c.authority.PEM()
	must(c, err)
	c.write(filepath.Join(dir, "tls.crt"), certificate)
	c.write(filepath.Join(dir, "tls.key"), private)
	c.write(filepath.Join(dir, "ca.crt"), ca)
}

func (c *circle) identity(dir string) (*identity.Source, error) {
	return identity.Open(identity.Files{Certificate: c.path(dir, "tls.crt"), Key: c.path(dir, "tls.key"), Authorities: c.path(dir, "ca.crt")})
}

// start starts the agent of a host, on the host. It dies with the host.
func (c *circle) start(h *lab.Host) {
	c.Helper()
	command, err := h.Command(context.Background(), c.program, "--node", h.Name(), "--address", h.Address(), "--keys", c.path("keys"), "--seeds", c.path("seeds"),
		"--identity", c.path(h.Name()), "--api", "https://10.90.0.2:6443/readyz", "--api-ca", filepath.Join(c.lab.StateDir(), "pki", "ca.crt"))
	must(c, err)
	log, err := os.OpenFile(c.path(h.Name()+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(c, err)
	defer log.Close()
	command.Stdout, command.Stderr = log, log
	must(c, command.Start())
	c.agents[h.Name()] = command
	c.Cleanup(func() {
		_ = command.Process.Kill() // it may be gone with its host
		_ = command.Wait()
		if text, err := os.ReadFile(c.path(h.Name() + ".log")); err == nil && c.Failed() {
			c.Logf("the agent on %s:\n%s", h.Name(), text)
		}
	})
}

func (c *circle) host(n int) *lab.Host { return c.lab.Hosts()[n-1] }

// client asks the agent of a host, from outside the hosts.
func (c *circle) client(h *lab.Host) *call.Client {
	client := call.New(h.Name(), c.who)
	client.Dial = c.lab.Dialer("client")
	return client
}

func address(h *lab.Host) string { return net.JoinHostPort(h.Address(), strconv.Itoa(wire.Port)) }

// await waits until the agent of a host sees another one so, and returns what it sees.
func (c *circle) await(by, of *lab.Host, what string, is func(wire.Host) bool) wire.Host {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	client := c.client(by)
	defer client.Close()
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	var view wire.View
	for index := uint64(0); ; {
		next, err := client.Await(ctx, address(by), index)
		if err == nil {
			view, index = next, next.Index
			for _, h := range view.Hosts {
				if h.Node == of.Name() && is(h) {
					return h
				}
			}
			continue
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			c.Fatalf("%s does not see %s %s; the last it saw: %+v; then: %v", by.Name(), of.Name(), what, view.Hosts, err)
		}
	}
}

func alive(h wire.Host) bool { return h.State == wire.StateAlive && h.HeardAge != nil }

func dead(h wire.Host) bool { return h.State == wire.StateDead }

// allHear waits until every agent hears every other one directly.
func (c *circle) allHear() {
	c.Helper()
	for _, by := range c.lab.Hosts() {
		for _, of := range c.lab.Hosts() {
			if by.Name() != of.Name() {
				c.await(by, of, "alive", alive)
			}
		}
	}
}

func TestAgents(t *testing.T) {
	c := found(t)
	for name, scene := range map[string]func(*testing.T, *circle){
		"say which host is heard, and which part of it died": theySayWhatDied,
		"answer the manager only":                            theyAnswerTheManagerOnly,
	} {
		t.Run(name, func(t *testing.T) {
			c.allHear()
			scene(t, c)
		})
	}
}

func theySayWhatDied(t *testing.T, c *circle) {
	one, two, three := c.host(1), c.host(2), c.host(3)
	boot, err := three.BootID()
	must(t, err)

	well := c.await(one, three, "well", func(h wire.Host) bool {
		return alive(h) && h.Kubelet == wire.Alive && h.Runtime == wire.Alive && h.API == wire.Alive
	})
	if well.BootID != boot {
		t.Errorf("host-3 is said to be in boot %s, and is in %s", well.BootID, boot)
	}

	t.Log("a kubelet dies, and nothing else")
	must(t, three.KillKubelet(t.Context()))
	c.await(one, three, "without a kubelet", func(h wire.Host) bool {
		return alive(h) && h.Kubelet == wire.Dead && h.Runtime == wire.Alive && h.API == wire.Alive
	})
	must(t, three.StartKubelet(t.Context()))
	c.await(one, three, "with a kubelet", func(h wire.Host) bool { return h.Kubelet == wire.Alive })

	t.Log("a host loses the API, and nothing else")
	must(t, three.Cut(t.Context(), fault.API, fault.Both))
	c.await(two, three, "cut from the API", func(h wire.Host) bool { return alive(h) && h.Kubelet == wire.Alive && h.API == wire.Dead })
	must(t, three.Heal(t.Context(), fault.API, fault.Both))
	c.await(two, three, "with the API", func(h wire.Host) bool { return h.API == wire.Alive })

	for _, direction := range []fault.Direction{fault.Both, fault.In, fault.Out} {
		t.Logf("a host loses its peers (%s), and nothing else", direction)
		must(t, three.Cut(t.Context(), fault.Peers, direction))
		c.await(one, three, "dead", dead)
		c.await(two, three, "dead", dead)
		c.await(three, one, "dead", dead) // and it can still be asked
		must(t, three.Heal(t.Context(), fault.Peers, direction))
		c.allHear()
	}

	t.Log("a host loses its power, and comes back")
	must(t, three.PowerOff(t.Context()))
	for _, by := range []*lab.Host{one, two} {
		if gone := c.await(by, three, "dead", dead); gone.BootID != boot {
			t.Errorf("%s says that host-3 died in boot %s, and that was %s", by.Name(), gone.BootID, boot)
		}
	}
	must(t, three.PowerOn(t.Context()))
	c.start(three)
	again, err := three.BootID()
	must(t, err)
	for _, by := range []*lab.Host{one, two} {
		c.await(by, three, "alive in its new boot", func(h wire.Host) bool { return alive(h) && h.BootID == again })
	}
}

// Whoever is not the manager gets nothing from an agent, and the manager gets answers from where the agent is.
func theyAnswerTheManagerOnly(t *testing.T, c *circle) {
	one, two, three := c.host(1), c.host(2), c.host(3)
	questions := []wire.Question{
		{Name: "agent", Agent: three.Name(), Address: three.Address()},
		{Name: "kubelet", Address: three.Address(), Port: 10250, TLS: true},
		{Name: "nothing", Address: three.Address(), Port: 1},
	}
	client := c.client(one)
	defer client.Close()
	answer, err := client.Probe(t.Context(), address(one), questions)
	must(t, err)
	boot, err := three.BootID()
	must(t, err)
	for i, want := range []wire.Answer{{Name: "agent", Outcome: wire.Answered, BootID: boot}, {Name: "kubelet", Outcome: wire.Answered}, {Name: "nothing", Outcome: wire.Refused}} {
		if got := answer.Answers[i]; got.Name != want.Name || got.Outcome != want.Outcome || got.BootID != want.BootID {
			t.Errorf("host-1 found %+v, want %+v", got, want)
		}
	}
	must(t, three.Cut(t.Context(), fault.Peers, fault.Both))
	answer, err = client.Probe(t.Context(), address(one), questions[:2])
	must(t, err)
	for _, got := range answer.Answers {
		if got.Outcome != wire.Silent {
			t.Errorf("host-1 found %+v of a host that is cut off", got)
		}
	}
	must(t, three.Heal(t.Context(), fault.Peers, fault.Both))
	agent, err := c.identity(two.Name())
	must(t, err)
	stranger := call.New(one.Name(), agent)
	stranger.Dial = c.lab.Dialer("client")
	defer stranger.Close()
	if view, err := stranger.View(t.Context(), address(one)); err == nil {
		t.Errorf("the agent of host-2 was told %+v", view)
	}
}

// BenchmarkLoss measures from the moment that a host's cable is pulled until the agents of both others call it dead.
func BenchmarkLoss(b *testing.B) {
	c := found(b)
	one, two, three := c.host(1), c.host(2), c.host(3)
	var took []time.Duration
	for b.Loop() {
		c.allHear()
		began := time.Now()
		must(b, three.SetLink(false))
		var seen sync.WaitGroup
		for _, by := range []*lab.Host{one, two} {
			seen.Go(func() { c.await(by, three, "dead", dead) })
		}
		seen.Wait()
		took = append(took, time.Since(began))
		must(b, three.SetLink(true))
	}
	slices.Sort(took)
	for name, share := range map[string]float64{"p50-s": 0.5, "p90-s": 0.9, "max-s": 1} {
		b.ReportMetric(took[min(len(took)-1, int(share*float64(len(took))))].Seconds(), name)
	}
}

// BenchmarkRest measures what an agent takes while nothing happens: its memory, and its share of a core.
func BenchmarkRest(b *testing.B) {
	c := found(b)
	c.allHear()
	agents := c.processes()
	before := make([]time.Duration, len(agents))
	for i, p := range agents {
		before[i] = cost(b, p).spent
	}
	began := time.Now()
	for b.Loop() {
		c.await(c.host(1), c.host(2), "alive", alive) // asked as the manager asks
		select {
		case <-time.After(time.Second):
		case <-b.Context().Done():
		}
	}
	wall := time.Since(began)
	var dearest held
	var cpu float64
	for i, p := range agents {
		now := cost(b, p)
		if now.resident > dearest.resident {
			dearest = now
		}
		cpu = max(cpu, 100*float64(now.spent-before[i])/float64(wall))
	}
	b.ReportMetric(float64(dearest.resident)/(1<<20), "MiB")
	b.ReportMetric(float64(dearest.program)/(1<<20), "MiB-of-program")
	b.ReportMetric(cpu, "%core")
}

// processes are those of the agents' program, as this machine numbers them.
func (c *circle) processes() []string {
	c.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	must(c, err)
	var found []string
	for _, link := range links {
		if program, err := os.Readlink(link); err == nil && program == c.program {
			found = append(found, filepath.Dir(link))
		}
	}
	if len(found) != len(c.lab.Hosts()) {
		c.Fatalf("%d agents run on %d hosts", len(found), len(c.lab.Hosts()))
	}
	return found
}

// held is what a process holds and has spent.
type held struct {
	// resident is in bytes, and program how much of that are pages of the program's file (proc_pid_statm(5): resident and shared).
	resident, program int64
	// spent is of the CPU (proc_pid_stat(5), fields 14 and 15; a tick is 10 ms).
	spent time.Duration
}

func cost(t testing.TB, process string) held {
	t.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(process, name))
		must(t, err)
		return string(text)
	}
	number := func(field string) int64 {
		n, err := strconv.ParseInt(field, 10, 64)
		must(t, err)
		return n
	}
	stat, statm, page := read("stat"), strings.Fields(read("statm")), int64(os.Getpagesize())
	after := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // from field 3 on
	return held{number(statm[1]) * page, number(statm[2]) * page, time.Duration(number(after[11])+number(after[12])) * 10 * time.Millisecond}
}
