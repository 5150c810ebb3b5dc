// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guardedstatefulapp"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// agents each have ten connections to whatever they are asked about.
type agents struct {
	mu    sync.Mutex
	looks []wire.RecycleRequest
	ended int
}

type anAgent struct {
	*agents
	node string
}

func (a anAgent) Recycle(_ context.Context, _ string, request wire.RecycleRequest) (wire.RecycleAnswer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := wire.RecycleAnswer{Node: a.node, BootID: "boot"}
	if len(request.Servers) > 0 {
		a.looks = append(a.looks, request)
		answer.Found = 10
		return answer, nil
	}
	a.ended += request.Most
	answer.Begun, answer.Left = request.Most, 10-request.Most
	return answer, nil
}

func (anAgent) View(context.Context, string) (wire.View, error) {
	return wire.View{}, errors.ErrUnsupported
}

func (anAgent) Await(ctx context.Context, _ string, _ uint64) (wire.View, error) {
	<-ctx.Done()
	return wire.View{}, ctx.Err()
}

func (anAgent) Probe(context.Context, string, []wire.Question) (wire.ProbeAnswer, error) {
	return wire.ProbeAnswer{}, errors.ErrUnsupported
}

func (anAgent) Restart(context.Context, string, wire.RestartRequest) (wire.RestartAnswer, error) {
	return wire.RestartAnswer{}, errors.ErrUnsupported
}

func (anAgent) Reset(context.Context, string, wire.ResetRequest) (wire.ResetAnswer, error) {
	return wire.ResetAnswer{}, errors.ErrUnsupported
}

func (anAgent) Close() {}

func (a *agents) say() (looks []wire.RecycleRequest, ended int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.looks), a.ended
}

// crew is an app of two pods that asks for recycling, under a leader whose agents can do it.
type crew struct {
	*seen
	*agents
	source    *clocktesting.FakeClock
	clock     *sight.Clock
	witnesses *sight.Witnesses
	board     *sight.Board
	// refuse is what the API server says to a status that begins a round.
	refuse error
}

func newCrew(t *testing.T, change func(*site)) *crew {
	t.Helper()
	s := newSite()
	s.app.Spec.Health = v1alpha1.Health{Probes: []v1alpha1.Probe{{Name: "up", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromString("sql")}, PeriodSeconds: 1, TimeoutSeconds: 1,
		SuccessThreshold: 1, FailureThreshold: 1}}}
	s.app.Spec.Connections.Recycle = &v1alpha1.Recycle{After: []v1alpha1.RecycleAfter{v1alpha1.RecycleAfterScaleOut, v1alpha1.RecycleAfterFailover},
		Ports: []intstr.IntOrString{intstr.FromString("sql"), intstr.FromInt(8080)}, PerSecond: 2, MaxPercent: 50}
	s.pod = member(0)
	change(s)
	c := &crew{agents: &agents{}, source: clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
	c.clock = sight.NewClock(c.source)
	c.seen = s.look(t)
	config := &v1alpha1.GuardConfig{}
	must(t, c.Get(t.Context(), types.NamespacedName{Name: v1alpha1.GuardConfigName}, config))
	config.Spec.Witness.Enabled = true
	must(t, c.Update(t.Context(), config))
	c.board = sight.NewBoard(sight.NewClock(clock.RealClock{}), func(string) {})
	c.board.Dial = func(context.Context, string, string) (net.Conn, error) {
		here, _ := net.Pipe()
		return here, nil
	}
	c.witnesses = sight.NewWitnesses(c.clock, func(string) {})
	c.witnesses.Reach = func(node string) sight.Agent { return anAgent{c.agents, node} }
	rolled := make(chan struct{}, 1000)
	c.witnesses.Roll = func(context.Context) (sight.Roll, error) {
		rolled <- struct{}{}
		return sight.Roll{On: true, Port: wire.Port, Hosts: []sight.Host{{Node: "node-1", Address: "192.0.2.101", Ready: true}, {Node: "node-2", Address: "192.0.2.102", Ready: true}}}, nil
	}
	c.witnesses.Targets = func(string) []sight.Target { return nil }
	c.run(c.board.Start)
	c.run(c.witnesses.Start)
	<-rolled
	c.lead("manager")
	c.leader.Events = events.NewFakeRecorder(100)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *crew) run(start func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- start(ctx) }()
	c.t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			c.t.Error(err)
		}
	})
}

