// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

const (
	newcomerPolicy = "holdfast-newcomers/"
	newcomerBirths = "holdfast-gated-newcomers/"
	gatePolicy     = "holdfast-gates/"
	noGates        = `{"spec":{"schedulingGates":null}}`
	ownNodeName    = "node-2"
)

// newcomer is a pod in the scene's namespace that is not in its place on data-db-1, changed by with.
func newcomer(s scene, with func(*corev1.Pod)) *corev1.Pod {
	pod := podOn(s.namespace, []string{"data-db-1"}, nil, nil)
	pod.Name = "backup"
	if with != nil {
		with(pod)
	}
	return pod
}

func onNode(p *corev1.Pod) { p.Spec.NodeName = ownNodeName }

func inPlaceOnNode(p *corev1.Pod) { p.Name, p.Spec.NodeName = "db-1", ownNodeName }

func withGate(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: name}}
	}
}

func onNoClaim(p *corev1.Pod) {
	p.Spec.Volumes = nil
	withGate(v1alpha1.GateNewcomer)(p)
}

// birth creates a newcomer.
func birth(with func(*corev1.Pod)) act {
	return func(ctx context.Context, c client.Client, s scene) error { return c.Create(ctx, newcomer(s, with)) }
}

// later does something to a newcomer that exists, after the preparations.
func later(do func(context.Context, client.Client, *corev1.Pod) error, prepare ...act) act {
	return func(ctx context.Context, c client.Client, s scene) error {
		if err := clientOf(alice).Create(ctx, newcomer(s, nil)); err != nil {
			return err
		}
		for _, p := range prepare {
			if err := p(ctx, c, s); err != nil {
				return err
			}
		}
		return do(ctx, c, newcomer(s, nil))
	}
}

func lift(ctx context.Context, c client.Client, p *corev1.Pod) error {
	return c.Patch(ctx, p, rawPatch(noGates))
}

// excused puts an override on the newcomer.
func excused(ctx context.Context, _ client.Client, s scene) error {
	return clientOf(breaker).Patch(ctx, newcomer(s, nil), rawPatch(withOverride))
}

// clientOf is the identity's, where there is no test to tell.
func clientOf(id identity) client.Client {
	c, err := client.New(id.config(), client.Options{Scheme: envtest.Scheme()})
	if err != nil {
		panic(err)
	}
	return c
}

var guardedClaims = scene{claims: "db=data-db-*@db-*"}

// ofNewcomers are the attempts to start a second writer.
var ofNewcomers = map[string]attempt{
	"a newcomer is born, gated":                     {guardedClaims, alice, birth(nil), "", nil},
	"a newcomer may bring the gate":                 {guardedClaims, alice, birth(withGate(v1alpha1.GateNewcomer)), "", nil},
	"a newcomer may have a gate of somebody else":   {guardedClaims, alice, birth(withGate("example.com/wait")), "", nil},
	"a newcomer may not name its node":              {guardedClaims, alice, birth(onNode), newcomerPolicy + "NewcomerOnNode", []string{"/backup", "app db guards", "nodeSelector"}},
	"nor may one that Holdfast makes":               {guardedClaims, holdfast, birth(onNode), newcomerPolicy + "NewcomerOnNode", nil},
	"nor one that the scheduler makes":              {guardedClaims, scheduler, birth(onNode), newcomerPolicy + "NewcomerOnNode", nil},
	"nor one whom a kubelet makes":                  {guardedClaims, otherKubelet, birth(onNode), newcomerPolicy + "NewcomerOnNode", nil},
	"nor one whom the verb is given to":             {guardedClaims, breaker, birth(onNode), newcomerPolicy + "NewcomerOnNode", nil},
	"a pod in its place may name its node":          {guardedClaims, alice, birth(inPlaceOnNode), "", nil},
	"a pod that names no guarded claim may":         {scene{claims: "db=log-*@db-*"}, alice, birth(onNode), "", nil},
	"a pod without guarded claims may not be gated": {guardedClaims, alice, birth(onNoClaim), newGuardedPods + "BornGuarded", []string{"gate guard.holdfast.dev/newcomer", "names no guarded claim"}},
	"no pod has another gate of Holdfast":           {guardedClaims, alice, birth(withGate("guard.holdfast.dev/other")), newGuardedPods + "BornGuarded", []string{"gate guard.holdfast.dev/other"}},
	"others may not lift the gate":                  {guardedClaims, alice, later(lift), gatePolicy + "NewcomerGate", []string{"/backup", "guard.holdfast.dev/newcomer", "may still be writing", "guard.holdfast.dev/override"}},
	"nor may the controller that made the pod":      {guardedClaims, controller("job-controller"), later(lift), gatePolicy + "NewcomerGate", nil},
	"nor the scheduler":                             {guardedClaims, scheduler, later(lift), gatePolicy + "NewcomerGate", nil},
	"nor who has the verb alone":                    {guardedClaims, breaker, later(lift), gatePolicy + "NewcomerGate", nil},
	"nor who has the annotation alone":              {guardedClaims, alice, later(lift, excused), gatePolicy + "NewcomerGate", nil},
	"an override lifts the gate with both":          {guardedClaims, breaker, later(lift, excused), "", nil},
	"Holdfast lifts the gate":                       {guardedClaims, holdfast, later(lift), "", nil},
	"anybody may delete a newcomer":                 {guardedClaims, alice, later(func(ctx context.Context, c client.Client, p *corev1.Pod) error { return c.Delete(ctx, p) }), "", nil},
	"others may lift their own gate":                {scene{}, alice, birthThenLift, "", nil},
}

