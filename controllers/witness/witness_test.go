// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package witness_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/keyring"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/certificate"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/controllers/witness"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

var cluster *envtest.Cluster

func TestMain(m *testing.M) { os.Exit(envtest.Main(m, &cluster)) }

// swift is the administrator's client without a limit on its requests.
var swift = sync.OnceValues(func() (client.Client, error) {
	config := rest.CopyConfig(cluster.Config)
	config.QPS = -1
	return client.New(config, client.Options{Scheme: cluster.Client.Scheme()})
})

const image = "registry.example/witness:v1"

// site is a cluster with nothing for agents in it but perhaps their namespace, and a manager that can be made to look.
type site struct {
	*testing.T
	client.Client
	manager *witness.Reconciler
	time    *clocktesting.FakeClock
}

// newSite clears away what the last test left. A namespace cannot be removed from an API server without controllers, so it is made by the first that wants it.
func newSite(t *testing.T, enabled bool) *site {
	t.Helper()
	s := &site{T: t, time: clocktesting.NewFakeClock(time.Now())}
	var err error
	s.Client, err = swift()
	s.must(err)
	ctx := context.WithoutCancel(t.Context())
	for _, o := range []client.Object{
		&v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}},
		&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: manifest.Namespace, Name: manifest.Name}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: manifest.Namespace, Name: manifest.Name}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: manifest.Namespace, Name: manifest.Keys}},
	} {
		s.must(client.IgnoreNotFound(s.Delete(ctx, o)))
	}
	s.must(s.DeleteAllOf(ctx, &corev1.Node{}))
	s.must(s.Create(ctx, &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName},
		Spec: v1alpha1.GuardConfigSpec{Witness: v1alpha1.Witness{Enabled: enabled}}}))
	s.lead()
	return s
}

// place makes the agents' namespace.
func (s *site) place() {
	s.Helper()
	_, err := cluster.Apply(s.Context(), "witness")
	s.must(err)
	s.must(client.IgnoreAlreadyExists(s.Create(s.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "holdfast"}, Value: 1})))
}

// lead begins a process that knows nothing.
func (s *site) lead() {
	now := sight.NewClock(s.time)
	s.manager = &witness.Reconciler{Client: s.Client, Direct: s.Client, Secrets: s.Client, Clock: now, Image: image,
		Authority: &certificate.Authority{Client: s.Client, Clock: now, Secret: types.NamespacedName{Namespace: "default", Name: manifest.Authority}}}
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *site) look() time.Duration {
	s.Helper()
	result, err := s.manager.Reconcile(s.Context(), ctrl.Request{})
	s.must(err)
	return result.RequeueAfter
}

func (s *site) get(o client.Object) error {
	return s.Get(s.Context(), client.ObjectKeyFromObject(o), o)
}

func (s *site) config() *v1alpha1.GuardConfig {
	s.Helper()
	c := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	s.must(s.get(c))
	return c
}

func (s *site) agents() (*appsv1.DaemonSet, error) {
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: manifest.Namespace, Name: manifest.Name}}
	return d, s.get(d)
}

func (s *site) keys() *corev1.Secret {
	s.Helper()
	k := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: manifest.Namespace, Name: manifest.Keys}}
	s.must(s.get(k))
	return k
}

func (s *site) seeds() string {
	s.Helper()
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: manifest.Namespace, Name: manifest.Name}}
	s.must(s.get(c))
	return c.Data[manifest.Seeds]
}

// is expects the condition to have a reason, and words in its message.
func (s *site) is(status metav1.ConditionStatus, reason, words string) {
	s.Helper()
	c := meta.FindStatusCondition(s.config().Status.Conditions, v1alpha1.ConditionWitnessesReady)
	if c == nil || c.Status != status || c.Reason != reason || !strings.Contains(c.Message, words) {
		s.Errorf("the condition is %+v, want %s, %s with %q", c, status, reason, words)
	}
}

