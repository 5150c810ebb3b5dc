// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pod_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	clientfake "sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/pod"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// shop is a namespace with a guarded workload, and its gatekeepers.
type shop struct {
	t     *testing.T
	api   client.WithWatch
	clock *clocktesting.FakeClock
}

// open makes a namespace whose list of guarded claims is given, with two hosts that are well.
func open(t *testing.T, claims string, objects ...client.Object) *shop {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{v1alpha1.AnnotationClaims: claims}}}, host("node-1"), host("node-2"))
	api := clientfake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&corev1.Pod{}).WithObjects(objects...).Build()
	return &shop{t: t, api: api, clock: clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
}

func host(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
}

// keeper is a leader; cached changes what its cache shows and hooks see what it does.
func (s *shop) keeper(hooks interceptor.Funcs) *pod.Reconciler {
	return &pod.Reconciler{Client: interceptor.NewClient(s.api, hooks), Live: s.api, Clock: sight.NewClock(s.clock)}
}

func (s *shop) look(r *pod.Reconciler) time.Duration {
	s.t.Helper()
	result, err := r.Reconcile(s.t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "shop"}})
	if err != nil {
		s.t.Fatal(err)
	}
	return result.RequeueAfter
}

func (s *shop) create(objects ...client.Object) {
	s.t.Helper()
	for _, o := range objects {
		if err := s.api.Create(s.t.Context(), o); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *shop) pod(name string) *corev1.Pod {
	s.t.Helper()
	p := &corev1.Pod{}
	if err := s.api.Get(s.t.Context(), types.NamespacedName{Namespace: "shop", Name: name}, p); err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *shop) annotation(key string) string {
	s.t.Helper()
	ns := &corev1.Namespace{}
	if err := s.api.Get(s.t.Context(), types.NamespacedName{Name: "shop"}, ns); err != nil {
		s.t.Fatal(err)
	}
	return ns.Annotations[key]
}

// waits fails unless the pod is at the gate and says so.
func (s *shop) waits(name, words string) {
	s.t.Helper()
	p := s.pod(name)
	if !guard.Gated(p) {
		s.t.Fatalf("%s was let in", name)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == v1alpha1.ConditionLetIn && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, words) {
			return
		}
	}
	s.t.Errorf("%s does not say that it waits %q: %v", name, words, p.Status.Conditions)
}

// in fails unless the pod was let in, on the host given.
func (s *shop) in(name, host string) {
	s.t.Helper()
	p := s.pod(name)
	if guard.Gated(p) || p.Spec.NodeSelector[corev1.LabelHostname] != host {
		s.t.Fatalf("%s: gates %v, nodeSelector %v, %v; want it let in on %q", name, p.Spec.SchedulingGates, p.Spec.NodeSelector, p.Status.Conditions, host)
	}
}

func onClaim(name, claim string, owner client.Object) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{v1alpha1.LabelApp: "app"}},
		Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}}}
	switch o := owner.(type) {
	case *appsv1.ReplicaSet:
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(o, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	case *appsv1.StatefulSet:
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(o, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}
	}
	return p
}

func gated(p *corev1.Pod) *corev1.Pod {
	p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/theirs"}, {Name: v1alpha1.GateNewcomer}}
	return p
}

func on(node string, p *corev1.Pod) *corev1.Pod {
	p.Spec.NodeName, p.Status.Phase = node, corev1.PodRunning
	return p
}

// terminating is deleted, and its object is kept by a finalizer as it would be by its kubelet.
func (s *shop) terminating(p *corev1.Pod) {
	s.t.Helper()
	p.Finalizers = []string{"example.com/stays"}
	s.create(p)
	if err := s.api.Delete(s.t.Context(), p); err != nil {
		s.t.Fatal(err)
	}
}

func app(kind string) *v1alpha1.GuardedStatefulApp {
	return &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app", Finalizers: []string{v1alpha1.FinalizerApp}},
		Spec: v1alpha1.GuardedStatefulAppSpec{WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: kind, Name: "db"}}}
}

var replicaSet = &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-5c", UID: "set",
	OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "db", UID: "deployment", Controller: ptr.To(true)}}}}

