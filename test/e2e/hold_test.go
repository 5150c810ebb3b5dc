// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

const (
	// maxPause between two writes of a ledger that never stops. It writes every 10 ms; the bound leaves room for a machine with more to do than
	// it has processors, and is a tenth of the time that the fault lasts, after which Kubernetes alone would have ended the ledger.
	maxPause = 3 * time.Second
	// maxEndpointGap is promised: requirement of the kubelet-only scene.
	maxEndpointGap = time.Second
	// pastKubernetes is longer than everything that Kubernetes does by itself about a silent kubelet, one after the other: NotReady after 50 s,
	// eviction 300 s later, detach by force 360 s after that.
	pastKubernetes = 13 * time.Minute

	// taintManager is the identity of the taint eviction controller.
	taintManager = "system:serviceaccount:kube-system:node-controller"
)

// company is a ledger beside the first, of a volume that is served to anybody; everyKind are both kinds of workload with both classes of volume, but for
// the first ledger's.
var (
	company   = []stage.Role{{Name: "orders", Kind: "StatefulSet", Class: "permissive", Interval: "50ms"}}
	everyKind = append(slices.Clone(company),
		stage.Role{Name: "stock", Kind: "Deployment", Class: "enforcing", Interval: "50ms"},
		stage.Role{Name: "carts", Kind: "Deployment", Class: "permissive", Interval: "50ms"},
	)
)

// strangers are without guard.
var strangers = []stage.Role{
	{Name: "wiki", Kind: "StatefulSet", Class: "enforcing", Interval: "50ms", Unguarded: true},
	{Name: "blog", Kind: "Deployment", Class: "permissive", Interval: "50ms", Unguarded: true},
}

// TestCase1KubeletOnly: the kubelet dies, the ledgers live. Nobody moves them, nobody restarts them, whoever tries and whether or not Holdfast runs.
func TestCase1KubeletOnly(t *testing.T) {
	playCase(t, 1,
		variant{"Holdfast alive", true, kubeletOnly},
		variant{"Holdfast killed after arming", true, killedAfterArming},
		variant{"Holdfast killed before arming", true, killedBeforeArming},
	)
}

// kubeletOnly is also numbered case 7: beside the ledgers play some without guard.
func kubeletOnly(t *testing.T) {
	s := play(t, free, append(slices.Clone(everyKind), strangers...)...)
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))
	hi := s.incident("KubeletDown", verdict("KubeletDown"))
	s.mark("detected")
	for _, p := range s.guarded() {
		s.heldWithEvidence(p, hi)
	}
	s.waysAround(heldWays(s, hi))
	s.taintManagerTried()
	s.stockUntilEvicted()
	s.holds()
	for _, p := range s.guarded() {
		s.asked("HoldfastKeepsServing of "+p.Name, patchedBy(p.pod.Name, "HoldfastKeepsServing"))
	}
	s.must(s.host.StartKubelet(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainers()
	until := mono.Nanoseconds()
	s.neverStopped(until)
	s.gaps(until)
	s.stockAtTheEnd()
	s.gracefulDeleteWorks()
	s.judged()
}

// killedAfterArming: the holds stand, and so do all refusals, with every process of Holdfast dead.
func killedAfterArming(t *testing.T) {
	s := play(t, free, everyKind...)
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))
	hi := s.incident("KubeletDown", verdict("KubeletDown"))
	s.mark("detected")
	for _, p := range s.guarded() {
		s.armed(p, hi)
	}
	s.must(s.KillHoldfast(s.soon()))
	s.waysAround(heldWays(s, hi))
	s.taintManagerTried()
	s.holds()
	s.must(s.Scale(s.soon(), stage.Replicas))
	s.must(s.host.StartKubelet(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainers()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}

// killedBeforeArming: nothing is armed, and the rules that always stand are enough.
func killedBeforeArming(t *testing.T) {
	s := play(t, free, everyKind...)
	s.must(s.KillHoldfast(s.soon()))
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))
	_, err := s.AwaitNode(s.soon(), s.host.Name(), "NotReady", func(n *corev1.Node) bool { return !stage.NodeReady(n) })
	s.must(err)
	s.mark("detected")
	s.waysAround(alwaysWays(s))
	s.taintManagerTried()
	s.holds()
	s.must(s.host.StartKubelet(s.ctx))
	for _, p := range s.guarded() {
		_, err := p.AwaitPod(s.soon(), "the pod to be Ready", stage.PodReady)
		s.must(err)
	}
	s.mark("recovered")
	s.must(s.Scale(s.soon(), stage.Replicas))
	s.sameContainers()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}