// node makes a host, whose kubelet is well since so long ago, or is not.
func (s *site) node(name, zone, address string, ready corev1.ConditionStatus, ago time.Duration) {
	s.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux", corev1.LabelTopologyZone: zone}}}
	s.must(s.Create(s.Context(), n))
	n.Status = corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, LastTransitionTime: metav1.Time{Time: s.time.Now().Add(-ago)}}},
	}
	s.must(s.Status().Update(s.Context(), n))
}

func TestTheAgentsComeAsTheGuardConfigAsksAndGoAgain(t *testing.T) {
	s := newSite(t, false)
	s.look()
	s.is(metav1.ConditionFalse, v1alpha1.ReasonWitnessesDisabled, "spec.witness.enabled")

	c := s.config()
	c.Spec.Witness = v1alpha1.Witness{Enabled: true, Port: 9002, GossipPort: 9001, RuntimeSocket: "/run/crio/crio.sock"}
	s.must(s.Update(s.Context(), c))
	s.look()
	s.is(metav1.ConditionFalse, v1alpha1.ReasonNamespaceMissing, "kubectl apply --server-side -k config/witness")

	s.place()
	s.node("host-1", "a", "10.0.0.1", corev1.ConditionTrue, time.Hour)
	s.look()
	s.is(metav1.ConditionFalse, v1alpha1.ReasonRollingOut, "on their way")
	agents, err := s.agents()
	s.must(err)
	args := agents.Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"--port=9002", "--gossip-port=9001", "--health=127.0.0.1:9002", "--runtime=/host/runtime/crio.sock"} {
		if !slices.Contains(args, want) {
			t.Errorf("an agent is started with %v, without %s", args, want)
		}
	}
	if got := agents.Spec.Template.Spec.Containers[0].Image; got != image {
		t.Errorf("the image is %s", got)
	}
	if got := s.seeds(); got != "10.0.0.1\n" {
		t.Errorf("the seeds are %q", got)
	}
	for _, c := range []struct {
		desired, updated, ready int32
		status                  metav1.ConditionStatus
		reason, words           string
	}{
		{2, 1, 1, metav1.ConditionFalse, v1alpha1.ReasonRollingOut, "1 of 2 hosts"},
		{2, 0, 0, metav1.ConditionFalse, v1alpha1.ReasonRollingOut, "kubectl describe daemonset -n holdfast-witness"}, // as where their pods are refused
		{2, 2, 1, metav1.ConditionFalse, v1alpha1.ReasonWitnessesUnready, "1 of 2 agents"},
		{2, 2, 2, metav1.ConditionTrue, v1alpha1.ReasonWitnessesReady, "2 agents"},
	} {
		agents, err = s.agents()
		s.must(err)
		agents.Status = appsv1.DaemonSetStatus{ObservedGeneration: agents.Generation, DesiredNumberScheduled: c.desired, CurrentNumberScheduled: c.desired,
			UpdatedNumberScheduled: c.updated, NumberReady: c.ready}
		s.must(s.Status().Update(s.Context(), agents))
		s.look()
		s.is(c.status, c.reason, c.words)
	}

	c = s.config()
	c.Spec.Witness.Enabled = false
	s.must(s.Update(s.Context(), c))
	s.look()
	if _, err := s.agents(); !apierrors.IsNotFound(err) {
		t.Errorf("the DaemonSet is still there: %v", err)
	}
	s.is(metav1.ConditionFalse, v1alpha1.ReasonWitnessesDisabled, "no agents run")
	s.keys() // stays, for those that come later
}

func TestWithoutAGuardConfigNothingChanges(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.look()
	s.must(s.Delete(t.Context(), s.config()))
	s.look()
	if _, err := s.agents(); err != nil {
		t.Errorf("the agents went with the GuardConfig: %v", err)
	}
}