// birthThenLift is a pod that has nothing to do with Holdfast.
func birthThenLift(ctx context.Context, c client.Client, s scene) error {
	pod := newcomer(s, withGate("example.com/wait"))
	if err := c.Create(ctx, pod); err != nil {
		return err
	}
	return lift(ctx, c, pod)
}

func TestNewcomers(t *testing.T) { runAll(t, ofNewcomers) }

// TestAGatedPodIsNotBound shows that the API server itself keeps a gated pod from every node, on both ways there are.
func TestAGatedPodIsNotBound(t *testing.T) {
	ctx := guarded(t)
	s := guardedClaims.set(ctx, t)
	must(t, alice.client(t).Create(ctx, newcomer(s, nil)))
	must(t, alice.client(t).Create(ctx, podOn(s.namespace, []string{"data-db-1"}, nil, nil))) // db-1, in its place
	for _, who := range []identity{alice, scheduler, holdfast} {
		clientset := kubernetes.NewForConfigOrDie(who.config())
		for way, bind := range map[string]func(pod string) error{
			"pods/binding": func(pod string) error {
				return clientset.CoreV1().Pods(s.namespace).Bind(ctx, binding(s.namespace, pod), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			},
			"bindings": func(pod string) error {
				return clientset.CoreV1().RESTClient().Post().Namespace(s.namespace).Resource("bindings").
					VersionedParams(&metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}, metav1.ParameterCodec).
					Body(binding(s.namespace, pod)).Do(ctx).Error()
			},
		} {
			if err := bind("backup"); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "schedulingGates") {
				t.Errorf("%s as %s: a newcomer is not kept back: %v", way, who.user, err)
			}
			if err := bind("db-1"); err != nil {
				t.Errorf("%s as %s: a pod in its place: %v", way, who.user, err)
			}
		}
	}
}

func binding(namespace, pod string) *corev1.Binding {
	return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod}, Target: corev1.ObjectReference{Kind: "Node", Name: ownNodeName}}
}

// TestWithoutMutatingPolicies shows what stands on Kubernetes 1.30 to 1.35, on an API server of its own that emulates
// 1.34, the oldest that it can: it serves no MutatingAdmissionPolicy. All but label and gate at birth is proven. With the
// policies that need it, but without it, nobody starts on a guarded claim unless label and gate are there.
func TestWithoutMutatingPolicies(t *testing.T) {
	ctx, old := t.Context(), emulating(t, 34)
	us, user, other := old.client(t, holdfast), old.client(t, alice), scene{namespace: "shop"}

	// Nothing comes by itself, and templates may bring both.
	plainOne := newcomer(other, nil)
	must(t, user.Create(ctx, plainOne, client.DryRunAll))
	if plainOne.Labels[v1alpha1.LabelApp] != "" || len(plainOne.Spec.SchedulingGates) != 0 {
		t.Errorf("without the policy a pod got labels %v and gates %v", plainOne.Labels, plainOne.Spec.SchedulingGates)
	}
	optedIn := func(p *corev1.Pod) { withGate(v1alpha1.GateNewcomer)(p); p.Labels = appLabel }
	must(t, user.Create(ctx, newcomer(other, optedIn)))
	judge(t, lift(ctx, user, newcomer(other, nil)), gatePolicy+"NewcomerGate", nil)
	must(t, lift(ctx, us, newcomer(other, nil)))
	gateOnly := newcomer(other, withGate(v1alpha1.GateNewcomer))
	gateOnly.Name = "gate-only"
	must(t, user.Create(ctx, gateOnly))
	judge(t, lift(ctx, user, gateOnly), gatePolicy+"NewcomerGate", nil)
	judge(t, user.Create(ctx, newcomer(other, onNode), client.DryRunAll), newcomerPolicy+"NewcomerOnNode", nil)
	wrong := newcomer(other, func(p *corev1.Pod) { p.Labels = map[string]string{v1alpha1.LabelApp: "other"} })
	judge(t, user.Create(ctx, wrong, client.DryRunAll), newGuardedPods+"BornGuarded", []string{"a pod of app db"})

	// The rules that stand on the policy refuse what comes past it.
	for _, o := range admission.Objects(admission.Identity{}, everything) {
		switch o.(type) {
		case *admissionv1.ValidatingAdmissionPolicy, *admissionv1.ValidatingAdmissionPolicyBinding:
			must(t, client.IgnoreAlreadyExists(us.Create(ctx, o)))
		}
	}
	gated := newcomer(other, withGate(v1alpha1.GateNewcomer))
	gated.Name = "gated"
	inPlace := podOn("shop", []string{"data-db-1"}, appLabel, nil)
	eventually(t, "refusal of an ungated newcomer", func() bool {
		err := user.Create(ctx, newcomer(other, func(p *corev1.Pod) { p.Name, p.Labels = "ungated", appLabel }), client.DryRunAll)
		return err != nil && strings.Contains(err.Error(), "[UngatedNewcomer] ")
	})
	judge(t, user.Create(ctx, newcomer(other, func(p *corev1.Pod) { p.Name, p.Labels = "ungated", appLabel }), client.DryRunAll),
		newcomerBirths+"UngatedNewcomer", []string{"/ungated", "app db guards", "holdfast-label-pods"})
	judge(t, us.Create(ctx, newcomer(other, func(p *corev1.Pod) { p.Name, p.Labels = "ungated", appLabel }), client.DryRunAll),
		newcomerBirths+"UngatedNewcomer", nil)
	judge(t, user.Create(ctx, gated.DeepCopy(), client.DryRunAll), newcomerBirths+"BornUnguarded", []string{"guard.holdfast.dev/app=db"})
	gated.Labels = appLabel
	must(t, user.Create(ctx, gated, client.DryRunAll))
	must(t, user.Create(ctx, inPlace.DeepCopy(), client.DryRunAll))
	inPlace.Labels = nil
	judge(t, user.Create(ctx, inPlace, client.DryRunAll), newcomerBirths+"BornUnguarded", nil)
	must(t, user.Create(ctx, podOn("shop", []string{"scratch"}, nil, nil), client.DryRunAll))
}

