// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// methods is a profile whose methods reach host a by the devices given, in order.
func methods(named ...[2]string) *v1alpha1.FencingProfile {
	p := &v1alpha1.FencingProfile{Spec: v1alpha1.FencingProfileSpec{Levels: []v1alpha1.FencingLevel{{}}}}
	for _, m := range named {
		p.Spec.Levels[0].Methods = append(p.Spec.Levels[0].Methods, v1alpha1.FencingMethod{Name: m[0], IPMI: &v1alpha1.IPMIMethod{Port: 623,
			Hosts: []v1alpha1.HostDevice{{NodeName: "b", Address: "bmc-of-b"}, {NodeName: "a", Address: m[1]}}}})
	}
	return p
}

// What Holdfast puts back for a kubelet is what that kubelet would say itself.
func TestAnEndpointIsOwedWhereAKubeletWouldSayReady(t *testing.T) {
	const gate = "example.org/gate"
	for says, c := range map[string]struct {
		containers, gated corev1.ConditionStatus
		gates, going      bool
		want              bool
	}{
		"the containers are ready":             {containers: corev1.ConditionTrue, want: true},
		"they are not":                         {containers: corev1.ConditionFalse},
		"nobody said":                          {},
		"and so is what else it waits for":     {containers: corev1.ConditionTrue, gates: true, gated: corev1.ConditionTrue, want: true},
		"and what else it waits for is not":    {containers: corev1.ConditionTrue, gates: true, gated: corev1.ConditionFalse},
		"and what else it waits for is silent": {containers: corev1.ConditionTrue, gates: true},
		"the pod is going":                     {containers: corev1.ConditionTrue, going: true},
	} {
		p := &corev1.Pod{}
		for kind, status := range map[corev1.PodConditionType]corev1.ConditionStatus{corev1.PodReady: corev1.ConditionFalse, corev1.ContainersReady: c.containers, gate: c.gated} {
			if status != "" {
				p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: status})
			}
		}
		if c.gates {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: gate}}
		}
		if c.going {
			p.DeletionTimestamp = &metav1.Time{}
		}
		if got := owed(p); got != c.want {
			t.Errorf("%s: owed is %v", says, got)
		}
	}
}

func TestAnAttemptIsOfTheDeviceThatWasCommanded(t *testing.T) {
	for says, c := range map[string]struct {
		profile    *v1alpha1.FencingProfile
		device     string // of the attempt by the method power
		distrusted []string
		method     string
		liars      []string
	}{
		"the device is still there":                     {methods([2]string{"power", "one"}), "one:623", nil, "power", nil},
		"the journal does not say which":                {methods([2]string{"power", "one"}), "", nil, "power", nil},
		"another device has the method":                 {methods([2]string{"power", "two"}), "one:623", nil, "power at one:623", nil},
		"another port is another device":                {methods([2]string{"power", "one"}), "one:6230", nil, "power at one:6230", nil},
		"an IPv6 address":                               {methods([2]string{"power", "2001:db8::1"}), "[2001:db8::1]:623", nil, "power", nil},
		"the method is called otherwise":                {methods([2]string{"other", "one"}), "one:623", nil, "other", nil},
		"the method is gone, and its device too":        {methods([2]string{"other", "two"}), "one:623", nil, "power", nil},
		"there is no profile":                           {nil, "one:623", nil, "power", nil},
		"a method that lied keeps its name":             {methods([2]string{"power", "two"}), "one:623", []string{"power"}, "power", []string{"power"}},
		"a device that lied is called otherwise":        {methods([2]string{"other", "one"}), "one:623", []string{"power"}, "power", []string{"power", "other"}},
		"a device that lied while away is back":         {methods([2]string{"power", "one"}), "one:623", []string{"power at one:623"}, "power", []string{"power at one:623", "power"}},
		"the device in place of a liar is not the liar": {methods([2]string{"power", "two"}), "one:623", []string{"power at one:623"}, "power at one:623", []string{"power at one:623"}},
	} {
		w := &world{profile: c.profile, incident: &v1alpha1.HostIncident{Status: v1alpha1.HostIncidentStatus{Distrusted: c.distrusted,
			Attempts: []v1alpha1.Attempt{{ID: "off-1", Method: "power", Device: c.device}}}}}
		w.seen.Host.Node = "a"
		if got := w.method(w.incident.Status.Attempts[0]); got != c.method {
			t.Errorf("%s: the attempt is by %q, want %q", says, got, c.method)
		}
		if got := w.distrusted(); !slices.Equal(got, c.liars) {
			t.Errorf("%s: distrusted are %q, want %q", says, got, c.liars)
		}
	}
}

