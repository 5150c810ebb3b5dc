// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gate runs the controllers of apps and of newcomers against an API server with the admission policies in force, as the identity that config/rbac
// gives them. Everything else of a cluster is played by the tests: whoever owns pods, the scheduler and the kubelets.
package gate

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	options "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/event"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/guardedstatefulapp"
	"github.com/holdfast-dev/holdfast/controllers/hostincident"
	"github.com/holdfast-dev/holdfast/controllers/pod"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

var cluster *envtest.Cluster

func TestMain(m *testing.M) { os.Exit(envtest.Main(m, &cluster)) }

// patience bounds every wait for something that Holdfast does.
const patience = time.Minute

// shop is a namespace of a test.
type shop struct {
	t    *testing.T
	name string
}

// shops counts them: each has a name of its own, however often its test is run.
var shops int

// open makes a namespace in a cluster with two hosts that are well and with Holdfast in it.
func open(t *testing.T) *shop {
	t.Helper()
	shops++
	s := &shop{t: t, name: fmt.Sprintf("shop-%d", shops)}
	ready := corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}
	for _, n := range []string{"one", "two"} {
		n = s.node(n)
		s.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{corev1.LabelHostname: labelled(n)}}})
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}}
		s.change(node, func() { node.Spec.Taints = nil })
		node.Status = ready
		s.must(cluster.Client.Status().Update(t.Context(), node))
	}
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}})
	s.holdfast()
	return s
}

// node is the name of host one or two, and labelled the name that the kubelet gives it.
func (s *shop) node(n string) string { return s.name + "-" + n }

func labelled(node string) string { return "host-" + node }

// holdfast runs until the end of the test.
func (s *shop) holdfast() {
	s.t.Helper()
	if _, err := cluster.Apply(s.t.Context(), "manager", "rbac"); err != nil {
		s.t.Fatal(err)
	}
	config := rest.CopyConfig(cluster.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: admission.Identity{}.Username(), Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + admission.DefaultNamespace}}
	mgr, err := ctrl.NewManager(config, ctrl.Options{Scheme: envtest.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"}, Controller: options.Controller{SkipNameValidation: ptr.To(true)}})
	s.must(err)
	ctx, end := context.WithCancel(context.Background())
	s.must(hostincident.Index(ctx, mgr))
	watch := sight.NewClock(clock.RealClock{})
	apps := &guardedstatefulapp.Reconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Clock: watch, Board: sight.NewBoard(watch, func(string) {}),
		Devices: &guard.Devices{}, Self: "test"}
	s.must(apps.SetupWithManager(mgr, make(chan event.GenericEvent)))
	gate := &pod.Reconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: mgr.GetEventRecorder("holdfast"), Clock: watch}
	s.must(gate.SetupWithManager(mgr))
	direct, err := client.New(config, client.Options{Scheme: envtest.Scheme()})
	s.must(err)
	_, err = admission.Install(ctx, direct, admission.Identity{}, admission.Capabilities{MutatingPolicies: true})
	s.must(err)
	over := make(chan error, 1)
	go func() { over <- mgr.Start(ctx) }()
	s.t.Cleanup(func() {
		end()
		if err := <-over; err != nil {
			s.t.Errorf("Holdfast ended: %v", err)
		}
	})
}

func (s *shop) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *shop) create(objects ...client.Object) {
	s.t.Helper()
	for _, o := range objects {
		if err := cluster.Client.Create(s.t.Context(), o); err != nil {
			s.t.Fatalf("%T %s: %v", o, o.GetName(), err)
		}
	}
}

// change changes an object as it is now.
func (s *shop) change(o client.Object, do func()) {
	s.t.Helper()
	s.await("a change of "+o.GetName(), func(ctx context.Context) (bool, error) {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
			return false, err
		}
		do()
		err := cluster.Client.Update(ctx, o)
		if apierrors.IsConflict(err) {
			return false, nil
		}
		return true, err
	})
}

func (s *shop) await(what string, is func(ctx context.Context) (bool, error)) {
	s.t.Helper()
	if err := wait.PollUntilContextTimeout(s.t.Context(), 100*time.Millisecond, patience, true, is); err != nil {
		s.t.Fatalf("waiting for %s: %v", what, err)
	}
}

