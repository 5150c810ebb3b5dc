// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
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

	// taintManager is the identity of the taint eviction controller.
	taintManager = "system:serviceaccount:kube-system:node-controller"
)

// TestKubeletOnly: the kubelet dies, the ledger lives. Nobody moves it, nobody restarts it, and clients hardly notice.
func TestKubeletOnly(t *testing.T) {
	s := play(t, free)
	bystander := s.bystander()
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))

	hi := s.incident("KubeletDown", verdict("KubeletDown"))
	s.mark("detected")
	s.heldWithEvidence(hi)
	s.refusals(hi)
	s.taintManagerTried(bystander)
	s.untouched("the taint manager's attempt")
	s.asked("HoldfastKeepsServing", keptServing)

	s.must(s.host.StartKubelet(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainer()
	until := mono.Nanoseconds()
	s.neverStopped(until)
	gap := s.Endpoints.Gap(s.since, until)
	s.times["gap"] = gap
	if gap > maxEndpointGap {
		t.Errorf("the Service led nowhere for %v in sum, want at most %v", gap, maxEndpointGap)
	}
	s.gracefulDeleteWorks()
	s.judged()
}

// bystander is a pod without guard on the same host: it shows what Kubernetes does to the ledger's neighbour in the same minute.
func (s *scene) bystander() *corev1.Pod {
	s.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "bystander-", Namespace: stage.Namespace},
		Spec: corev1.PodSpec{
			NodeName: s.host.Name(), TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{Name: "ledger", Image: "holdfast.dev/lab/ledger:dev", ImagePullPolicy: corev1.PullNever}},
		},
	}
	s.must(s.Client.Create(s.ctx, p))
	s.Cleanup(func() {
		_, _ = s.Kubectl(s.Context(), "delete", "pod", "-n", p.Namespace, p.Name, "--force", "--ignore-not-found", "--wait=false") // may be gone
	})
	return p
}

// heldWithEvidence: the app says that it is held, why, and on what dated readings.
func (s *scene) heldWithEvidence(hi *v1alpha1.HostIncident) {
	s.Helper()
	g, err := s.AwaitApp(s.soon(), "Held", func(g *v1alpha1.GuardedStatefulApp) bool {
		return stage.Is(g.Status.Conditions, v1alpha1.ConditionHeld) && g.Status.Verdict == "KubeletDown"
	})
	s.must(err)
	if g.Status.Incident != hi.Name || g.Status.Host != s.host.Name() {
		s.Errorf("the app names incident %q on %q, want %s on %s", g.Status.Incident, g.Status.Host, hi.Name, s.host.Name())
	}
	sources := map[string]bool{}
	for _, e := range g.Status.Evidence {
		sources[e.Source] = true
		if age := time.Since(e.ObservedAt.Time); age < -time.Second || age > patience || e.Reading == "" {
			s.Errorf("evidence %+v is not dated to this scene, or says nothing", e)
		}
	}
	if len(sources) < 2 {
		s.Errorf("the hold rests on %v, want at least two sources: %+v", slices.Collect(maps.Keys(sources)), g.Status.Evidence)
	}
	_, err = s.AwaitPod(s.soon(), "the hold on the pod", func(p *corev1.Pod) bool {
		return p.Labels[v1alpha1.LabelHold] == hi.Name && slices.Contains(p.Finalizers, v1alpha1.FinalizerHold)
	})
	s.must(err)
}

// refusals: every way to get rid of the pod is refused, with why and what to do.
func (s *scene) refusals(hi *v1alpha1.HostIncident) {
	s.Helper()
	pod := []string{"-n", stage.Namespace, stage.Pod}
	kubectl := func(args ...string) func() error {
		return func() error {
			_, err := s.Kubectl(s.within(30*time.Second), args...)
			return err
		}
	}
	held := []string{"refused", "held by HostIncident " + hi.Name, "may still be writing", "kubectl get hi " + hi.Name}
	override := append(slices.Clone(held), v1alpha1.AnnotationOverride)
	for _, way := range []struct {
		name  string
		try   func() error
		words []string
	}{
		{"kubectl delete", kubectl(append([]string{"delete", "pod"}, pod...)...), override},
		{"kubectl delete --force", kubectl(append([]string{"delete", "pod", "--force"}, pod...)...), override},
		{"kubectl delete --grace-period=1", kubectl(append([]string{"delete", "pod", "--grace-period=1"}, pod...)...), override},
		{"delete of the collection", func() error {
			return s.Client.DeleteAllOf(s.ctx, &corev1.Pod{}, client.InNamespace(stage.Namespace), client.MatchingLabels{"app": stage.App})
		}, override},
		{"eviction", func() error { return s.evict(nil) }, held},
		{"eviction with grace 0", func() error { return s.evict(new(int64)) }, held},
		{"kubectl drain", kubectl("drain", s.host.Name(), "--pod-selector=app="+stage.App, "--timeout=20s"), held},
		{"kubectl delete node", kubectl("delete", "node", s.host.Name()),
			[]string{"refused", "carries guarded pods", "may still be writing", "Drain it first", "kubectl get hi", v1alpha1.AnnotationOverride}},
	} {
		err := way.try()
		if err == nil {
			s.Errorf("%s was let through", way.name)
		} else {
			s.says(way.name, err.Error(), way.words...)
		}
		s.untouched(way.name)
	}
	_, err := s.Kubectl(s.soon(), "uncordon", s.host.Name()) // drain cordons before it tries
	s.must(err)
}