func TestRestartsAreCountedFromAllJournals(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	one := func(id string, state v1alpha1.RepairState, ago time.Duration) v1alpha1.Repair {
		return v1alpha1.Repair{ID: id, State: state, IntendedAt: metav1.Time{Time: now.Add(-ago)}}
	}
	incident := func(name, node string, repairs ...v1alpha1.Repair) v1alpha1.HostIncident {
		return v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.HostIncidentSpec{NodeName: node}, Status: v1alpha1.HostIncidentStatus{Repairs: repairs}}
	}
	for says, c := range map[string]struct {
		list []v1alpha1.HostIncident
		want evidence.Repairs
	}{
		"none": {nil, evidence.Repairs{Read: true}},
		"one that was done": {[]v1alpha1.HostIncident{incident("a-1", "a", one("restart-1", v1alpha1.RepairDone, time.Minute))},
			evidence.Repairs{Read: true, Tried: true, Ago: time.Minute}},
		"the latest, in whatever incident of the host": {[]v1alpha1.HostIncident{incident("a-1", "a", one("restart-1", v1alpha1.RepairFailed, time.Minute)),
			incident("a-0", "a", one("restart-1", v1alpha1.RepairDone, time.Hour))}, evidence.Repairs{Read: true, Tried: true, Failed: true, Ago: time.Minute}},
		"one of which nobody knows whether it was done": {[]v1alpha1.HostIncident{incident("a-1", "a", one("restart-1", v1alpha1.RepairIntended, time.Minute))},
			evidence.Repairs{Read: true, Tried: true, Ago: time.Minute}},
		"one without an answer": {[]v1alpha1.HostIncident{incident("a-1", "a", one("restart-1", v1alpha1.RepairUnclear, time.Minute))},
			evidence.Repairs{Read: true, Tried: true, Ago: time.Minute}},
		"one that was withdrawn":  {[]v1alpha1.HostIncident{incident("a-1", "a", one("restart-1", v1alpha1.RepairWithdrawn, time.Minute))}, evidence.Repairs{Read: true}},
		"the one in hand":         {[]v1alpha1.HostIncident{incident("a-1", "a", one("restart-9", v1alpha1.RepairIntended, 0))}, evidence.Repairs{Read: true}},
		"that name in another":    {[]v1alpha1.HostIncident{incident("a-0", "a", one("restart-9", v1alpha1.RepairDone, 0))}, evidence.Repairs{Read: true, Tried: true}},
		"one of the future":       {[]v1alpha1.HostIncident{incident("a-0", "a", one("restart-1", v1alpha1.RepairDone, -time.Hour))}, evidence.Repairs{Read: true, Tried: true}},
		"another host's":          {[]v1alpha1.HostIncident{incident("b-1", "b", one("restart-9", v1alpha1.RepairDone, time.Second))}, evidence.Repairs{Read: true, Elsewhere: "b", ElsewhereAgo: time.Second}},
		"the latest of two hosts": {[]v1alpha1.HostIncident{incident("b-1", "b", one("restart-1", v1alpha1.RepairDone, time.Hour)), incident("c-1", "c", one("restart-1", v1alpha1.RepairDone, time.Second))}, evidence.Repairs{Read: true, Elsewhere: "c", ElsewhereAgo: time.Second}},
	} {
		w := &world{incident: &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: "a-1"}}, ignore: "restart-9"}
		w.seen.Host.Node = "a"
		if got := w.repairs(c.list, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", says, got, c.want)
		}
	}
}

func TestAJournalOfRestartsDoesNotGrow(t *testing.T) {
	var list []v1alpha1.Repair
	for n := range 30 {
		p := v1alpha1.Repair{ID: nextRepair(list), State: v1alpha1.RepairDone}
		if n%3 == 0 {
			p.State = v1alpha1.RepairWithdrawn
		}
		if slices.ContainsFunc(list, func(other v1alpha1.Repair) bool { return other.ID == p.ID }) {
			t.Errorf("%s is there twice", p.ID)
		}
		last := len(list) > 0 && list[len(list)-1].State == v1alpha1.RepairDone
		before := list
		if list = append(recent(list), p); len(list) > repairsAtMost {
			t.Fatalf("%d restarts", len(list))
		}
		if last && list[len(list)-2].ID != before[len(before)-1].ID {
			t.Errorf("the latest that was done is forgotten: %v", list)
		}
	}
}