// A look that finds all as it should be changes nothing, and what was changed by hand is put back, but for what others may set.
func TestWhatIsChangedByHandIsPutBack(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.look()
	before, err := s.agents()
	s.must(err)
	s.look()
	if again, err := s.agents(); err != nil || again.ResourceVersion != before.ResourceVersion {
		t.Errorf("a second look wrote it again: %v", err)
	}
	before.Spec.Template.Spec.Containers[0].Image = "other"
	before.Spec.Template.Annotations["kubectl.kubernetes.io/restartedAt"] = "now"
	s.must(s.Update(t.Context(), before))
	s.look()
	after, err := s.agents()
	s.must(err)
	if got := after.Spec.Template.Spec.Containers[0].Image; got != image || after.Spec.Template.Annotations["kubectl.kubernetes.io/restartedAt"] != "now" {
		t.Errorf("the image is %s, and annotations %v", got, after.Spec.Template.Annotations)
	}
}

// Whoever believes an authority that is gone starts anew.
func TestAnotherAuthorityStartsTheAgentsAnew(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.look()
	before, err := s.agents()
	s.must(err)
	s.must(s.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: manifest.Authority}}))
	s.look()
	after, err := s.agents()
	s.must(err)
	if maps.Equal(before.Spec.Template.Annotations, after.Spec.Template.Annotations) {
		t.Errorf("the template is the same: %v", after.Spec.Template.Annotations)
	}
}

func TestThePodsAreAsSmallAsTheyCanBe(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.look()
	agents, err := s.agents()
	s.must(err)
	template := agents.Spec.Template
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name, pod.Namespace = "witness-x", manifest.Namespace
	if err := s.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Errorf("a pod of the DaemonSet is refused: %v", err)
	}
	for _, keys := range []map[string]string{template.Labels, template.Annotations} {
		for key := range keys {
			if strings.HasPrefix(key, v1alpha1.GroupVersion.Group+"/") {
				t.Errorf("the policy BornGuarded refuses pods that the DaemonSet's controller makes with %s", key)
			}
		}
	}
	c := template.Spec.Containers[0]
	if sc := c.SecurityContext; sc.Privileged != nil || *sc.AllowPrivilegeEscalation || !*sc.ReadOnlyRootFilesystem || !slices.Equal(sc.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "NET_RAW"}) ||
		!slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("its security context is %+v", c.SecurityContext)
	}
	if template.Spec.HostPID || template.Spec.HostIPC {
		t.Error("it sees the host's processes")
	}
	for _, m := range c.VolumeMounts {
		if !m.ReadOnly && m.Name != "identity" {
			t.Errorf("it may write to %s", m.Name)
		}
	}
}

// replaced says of how many of two hosts the agents are those of the present settings, as the DaemonSet's controller would.
func (s *site) replaced(n int32) {
	s.Helper()
	agents, err := s.agents()
	s.must(err)
	agents.Status = appsv1.DaemonSetStatus{ObservedGeneration: agents.Generation, DesiredNumberScheduled: 2, CurrentNumberScheduled: 2, UpdatedNumberScheduled: n, NumberReady: 2}
	s.must(s.Status().Update(s.Context(), agents))
	s.look()
}

// set changes what is wanted of the agents.
func (s *site) set(change func(*v1alpha1.Witness)) {
	s.Helper()
	c := s.config()
	change(&c.Spec.Witness)
	s.must(s.Update(s.Context(), c))
	s.look()
}

// arms expects the DaemonSet to make agents that arm a watchdog or not, and to replace those that run or not.
func (s *site) arms(arms, replaces bool) {
	s.Helper()
	agents, err := s.agents()
	s.must(err)
	args := agents.Spec.Template.Spec.Containers[0].Args
	if slices.Contains(args, "--watchdog=/dev/watchdog0") != arms || (agents.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType) != replaces {
		s.Errorf("agents are started with %v, and replaced %s", args, agents.Spec.UpdateStrategy.Type)
	}
}

