// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

const (
	sets        = "StatefulSet"
	deployments = "Deployment"
)

func guardedBy(kind string) v1alpha1.GuardedStatefulApp {
	return v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app", Finalizers: []string{v1alpha1.FinalizerApp}},
		Spec: v1alpha1.GuardedStatefulAppSpec{WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: kind, Name: "db"}}}
}

func template(claims ...string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{Spec: claimed(claims...).Spec}
}

func named(p *corev1.Pod, namespace, name string, owner client.Object) *corev1.Pod {
	p.Namespace, p.Name, p.UID = namespace, name, types.UID("uid-"+name)
	switch o := owner.(type) {
	case *appsv1.ReplicaSet:
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(o, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	case *appsv1.StatefulSet:
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(o, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}
	}
	return p
}

func pvc(namespace, name, volume string, modes ...corev1.PersistentVolumeAccessMode) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume, AccessModes: modes}}
}

func pv(name, driver, handle string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
		CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle}}}}
}

func podNames(pods []corev1.Pod) []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

func resolve(t *testing.T, g v1alpha1.GuardedStatefulApp, objects ...client.Object) guard.App {
	t.Helper()
	a, err := guard.Resolve(t.Context(), holding(t, objects...), g)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func deployment(uid string) (*appsv1.Deployment, *appsv1.ReplicaSet) {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: types.UID(uid)},
		Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](2), Template: template("data"), Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}}}
	return d, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-5c", UID: types.UID(uid + "-set"),
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}}}
}

func TestPodsOfADeploymentAreThoseOfItsReplicaSets(t *testing.T) {
	d, set := deployment("d")
	other := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-7", UID: "other"}}
	a := resolve(t, guardedBy(deployments), d, set, other,
		named(claimed("data"), "shop", "db-5c-x", set), named(claimed("data", "scratch"), "shop", "backup", nil), named(claimed("else"), "shop", "web-7-y", other),
		pvc("shop", "data", ""), pvc("shop", "scratch", ""))
	if got := podNames(a.Pods); !slices.Equal(got, []string{"db-5c-x"}) {
		t.Errorf("pods %v", got)
	}
	if got := podNames(a.Guests); !slices.Equal(got, []string{"backup"}) {
		t.Errorf("guests %v", got)
	}
	if len(a.Claims) != 1 || !a.Claims["data"] {
		t.Errorf("claims %v: what a guest names besides is not the app's", a.Claims)
	}
	if w := a.Workload; w.Kind != guard.KindDeployment || w.Rolls || w.Replicas != 2 {
		t.Errorf("workload %+v", w)
	}
}

func TestPodsThatTheirWorkloadLeftBehindAreStillTheAppsOwn(t *testing.T) {
	left := named(claimed("data"), "shop", "db-0", nil)
	left.Labels[v1alpha1.LabelApp] = "app"
	backup := named(claimed("data"), "shop", "backup", nil)
	backup.Labels[v1alpha1.LabelApp] = "app"
	a := resolve(t, guardedBy(sets), left, backup)
	if got := podNames(a.Pods); a.Workload != nil || !slices.Equal(got, []string{"db-0"}) || len(a.Guests) != 1 {
		t.Errorf("pods %v, guests %v", got, podNames(a.Guests))
	}
}

func TestASelectorFindsPodsWhoeverOwnsThem(t *testing.T) {
	g := guardedBy(sets)
	g.Spec.WorkloadRef, g.Spec.PodSelector = nil, &metav1.LabelSelector{MatchLabels: map[string]string{"cluster": "pg"}}
	one, two := named(claimed("pg-1"), "shop", "pg-1", nil), named(claimed("pg-2"), "shop", "pg-2", nil)
	one.Labels["cluster"], two.Labels["cluster"] = "pg", "pg"
	two.CreationTimestamp = metav1.NewTime(time.Unix(1000, 0))
	a := resolve(t, g, one, two, named(claimed("pg-1"), "shop", "reader", nil))
	if got := podNames(a.Pods); !slices.Equal(got, []string{"pg-1", "pg-2"}) || len(a.Guests) != 1 {
		t.Errorf("pods %v, guests %v", got, podNames(a.Guests))
	}
	if got := admission.FormatClaims(a.Entries()); got != "app=pg-2,app=pg-1" {
		t.Errorf("entries %q", got)
	}
}

func TestWhatWasGuardedStaysGuardedWithoutAPodThatNamesIt(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{v1alpha1.AnnotationClaims: "app=data-db-*@db-*,app=old,app=gone,other=theirs"}}}
	a := resolve(t, guardedBy(sets), ns, pvc("shop", "data-db-7", ""), pvc("shop", "old", ""), pvc("shop", "theirs", ""),
		named(claimed("data-db-7"), "shop", "backup", nil))
	if len(a.Claims) != 2 || !a.Claims["data-db-7"] || !a.Claims["old"] || len(a.Guests) != 1 {
		t.Errorf("claims %v, guests %v", a.Claims, podNames(a.Guests))
	}
}