// leaseReader is an API server that has one Lease, or answers with an error.
type leaseReader struct {
	client.Reader
	lease *coordinationv1.Lease
	err   error

	mu    sync.Mutex
	asked []string
}

func (r *leaseReader) Get(_ context.Context, name client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, name.String())
	switch {
	case r.err != nil:
		return r.err
	case name != client.ObjectKeyFromObject(r.lease):
		return apierrors.NewNotFound(coordinationv1.Resource("leases"), name.Name)
	default:
		r.lease.DeepCopyInto(into.(*coordinationv1.Lease))
		return nil
	}
}

// mute is an agent that does not answer.
type mute struct{ sight.Agent }

func (mute) View(context.Context, string) (wire.View, error) {
	return wire.View{}, context.DeadlineExceeded
}

func (mute) Close() {}

// Of all agents' Leases only that of the host is read, and twice a second those of the agents that look for it: a cluster has thousands.
func TestTheLeasesOfAgentsThatNobodyAsksAreNotRead(t *testing.T) {
	fake := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	clock := sight.NewClock(fake)
	fake.Step(time.Minute)
	agents := sight.NewWitnesses(clock, func(string) {})
	agents.Reach = func(string) sight.Agent { return mute{} }
	agents.Roll = func(context.Context) (roll sight.Roll, _ error) {
		for _, node := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			roll.Hosts = append(roll.Hosts, sight.Host{Node: node, Address: "192.0.2.1", Ready: true})
		}
		roll.On = true
		return roll, nil
	}
	ctx, stop := context.WithCancel(t.Context())
	var ran sync.WaitGroup
	ran.Go(func() { _ = agents.Start(ctx) })
	defer ran.Wait()
	defer stop()
	for len(agents.Asked()) == 0 {
		runtime.Gosched()
	}
	reader := &leaseReader{lease: &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: wire.Namespace, Name: "b", ResourceVersion: "1"},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To("b1"), RenewTime: &metav1.MicroTime{Time: time.Unix(1, 0)}}}}
	r := &Reconciler{Clock: clock, Witnesses: agents, Leases: sight.NewLeases(clock), Live: reader}
	look := func(want ...string) {
		t.Helper()
		reader.asked = nil
		w := &world{}
		w.seen.Host.Node = "h"
		r.gatherAgentLease(ctx, w, live)
		if slices.Sort(reader.asked); !slices.Equal(reader.asked, want) {
			t.Errorf("%q are read, want %q", reader.asked, want)
		}
		if got := w.seen.AgentLease; !got.Read || !got.Missing {
			t.Errorf("the host has no Lease, and it is %+v", got)
		}
	}
	all := []string{"holdfast-witness/a", "holdfast-witness/b", "holdfast-witness/c", "holdfast-witness/d", "holdfast-witness/e", "holdfast-witness/h"}
	look(all...)
	fake.Step(contrastEvery - time.Millisecond)
	look("holdfast-witness/h")
	reader.lease.ResourceVersion = "2" // written, with nothing new in it
	fake.Step(time.Millisecond)
	look(all...)
	if _, contrast, at := r.Leases.Late([]string{"b"}, func(evidence.Lease) bool { return true }); !contrast || at != clock.Instant()-evidence.Instant(contrastEvery) {
		t.Errorf("the write of another host's agent is a contrast: %v, at %v", contrast, at)
	}
}

