// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	clientfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/fake"
)

func holding(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	return clientfake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
}

func app(change func(*v1alpha1.GuardedStatefulAppSpec)) guard.App {
	a := guard.App{}
	a.Spec.Mode = v1alpha1.ModeEnforce
	a.Spec.OnHostLoss = v1alpha1.OnHostLoss{Action: "FenceAndMigrate", ConfirmAfterSeconds: 10, Approval: "Automatic"}
	a.Spec.OnKubeletFailure = v1alpha1.OnKubeletFailure{Traffic: "Keep", WhenNotServing: v1alpha1.NotServingFence}
	a.Spec.OnIsolation.WhenNotServing = v1alpha1.NotServingFence
	a.Spec.OnHostLoss.MinimumProof = v1alpha1.MinimumProofAttested
	if change != nil {
		change(&a.Spec)
	}
	return a
}

func TestTheMostCarefulAppOnAHostWins(t *testing.T) {
	bold := app(nil)
	tests := []struct {
		name   string
		change func(*v1alpha1.GuardedStatefulAppSpec)
		was    func(verdict.Policy) bool
	}{
		{"confirmAfter is the largest", func(s *v1alpha1.GuardedStatefulAppSpec) { s.OnHostLoss.ConfirmAfterSeconds = 30 },
			func(p verdict.Policy) bool { return p.ConfirmAfter == 30*time.Second }},
		{"one Shadow is enough", func(s *v1alpha1.GuardedStatefulAppSpec) { s.Mode = v1alpha1.ModeShadow }, func(p verdict.Policy) bool { return p.Shadow }},
		{"one Paused is enough", func(s *v1alpha1.GuardedStatefulAppSpec) { s.Mode = v1alpha1.ModePaused }, func(p verdict.Policy) bool { return p.Paused }},
		{"one Manual is enough", func(s *v1alpha1.GuardedStatefulAppSpec) { s.OnHostLoss.Approval = "Manual" }, func(p verdict.Policy) bool { return p.ManualApproval }},
		{"one Hold is enough", func(s *v1alpha1.GuardedStatefulAppSpec) { s.OnHostLoss.Action = "Hold" }, func(p verdict.Policy) bool { return p.OnLoss == verdict.Hold }},
		{"one Follow is enough", func(s *v1alpha1.GuardedStatefulAppSpec) { s.OnKubeletFailure.Traffic = "Follow" }, func(p verdict.Policy) bool { return !p.KeepTraffic }},
		{"whenNotServing unset holds", func(s *v1alpha1.GuardedStatefulAppSpec) { s.OnKubeletFailure.WhenNotServing = "" },
			func(p verdict.Policy) bool { return p.NotServing == verdict.Hold }},
		{"so does onIsolation unset", func(s *v1alpha1.GuardedStatefulAppSpec) { s.OnIsolation.WhenNotServing = "" },
			func(p verdict.Policy) bool { return p.Isolated == verdict.Hold }},
		{"one that asks for a device's proof is enough", func(s *v1alpha1.GuardedStatefulAppSpec) { s.OnHostLoss.MinimumProof = "" },
			func(p verdict.Policy) bool { return p.MinimumProof == evidence.StrengthPowerOff }},
	}
	before := guard.PolicyFor([]guard.App{bold, bold}, nil, v1alpha1.GuardConfigSpec{})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.was(before) {
				t.Fatalf("already so without the careful app: %+v", before)
			}
			for _, order := range [][]guard.App{{bold, app(test.change)}, {app(test.change), bold}} {
				if p := guard.PolicyFor(order, nil, v1alpha1.GuardConfigSpec{}); !test.was(p) {
					t.Errorf("not so: %+v", p)
				}
			}
		})
	}
}

