// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

const (
	// maxHandOver from a leader's death to the next leader is promised.
	maxHandOver = 8 * time.Second
	// heldFor is how long a host that cannot be proven off is watched: longer than proof and release take together when all is well.
	heldFor = 15 * time.Second
)

// TestPowerLost: the host loses its power. It is commanded Off though it reads Off, proven off, and the ledger moves.
func TestPowerLost(t *testing.T) {
	s := play(t, free)
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.migrated(1)
	s.returned()
}

// TestPowerLostWithLeader: the host that dies carries Holdfast's leader.
func TestPowerLostWithLeader(t *testing.T) {
	s := play(t, besideTheLeader)
	leader, err := s.Leader(s.soon())
	s.must(err)
	if leader.Spec.NodeName != s.host.Name() {
		t.Fatalf("the leader is on %s, the ledger on %s", leader.Spec.NodeName, s.host.Name())
	}
	next := make(chan int64, 1)
	go func() {
		if _, err := s.AwaitLeader(s.soon(), leader.Name); err == nil {
			next <- mono.Nanoseconds()
		}
		close(next)
	}()
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	at, ok := <-next
	if !ok {
		t.Fatal("nobody else took the lead")
	}
	s.times["leader"] = time.Duration(at - s.since)
	if handOver := s.times["leader"]; handOver > maxHandOver {
		t.Errorf("the lead was handed over after %v, want at most %v", handOver, maxHandOver)
	}
	s.migrated(1)
	s.returned()
}

// TestDeadBMC: nothing proves the host off. Nothing is released until something does.
func TestDeadBMC(t *testing.T) {
	s := play(t, free)
	s.must(s.host.SetBMCMode(s.ctx, bmc.Dead))
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.blocked("ipmi cannot be read")
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	s.migrated(1)
	s.returned()
}

// blocked: the incident says that it is stuck and why, the app is held, and for a while nothing is released.
func (s *scene) blocked(why string) {
	s.Helper()
	hi := s.incident("Blocked", condition(v1alpha1.ConditionBlocked))
	s.mark("detected")
	for _, c := range hi.Status.Conditions {
		if c.Type == v1alpha1.ConditionBlocked {
			s.says("Blocked", c.Message, why, "repair the device, or power the host off by hand")
		}
	}
	err := s.AwaitGone(s.within(heldFor), s.pod)
	if !errors.Is(err, context.DeadlineExceeded) {
		s.Fatalf("the ledger was released without proof: %v", err)
	}
	s.untouched("a while without proof")
	s.asked("HoldfastStopsServing", patchedBy(stage.Pod, "HoldfastStopsServing"))
	_, err = s.AwaitApp(s.soon(), "Held", func(g *v1alpha1.GuardedStatefulApp) bool {
		return stage.Is(g.Status.Conditions, v1alpha1.ConditionHeld)
	})
	s.must(err)
}

// migrated: proof, release, recovery; with so many Off commands.
func (s *scene) migrated(offs int) *v1alpha1.HostIncident {
	s.Helper()
	hi := s.migratedWith(func(n int) bool { return n == offs })
	for _, a := range hi.Status.Attempts {
		if a.State == v1alpha1.AttemptSettled && a.PowerBefore != "Off" {
			s.Errorf("attempt %s found the power %s, want Off: the host had lost it", a.ID, a.PowerBefore)
		}
	}
	return hi
}

func (s *scene) migratedWith(offs func(int) bool) *v1alpha1.HostIncident {
	s.Helper()
	s.incident("an incident", func(*v1alpha1.HostIncident) bool { return true })
	if _, seen := s.times["detected"]; !seen {
		s.mark("detected")
	}
	hi := s.incident("proof", condition(v1alpha1.ConditionProofEstablished))
	s.mark("proven")
	s.proof(hi)
	s.must(s.AwaitGone(s.soon(), s.pod))
	s.mark("released")
	hi = s.incident("Resolved", step(v1alpha1.StepResolved))
	s.must(s.AwaitServed(s.soon()))
	s.firstAck()
	s.endpointOut()
	s.order(offs)
	s.phases(hi)
	next, err := s.AwaitPod(s.soon(), "the successor", stage.PodReady)
	s.must(err)
	if next.UID == s.pod.UID || next.Spec.NodeName == s.host.Name() || next.Labels[v1alpha1.LabelHold] != "" {
		s.Errorf("the successor is pod %s on %s with labels %v", next.UID, next.Spec.NodeName, next.Labels)
	}
	s.notListed()
	s.judged()
	return hi
}

// firstAck marks when the client was served by another writer than before.
func (s *scene) firstAck() {
	s.Helper()
	writers, err := s.Writers(s.ctx, s.since, mono.Nanoseconds())
	s.must(err)
	last := writers[len(writers)-1]
	if last.Host == s.host.Name() {
		s.Fatalf("the ledger still writes on %s", last.Host)
	}
	acks, err := s.Acks(last.First)
	s.must(err)
	if len(acks) == 0 {
		s.Fatal("nobody was served by the successor")
	}
	s.times["recovered"] = time.Duration(acks[0].Mono - s.since)
}

// endpointOut marks when the Service stopped leading to the host that was lost.
func (s *scene) endpointOut() {
	s.Helper()
	for _, c := range s.Endpoints.Changes() {
		if c.Mono > s.since && !slices.ContainsFunc(c.Ready, func(e string) bool { return strings.HasPrefix(e, s.pod.Status.PodIP+":") }) {
			s.times["endpoint out"] = time.Duration(c.Mono - s.since)
			return
		}
	}
	s.Error("the Service leads to the host that was lost")
}