func TestPlacesAreGivenByNamesThatSayWhoIsOnAClaim(t *testing.T) {
	set := func(change func(*appsv1.StatefulSetSpec)) *appsv1.StatefulSet {
		s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "s"}, Spec: appsv1.StatefulSetSpec{Template: template("shared"),
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}}}
		change(&s.Spec)
		return s
	}
	d, _ := deployment("d")
	tests := []struct {
		name   string
		kind   string
		object client.Object
		want   string
	}{
		{"one replica", sets, set(func(*appsv1.StatefulSetSpec) {}), "app=data-db-*@db-*,app=shared@db-0"},
		{"ordinals from 3", sets, set(func(s *appsv1.StatefulSetSpec) { s.Ordinals = &appsv1.StatefulSetOrdinals{Start: 3} }), "app=data-db-*@db-*,app=shared@db-3"},
		{"several share a claim", sets, set(func(s *appsv1.StatefulSetSpec) { s.Replicas = ptr.To[int32](2) }), "app=data-db-*@db-*,app=shared"},
		{"a Deployment", deployments, d, "app=data"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := resolve(t, guardedBy(test.kind), test.object)
			if got := admission.FormatClaims(a.Entries()); got != test.want {
				t.Errorf("entries %q, want %q", got, test.want)
			}
		})
	}
}

func TestPlacesThatAreWantedAgain(t *testing.T) {
	ordinals := func(first int) *guard.Workload {
		return &guard.Workload{Kind: guard.KindStatefulSet, Name: "db", Replicas: 3, FirstOrdinal: first}
	}
	two := &guard.Workload{Kind: guard.KindDeployment, Name: "db", Replicas: 2}
	now := metav1.Now()
	tests := []struct {
		name     string
		kind     string
		workload *guard.Workload
		deleted  bool
		lost     []string
		want     []string
	}{
		{"an ordinal it has", sets, ordinals(0), false, []string{"db-2"}, []string{"shop/app/db-2"}},
		{"one it was scaled down below", sets, ordinals(0), false, []string{"db-3"}, nil},
		{"one before its first", sets, ordinals(5), false, []string{"db-4"}, nil},
		{"one after its first", sets, ordinals(5), false, []string{"db-7"}, []string{"shop/app/db-7"}},
		{"a pod of somebody else", sets, ordinals(0), false, []string{"backup-1"}, nil},
		{"a workload that is gone", sets, nil, false, []string{"db-0"}, nil},
		{"a workload that is going", sets, &guard.Workload{Kind: guard.KindStatefulSet, Name: "db", Replicas: 3, Going: true}, false, []string{"db-0"}, nil},
		{"an app that is going", sets, ordinals(0), true, []string{"db-0"}, nil},
		{"a Deployment wants as many as it has replicas", deployments, two, false, []string{"db-5c-x"}, []string{"shop/app/1", "shop/app/2"}},
		{"but none for a guest", deployments, two, false, []string{"backup"}, nil},
		{"nor when it was scaled to none", deployments, &guard.Workload{Kind: guard.KindDeployment, Name: "db"}, false, []string{"db-5c-x"}, nil},
		{"selected pods want one", "", &guard.Workload{Kind: guard.KindPods, Replicas: 1}, false, []string{"pg-1"}, []string{"shop/app/1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := guard.App{GuardedStatefulApp: guardedBy(test.kind), Workload: test.workload}
			if test.deleted {
				a.DeletionTimestamp = &now
			}
			if got := a.Places(test.lost); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestSuccessorsOfADeploymentHaveOtherNames(t *testing.T) {
	on := func(name, node string) corev1.Pod {
		p := named(claimed("data"), "shop", name, nil)
		p.Spec.NodeName = node
		return *p
	}
	ended := on("db-5c-old", "b")
	ended.Status.Phase = corev1.PodFailed
	a := guard.App{GuardedStatefulApp: guardedBy(deployments), Workload: &guard.Workload{Kind: guard.KindDeployment, Name: "db", Replicas: 2},
		Pods: []corev1.Pod{on("db-5c-lost", "a"), on("db-5c-u", "b"), on("db-5c-v", "b"), on("db-5c-w", ""), ended}}
	serves := func(p *corev1.Pod) evidence.Serving {
		if p.Name == "db-5c-v" {
			return evidence.ServingYes
		}
		return evidence.ServingNo
	}
	want := []evidence.Successor{{App: "shop/app/1", Pod: "shop/db-5c-v", Host: "b", Serving: evidence.ServingYes}, {App: "shop/app/2", Pod: "shop/db-5c-u", Host: "b", Serving: evidence.ServingNo}}
	if got := a.Successors("a", serves); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAVolumeIsGuardedByWhateverClaimItIsNamed(t *testing.T) {
	c := holding(t, pvc("shop", "data", "pv-1"), pvc("lab", "copy", "pv-2"), pvc("shop", "else", "pv-3"), pvc("lab", "same-handle", "pv-4"),
		pv("pv-1", "csi.example.com", "h-1"), pv("pv-2", "csi.example.com", "h-1"), pv("pv-3", "csi.example.com", "h-3"), pv("pv-4", "other.example.com", "h-1"))
	claims, err := guard.ReadClaims(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	apps := []guard.App{{GuardedStatefulApp: guardedBy(sets), Claims: map[string]bool{"data": true}}}
	guards := guard.GuardsOf(apps, claims)
	tests := []struct {
		name    string
		pod     *corev1.Pod
		guarded bool
	}{
		{"by its own claim", named(claimed("data"), "shop", "p", nil), true},
		{"by another claim in another namespace", named(claimed("copy"), "lab", "p", nil), true},
		{"a claim of that name in another namespace", named(claimed("data"), "lab", "p", nil), false},
		{"another volume", named(claimed("else"), "shop", "p", nil), false},
		{"the same handle of another driver", named(claimed("same-handle"), "lab", "p", nil), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := guards.Of(test.pod); (len(got) == 1) != test.guarded {
				t.Errorf("guarded by %d apps", len(got))
			}
		})
	}
	if got := claims.PersistentVolumes("shop/data"); !slices.Equal(got, []string{"pv-1", "pv-2"}) {
		t.Errorf("volumes %v", got)
	}
}