// lead has another process lead.
func (c *crew) lead(self string) {
	before := c.leader
	api := interceptor.NewClient(c.WithWatch, interceptor.Funcs{SubResourceUpdate: func(ctx context.Context, to client.Client, name string, o client.Object, opts ...client.SubResourceUpdateOption) error {
		if app, ok := o.(*v1alpha1.GuardedStatefulApp); ok && c.refuse != nil && app.Status.Connections != nil && app.Status.Connections.Round != nil {
			return c.refuse
		}
		return to.SubResource(name).Update(ctx, o, opts...)
	}})
	c.leader = &guardedstatefulapp.Reconciler{Client: api, Live: before.Live, Clock: c.clock, Board: c.board, Devices: before.Devices, Self: self,
		Recycles: sight.NewRecycles(c.witnesses), Events: before.Events}
	c.run(c.leader.Recycles.Start)
}

// member is a pod of the app that has been ready for an hour.
func member(n int) *corev1.Pod {
	p := newSite().pod
	p.Name, p.UID = fmt.Sprintf("db-%d", n), types.UID(fmt.Sprintf("uid-%d", n))
	p.Spec.NodeName = fmt.Sprintf("node-%d", 1+n%2)
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("192.0.2.%d", 1+n), PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("192.0.2.%d", 1+n)}, {IP: fmt.Sprintf("2001:db8::%d", 1+n)}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC))}}}
	return p
}

// until looks at the app again and again, a second apart by the stepped clock, until something is so.
func (c *crew) until(what string, is func(*v1alpha1.ConnectionsStatus) bool) {
	c.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 4000 {
		c.again()
		if j := c.app.Status.Connections; j != nil && is(j) {
			return
		}
		<-tick.C
		c.source.Step(time.Second)
	}
	c.t.Fatalf("waited for %s: %+v, %v", what, c.app.Status.Connections, c.err)
}

func (c *crew) known(n int) {
	c.t.Helper()
	c.until(fmt.Sprintf("%d pods to be known", n), func(j *v1alpha1.ConnectionsStatus) bool { return len(j.Known) == n })
}

// scale adds a pod.
func (c *crew) scale(n int) {
	c.t.Helper()
	set := newSite().set()
	must(c.t, c.Get(c.t.Context(), client.ObjectKeyFromObject(set), set))
	set.Spec.Replicas = ptr.To(int32(n))
	must(c.t, c.Update(c.t.Context(), set))
	must(c.t, c.Create(c.t.Context(), member(n-1)))
}

func over(j *v1alpha1.ConnectionsStatus) bool { return j.Round != nil && j.Round.EndedAt != nil }