// proof: of this boot, by the right machine.
func (s *scene) proof(hi *v1alpha1.HostIncident) {
	s.Helper()
	p := hi.Status.Proof
	if p == nil {
		s.Fatal("ProofEstablished is True and there is no proof")
	}
	if id := strings.ReplaceAll(strings.ToLower(p.Identity), "-", ""); id != s.host.MachineID() {
		s.Errorf("the proof is of machine %s, want %s", p.Identity, s.host.MachineID())
	}
	if p.BootID != s.boot || p.Strength != v1alpha1.ProofPowerOff || p.AttemptID == "" || !slices.Equal(p.Covers, []string{"Host"}) {
		s.Errorf("proof %+v, want PowerOff of host and boot %s by an attempt", p, s.boot)
	}
}

// order checks on one clock: Off commanded, our taint, Off read, pod deleted.
func (s *scene) order(wanted func(int) bool) {
	s.Helper()
	calls, err := s.Calls(s.host.Name(), s.since)
	s.must(err)
	offs := stage.Offs(calls)
	if !wanted(len(offs)) {
		s.Fatalf("%d Off commands: %+v", len(offs), offs)
	}
	taint := s.asked("the taint", events.Query{Verbs: []string{"patch", "update"}, Resource: "nodes", Name: s.host.Name(), Match: func(r events.Request) bool {
		return r.Code == 200 && strings.Contains(string(r.Sent), v1alpha1.TaintFenced)
	}})
	deleted := s.asked("the delete", events.Query{Verbs: []string{"delete"}, Resource: "pods", Namespace: stage.Namespace, Name: stage.Pod,
		Match: func(r events.Request) bool { return r.Code == 200 }})
	if !stage.ByHoldfast(taint) || !stage.ByHoldfast(deleted) {
		s.Errorf("taint and delete are by %s and %s, want Holdfast", taint.User, deleted.User)
	}
	proving := slices.IndexFunc(calls, func(c bmc.Call) bool {
		return c.Op == "get" && c.Value == "off" && c.Actual == "off" && c.Mono > taint.Mono && c.Mono > offs[0].Mono && c.Mono+c.Took < deleted.Received
	})
	if proving < 0 || offs[0].Mono > deleted.Received || taint.Mono > deleted.Received {
		s.Errorf("want Off < read of Off, taint < read of Off, read < delete; Off at %d, taint at %d, delete at %d; the BMC's calls: %+v",
			offs[0].Mono, taint.Mono, deleted.Received, calls)
	}
}

// phases: every stretch of the way has its duration.
func (s *scene) phases(hi *v1alpha1.HostIncident) {
	s.Helper()
	took := map[string]int64{}
	for _, p := range hi.Status.Phases {
		took[p.Name] = p.DurationMillis
	}
	s.Logf("phases in ms: %v", took)
	for _, name := range []v1alpha1.IncidentStep{v1alpha1.StepFencing, v1alpha1.StepReleasing, v1alpha1.StepRecovering} {
		if ms, ok := took[string(name)]; !ok || ms < 0 {
			s.Errorf("phase %s has no duration: %v", name, took)
		}
	}
	for _, kind := range []string{v1alpha1.ConditionProofEstablished, v1alpha1.ConditionReleased, v1alpha1.ConditionRecovered} {
		if !stage.Is(hi.Status.Conditions, kind) {
			s.Errorf("%s is not True at the end: %+v", kind, hi.Status.Conditions)
		}
	}
}

// returned: power on, return gate, Closed; the host takes work again.
func (s *scene) returned() {
	s.Helper()
	n, err := s.AwaitNode(s.soon(), s.host.Name(), "the fence's own taint alone", func(n *corev1.Node) bool {
		return tainted(n, v1alpha1.TaintFenced) && !tainted(n, v1alpha1.TaintOutOfService)
	})
	s.must(err)
	if n.Status.NodeInfo.BootID != s.boot {
		s.Errorf("the Node tells of boot %s before the host came back, want %s", n.Status.NodeInfo.BootID, s.boot)
	}
	s.must(s.host.PowerOn(s.ctx))
	hi := s.incident("Closed", step(v1alpha1.StepClosed))
	if !stage.Is(hi.Status.Conditions, v1alpha1.ConditionReturnCleared) {
		s.Errorf("the incident is Closed without ReturnCleared: %+v", hi.Status.Conditions)
	}
	for _, a := range hi.Status.Attempts {
		if a.State != v1alpha1.AttemptSettled && a.State != v1alpha1.AttemptSuperseded && a.State != v1alpha1.AttemptFailed {
			s.Errorf("attempt %s is %s in an incident that is Closed", a.ID, a.State)
		}
	}
	n, err = s.AwaitNode(s.soon(), s.host.Name(), "the host to take work again", func(n *corev1.Node) bool {
		return stage.NodeReady(n) && len(n.Spec.Taints) == 0 && !n.Spec.Unschedulable
	})
	s.must(err)
	if n.Status.NodeInfo.BootID == s.boot {
		s.Error("the host is back with the boot that was lost")
	}
	s.judged()
}

func tainted(n *corev1.Node, key string) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
}