// deployed is a shop with a guarded Deployment on claim data.
func deployed(t *testing.T, objects ...client.Object) *shop {
	t.Helper()
	return open(t, "app=data", append(objects, app("Deployment"), replicaSet.DeepCopy(), claim("shop", "data", "pv-1"), volume("pv-1"),
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "deployment"},
			Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: onClaim("", "data", nil).Spec}}})...)
}

// statefulSet is a shop with a guarded StatefulSet, whose pod db-0 runs on node-1.
func statefulSet(t *testing.T) (*shop, *appsv1.StatefulSet) {
	t.Helper()
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "set"}, Spec: appsv1.StatefulSetSpec{
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}}}
	return open(t, "app=data-db-*@db-*", app("StatefulSet"), set, claim("shop", "data-db-0", "pv-1"), volume("pv-1"), on("node-1", onClaim("db-0", "data-db-0", set))), set
}

func claim(namespace, name, volume string, modes ...corev1.PersistentVolumeAccessMode) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume, AccessModes: modes}}
}

func volume(name string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
		CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: "h-1"}}}}
}

func TestThePodOfADeploymentIsLetInAtOnceWhenNobodyElseIsThere(t *testing.T) {
	s := deployed(t, gated(onClaim("db-5c-x", "data", replicaSet)))
	r := s.keeper(interceptor.Funcs{})
	s.look(r)
	s.in("db-5c-x", "")
	if gates := s.pod("db-5c-x").Spec.SchedulingGates; len(gates) != 1 || gates[0].Name != "example.com/theirs" {
		t.Errorf("gates %v: only Holdfast's is Holdfast's to lift", gates)
	}
	if got := s.annotation(v1alpha1.AnnotationAdmitted); got != "data=uid-db-5c-x" {
		t.Errorf("admitted %q", got)
	}
	s.look(r)
	if got := s.annotation(v1alpha1.AnnotationAdmitted); got != "" {
		t.Errorf("admitted %q: whoever lists pods sees it now", got)
	}
}

func TestAReplacementWaitsForThePredecessorsObjectWhateverTheCacheShows(t *testing.T) {
	s := deployed(t, gated(onClaim("db-5c-new", "data", replicaSet)))
	s.terminating(on("node-1", onClaim("db-5c-old", "data", replicaSet)))
	stale := interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		err := c.List(ctx, list, opts...)
		if pods, ok := list.(*corev1.PodList); ok {
			var left []corev1.Pod
			for _, p := range pods.Items {
				if p.Name != "db-5c-old" {
					left = append(left, p)
				}
			}
			pods.Items = left
		}
		return err
	}}
	r := s.keeper(stale)
	if next := s.look(r); next == 0 {
		t.Error("nobody looks again")
	}
	s.waits("db-5c-new", "shop/db-5c-old on claim data: it is terminating")
	old := s.pod("db-5c-old")
	old.Finalizers = nil
	if err := s.api.Update(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	s.look(r)
	s.in("db-5c-new", "")
}

func TestASecondReplicaJoinsTheFirstOnItsHost(t *testing.T) {
	s := deployed(t, gated(onClaim("db-5c-x", "data", replicaSet)), gated(onClaim("db-5c-y", "data", replicaSet)))
	r := s.keeper(interceptor.Funcs{})
	s.look(r)
	s.in("db-5c-x", "")
	s.waits("db-5c-y", "goes first")
	s.look(r)
	s.waits("db-5c-y", "on no host yet")
	first := s.pod("db-5c-x")
	first.Spec.NodeName = "node-2"
	if err := s.api.Update(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	s.look(r)
	s.in("db-5c-y", "node-2")
}

// beside is what others write to a pod in the instant before its condition is, as often as given.
func (s *shop) beside(often int) interceptor.Funcs {
	return interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
		if often--; often >= 0 {
			now := s.pod(o.GetName())
			metav1.SetMetaDataAnnotation(&now.ObjectMeta, "written", strconv.Itoa(often))
			if err := s.api.Update(ctx, now); err != nil {
				return err
			}
		}
		return c.SubResource(sub).Patch(ctx, o, p, opts...)
	}}
}