func TestANewPodHasConnectionsToTheOlderOnesRecycledOnce(t *testing.T) {
	c := newCrew(t, func(*site) {})
	c.known(1)
	c.scale(2)
	c.until("the round to be over", over)
	round := c.app.Status.Connections.Round
	if round.Number != 1 || round.After != v1alpha1.RecycleAfterScaleOut || !slices.Equal(round.Pods, []string{"db-1"}) || round.By != "manager" ||
		round.Hosts != 2 || round.Found != 20 || round.Limit != 10 || round.Ended != 10 || round.Because == "" {
		t.Errorf("%+v", round)
	}
	looks, ended := c.say()
	if len(looks) != 2 || ended != 10 {
		t.Fatalf("%d agents looked, %d connections ended", len(looks), ended)
	}
	servers := []string{"192.0.2.1:5432", "[2001:db8::1]:5432", "192.0.2.1:8080", "[2001:db8::1]:8080"}
	slices.Sort(servers)
	got := slices.Sorted(slices.Values(looks[0].Servers))
	if !slices.Equal(got, servers) || !slices.Contains(looks[0].Except, "192.0.2.2") || !slices.Contains(looks[0].Except, "192.0.2.1") {
		t.Errorf("looked for %+v", looks[0])
	}
	for range 20 {
		c.again()
		c.source.Step(time.Second)
	}
	c.lead("another") // who comes after reads the journal
	for range 20 {
		c.again()
		c.source.Step(time.Second)
	}
	if looks, ended := c.say(); len(looks) != 2 || ended != 10 || c.app.Status.Connections.Round.Number != 1 {
		t.Errorf("then %d looked, and %d ended", len(looks), ended)
	}
	c.scale(3)
	c.until("the second event's round to be over", func(j *v1alpha1.ConnectionsStatus) bool { return over(j) && j.Round.Number == 2 })
}

// Agents remember a round by its name: one that is named as another before it would end what was looked for then.
func TestNoRoundHasTheNameOfAnother(t *testing.T) {
	c := newCrew(t, func(*site) {})
	ask := func(recycle *v1alpha1.Recycle) {
		app := &v1alpha1.GuardedStatefulApp{}
		must(t, c.Get(t.Context(), client.ObjectKeyFromObject(&c.app), app))
		app.Spec.Connections.Recycle = recycle
		must(t, c.Update(t.Context(), app))
	}
	c.known(1)
	asked := c.app.Spec.Connections.Recycle.DeepCopy()
	c.scale(2)
	c.until("the first round to be over", over)
	ask(nil)
	c.again()
	if c.again(); c.app.Status.Connections != nil {
		t.Fatalf("nobody asks for it, and the journal is %+v", c.app.Status.Connections)
	}
	ask(asked)
	c.known(2)
	c.scale(3)
	c.until("another first round to be over", over)
	looks, _ := c.say()
	if c.app.Status.Connections.Round.Number != 1 || len(looks) != 4 || looks[0].Round == looks[3].Round || len(looks[3].Round) > wire.RoundBytes {
		t.Errorf("%+v, looked %+v", c.app.Status.Connections.Round, looks)
	}
}

func TestMoreThanAgentsTakeIsNotRecycled(t *testing.T) {
	c := newCrew(t, func(*site) {})
	c.known(1)
	c.scale(2)
	pod := member(1)
	must(t, c.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
	for n := range wire.Servers {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: fmt.Sprintf("2001:db8:1::%x", n)})
	}
	must(t, c.Status().Update(t.Context(), pod))
	c.until("it to say for what it waits", func(j *v1alpha1.ConnectionsStatus) bool { return strings.Contains(j.Waits, "agents take 512") })
	if looks, _ := c.say(); len(looks) != 0 {
		t.Errorf("looked %+v", looks)
	}
}

func TestWithoutBeingAskedNothingIsRecycled(t *testing.T) {
	c := newCrew(t, func(s *site) { s.app.Spec.Connections.Recycle = nil })
	for n := range 20 {
		if n == 5 {
			c.scale(2)
		}
		c.again()
		c.source.Step(time.Second)
	}
	if looks, ended := c.say(); len(looks) != 0 || ended != 0 || c.app.Status.Connections != nil {
		t.Errorf("%d looked, %d ended, %+v", len(looks), ended, c.app.Status.Connections)
	}
}

func TestAnotherLeaderDoesNotTakeARoundUp(t *testing.T) {
	c := newCrew(t, func(s *site) { s.app.Spec.Connections.Recycle.PerSecond = 1 })
	c.known(1)
	c.scale(2)
	c.until("the round to be under way", func(j *v1alpha1.ConnectionsStatus) bool { return j.Round != nil && j.Round.Found > 0 })
	if over(c.app.Status.Connections) {
		t.Fatal("it is over already")
	}
	c.lead("another")
	c.until("the round to be over", over)
	if round := c.app.Status.Connections.Round; round.Number != 1 || round.By != "manager" || !strings.Contains(round.Because, "another leader") {
		t.Errorf("%+v", round)
	}
	if looks, _ := c.say(); len(looks) != 2 {
		t.Errorf("%d agents looked", len(looks))
	}
}

