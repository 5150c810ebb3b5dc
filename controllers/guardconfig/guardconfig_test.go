// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardconfig_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	clientfake "sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guardconfig"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

var definitions = []string{"fencingprofiles", "guardconfigs", "guardedstatefulapps", "hostattestations", "hostincidents"}

// everything that is bolted: the GuardConfig and the definitions.
var everything = 1 + len(definitions)

// site is a cluster in memory, with the definitions of our kinds, and a process that leads in it.
type site struct {
	t *testing.T
	client.WithWatch
	// refuses fails every patch of the object named.
	refuses string
	leader  *guardconfig.Reconciler
	time    *clocktesting.FakeClock
}

func newSite(t *testing.T, objects ...client.Object) *site {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	for _, plural := range definitions {
		objects = append(objects, &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: plural + ".guard.holdfast.dev",
			Labels: map[string]string{"other": "stays"}}})
	}
	s := &site{t: t, time: clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
	s.WithWatch = interceptor.NewClient(clientfake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.GuardConfig{}, &v1alpha1.HostIncident{}).WithObjects(objects...).Build(),
		interceptor.Funcs{Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if o.GetName() == s.refuses {
				return errors.New("no way")
			}
			return c.Patch(ctx, o, p, opts...)
		}})
	s.lead()
	return s
}

// lead begins a process that knows nothing.
func (s *site) lead() {
	clock := sight.NewClock(s.time)
	s.leader = &guardconfig.Reconciler{Client: s, Direct: s, Clock: clock, Self: "manager/1", Bolt: &guardconfig.Bolt{Direct: s, Clock: clock}}
}

func (s *site) look() {
	s.t.Helper()
	if _, err := s.leader.Reconcile(s.t.Context(), ctrl.Request{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) config() *v1alpha1.GuardConfig {
	s.t.Helper()
	c := &v1alpha1.GuardConfig{}
	s.must(s.Get(s.t.Context(), client.ObjectKey{Name: v1alpha1.GuardConfigName}, c))
	return c
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// bolted are the names of what is bolted.
func (s *site) bolted() []string {
	s.t.Helper()
	var out []string
	if c := (&v1alpha1.GuardConfig{}); s.Get(s.t.Context(), client.ObjectKey{Name: v1alpha1.GuardConfigName}, c) == nil && c.Labels[v1alpha1.LabelHold] == "armed" {
		out = append(out, c.Name)
	}
	var list apiextensionsv1.CustomResourceDefinitionList
	s.must(s.List(s.t.Context(), &list))
	for _, d := range list.Items {
		if d.Labels["other"] != "stays" {
			s.t.Errorf("the labels of others on %s are lost: %v", d.Name, d.Labels)
		}
		if d.Labels[v1alpha1.LabelHold] == "armed" {
			out = append(out, d.Name)
		}
	}
	return out
}

func incident(name string, step v1alpha1.IncidentStep) *v1alpha1.HostIncident {
	return &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.HostIncidentSpec{NodeName: "node-1", BootID: "b", Episode: 1},
		Status: v1alpha1.HostIncidentStatus{Step: step}}
}

func acceptedApp() *v1alpha1.GuardedStatefulApp {
	return &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", Finalizers: []string{v1alpha1.FinalizerApp}}}
}

func TestTheFirstGuardConfigHasDefaults(t *testing.T) {
	s := newSite(t)
	s.look()
	if c := s.config(); c.Spec != (v1alpha1.GuardConfigSpec{}) || len(c.Annotations) != 0 {
		t.Errorf("spec %+v, annotations %v; the API server fills in what is empty", c.Spec, c.Annotations)
	}
}

func TestAGuardConfigThatIsDeletedComesBackAsItWas(t *testing.T) {
	s := newSite(t, acceptedApp())
	careful := v1alpha1.GuardConfigSpec{FenceBudget: v1alpha1.FenceBudget{Count: 1, WindowSeconds: 7200}, LeaseStaleSeconds: 90}
	s.must(s.Create(t.Context(), &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}, Spec: careful}))
	s.look()
	s.must(s.Delete(t.Context(), s.config()))
	s.look()
	if got := s.config().Spec; got != careful {
		t.Errorf("it came back as %+v, and was %+v", got, careful)
	}
}