func TestOneThatWaitsIsToldWhateverOthersWriteToIt(t *testing.T) {
	s := deployed(t, onClaim("db-5c-x", "data", replicaSet), gated(onClaim("db-5c-y", "data", replicaSet)))
	r := s.keeper(s.beside(1))
	s.look(r)
	s.waits("db-5c-y", "on no host yet")

	s.create(gated(onClaim("db-5c-z", "data", replicaSet)))
	r = s.keeper(s.beside(100))
	s.look(r)
	if c := s.pod("db-5c-z").Status.Conditions; len(c) != 0 {
		t.Fatalf("told by a write that met another: %v", c)
	}
	r.Client = s.api
	s.look(r)
	s.waits("db-5c-z", "on no host yet")
}

func TestOneThatWasBoundToAHostInTroubleAndNeverRanHoldsNobodyUp(t *testing.T) {
	s := deployed(t, on("node-1", onClaim("db-5c-x", "data", replicaSet)), gated(onClaim("db-5c-y", "data", replicaSet)))
	r := s.keeper(interceptor.Funcs{})
	s.look(r)
	s.in("db-5c-y", "node-1")
	s.create(&v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: "node-1-ab-1"}, Spec: v1alpha1.HostIncidentSpec{NodeName: "node-1"}})
	s.look(r)
	s.in("db-5c-y", "node-1") // nobody waits for it
	if err := s.api.Delete(t.Context(), s.pod("db-5c-x")); err != nil {
		t.Fatal(err)
	}
	s.create(gated(onClaim("db-5c-z", "data", replicaSet)))
	s.look(r)
	s.waits("db-5c-z", "shop/db-5c-y on claim data: its host node-1 has the open incident")
	s.look(r)
	s.in("db-5c-z", "")
}

func TestAStrangerIsLetInOnlyWhenThePlaceHasBeenOffForAWhile(t *testing.T) {
	s, _ := statefulSet(t)
	s.create(gated(onClaim("backup", "data-db-0", nil)))
	r := s.keeper(interceptor.Funcs{})
	s.look(r)
	s.waits("backup", "until every API server knows")
	if got := s.annotation(v1alpha1.AnnotationClaims); got != "app=data-db-*@db-*,app=data-db-0" {
		t.Errorf("claims %q: db-0 could start without waiting", got)
	}
	s.clock.Step(2 * time.Second)
	s.look(r)
	s.waits("backup", "until every API server knows")
	next := s.keeper(interceptor.Funcs{}) // another leader knows nothing of the time that has passed
	s.look(next)
	s.waits("backup", "until every API server knows")
	s.clock.Step(2 * time.Second)
	s.look(next)
	s.waits("backup", "until every API server knows")
	s.look(r)
	s.in("backup", "node-1")
}