// podSpec is of a pod that names the claims.
func podSpec(claims ...string) corev1.PodSpec {
	spec := corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db", Ports: []corev1.ContainerPort{{ContainerPort: 5432}}}}}
	for _, c := range claims {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	return spec
}

func (s *shop) claim(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: ptr.To(""),
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}
}

func (s *shop) app(kind string) *v1alpha1.GuardedStatefulApp {
	return &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "app"}, Spec: v1alpha1.GuardedStatefulAppSpec{
		WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: kind, Name: "db"},
		Health:      v1alpha1.Health{Probes: []v1alpha1.Probe{{Name: "sql", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt32(5432)}}}}}}
}

var labels = map[string]string{"app": "db"}

// deployed is a guarded Deployment on claim data, and its ReplicaSet.
func (s *shop) deployed() *appsv1.ReplicaSet {
	s.t.Helper()
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podSpec("data")}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "db"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template, Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}}}
	s.create(s.claim("data"), d)
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "db-5c", OwnerReferences: []metav1.OwnerReference{
		*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}},
		Spec: appsv1.ReplicaSetSpec{Selector: d.Spec.Selector, Template: template}}
	s.create(set, s.app("Deployment"))
	s.guarded("app=data", "data")
	return set
}

// guarded waits until the list of claims is as expected and the policies gate a newcomer.
func (s *shop) guarded(list, claim string) {
	s.t.Helper()
	s.listed(list)
	s.await("newcomers to be gated", func(ctx context.Context) (bool, error) {
		p := s.pod("probe", nil, claim)
		err := cluster.Client.Create(ctx, p, client.DryRunAll)
		return guard.Gated(p), err
	})
}

func (s *shop) listed(list string) {
	s.t.Helper()
	ns := &corev1.Namespace{}
	s.await("the list of claims to be "+list, func(ctx context.Context) (bool, error) {
		err := cluster.Client.Get(ctx, client.ObjectKey{Name: s.name}, ns)
		return ns.Annotations[v1alpha1.AnnotationClaims] == list, err
	})
}

func (s *shop) pod(name string, owner client.Object, claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: name}, Spec: podSpec(claims...)}
	switch o := owner.(type) {
	case *appsv1.ReplicaSet:
		p.Labels = labels
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(o, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	case *appsv1.StatefulSet:
		p.Labels = labels
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(o, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}
	}
	return p
}

func (s *shop) get(name string) *corev1.Pod {
	s.t.Helper()
	p := &corev1.Pod{}
	s.must(cluster.Client.Get(s.t.Context(), client.ObjectKey{Namespace: s.name, Name: name}, p))
	return p
}

// schedule is what a scheduler does.
func (s *shop) schedule(name, node string) {
	s.t.Helper()
	b := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	s.must(cluster.Client.SubResource("binding").Create(s.t.Context(), s.get(name), b))
}

func (s *shop) kubelet(node string) client.Client {
	s.t.Helper()
	config := rest.CopyConfig(cluster.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + node, Groups: []string{"system:nodes", "system:masters"}}
	c, err := client.New(config, client.Options{Scheme: envtest.Scheme()})
	s.must(err)
	return c
}

// ends is what a kubelet says of a pod that has finished.
func (s *shop) ends(name string) {
	s.t.Helper()
	p := s.get(name)
	c := s.kubelet(p.Spec.NodeName)
	s.await("the kubelet's word", func(ctx context.Context) (bool, error) {
		p = s.get(name)
		p.Status.Phase = corev1.PodSucceeded
		err := c.Status().Update(ctx, p)
		return err == nil, client.IgnoreNotFound(ignoreConflict(err))
	})
}

func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// letIn waits until the pod may start, and returns its node selector for the host.
func (s *shop) letIn(name string) string {
	s.t.Helper()
	p := &corev1.Pod{}
	s.await(name+" to be let in", func(ctx context.Context) (bool, error) {
		err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: s.name, Name: name}, p)
		return !guard.Gated(p), err
	})
	return p.Spec.NodeSelector[corev1.LabelHostname]
}

// waits waits until the pod says for what it waits.
func (s *shop) waits(name, words string) {
	s.t.Helper()
	p := &corev1.Pod{}
	s.await(fmt.Sprintf("%s to say that it waits %q", name, words), func(ctx context.Context) (bool, error) {
		if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: s.name, Name: name}, p); err != nil {
			return false, err
		}
		if !guard.Gated(p) {
			return false, fmt.Errorf("it was let in: %v", p.Status.Conditions)
		}
		return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == v1alpha1.ConditionLetIn && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, words)
		}), nil
	})
}