func TestAProfilesFloorAndTheDefaultsOfTheCluster(t *testing.T) {
	profile := &v1alpha1.FencingProfile{Spec: v1alpha1.FencingProfileSpec{Floors: v1alpha1.Floors{ConfirmAfterSeconds: 60}}}
	p := guard.PolicyFor([]guard.App{app(nil)}, profile, v1alpha1.GuardConfigSpec{})
	if p.ConfirmAfter != time.Minute || p.BlindPercent != 50 || p.BlindAPISilent != 5*time.Second || p.StaleAfter != 0 || p.MinimumProof != evidence.StrengthPowerOff {
		t.Errorf("got %+v", p)
	}
	profile.Spec.MinimumProof = v1alpha1.MinimumProofAttested
	if p := guard.PolicyFor([]guard.App{app(nil)}, profile, v1alpha1.GuardConfigSpec{}); p.MinimumProof != evidence.StrengthAttested {
		t.Errorf("where app and profile take a human's word, %s is asked for", p.MinimumProof)
	}
	profile.Spec.MinimumProof = v1alpha1.MinimumProofSelfFenced
	if p := guard.PolicyFor([]guard.App{app(nil)}, profile, v1alpha1.GuardConfigSpec{}); p.MinimumProof != evidence.StrengthSelfFenced {
		t.Errorf("where the app takes a human's word and the profile a watchdog, %s is asked for", p.MinimumProof)
	}
	if p := guard.PolicyFor(nil, profile, v1alpha1.GuardConfigSpec{}); p.MinimumProof != evidence.StrengthPowerOff {
		t.Errorf("where nobody is asked, %s is enough", p.MinimumProof)
	}
	profile.Spec.Floors.ConfirmAfterSeconds = 5
	if p := guard.PolicyFor([]guard.App{app(nil)}, profile, v1alpha1.GuardConfigSpec{}); p.ConfirmAfter != 10*time.Second {
		t.Errorf("a floor below what the app asks for lowers it to %s", p.ConfirmAfter)
	}
}

const password = "correct-horse-battery"

func device(nodes ...string) *v1alpha1.IPMIMethod {
	m := &v1alpha1.IPMIMethod{Port: 623, CredentialsSecretRef: &v1alpha1.SecretReference{Name: "bmc"}}
	for _, n := range nodes {
		m.Hosts = append(m.Hosts, v1alpha1.HostDevice{NodeName: n, Address: "bmc-" + n})
	}
	return m
}

func profile(name string, m *v1alpha1.IPMIMethod) *v1alpha1.FencingProfile {
	return &v1alpha1.FencingProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.FencingProfileSpec{
		NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"rack": "r1"}},
		Levels:       []v1alpha1.FencingLevel{{Methods: []v1alpha1.FencingMethod{{Name: "power", IPMI: m}}}},
	}}
}

func secret(data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "holdfast-system", Name: "bmc"}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func racked(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"rack": "r1"}}}
}

// asIPMI lets the fake driver stand where IPMI would.
func asIPMI() fencing.Registry { return fencing.Registry{"ipmi": fake.NewWorld().Driver()} }

func devices(t *testing.T, objects ...client.Object) *guard.Devices {
	t.Helper()
	c := holding(t, objects...)
	return &guard.Devices{Secrets: c, Namespace: "holdfast-system", Drivers: asIPMI()}
}

func TestExactlyOneProfileFencesAHost(t *testing.T) {
	one, two := profile("one", device("a")), profile("two", device("a"))
	if p, err := devices(t).Profile(t.Context(), holding(t, one), racked("a")); err != nil || p.Name != "one" {
		t.Errorf("got %v, %v", p, err)
	}
	_, err := devices(t).Profile(t.Context(), holding(t, one, two), racked("a"))
	if !errors.Is(err, guard.ErrConflicted) || !strings.Contains(err.Error(), "one and two") || !strings.Contains(err.Error(), "nodeSelector") {
		t.Errorf("two profiles: %v", err)
	}
	if _, err := devices(t).Profile(t.Context(), holding(t, one), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}}); !errors.Is(err, guard.ErrNoProfile) {
		t.Errorf("no profile: %v", err)
	}
}