func TestAPlaceThatCameBackIsOffForAWhileAgain(t *testing.T) {
	s, _ := statefulSet(t)
	s.create(gated(onClaim("backup", "data-db-0", nil)))
	r := s.keeper(interceptor.Funcs{})
	s.look(r)
	ns := &corev1.Namespace{}
	if err := s.api.Get(t.Context(), types.NamespacedName{Name: "shop"}, ns); err != nil {
		t.Fatal(err)
	}
	ns.Annotations[v1alpha1.AnnotationClaims] = "app=data-db-*@db-*"
	if err := s.api.Update(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	s.clock.Step(time.Minute)
	s.look(r)
	s.waits("backup", "until every API server knows")
}

func TestAStrangerIsNotLetInAfterAllWhenItsNeighbourGoes(t *testing.T) {
	s, _ := statefulSet(t)
	s.create(gated(onClaim("backup", "data-db-0", nil)))
	r := s.keeper(interceptor.Funcs{})
	s.look(r)
	old := s.pod("db-0")
	old.Finalizers = []string{"example.com/stays"}
	if err := errors.Join(s.api.Update(t.Context(), old), s.api.Delete(t.Context(), old)); err != nil {
		t.Fatal(err)
	}
	s.clock.Step(time.Minute)
	s.look(r)
	s.waits("backup", "terminating")
	if got := s.annotation(v1alpha1.AnnotationAdmitted); got != "" {
		t.Errorf("admitted %q: the workload's own pod would wait for it", got)
	}
}

func TestAVolumeIsWaitedForUnderWhateverClaim(t *testing.T) {
	s := deployed(t, gated(onClaim("db-5c-x", "data", replicaSet)), claim("lab", "copy", "pv-2"), volume("pv-2"))
	other := on("node-1", onClaim("copier", "copy", nil))
	other.Namespace = "lab"
	s.terminating(other)
	s.look(s.keeper(interceptor.Funcs{}))
	s.waits("db-5c-x", "lab/copier on claim data: it is terminating")
}

func TestTwoLeadersLetInOne(t *testing.T) {
	reader := func() *corev1.Pod { return gated(onClaim("reader", "data", nil)) }
	second := func(s *shop) { s.create(gated(onClaim("db-5c-x", "data", replicaSet))) }
	tests := []struct {
		name string
		// when the other leader comes in, by what the first is about to write.
		at string
	}{
		{"after the first has listed pods", "*v1.Namespace"},
		{"after the first has written down whom it lets in", "*v1.Pod"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := deployed(t, reader())
			// It tells nobody, so that nothing but the Namespace and the pods that are let in is changed.
			other, met := s.keeper(interceptor.Funcs{SubResourcePatch: func(context.Context, client.Client, string, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
				return errors.New("not now")
			}}), false
			first := s.keeper(interceptor.Funcs{Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
				if _, isPod := o.(*corev1.Pod); !met && (test.at == "*v1.Pod") == isPod {
					met = true
					second(s)
					s.look(other)
				}
				return c.Patch(ctx, o, p, opts...)
			}})
			s.look(first)
			s.look(first)
			s.look(other)
			if !met {
				t.Fatal("the two never met")
			}
			if one, two := guard.Gated(s.pod("reader")), guard.Gated(s.pod("db-5c-x")); one == two {
				t.Errorf("gated: the stranger %v, the workload's own %v; want one of them", one, two)
			}
		})
	}
}

func TestClaimsForManyHostsAreWaitedForByAppsOfOneReplica(t *testing.T) {
	for name, replicas := range map[string]int32{"one": 1, "two": 2} {
		t.Run(name, func(t *testing.T) {
			s := deployed(t, gated(onClaim("db-5c-new", "data", replicaSet)))
			s.terminating(on("node-1", onClaim("db-5c-old", "data", replicaSet)))
			d := &appsv1.Deployment{}
			if err := s.api.Get(t.Context(), types.NamespacedName{Namespace: "shop", Name: "db"}, d); err != nil {
				t.Fatal(err)
			}
			d.Spec.Replicas = &replicas
			many := claim("shop", "data", "pv-1", corev1.ReadWriteMany)
			if err := errors.Join(s.api.Update(t.Context(), d), s.api.Update(t.Context(), many)); err != nil {
				t.Fatal(err)
			}
			s.look(s.keeper(interceptor.Funcs{}))
			if replicas == 2 {
				s.in("db-5c-new", "")
				return
			}
			s.waits("db-5c-new", "terminating")
		})
	}
}

func TestAGateThatNobodyGuardsIsLifted(t *testing.T) {
	s := open(t, "", gated(onClaim("alone", "data", nil)), on("node-1", onClaim("other", "data", nil)))
	s.look(s.keeper(interceptor.Funcs{}))
	s.in("alone", "")
}

func TestAPodIsNotLetInOnAHostWithAnOpenIncident(t *testing.T) {
	s := deployed(t, gated(onClaim("db-5c-y", "data", replicaSet)), on("node-1", onClaim("db-5c-x", "data", replicaSet)),
		&v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: "node-1-ab-1"}, Spec: v1alpha1.HostIncidentSpec{NodeName: "node-1"}})
	s.look(s.keeper(interceptor.Funcs{}))
	s.waits("db-5c-y", "open incident node-1-ab-1")
}