// TestKubeletOnlyWithDeadBMC: the fence device does not answer either. Traffic does not wait for its time-outs: when Kubernetes takes the endpoint out,
// Holdfast puts it back at once.
func TestKubeletOnlyWithDeadBMC(t *testing.T) {
	s := play(t, free)
	s.must(s.host.SetBMCMode(s.ctx, bmc.Dead))
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))
	s.incident("KubeletDown", verdict("KubeletDown"))
	s.mark("detected")
	s.poll("Holdfast to keep the endpoint", func() (bool, error) {
		found, err := s.Asked(s.since, patchedBy(stage.Pod, "HoldfastKeepsServing"))
		return len(found) > 0, err
	})
	s.gaps(mono.Nanoseconds())
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	s.must(s.host.StartKubelet(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainers()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}

// heldWithEvidence: the app says that it is held, why, and on what dated readings.
func (s *scene) heldWithEvidence(p part, hi *v1alpha1.HostIncident) {
	s.Helper()
	g, err := p.AwaitApp(s.soon(), p.Name+" Held", func(g *v1alpha1.GuardedStatefulApp) bool {
		return stage.Is(g.Status.Conditions, v1alpha1.ConditionHeld) && g.Status.Verdict == "KubeletDown"
	})
	s.must(err)
	if g.Status.Incident != hi.Name || g.Status.Host != s.host.Name() {
		s.Errorf("%s names incident %q on %q, want %s on %s", p.Name, g.Status.Incident, g.Status.Host, hi.Name, s.host.Name())
	}
	sources := map[string]bool{}
	for _, e := range g.Status.Evidence {
		sources[e.Source] = true
		if age := time.Since(e.ObservedAt.Time); age < -time.Second || age > patience() || e.Reading == "" {
			s.Errorf("evidence %+v of %s is not dated to this scene, or says nothing", e, p.Name)
		}
	}
	if len(sources) < 2 {
		s.Errorf("the hold of %s rests on %v, want at least two sources: %+v", p.Name, slices.Collect(maps.Keys(sources)), g.Status.Evidence)
	}
	s.armed(p, hi)
}

// armed: label and finalizer of the hold are on the pod.
func (s *scene) armed(p part, hi *v1alpha1.HostIncident) {
	s.Helper()
	_, err := p.AwaitPod(s.soon(), "the hold on "+p.pod.Name, func(now *corev1.Pod) bool {
		return now.UID == p.pod.UID && now.Labels[v1alpha1.LabelHold] == hi.Name && slices.Contains(now.Finalizers, v1alpha1.FinalizerHold)
	})
	s.must(err)
}

// taintManagerTried waits until Kubernetes deleted the pods without guard, if any play, and was refused those with.
func (s *scene) taintManagerTried() {
	s.Helper()
	for _, p := range s.parts {
		q := events.ToPod(stage.Namespace, p.pod.Name)
		q.Verbs, q.User = []string{"delete"}, taintManager
		var answers []events.Request
		s.poll("the taint manager to delete "+p.pod.Name, func() (bool, error) {
			var err error
			answers, err = s.Asked(s.since, q)
			return len(answers) > 0, err
		})
		if p.Unguarded && answers[0].Code != 200 {
			s.Errorf("%s has no guard, want it deleted: %s", p.Name, answers[0])
		}
		for _, r := range answers {
			if p.Unguarded {
				break
			}
			if r.Code/100 != 4 {
				s.Errorf("the taint manager was not refused: %s", r)
			}
			s.says("refusal of the taint manager", r.Message, "is refused", "may still be writing")
		}
	}
	s.untouched("the taint manager's attempt")
}

// holds: with the timings of Kubernetes nothing is let go until Kubernetes alone would long have ended it. With fast ones the taint manager's attempt is the end.
func (s *scene) holds() {
	s.Helper()
	if timings() == lab.DefaultTimings {
		ctx := s.within(pastKubernetes - time.Duration(mono.Nanoseconds()-s.since))
		var pods []*corev1.Pod
		for _, p := range s.guarded() {
			pods = append(pods, p.pod)
		}
		if gone, err := s.AwaitAnyGone(ctx, pods...); !errors.Is(err, context.DeadlineExceeded) {
			s.Fatalf("%s was let go: %v", gone, err)
		}
	}
	s.untouched("all that Kubernetes does")
	s.mark("held")
}

// sameContainers: the kubelet's return touched nothing, and the holds are gone without a trace.
func (s *scene) sameContainers() {
	s.Helper()
	s.untouched("the kubelet's return")
	for _, p := range s.guarded() {
		now, err := p.AwaitPod(s.soon(), p.pod.Name+" to be free and Ready", func(p *corev1.Pod) bool {
			_, held := p.Labels[v1alpha1.LabelHold]
			return stage.PodReady(p) && !held && !slices.Contains(p.Finalizers, v1alpha1.FinalizerHold)
		})
		s.must(err)
		before, after := p.pod.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]
		if before.ContainerID != after.ContainerID || after.RestartCount != before.RestartCount {
			s.Errorf("the container of %s was %s (%d restarts) and is %s (%d restarts)",
				p.Name, before.ContainerID, before.RestartCount, after.ContainerID, after.RestartCount)
		}
		_, err = p.AwaitApp(s.soon(), p.Name+" to be Ready and not Held", func(g *v1alpha1.GuardedStatefulApp) bool {
			return stage.Is(g.Status.Conditions, v1alpha1.ConditionReady) && !stage.Is(g.Status.Conditions, v1alpha1.ConditionHeld)
		})
		s.must(err)
	}
	s.notListed()
}