// That an agent is silent is known from the API server and not from a cache, which may lag by any time.
func TestAnAgentsSilenceIsReadLive(t *testing.T) {
	clock := sight.NewClock(clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)))
	agents := sight.NewWitnesses(clock, func(string) {})
	on := false
	agents.Roll = func(context.Context) (sight.Roll, error) { return sight.Roll{On: on}, nil }
	word := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: wire.Namespace, Name: "a"},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To("b1"), LeaseDurationSeconds: ptr.To[int32](1), RenewTime: &metav1.MicroTime{Time: time.Unix(1, 0)}}}
	for says, c := range map[string]struct {
		on            bool
		how           depth
		host          string
		err           error
		read, missing bool
		boot          string
		asked         int
	}{
		"read live":                      {true, live, "a", nil, true, false, "b1", 1},
		"there is none":                  {true, live, "b", nil, true, true, "", 1},
		"the API server does not answer": {true, live, "a", context.DeadlineExceeded, false, false, "", 1},
		"it may not be read":             {true, live, "a", apierrors.NewForbidden(coordinationv1.Resource("leases"), "a", nil), false, false, "", 1},
		"a look that costs no request":   {true, fromCache, "a", nil, false, false, "", 0},
		"no agents are configured":       {false, live, "a", nil, false, false, "", 0},
	} {
		on = c.on
		reader := &leaseReader{lease: word, err: c.err}
		r := &Reconciler{Clock: clock, Witnesses: agents, Leases: sight.NewLeases(clock), Live: reader}
		ctx, stop := context.WithCancel(t.Context())
		var ran sync.WaitGroup
		ran.Go(func() { _ = agents.Start(ctx) })
		for agents.On() != c.on {
			runtime.Gosched()
		}
		w := &world{}
		w.seen.Host.Node = c.host
		r.gatherAgentLease(ctx, w, c.how)
		stop()
		ran.Wait()
		if got := w.seen.AgentLease; got.Read != c.read || got.Missing != c.missing || got.BootID != c.boot || len(reader.asked) != c.asked {
			t.Errorf("%s: %+v, after %d requests", says, got, len(reader.asked))
		}
	}
}

func TestAddressesOfAPodAreThoseThatItHasForItself(t *testing.T) {
	ips := func(all ...string) (out []corev1.PodIP) {
		for _, ip := range all {
			out = append(out, corev1.PodIP{IP: ip})
		}
		return out
	}
	for name, c := range map[string]struct {
		pod  corev1.Pod
		want []string
	}{
		"both families": {corev1.Pod{Status: corev1.PodStatus{HostIP: "10.0.0.1", PodIP: "10.1.0.1", PodIPs: ips("10.1.0.1", "fd00::1")}}, []string{"10.1.0.1", "fd00::1"}},
		"only the one":  {corev1.Pod{Status: corev1.PodStatus{HostIP: "10.0.0.1", PodIP: "10.1.0.1"}}, []string{"10.1.0.1"}},
		"the host's network, and nobody says what the host's address is": {
			corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}, Status: corev1.PodStatus{PodIP: "10.0.0.1", PodIPs: ips("10.0.0.1")}}, nil},
		"the host's address by whatever way": {corev1.Pod{Status: corev1.PodStatus{HostIP: "10.0.0.1", HostIPs: []corev1.HostIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			PodIP: "10.0.0.1", PodIPs: ips("10.0.0.1", "fd00::1")}}, nil},
		"none that an agent would take": {corev1.Pod{Status: corev1.PodStatus{PodIP: "127.0.0.1", PodIPs: ips("127.0.0.1", "::ffff:10.1.0.1", "no address")}}, nil},
	} {
		if got := addresses(&c.pod); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// nobody is a cluster without pods.
type nobody struct{ client.Client }

func (nobody) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

// A host that is lost again has pods with the same addresses again, and what became of these the last time is of the last time.
func TestAnAddressIsLostAnew(t *testing.T) {
	clock := sight.NewClock(clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)))
	resets := sight.NewResets(sight.NewWitnesses(clock, func(string) {}), func(string) {})
	resets.LetGo("a", "10.1.0.1", "its host is back")
	r := &Reconciler{Clock: clock, Client: nobody{}, Resets: resets}
	w := &world{pods: map[string]*corev1.Pod{}, incident: &v1alpha1.HostIncident{Status: v1alpha1.HostIncidentStatus{
		Pods: []v1alpha1.IncidentPod{{UID: "u", Addresses: []string{"10.1.0.1"}, ReleasedAt: &metav1.Time{Time: clock.Now()}}}}}}
	w.seen.Listed = true
	r.gatherAddresses(t.Context(), w)
	if a := w.seen.Addresses; len(a) != 1 || a[0].Over != "" || a[0].Begun || a[0].Ours || !a[0].Gone {
		t.Errorf("of an incident that has begun nothing: %+v", a)
	}
	w.seen.Addresses, w.incident.Status.Resets = nil, []v1alpha1.ConnectionReset{{Address: "10.1.0.1"}}
	r.gatherAddresses(t.Context(), w)
	if a := w.seen.Addresses; len(a) != 1 || a[0].Over != "its host is back" || !a[0].Begun {
		t.Errorf("of an incident that has: %+v", a)
	}
}