func TestADeviceIsFoundWithItsCredentialsOrNamesWhatIsMissing(t *testing.T) {
	good := map[string]string{"username": "admin", "password": password}
	tests := []struct {
		name   string
		node   string
		secret *corev1.Secret
		want   error
		says   []string
	}{
		{"well", "a", secret(good), nil, nil},
		{"unlisted", "b", secret(good), guard.ErrUnlisted, []string{"b", "power"}},
		{"no secret", "a", nil, guard.ErrSecretMissing, []string{"holdfast-system/bmc", "username", "password"}},
		{"no username", "a", secret(map[string]string{"password": password}), guard.ErrSecretMalformed, []string{"holdfast-system/bmc", "username"}},
		{"empty password", "a", secret(map[string]string{"username": "root-of-all", "password": ""}), guard.ErrSecretMalformed, []string{"holdfast-system/bmc", "password"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var objects []client.Object
			if test.secret != nil {
				objects = append(objects, test.secret)
			}
			got := devices(t, objects...).For(t.Context(), profile("one", device("a")), test.node, "node-uuid")
			if len(got) != 1 || got[0].Method != "power" || got[0].Level != 1 || !errors.Is(got[0].Err, test.want) {
				t.Fatalf("got %+v", got)
			}
			words := fmt.Sprintf("%v %+v %#v", got[0].Err, got[0], got[0].Target)
			for _, s := range test.says {
				if !strings.Contains(got[0].Err.Error(), s) {
					t.Errorf("%q does not name %s", got[0].Err, s)
				}
			}
			if strings.Contains(words, password) || strings.Contains(words, "root-of-all") {
				t.Errorf("the content of the Secret is told: %s", words)
			}
			if test.want == nil && (got[0].Target.Credentials.Password != password || got[0].SystemUUID != "node-uuid" || got[0].Target.Address != "bmc-a") {
				t.Errorf("got %+v", got[0])
			}
		})
	}
}

func TestAHostsOwnSecretAndItsPinnedIdentityComeFirst(t *testing.T) {
	m := device("a")
	m.Hosts[0].CredentialsSecretRef = &v1alpha1.SecretReference{Name: "own"}
	m.Hosts[0].PinnedSystemUUID = "pinned"
	own := secret(map[string]string{"username": "u", "password": "p"})
	own.Name = "own"
	got := devices(t, own).For(t.Context(), profile("one", m), "a", "node-uuid")
	if got[0].Err != nil || got[0].Target.Credentials.Username != "u" || got[0].SystemUUID != "pinned" {
		t.Errorf("got %+v", got[0])
	}
}

func claimed(claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", Labels: map[string]string{}}}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	return p
}

func TestAVolumeThatCannotBeResolvedHasNoDriver(t *testing.T) {
	bound := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-1"}}
	pending := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pending"}}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-1"}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
		CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: "h-1"}}}}
	got := guard.Volumes(t.Context(), holding(t, bound, pending, pv), claimed("data", "pending", "missing"))
	want := []evidence.Volume{{Claim: "data", Driver: "csi.example.com", Handle: "h-1"}, {Claim: "pending"}, {Claim: "missing"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAnAppThatWasAcceptedStaysUnderGuardWithoutItsWorkload(t *testing.T) {
	guarded := v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", Finalizers: []string{v1alpha1.FinalizerApp}},
		Spec: v1alpha1.GuardedStatefulAppSpec{WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}}}
	refused := *guarded.DeepCopy()
	refused.Name, refused.Finalizers = "never-accepted", nil
	pod := claimed("data")
	pod.Labels[v1alpha1.LabelApp] = "db"
	c := holding(t, &guarded, &refused, pod)
	apps, err := guard.Apps(t.Context(), c, c)
	if err != nil || len(apps) != 1 || apps[0].Key() != "shop/db" || !apps[0].Claims["data"] || len(apps[0].Pods) != 1 {
		t.Errorf("got %+v, %v", apps, err)
	}
}

func TestAPodOfTheWorkloadIsGuardedAlsoBeforeItIsLabelled(t *testing.T) {
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "set-1"}}
	pod := claimed("data")
	pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}
	stranger := claimed("data")
	stranger.Name = "stranger"
	g := v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: v1alpha1.GuardedStatefulAppSpec{WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}}}
	app, err := guard.Resolve(t.Context(), holding(t, set, pod, stranger), g)
	if err != nil || len(app.Pods) != 1 || app.Pods[0].Name != "db-0" || len(app.Guests) != 1 || app.Guests[0].Name != "stranger" {
		t.Errorf("got %+v, %+v, %v", app.Pods, app.Guests, err)
	}
}
