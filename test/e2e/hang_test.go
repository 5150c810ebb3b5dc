// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// TestCase2HostHung: nothing on the host runs, and its power is on. What happens is the apps' choice; a device that does not obey, or lies, ends it only
// where nothing contradicts the lie.
func TestCase2HostHung(t *testing.T) {
	playCase(t, 2,
		variant{"userspace hangs, policy Hold", false, hungHeld},
		variant{"userspace hangs, policy Fence", true, func(t *testing.T) { hungFenced(t, lab.HangUserspace) }},
		variant{"everything hangs", false, func(t *testing.T) { hungFenced(t, lab.HangDead) }},
		variant{"the device ignores Off", false, deviceIgnores},
		variant{"the device lies, the application answers", false, lieAgainstTheApplication},
		variant{"the device lies, the kernel answers", false, lieAgainstTheKernel},
		variant{"the device lies, the lease moves", false, lieAgainstTheLease},
		variant{"limit of one device: it lies and every plane is silent", false, limitOfOneDevice},
	)
}

// hungHeld: the kernel completes TCP connects and nobody serves. The apps say Hold: they wait, out of traffic, until the host goes on where it stood.
func hungHeld(t *testing.T) {
	s := play(t, free, company...)
	s.begin()
	s.must(s.host.Hang(s.ctx, lab.HangUserspace))
	s.incident("Hung", verdict("Hung"))
	s.mark("detected")
	hi := s.incident("Holding", step(v1alpha1.StepHolding))
	for _, p := range s.guarded() {
		s.armed(p, hi)
		s.outOfTraffic(p)
	}
	s.endpointOut()
	s.taintManagerTried()
	s.mark("held")
	if offs := s.offs(); len(offs) > 0 {
		t.Errorf("the apps say Hold, and the device was commanded: %+v", offs)
	}
	s.must(s.host.EndHang(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainers()
	s.onlyWriter()
	s.judged()
}

// hungFenced: silence, or a kernel without applications of which all want it, is confirmed, fenced, verified, and the ledgers move. Thawed later, the host
// is off.
func hungFenced(t *testing.T, kind lab.HangKind) {
	s := play(t, free, company...)
	s.wants(v1alpha1.NotServingFence)
	s.begin()
	s.must(s.host.Hang(s.ctx, kind))
	s.migratedWith(func(offs int) bool { return offs >= 1 })
	s.must(s.host.EndHang(s.ctx))
	if s.host.Powered() {
		t.Error("the host hung, was proven off, and has power after the hang's end")
	}
	s.lostPowerOnce()
	s.wrote(s.host.Name(), 0)
	s.returned()
}

// wants sets what every guarded part asks for when its host lives and it serves nobody, until the scene is over.
func (s *scene) wants(choice v1alpha1.WhenNotServing) {
	s.Helper()
	set := func(ctx context.Context, choice v1alpha1.WhenNotServing) (err error) {
		for _, p := range s.guarded() {
			err = errors.Join(err, p.Amend(ctx, `{"spec":{"onKubeletFailure":{"whenNotServing":"`+string(choice)+`"}}}`))
		}
		return err
	}
	s.must(set(s.ctx, choice))
	s.Cleanup(func() {
		if err := set(context.Background(), v1alpha1.NotServingHold); err != nil {
			s.Error(err)
		}
	})
	for _, p := range s.guarded() {
		s.must(p.AwaitReady(s.soon()))
	}
}

// deviceIgnores: it takes every Off and does nothing, and says so. Blocked; a human powers the host off, and that is proven.
func deviceIgnores(t *testing.T) {
	s := play(t, free, company...)
	s.must(s.host.SetBMCMode(s.ctx, bmc.Ignore))
	s.begin()
	s.must(s.host.Hang(s.ctx, lab.HangDead))
	s.blocked("they had no effect")
	if !s.host.Powered() {
		t.Fatal("the BMC ignores Off, and the host has no power")
	}
	given := len(s.offs())
	s.must(s.host.PowerOff(s.ctx))
	s.migratedWith(func(offs int) bool { return offs > given })
	s.returned()
}

// lieAgainstTheApplication: only the kubelet is dead. The device says Off, the applications answer: they are believed, and the device is not any more.
func lieAgainstTheApplication(t *testing.T) {
	s := play(t, free, company...)
	s.must(s.host.SetBMCMode(s.ctx, bmc.LieOff))
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))
	s.contradicted("KubeletDown")
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	s.must(s.host.StartKubelet(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainers()
	until := mono.Nanoseconds()
	s.neverStopped(until)
	s.gaps(until)
	s.judged()
}

// lieAgainstTheKernel: userspace hangs, the kernel completes connects. That is a host with power, whatever its device says.
func lieAgainstTheKernel(t *testing.T) {
	s := play(t, free, company...)
	s.wants(v1alpha1.NotServingFence)
	s.must(s.host.SetBMCMode(s.ctx, bmc.LieOff))
	s.begin()
	s.must(s.host.Hang(s.ctx, lab.HangUserspace))
	s.contradicted("Hung")
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	s.must(s.host.EndHang(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainers()
	s.onlyWriter()
	s.judged()
}

// lieAgainstTheLease: the leader cannot reach the host, the host reaches the API: its lease tells on the device before anything is released.
func lieAgainstTheLease(t *testing.T) {
	s := play(t, free, company...)
	s.must(s.host.SetBMCMode(s.ctx, bmc.LieOff))
	s.begin()
	s.must(s.host.Cut(s.ctx, fault.Peers, fault.Both))
	s.contradicted("Isolated")
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	s.must(s.host.Heal(s.ctx, fault.Peers, fault.Both))
	end := s.incident("Closed, or waiting for a reboot", func(h *v1alpha1.HostIncident) bool {
		return step(v1alpha1.StepClosed)(h) || blockedBy(v1alpha1.ReasonSameBoot)(h)
	})
	s.mark("recovered")
	s.onlyWriter()
	s.judged()
	if step(v1alpha1.StepClosed)(end) {
		s.sameContainers()
		return
	}
	// The lie stood for longer than a renewal is away: Off was commanded, and seemed to be obeyed. Only another boot ends that, and a human sees to it.
	s.untouched("the lie")
	s.must(s.host.PowerOff(s.ctx))
	s.must(s.host.PowerOn(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	_, err := s.AwaitNode(s.soon(), s.host.Name(), "the host to take work again", func(n *corev1.Node) bool {
		return stage.NodeReady(n) && len(n.Spec.Taints) == 0
	})
	s.must(err)
	s.judged()
}

func blockedBy(reason string) func(*v1alpha1.HostIncident) bool {
	return func(h *v1alpha1.HostIncident) bool {
		c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionBlocked)
		return c != nil && c.Status == metav1.ConditionTrue && c.Reason == reason
	}
}

// contradicted: the device is found out, nothing is released for longer than proof and release take together, and the verdict settles.
func (s *scene) contradicted(settles string) {
	s.Helper()
	hi := s.incident("a device that is not believed", func(h *v1alpha1.HostIncident) bool { return slices.Contains(h.Status.Distrusted, "ipmi") })
	s.mark("detected")
	s.Logf("found out after %v: %s, %+v", s.times["detected"], hi.Status.Verdict, hi.Status.Findings)
	s.incident(settles, verdict(settles))
	s.keeps()
	s.mark("held")
	hi = s.incident("no proof", func(*v1alpha1.HostIncident) bool { return true })
	if stage.Is(hi.Status.Conditions, v1alpha1.ConditionProofEstablished) {
		s.Error("there is proof by a device that lies")
	}
	if !s.host.Powered() {
		s.Error("the host lost its power")
	}
}

// keeps: for a while that is longer than proof and release take together, no guarded pod is let go.
func (s *scene) keeps() {
	s.Helper()
	var pods []*corev1.Pod
	for _, p := range s.guarded() {
		pods = append(pods, p.pod)
	}
	if gone, err := s.AwaitAnyGone(s.within(heldFor), pods...); !errors.Is(err, context.DeadlineExceeded) {
		s.Fatalf("%s was let go without proof: %v", gone, err)
	}
	s.untouched("a while without proof")
}

// lonely is a ledger whose volume nobody guards but Holdfast, and which nobody else judges: in the limit its volume has two writers.
var lonely = stage.Role{Name: "limit", Kind: "StatefulSet", Class: "permissive", Interval: "50ms"}

// limitOfOneDevice shows what proof by a single device cannot see, and docs/spec/invariants.md says so: it takes the command, does nothing and says Off,
// for a host that reaches neither the API nor the leader. It is believed, and what the host runs is started elsewhere. An array that refuses the detached
// host keeps the ledger from a second writer; a volume that is served to anybody has two, until the host is heard: then it is fenced at once.
func limitOfOneDevice(t *testing.T) {
	s := play(t, free, lonely)
	s.must(s.host.SetBMCMode(s.ctx, bmc.LieOff))
	s.begin()
	s.must(s.host.Cut(s.ctx, fault.Peers, fault.Both))
	s.must(s.host.Cut(s.ctx, fault.API, fault.Both))
	s.incident("proof that is none", condition(v1alpha1.ConditionProofEstablished))
	s.mark("proven")
	if !s.host.Powered() {
		t.Fatal("the host has no power: the BMC does not lie")
	}
	hi := s.incident("Resolved", step(v1alpha1.StepResolved))
	s.mark("released")
	s.secondWriter(s.parts[1])
	s.documented("One device, one word")
	// Once the node controller has written the host off, its kubelet contradicts as soon as it can; otherwise with its next report, minutes later.
	_, err := s.AwaitNode(s.soon(), s.host.Name(), "NotReady", func(n *corev1.Node) bool { return !stage.NodeReady(n) })
	s.must(err)
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	heard := mono.Nanoseconds()
	s.must(s.host.Heal(s.ctx, fault.All, fault.Both))
	s.incident("ProofRefuted", condition(v1alpha1.ConditionProofRefuted))
	s.poweredOff()
	s.times["recovered"] = time.Duration(mono.Nanoseconds() - heard)
	t.Logf("%s: the host that was declared lost was heard, and had no power %v later", hi.Name, s.times["recovered"])
	s.lostPowerOnce()
	s.incident("Blocked, after the last resort: nothing that a liar says is proof any more", func(h *v1alpha1.HostIncident) bool {
		settled := !slices.ContainsFunc(h.Status.Attempts, func(a v1alpha1.Attempt) bool { return a.State != v1alpha1.AttemptSettled })
		return settled && len(h.Status.Attempts) > 2 && stage.Is(h.Status.Conditions, v1alpha1.ConditionBlocked)
	})
	s.parts = s.parts[:1] // the ledger alone has one writer
	s.returned()
}

// poweredOff waits until the host has lost its power.
func (s *scene) poweredOff() {
	s.Helper()
	s.poll("the host to lose its power", func() (bool, error) {
		n, err := s.PowerLosses(s.host.Name(), s.since)
		return n > 0, err
	})
}

// documented: the page of invariants names the limit.
func (s *scene) documented(words string) {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(s.Lab.Root(), "docs", "spec", "invariants.md"))
	s.must(err)
	if !strings.Contains(string(text), words) {
		s.Errorf("docs/spec/invariants.md does not say %q", words)
	}
}

// outOfTraffic: the part's Service leads nowhere.
func (s *scene) outOfTraffic(p part) {
	s.Helper()
	s.poll("the Service of "+p.Name+" to lead nowhere", func() (bool, error) {
		changes := p.Endpoints.Changes()
		return len(changes) > 0 && len(changes[len(changes)-1].Ready) == 0, nil
	})
}

// onlyWriter: since the fault nobody but this host, in this boot, wrote to a guarded volume.
func (s *scene) onlyWriter() {
	s.Helper()
	for _, p := range s.guarded() {
		writers, err := p.Writers(s.ctx, s.since, mono.Nanoseconds())
		s.must(err)
		if len(writers) != 1 || writers[0].Host != s.host.Name() || writers[0].Boot != s.boot {
			s.Errorf("writers of %s: %+v, want %s in boot %s alone", p.Name, writers, s.host.Name(), s.boot)
		}
	}
}

// wrote: the host wrote so many times to guarded volumes since others did.
func (s *scene) wrote(host string, times int) {
	s.Helper()
	for _, p := range s.guarded() {
		writers, err := p.Writers(s.ctx, s.since, mono.Nanoseconds())
		s.must(err)
		i := slices.IndexFunc(writers, func(w stage.Writer) bool { return w.Host != host })
		if i < 0 {
			s.Errorf("nobody but %s wrote to the volume of %s: %+v", host, p.Name, writers)
			continue
		}
		late, err := p.Writers(s.ctx, writers[i].First, mono.Nanoseconds())
		s.must(err)
		for _, w := range late {
			if w.Host == host && w.Count != times {
				s.Errorf("%s wrote %d times to the volume of %s after another host did, want %d", host, w.Count, p.Name, times)
			}
		}
	}
}

// offs are the Off commands to the host's device since the fault.
func (s *scene) offs() []bmc.Call {
	s.Helper()
	calls, err := s.Calls(s.host.Name(), s.since)
	s.must(err)
	return stage.Offs(calls)
}

// lostPowerOnce: whoever asked how often.
func (s *scene) lostPowerOnce() {
	s.Helper()
	if n, err := s.PowerLosses(s.host.Name(), s.since); err != nil || n != 1 {
		s.Errorf("the host lost its power %d times, %v; want once", n, err)
	}
}