func (s *scene) evict(grace *int64) error {
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: stage.Pod, Namespace: stage.Namespace}}
	if grace != nil {
		eviction.DeleteOptions = &metav1.DeleteOptions{GracePeriodSeconds: grace}
	}
	return s.Client.SubResource("eviction").Create(s.ctx, s.pod, eviction)
}

// taintManagerTried waits until Kubernetes deleted the unguarded neighbour, and checks that it was refused the ledger.
func (s *scene) taintManagerTried(bystander *corev1.Pod) {
	s.Helper()
	tried := func(name string) (answers []events.Request) {
		q := events.ToPod(stage.Namespace, name)
		q.Verbs, q.User = []string{"delete"}, taintManager
		found, err := s.Asked(s.since, q)
		s.must(err)
		return found
	}
	s.poll("the taint manager to delete the neighbour and try the ledger", func() (bool, error) {
		return len(tried(bystander.Name)) > 0 && len(tried(stage.Pod)) > 0, nil
	})
	if r := tried(bystander.Name)[0]; r.Code != 200 {
		s.Errorf("the neighbour without guard: %s, want it deleted", r)
	}
	for _, r := range tried(stage.Pod) {
		if r.Code/100 != 4 {
			s.Errorf("the taint manager was not refused: %s", r)
		}
		s.says("refusal of the taint manager", r.Message, "is refused", "may still be writing")
	}
}

// sameContainer: the kubelet's return touched nothing, and the hold is gone without a trace.
func (s *scene) sameContainer() {
	s.Helper()
	s.untouched("the kubelet's return")
	p, err := s.AwaitPod(s.soon(), "the pod to be free and Ready", func(p *corev1.Pod) bool {
		_, held := p.Labels[v1alpha1.LabelHold]
		return stage.PodReady(p) && !held && !slices.Contains(p.Finalizers, v1alpha1.FinalizerHold)
	})
	s.must(err)
	before, after := s.pod.Status.ContainerStatuses[0], p.Status.ContainerStatuses[0]
	if before.ContainerID != after.ContainerID || after.RestartCount != before.RestartCount {
		s.Errorf("the container was %s (%d restarts) and is %s (%d restarts)", before.ContainerID, before.RestartCount, after.ContainerID, after.RestartCount)
	}
	_, err = s.AwaitApp(s.soon(), "the app to be Ready and not Held", func(g *v1alpha1.GuardedStatefulApp) bool {
		return stage.Is(g.Status.Conditions, v1alpha1.ConditionReady) && !stage.Is(g.Status.Conditions, v1alpha1.ConditionHeld)
	})
	s.must(err)
	s.notListed()
}

func (s *scene) notListed() {
	s.Helper()
	var ns corev1.Namespace
	s.must(s.Client.Get(s.ctx, types.NamespacedName{Name: stage.Namespace}, &ns))
	if held := ns.Annotations[v1alpha1.AnnotationHeld]; strings.Contains(held, stage.Pod) {
		s.Errorf("the namespace still lists %q as held", held)
	}
}

// neverStopped: one writer, from before the fault until now, without a pause.
func (s *scene) neverStopped(until int64) {
	s.Helper()
	writers, err := s.Writers(s.ctx, s.since, until)
	s.must(err)
	if len(writers) != 1 || writers[0].Host != s.host.Name() || writers[0].Boot != s.boot {
		s.Fatalf("writers: %+v, want %s in boot %s alone", writers, s.host.Name(), s.boot)
	}
	w := writers[0]
	pause := max(w.MaxGap, time.Duration(w.First-s.since), time.Duration(until-w.Last))
	s.Logf("the ledger wrote %d times in %v, its longest pause was %v", w.Count, time.Duration(until-s.since), pause)
	if pause > maxPause {
		s.Errorf("the ledger paused for %v, want at most %v", pause, maxPause)
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
		found, err := s.Asked(s.since, keptServing)
		return len(found) > 0, err
	})
	until := mono.Nanoseconds()
	gap := s.Endpoints.Gap(s.since, until)
	s.times["gap"] = gap
	if gap > maxEndpointGap {
		t.Errorf("the Service led nowhere for %v in sum, want at most %v", gap, maxEndpointGap)
	}
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	s.must(s.host.StartKubelet(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainer()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}

// TestEverythingDead: the kubelet is dead and so is every process of Holdfast. The hold stands.
func TestEverythingDead(t *testing.T) {
	s := play(t, free)
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))
	hi := s.incident("KubeletDown", verdict("KubeletDown"))
	s.mark("detected")
	s.heldWithEvidence(hi)
	s.must(s.Scale(s.soon(), 0))
	s.refusals(hi)
	s.must(s.Scale(s.soon(), stage.Replicas))
	s.must(s.host.StartKubelet(s.ctx))
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.sameContainer()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}