// An agent that holds its host by a watchdog is ended by nobody but a human, whatever becomes of the settings.
func TestAgentsThatMayHoldTheirHostsAreReplacedByNobodyButAHuman(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.look()
	s.arms(false, true)
	dog := &v1alpha1.WitnessWatchdog{Device: "/dev/watchdog0", Identities: []string{"iTCO_wdt"}}
	s.set(func(w *v1alpha1.Witness) { w.Watchdog = dog })
	s.arms(true, false)
	agents, err := s.agents()
	s.must(err)
	pod := &corev1.Pod{ObjectMeta: agents.Spec.Template.ObjectMeta, Spec: agents.Spec.Template.Spec}
	pod.Name, pod.Namespace = "witness-x", manifest.Namespace
	if err := s.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Errorf("a pod of the DaemonSet is refused: %v", err)
	}
	if args := pod.Spec.Containers[0].Args; !slices.Contains(args, "--watchdog-contact=20s") || !slices.Contains(args, "--watchdog-timeout=60s") {
		t.Errorf("the defaults are not what is said of them: %v", args)
	}
	s.replaced(1)
	s.is(metav1.ConditionFalse, v1alpha1.ReasonRollingOut, "1 of 2 hosts have an agent of the present settings. No other is replaced or ended but by you")
	s.replaced(2)
	s.is(metav1.ConditionTrue, v1alpha1.ReasonWitnessesReady, "2 agents")

	s.set(func(w *v1alpha1.Witness) { w.Watchdog = nil })
	s.arms(false, false)
	s.lead() // whoever leads next knows it too
	s.replaced(1)
	s.arms(false, false)
	s.replaced(2)
	s.arms(false, true)

	s.set(func(w *v1alpha1.Witness) { w.Watchdog = dog })
	s.replaced(2)
	s.set(func(w *v1alpha1.Witness) { w.Enabled = false })
	s.arms(false, false)
	s.is(metav1.ConditionFalse, v1alpha1.ReasonRollingOut, "spec.witness.enabled is false, and the agents stay")
	s.replaced(1)
	s.is(metav1.ConditionFalse, v1alpha1.ReasonRollingOut, "1 of 2 hosts")
	s.replaced(2)
	if _, err := s.agents(); !apierrors.IsNotFound(err) {
		t.Errorf("the DaemonSet is still there: %v", err)
	}
	s.is(metav1.ConditionFalse, v1alpha1.ReasonWitnessesDisabled, "no agents run")
}

func TestSeedsAreFewAndSpreadOverZones(t *testing.T) {
	s := newSite(t, true)
	s.place()
	for i := range 20 {
		s.node(fmt.Sprintf("a-%d", i), "a", fmt.Sprintf("10.0.1.%d", i), corev1.ConditionTrue, time.Hour)
	}
	s.node("b-0", "b", "10.0.2.0", corev1.ConditionUnknown, time.Hour)
	s.node("b-1", "b", "fd00::1", corev1.ConditionTrue, time.Hour)
	s.node("c-0", "c", "not an address", corev1.ConditionTrue, time.Hour)
	windows := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w", Labels: map[string]string{corev1.LabelOSStable: "windows"}}}
	s.must(s.Create(t.Context(), windows))
	s.look()
	got := strings.Fields(s.seeds())
	if len(got) != 16 || !slices.Contains(got, "10.0.2.0") || !slices.Contains(got, "fd00::1") {
		t.Errorf("%d seeds: %v", len(got), got)
	}
	s.node("a-20", "a", "10.0.1.20", corev1.ConditionTrue, time.Hour)
	s.look()
	if next := strings.Fields(s.seeds()); slices.Contains(next, "10.0.1.20") && slices.IndexFunc(got, func(a string) bool { return !slices.Contains(next, a) }) < 0 {
		t.Errorf("there are more seeds now: %v", next)
	}
}

// phase is what the Secret says of the turn.
func (s *site) phase() keyring.Phase {
	s.Helper()
	phase, err := keyring.Ring{Files: s.keys().Data}.Phase()
	s.must(err)
	return phase
}

func (s *site) expect(want keyring.Phase) {
	s.Helper()
	if got := s.phase(); got != want {
		s.Fatalf("the keys are %s (%v), want %s", got, slices.Collect(maps.Keys(s.keys().Data)), want)
	}
}