// server is an API server of a test's own.
type server struct{ *envtest.Cluster }

func (s server) client(t *testing.T, id identity) client.Client {
	t.Helper()
	c, err := client.New(id.impersonated(s.Config), client.Options{Scheme: envtest.Scheme()})
	must(t, err)
	return c
}

// TestTheFirstKubernetesWithMutatingPolicies shows that an API server that emulates 1.36 serves the MutatingAdmissionPolicy
// without being asked to, and takes and enforces everything.
func TestTheFirstKubernetesWithMutatingPolicies(t *testing.T) {
	s := emulating(t, mutatingSince)
	backup := newcomer(scene{namespace: "shop"}, nil)
	must(t, s.client(t, alice).Create(t.Context(), backup))
	if backup.Labels[v1alpha1.LabelApp] != "db" || !slices.Contains(backup.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: v1alpha1.GateNewcomer}) {
		t.Errorf("a newcomer was born with labels %v and gates %v", backup.Labels, backup.Spec.SchedulingGates)
	}
}

// emulating starts an API server with the kinds and expressions of Kubernetes 1.minor, makes the namespace shop, installs
// what that server gets, and waits until it is in force.
func emulating(t *testing.T, minor uint) server {
	t.Helper()
	c, err := envtest.Start(t.Context(), fmt.Sprintf("emulated-version=1.%d", minor))
	must(t, err)
	t.Cleanup(func() { must(t, c.Stop()) })
	s := server{c}
	must(t, everybody(t.Context(), c.Client))
	us := s.client(t, holdfast)
	eventually(t, "right of everybody to do everything", func() bool {
		return us.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, client.DryRunAll) == nil
	})
	for name, annotations := range map[string]map[string]string{
		admission.DefaultNamespace: nil,
		"shop":                     {v1alpha1.AnnotationClaims: guardedClaims.claims},
	} {
		must(t, us.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}))
	}
	caps, err := admission.Discover(us.RESTMapper())
	must(t, err)
	if caps != capabilities(minor) {
		t.Fatalf("an API server of 1.%d can %+v, want %+v", minor, caps, capabilities(minor))
	}
	in, err := admission.Install(t.Context(), us, admission.Identity{}, caps)
	must(t, err)
	for _, name := range in.Written {
		if !caps.MutatingPolicies && (strings.Contains(name, "Mutating") || strings.Contains(name, "holdfast-gated-newcomers")) {
			t.Errorf("%s was installed", name)
		}
	}
	proveOn(t, s, caps)
	return s
}

// proveOn waits until the server refuses everything.
func proveOn(t *testing.T, s server, caps admission.Capabilities) {
	t.Helper()
	proof, err := admission.Prove(t.Context(), admission.Canary{Holdfast: s.client(t, holdfast), Capabilities: caps, Patience: 30 * time.Second,
		Servers: []admission.Server{{Name: "emulating", Probe: s.client(t, canary)}}})
	must(t, err)
	if !proof.Holds() {
		t.Fatalf("not in force:\n%s", strings.Join(proof.Open(), "\n"))
	}
	if slices.Contains(proof.Servers[0].Proven, "label and gate at birth") != caps.MutatingPolicies {
		t.Errorf("of a server that can %+v this is proven: %q", caps, proof.Servers[0].Proven)
	}
}