func TestNoAgentIsAskedBeforeTheJournalHasIt(t *testing.T) {
	c := newCrew(t, func(*site) {})
	c.known(1)
	c.scale(2)
	c.refuse = errors.New("the API server is full")
	for range 20 {
		c.again()
		c.source.Step(time.Second)
	}
	if looks, _ := c.say(); len(looks) != 0 || !errors.Is(c.err, c.refuse) {
		t.Errorf("%d looked, %v", len(looks), c.err)
	}
	c.refuse = nil
	c.until("the round to be over", over)
}

func TestDuringAnIncidentNothingIsRecycledAndARoundEnds(t *testing.T) {
	incident := func(step v1alpha1.IncidentStep) *v1alpha1.HostIncident {
		return &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: "node-1-x"}, Spec: v1alpha1.HostIncidentSpec{NodeName: "node-1"},
			Status: v1alpha1.HostIncidentStatus{Step: step, Verdict: "Silent"}}
	}
	c := newCrew(t, func(s *site) { s.app.Spec.Connections.Recycle.PerSecond = 1 })
	c.known(1)
	must(t, c.Create(t.Context(), incident(v1alpha1.StepSuspected)))
	c.scale(2)
	c.until("it to say for what it waits", func(j *v1alpha1.ConnectionsStatus) bool { return strings.Contains(j.Waits, "node-1-x") })
	for range 20 {
		c.again()
		c.source.Step(time.Second)
	}
	if looks, _ := c.say(); len(looks) != 0 {
		t.Errorf("%d looked", len(looks))
	}
	must(t, c.Delete(t.Context(), incident(v1alpha1.StepSuspected)))
	c.until("the round to be under way", func(j *v1alpha1.ConnectionsStatus) bool { return j.Round != nil && j.Round.Ended > 0 })
	must(t, c.Create(t.Context(), incident(v1alpha1.StepSuspected)))
	c.until("the round to be over", over)
	_, before := c.say()
	for range 20 {
		c.again()
		c.source.Step(time.Second)
	}
	if _, ended := c.say(); ended != before || !strings.Contains(c.app.Status.Connections.Round.Because, "node-1-x") {
		t.Errorf("%d ended, then %d: %+v", before, ended, c.app.Status.Connections.Round)
	}
}

func TestAFailoverIsAnEvent(t *testing.T) {
	c := newCrew(t, func(*site) {})
	c.scale(2)
	c.until("the round of the second pod to be over", over)
	must(t, c.Create(t.Context(), &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: "node-2-x"}, Spec: v1alpha1.HostIncidentSpec{NodeName: "node-2"},
		Status: v1alpha1.HostIncidentStatus{Step: v1alpha1.StepResolved, Verdict: "Lost", Pods: []v1alpha1.IncidentPod{
			{Namespace: "shop", Name: "db-1", UID: "uid-1", App: "app", ReleasedAt: &metav1.Time{Time: time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)}}}}}))
	must(t, c.Delete(t.Context(), member(1)))
	successor := member(1)
	successor.UID, successor.Spec.NodeName = "uid-1b", "node-1"
	must(t, c.Create(t.Context(), successor))
	c.until("the successor's round to be over", func(j *v1alpha1.ConnectionsStatus) bool { return over(j) && j.Round.Number == 2 })
	if round := c.app.Status.Connections.Round; round.After != v1alpha1.RecycleAfterFailover || !slices.Equal(c.app.Status.Connections.Away, []string{"node-2"}) {
		t.Errorf("%+v, away from %v", round, c.app.Status.Connections.Away)
	}
}