// The keys are turned over phase by phase, and a new leader goes on where the one before was.
func TestTheKeysAreTurnedOverByWhoeverLeads(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.node("host-1", "a", "10.0.0.1", corev1.ConditionTrue, time.Hour)
	s.look()
	first := string(s.keys().Data[keyring.Primary])
	s.time.Step(keyring.Period - time.Minute)
	s.look()
	s.expect(keyring.Resting)
	s.time.Step(time.Minute)
	for _, want := range []keyring.Phase{keyring.Announced, keyring.Switched, keyring.Resting} {
		s.lead()
		s.look()
		s.expect(want)
		if want != keyring.Resting {
			s.is(metav1.ConditionFalse, v1alpha1.ReasonRollingOut, string(want))
		}
		s.time.Step(keyring.Settle - time.Second)
		s.lead()
		s.look()
		s.expect(want)
		s.time.Step(time.Second)
	}
	if got := string(s.keys().Data[keyring.Primary]); got == first || len(s.keys().Data) != 1 {
		t.Error("the first key is still there")
	}
}

func TestATurnWaitsForAHostWithoutAKubelet(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.node("host-1", "a", "10.0.0.1", corev1.ConditionTrue, time.Hour)
	s.node("host-2", "a", "10.0.0.2", corev1.ConditionUnknown, -time.Hour)
	s.time.Step(time.Hour) // both are there before the keys
	s.look()
	k := s.keys()
	metav1.SetMetaDataAnnotation(&k.ObjectMeta, "guard.holdfast.dev/turn", "leaked")
	s.must(s.Update(t.Context(), k))
	s.time.Step(keyring.Settle)
	s.look()
	s.expect(keyring.Resting)
	s.time.Step(keyring.Patience)
	s.look()
	s.expect(keyring.Announced)
	if _, still := s.keys().Annotations["guard.holdfast.dev/turn"]; still {
		t.Error("it would turn again when it is through")
	}
	s.node("host-3", "a", "10.0.0.3", corev1.ConditionUnknown, 0)
	s.time.Step(keyring.Settle)
	s.look()
	s.expect(keyring.Announced)
	s.is(metav1.ConditionFalse, v1alpha1.ReasonRollingOut, "until host-3 has read them")
}

// Without a date, or with one of a clock that was ahead, the wait begins anew: nobody knows who has read what.
func TestAWaitWithoutADateBeginsAnew(t *testing.T) {
	for says, date := range map[string]string{"none": "", "nonsense": "yesterday", "ahead": time.Now().Add(100 * 24 * time.Hour).UTC().Format(time.RFC3339)} {
		t.Run(says, func(t *testing.T) {
			s := newSite(t, true)
			s.place()
			s.look()
			k := s.keys()
			k.Annotations = map[string]string{"guard.holdfast.dev/since": date, "guard.holdfast.dev/turn": "now"}
			s.must(s.Update(t.Context(), k))
			s.look()
			s.expect(keyring.Resting)
			s.time.Step(keyring.Settle)
			s.look()
			s.expect(keyring.Announced)
		})
	}
}

func TestKeysThatAreNoneAreLeftAloneAndSaid(t *testing.T) {
	s := newSite(t, true)
	s.place()
	s.look()
	k := s.keys()
	k.Data = map[string][]byte{"primary": []byte("rubbish")}
	s.must(s.Update(t.Context(), k))
	s.node("host-1", "a", "10.0.0.1", corev1.ConditionTrue, time.Hour)
	if again := s.look(); again > time.Minute {
		t.Errorf("it is looked at again after %s", again)
	}
	s.is(metav1.ConditionFalse, v1alpha1.ReasonWitnessesFailing, "holdfast-witness/holdfast-witness-gossip")
	if got := string(s.keys().Data["primary"]); got != "rubbish" {
		t.Errorf("somebody wrote %q", got)
	}
	if got := s.seeds(); got != "10.0.0.1\n" {
		t.Errorf("the seeds are kept no more: %q", got)
	}
}