// notListed: the namespace does not list any of the scene's pods as held.
func (s *scene) notListed() {
	s.Helper()
	var ns corev1.Namespace
	s.must(s.Client.Get(s.ctx, types.NamespacedName{Name: stage.Namespace}, &ns))
	for _, p := range s.parts {
		if held := ns.Annotations[v1alpha1.AnnotationHeld]; strings.Contains(held, p.pod.Name) {
			s.Errorf("the namespace still lists %q as held", held)
		}
	}
}

// neverStopped: every guarded volume had one writer, from before the fault until now, without a pause.
func (s *scene) neverStopped(until int64) {
	s.Helper()
	for _, p := range s.guarded() {
		writers, err := p.Writers(s.ctx, s.since, until)
		s.must(err)
		if len(writers) != 1 || writers[0].Host != s.host.Name() || writers[0].Boot != s.boot {
			s.Fatalf("writers of %s: %+v, want %s in boot %s alone", p.Name, writers, s.host.Name(), s.boot)
		}
		w := writers[0]
		pause := max(w.MaxGap, time.Duration(w.First-s.since), time.Duration(until-w.Last))
		s.Logf("%s wrote %d times in %v, its longest pause was %v", p.Name, w.Count, time.Duration(until-s.since), pause)
		if pause > maxPause {
			s.Errorf("%s paused for %v, want at most %v", p.Name, pause, maxPause)
		}
	}
}

// gaps: no Service of a guarded part led nowhere for longer than is promised.
func (s *scene) gaps(until int64) {
	s.Helper()
	s.times["gap"] = 0
	for _, p := range s.guarded() {
		gap := p.Endpoints.Gap(s.since, until)
		s.times["gap"] = max(s.times["gap"], gap)
		if gap > maxEndpointGap {
			s.Errorf("the Service of %s led nowhere for %v in sum, want at most %v: %+v", p.Name, gap, maxEndpointGap, p.Endpoints.Changes())
		}
	}
}

// gracefulDeleteWorks: the guard is not in the way of an ordinary delete.
func (s *scene) gracefulDeleteWorks() {
	s.Helper()
	_, err := s.Kubectl(s.soon(), "delete", "pod", "-n", stage.Namespace, stage.Pod)
	s.must(err)
	_, err = s.AwaitPod(s.soon(), "a successor", func(p *corev1.Pod) bool { return p.UID != s.pod.UID && stage.PodReady(p) })
	s.must(err)
	s.must(s.AwaitServed(s.soon()))
}

// stockUntilEvicted: Kubernetes takes the pods without guard out of traffic and deletes them, but for their kubelet they stay. The Deployment starts
// another one at once, elsewhere, and its volume then has two writers: what the guard keeps from the others.
func (s *scene) stockUntilEvicted() {
	s.Helper()
	for _, p := range s.parts {
		if !p.Unguarded {
			continue
		}
		if gap := p.Endpoints.Gap(s.since, mono.Nanoseconds()); gap == 0 && p.Kind == "StatefulSet" {
			s.Errorf("the Service of %s, without guard, never led nowhere", p.Name)
		}
		if p.Kind == "StatefulSet" {
			continue
		}
		_, err := p.AwaitPod(s.soon(), "a second pod of "+p.Name, func(now *corev1.Pod) bool {
			return now.UID != p.pod.UID && now.Spec.NodeName != s.host.Name() && stage.PodReady(now)
		})
		s.must(err)
		s.secondWriter(p)
	}
}

// stockAtTheEnd: no pod without guard outlived the kubelet's return.
func (s *scene) stockAtTheEnd() {
	s.Helper()
	for _, p := range s.parts {
		if p.Unguarded {
			s.must(s.AwaitGone(s.soon(), p.pod))
		}
	}
}