func TestAGuardConfigThatNobodyKnowsComesBackWithoutABudget(t *testing.T) {
	for name, there := range map[string]client.Object{"an app is guarded": acceptedApp(), "an incident is on record": incident("node-1-x-1", v1alpha1.StepClosed)} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, there)
			s.look()
			c := s.config()
			if b := c.Spec.FenceBudget; b.Count != 0 || b.WindowSeconds == 0 {
				t.Errorf("budget %+v: with neither a count nor a window, the API server would fill in its defaults", b)
			}
			c.Generation = 1 // which the API server counts
			s.must(s.Update(t.Context(), c))
			s.look()
			ready := meta.FindStatusCondition(s.config().Status.Conditions, v1alpha1.ConditionReady)
			if ready == nil || ready.Status != metav1.ConditionFalse || ready.Reason != v1alpha1.ReasonBudgetUnknown || !strings.Contains(ready.Message, "spec.fenceBudget") {
				t.Errorf("Ready is %+v", ready)
			}
			c = s.config()
			c.Spec.FenceBudget.Count, c.Generation = 2, 2
			s.must(s.Update(t.Context(), c))
			s.look()
			if ready := meta.FindStatusCondition(s.config().Status.Conditions, v1alpha1.ConditionReady); ready.Reason == v1alpha1.ReasonBudgetUnknown {
				t.Error("it is still asked for a budget that was set")
			}
		})
	}
}

func TestTheBoltIsShotWhileAnIncidentIsOpen(t *testing.T) {
	tests := []struct {
		name      string
		incidents []client.Object
		bolted    bool
	}{
		{"no incident", nil, false},
		{"one that has just been opened", []client.Object{incident("a", "")}, true},
		{"one that is resolved, its host not back", []client.Object{incident("a", v1alpha1.StepResolved)}, true},
		{"one open among those that are over", []client.Object{incident("a", v1alpha1.StepClosed), incident("b", v1alpha1.StepHolding), incident("c", v1alpha1.StepRetired)}, true},
		{"all over", []client.Object{incident("a", v1alpha1.StepClosed), incident("c", v1alpha1.StepRetired)}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, test.incidents...)
			s.look()
			s.look() // the GuardConfig was made by the first
			if got := s.bolted(); (len(got) == everything) != test.bolted || (len(got) == 0) == test.bolted {
				t.Errorf("bolted: %v", got)
			}
		})
	}
}

func TestTheBoltIsDrawnByTheNextLeader(t *testing.T) {
	s := newSite(t)
	s.look()
	s.must(s.leader.Bolt.Arm(t.Context()))
	if n := len(s.bolted()); n != everything {
		t.Fatalf("%d are bolted", n)
	}
	s.lead()
	s.look()
	if got := s.bolted(); len(got) != 0 {
		t.Errorf("bolted although nothing is held: %v", got)
	}
}

func TestABoltThatStandsIsNotMovedAgain(t *testing.T) {
	s := newSite(t)
	s.look()
	s.must(s.leader.Bolt.Arm(t.Context()))
	s.refuses = "hostincidents.guard.holdfast.dev"
	if err := s.leader.Bolt.Arm(t.Context()); err != nil {
		t.Errorf("each pod that is held costs a round of requests: %v", err)
	}
}

func TestOneThatCannotBeBoltedDoesNotKeepTheOthersFromIt(t *testing.T) {
	s := newSite(t, &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}})
	s.refuses = "fencingprofiles.guard.holdfast.dev"
	if err := s.leader.Bolt.Arm(t.Context()); err == nil || !strings.Contains(err.Error(), s.refuses) {
		t.Errorf("the error does not name what could not be bolted: %v", err)
	}
	if n := len(s.bolted()); n < everything-1 {
		t.Errorf("only %v are bolted", s.bolted())
	}
	s.refuses = ""
	s.must(s.leader.Bolt.Arm(t.Context()))
	if n := len(s.bolted()); n != everything {
		t.Errorf("it is not tried again: %v", s.bolted())
	}
}

func TestWhatIsNotThereNeedsNoBolt(t *testing.T) {
	s := newSite(t)
	if err := s.leader.Bolt.Arm(t.Context()); err != nil {
		t.Errorf("without a GuardConfig: %v", err)
	}
	c := &v1alpha1.GuardConfig{}
	if err := s.Get(t.Context(), client.ObjectKey{Name: v1alpha1.GuardConfigName}, c); !apierrors.IsNotFound(err) {
		t.Errorf("the bolt made something: %v", err)
	}
}

// record is an incident of a node that is over, or at the step given, last observed so long ago.
func (s *site) record(node string, episode int32, ago time.Duration, change ...func(*v1alpha1.HostIncident)) {
	h := incident(fmt.Sprintf("%s-x-%d", node, episode), v1alpha1.StepClosed)
	at := metav1.Time{Time: s.time.Now().Add(-ago)}
	h.Spec.NodeName, h.Spec.Episode, h.CreationTimestamp, h.Status.LastObserved = node, episode, at, &at
	for _, c := range change {
		c(h)
	}
	s.must(s.Create(s.t.Context(), h))
}

func (s *site) records() []string {
	s.t.Helper()
	var list v1alpha1.HostIncidentList
	s.must(s.List(s.t.Context(), &list))
	var names []string
	for _, h := range list.Items {
		names = append(names, h.Name)
	}
	slices.Sort(names)
	return names
}