func TestADeploymentAndABackupShareOneHost(t *testing.T) {
	s := open(t)
	set := s.deployed()
	first := s.pod("db-5c-a", set, "data")
	s.create(first)
	if !guard.Gated(first) || first.Labels[v1alpha1.LabelApp] != "app" {
		t.Fatalf("born with gates %v and labels %v", first.Spec.SchedulingGates, first.Labels)
	}
	if host := s.letIn("db-5c-a"); host != "" {
		t.Errorf("bound to %s, with nobody else there", host)
	}
	s.create(s.pod("backup", nil, "data"))
	s.waits("backup", "on no host yet")
	s.schedule("db-5c-a", s.node("two"))
	if host := s.letIn("backup"); host != labelled(s.node("two")) {
		t.Errorf("the backup may start on %q, and its volume is in use on host two", host)
	}

	by := s.pod("by-hand", nil, "data")
	by.Spec.NodeName = s.node("one")
	if err := cluster.Client.Create(t.Context(), by); !apierrors.IsForbidden(err) {
		t.Errorf("a pod with its node by hand: %v", err)
	}
	s.schedule("backup", s.node("two"))
	s.ends("backup")
	s.must(cluster.Client.Delete(t.Context(), s.get("db-5c-a"))) // its kubelet has not seen it yet
	s.create(s.pod("db-5c-b", set, "data"))
	s.waits("db-5c-b", s.name+"/db-5c-a on claim data: it is terminating")
	app := s.app("")
	s.await("the app to say it", func(ctx context.Context) (bool, error) {
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(app), app)
		c := meta.FindStatusCondition(app.Status.Conditions, v1alpha1.ConditionPostureClean)
		return c != nil && strings.Contains(c.Message, "pod db-5c-b waits at the gate for pod "+s.name+"/db-5c-a") && len(app.Status.Members) == 2, err
	})
}

func TestOfTwoNewcomersAtOnceOneIsLetIn(t *testing.T) {
	s := open(t)
	s.deployed()
	s.create(s.pod("x", nil, "data"), s.pod("y", nil, "data"))
	var in, out string
	s.await("one of them to be let in and the other to wait for it", func(context.Context) (bool, error) {
		x, y := guard.Gated(s.get("x")), guard.Gated(s.get("y"))
		if !x && !y {
			return false, fmt.Errorf("both are in")
		}
		if in, out = "x", "y"; x {
			in, out = "y", "x"
		}
		return x != y, nil
	})
	s.waits(out, "pod "+s.name+"/"+in+" on claim data: it is on no host yet")
}

func TestAStatefulSetKeepsItsPlaceAndLendsIt(t *testing.T) {
	s := open(t)
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podSpec()},
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{*s.claim("data")}}}
	s.create(s.claim("data-db-0"), set, s.app("StatefulSet"))
	s.guarded("app=data-db-*@db-*", "data-db-0")
	own := s.pod("db-0", set, "data-db-0")
	s.create(own)
	if guard.Gated(own) || own.Labels[v1alpha1.LabelApp] != "app" {
		t.Fatalf("born in its place with gates %v and labels %v", own.Spec.SchedulingGates, own.Labels)
	}
	s.schedule("db-0", s.node("one"))
	s.create(s.pod("backup", nil, "data-db-0"))
	if host := s.letIn("backup"); host != labelled(s.node("one")) {
		t.Errorf("let in on %q", host)
	}
	s.listed("app=data-db-*@db-*,app=data-db-0")
	s.schedule("backup", s.node("one"))
	s.must(s.kubelet(s.node("one")).Delete(t.Context(), s.get("db-0"), client.GracePeriodSeconds(0)))
	again := s.pod("db-0", set, "data-db-0")
	s.create(again)
	if !guard.Gated(again) {
		t.Error("the pod of the place starts without waiting, and somebody else is on its claim")
	}
	if host := s.letIn("db-0"); host != labelled(s.node("one")) {
		t.Errorf("let in on %q", host)
	}
	s.ends("backup")
	s.listed("app=data-db-*@db-*")
}