func TestIncidentsThatAreOverAreKeptForAWhile(t *testing.T) {
	const day = 24 * time.Hour
	at := func(step v1alpha1.IncidentStep) func(*v1alpha1.HostIncident) {
		return func(h *v1alpha1.HostIncident) { h.Status.Step = step }
	}
	tests := []struct {
		name string
		set  func(*site)
		left []string
	}{
		{"the newest of each node stay", func(s *site) {
			for i := range int32(4) {
				s.record("a", i+1, time.Duration(10-i)*day)
			}
			s.record("b", 1, 20*day)
		}, []string{"a-x-3", "a-x-4", "b-x-1"}},
		{"what is too old goes, however few there are", func(s *site) { s.record("a", 1, 31*day); s.record("b", 1, 29*day) }, []string{"b-x-1"}},
		{"Retired is over as well", func(s *site) { s.record("a", 1, 31*day, at(v1alpha1.StepRetired)) }, nil},
		{"one that is open stays, whatever its age and number", func(s *site) {
			s.record("a", 1, 40*day, at(v1alpha1.StepResolved))
			s.record("a", 2, 39*day, at(v1alpha1.StepHolding))
			s.record("a", 3, 38*day, at(""))
			s.record("a", 4, 2*day)
		}, []string{"a-x-1", "a-x-2", "a-x-3", "a-x-4"}},
		{"one whose Off the budget counts stays", func(s *site) {
			s.record("a", 1, 3*time.Hour, func(h *v1alpha1.HostIncident) {
				h.Status.Attempts = []v1alpha1.Attempt{{ID: "off-1", State: v1alpha1.AttemptSettled, IntendedAt: metav1.Time{Time: s.time.Now().Add(-30 * time.Minute)}}}
			})
			s.record("a", 2, 2*time.Hour)
			s.record("a", 3, 2*time.Hour)
		}, []string{"a-x-1", "a-x-2", "a-x-3"}},
		{"one that the budget would miss stays", func(s *site) {
			for i := range int32(5) {
				s.record("a", i+1, time.Duration(115-28*i)*time.Minute) // the last three began within the window
			}
		}, []string{"a-x-2", "a-x-3", "a-x-4", "a-x-5"}},
		{"one of a newer Holdfast stays", func(s *site) {
			s.record("a", 1, 31*day, func(h *v1alpha1.HostIncident) { h.Status.JournalVersion = v1alpha1.JournalVersion + 1 })
		}, []string{"a-x-1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}, Spec: v1alpha1.GuardConfigSpec{
				FenceBudget:       v1alpha1.FenceBudget{Count: 2, WindowSeconds: 3600},
				IncidentRetention: v1alpha1.IncidentRetention{PerNode: 2, MaxAgeSeconds: 30 * 86400}}})
			test.set(s)
			s.look()
			if got := s.records(); !slices.Equal(got, test.left) {
				t.Errorf("left are %v, want %v", got, test.left)
			}
		})
	}
}

func TestARecordThatChangedSinceItWasJudgedIsNotDeleted(t *testing.T) {
	s := newSite(t, &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}, Spec: v1alpha1.GuardConfigSpec{
		FenceBudget: v1alpha1.FenceBudget{Count: 2, WindowSeconds: 3600}, IncidentRetention: v1alpha1.IncidentRetention{PerNode: 1, MaxAgeSeconds: 3600}}})
	s.record("a", 1, 48*time.Hour)
	// The cache lags: what it shows as over was written since.
	s.leader.Client = interceptor.NewClient(s, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		if err := c.List(ctx, list, opts...); err != nil {
			return err
		}
		if l, ok := list.(*v1alpha1.HostIncidentList); ok && len(l.Items) > 0 {
			h := l.Items[0].DeepCopy()
			h.Annotations = map[string]string{"written": "since"}
			return c.Update(ctx, h)
		}
		return nil
	}})
	s.look()
	if got := s.records(); len(got) != 1 {
		t.Error("what was deleted is not what was judged")
	}
}

// TestEveryKindOfOursIsBolted compares what is bolted, what may be by config/rbac, and what there is.
func TestEveryKindOfOursIsBolted(t *testing.T) {
	files, err := filepath.Glob("../../config/crd/bases/guard.holdfast.dev_*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no definitions found", err)
	}
	there := map[string]bool{}
	for _, f := range files {
		there[strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "guard.holdfast.dev_"), ".yaml")+".guard.holdfast.dev"] = true
	}
	role, err := os.ReadFile("../../config/rbac/manager_role.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	for name := range there {
		if !strings.Contains(string(role), "\n  - "+name+"\n") {
			t.Errorf("config/rbac does not let the manager label %s", name)
		}
		// Those that the cluster in memory does not have yet.
		err := s.Create(t.Context(), &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"other": "stays"}}})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	s.must(s.leader.Bolt.Arm(t.Context()))
	if got, want := s.bolted(), slices.Sorted(maps.Keys(there)); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("bolted are %v, and the kinds are %v", got, want)
	}
}
