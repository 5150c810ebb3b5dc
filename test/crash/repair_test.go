// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// agents are those of both hosts, which hear each other; host a's says that everything is well there but the kubelet.
type agents struct {
	*life
	views chan struct{} // one for each view that was given, as long as there is room
	// answer is what the agent of host a says to the order to restart its kubelet.
	answer func() error
	orders []wire.RestartRequest
}

// agent is the one of a Node.
type agent struct {
	*agents
	node string
}

func (a agent) View(context.Context, string) (wire.View, error) {
	select {
	case a.views <- struct{}{}:
	default:
	}
	a.mu.Lock()
	kubelet := wire.Dead
	if a.renews["a"] {
		kubelet = wire.Alive
	}
	a.mu.Unlock()
	heard := int64(0)
	view := wire.View{Node: a.node, BootID: "boot-1", Index: 1}
	for _, letter := range []string{"a", "b"} {
		view.Hosts = append(view.Hosts, wire.Host{State: wire.StateAlive, HeardAge: &heard,
			Facts: wire.Facts{Node: a.host(letter), BootID: "boot-1", Kubelet: kubelet, Runtime: wire.Alive, API: wire.Alive}})
	}
	return view, nil
}

func (a agent) Await(ctx context.Context, address string, _ uint64) (wire.View, error) {
	return a.View(ctx, address)
}

func (a agent) Probe(_ context.Context, _ string, questions []wire.Question) (wire.ProbeAnswer, error) {
	answer := wire.ProbeAnswer{Node: a.node, BootID: "boot-1"}
	for _, q := range questions {
		answer.Answers = append(answer.Answers, wire.Answer{Name: q.Name, Outcome: wire.NotAsked})
	}
	return answer, nil
}

func (a agent) Restart(_ context.Context, _ string, order wire.RestartRequest) (wire.RestartAnswer, error) {
	a.saw(operation{life: a.life, what: "Restart"})
	if a.node != a.host("a") {
		a.t.Errorf("%s is asked to restart its kubelet", a.node)
	}
	a.orders = append(a.orders, order)
	if err := a.answer(); err != nil {
		return wire.RestartAnswer{}, err
	}
	return wire.RestartAnswer{Node: a.node, BootID: order.BootID, State: wire.RestartDone, By: "a test"}, nil
}

func (agent) Reset(context.Context, string, wire.ResetRequest) (wire.ResetAnswer, error) {
	return wire.ResetAnswer{}, wire.ErrNothingDone
}

func (agent) Recycle(context.Context, string, wire.RecycleRequest) (wire.RecycleAnswer, error) {
	return wire.RecycleAnswer{}, wire.ErrNothingDone
}

func (agent) Close() {}

// withAgents gives a life agents to ask.
func (l *life) withAgents() *agents {
	l.t.Helper()
	a := &agents{life: l, views: make(chan struct{}, 1), answer: func() error { l.set(func() { l.renews["a"] = true }); return nil }}
	witnesses := sight.NewWitnesses(l.hosts.Clock, func(string) {})
	witnesses.Reach = func(node string) sight.Agent { return agent{a, node} }
	witnesses.Targets = func(string) []sight.Target { return nil }
	witnesses.Roll = func(context.Context) (sight.Roll, error) {
		return sight.Roll{On: true, Port: wire.Port, Hosts: []sight.Host{{Node: l.host("a"), Address: lostIP, Ready: true}, {Node: l.host("b"), Address: "10.0.0.2", Ready: true}}}, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error)
	go func() { over <- witnesses.Start(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			l.t.Error(err)
		}
	})
	l.hosts.Witnesses = witnesses
	a.hear()
	return a
}

// hear lets time pass until the agents have been asked anew.
func (a *agents) hear() {
	a.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	turn := time.NewTicker(10 * time.Millisecond)
	defer turn.Stop()
	for {
		select {
		case <-a.views:
			return
		case <-turn.C:
			a.pass(250 * time.Millisecond)
		case <-deadline.C:
			a.t.Fatal("nobody asks the agents")
		}
	}
}

// until is life.until, with agents that are heard in between.
func (a *agents) until(what string, is func() bool) {
	a.t.Helper()
	a.life.until(what, func() bool {
		if is() {
			return true
		}
		a.hear()
		return false
	})
}

func repairs(g *v1alpha1.GuardedStatefulApp) {
	g.Spec.OnKubeletFailure.Repair = v1alpha1.RepairRestartKubelet
}

// restarts are those in the journals of all incidents, in words.
func (w *world) restarts() []string {
	var out []string
	for _, h := range w.incidents() {
		for _, p := range h.Status.Repairs {
			out = append(out, fmt.Sprintf("%s %s by %s", p.ID, p.State, p.By))
		}
	}
	return out
}

// restartIsIntended: at the moment of the call the API server knows of it, and by whom (invariant I2).
func (w *world) restartIsIntended(o operation) {
	if o.what != "Restart" {
		return
	}
	if got := w.restarts(); len(got) == 0 || got[len(got)-1] != fmt.Sprintf("restart-%d Intended by %s", len(got), o.life.self) {
		w.t.Errorf("a kubelet is restarted by %s, and the journals have %q", o.life.self, got)
	}
}

func (w *world) expectRestarts(want ...string) {
	w.t.Helper()
	if got := w.restarts(); !slices.Equal(got, want) {
		w.t.Errorf("the journals have %q, want %q\n%s", got, want, w.tell())
	}
}

func TestAKubeletIsRestartedByTheAgentOfItsHost(t *testing.T) {
	t.Parallel()
	w := lawful(t, repairs)
	w.watch(w.restartIsIntended)
	a := w.boot().withAgents()
	a.settle()
	w.kubeletDies()
	a.until("the kubelet is back, and nothing is held", func() bool { return len(w.incidents()) == 1 && step(w, v1alpha1.StepClosed)() })
	w.expectRestarts("restart-1 Done by " + a.self)
	if len(a.orders) != 1 || a.orders[0].BootID != "boot-1" || a.orders[0].Reason == "" || a.orders[0].WindowMillis >= (10*time.Minute).Milliseconds() {
		t.Errorf("ordered: %+v", a.orders)
	}
}

func TestAKubeletThatARestartDoesNotBringBack(t *testing.T) {
	t.Parallel()
	w := lawful(t, repairs)
	a := w.boot().withAgents()
	a.answer = func() error { return nil }
	a.settle()
	w.kubeletDies()
	a.until("it was restarted", func() bool { return slices.Equal(w.restarts(), []string{"restart-1 Done by " + a.self}) })
	for range 20 {
		a.look()
		a.hear()
		a.pass(time.Second)
	}
	if len(a.orders) != 1 || !isHeld(w.lost()) {
		t.Errorf("ordered %d times, held: %v\n%s", len(a.orders), isHeld(w.lost()), w.tell())
	}
}

func TestNoKubeletIsRestartedUnlessTheAppAsksForIt(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	a := w.boot().withAgents()
	a.settle()
	w.kubeletDies()
	a.until("it is held", step(w, v1alpha1.StepHolding))
	for range 20 {
		a.look()
		a.hear()
		a.pass(time.Second)
	}
	w.expectRestarts()
}

func TestARestartThatTheAgentRefusesOrDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err   error
		state v1alpha1.RepairState
	}{
		"refused":   {fmt.Errorf("409: %w", wire.ErrNothingDone), v1alpha1.RepairFailed},
		"no answer": {context.DeadlineExceeded, v1alpha1.RepairUnclear},
	} {
		t.Run(name, func(t *testing.T) {
			w := lawful(t, repairs)
			w.watch(w.restartIsIntended)
			a := w.boot().withAgents()
			a.answer = func() error { return c.err }
			a.settle()
			w.kubeletDies()
			a.until("the answer is written down", func() bool {
				got := w.restarts()
				return len(got) == 1 && got[0] == fmt.Sprintf("restart-1 %s by %s", c.state, a.self)
			})
			for range 10 {
				a.look()
				a.hear()
				a.pass(time.Second)
			}
			if len(a.orders) != 1 || !isHeld(w.lost()) {
				t.Errorf("ordered %d times, held: %v", len(a.orders), isHeld(w.lost()))
			}
		})
	}
}

// Whoever comes after a crash in the middle takes it for done.
func TestACrashBeforeTheAgentIsAsked(t *testing.T) {
	t.Parallel()
	w := lawful(t, repairs)
	first := w.boot().withAgents()
	first.answer = func() error { panic(crashed{}) }
	first.settle()
	w.kubeletDies()
	for survived := true; survived; {
		_, survived = first.look()
		if survived {
			first.hear()
			first.pass(time.Second)
		}
	}
	w.expectRestarts("restart-1 Intended by " + first.self)
	second := w.boot().withAgents()
	second.lookAtApp()
	for range 30 {
		second.look()
		second.hear()
		second.pass(time.Second)
	}
	if len(second.orders) != 0 || !isHeld(w.lost()) {
		t.Errorf("the next leader ordered %d restarts; held: %v\n%s", len(second.orders), isHeld(w.lost()), w.tell())
	}
}

// A kubelet that comes back between the journal and the call is left alone, and that counts as no restart.
func TestARestartThatIsNotOwedAnyMore(t *testing.T) {
	t.Parallel()
	w := lawful(t, repairs)
	a := w.boot().withAgents()
	a.settle()
	w.kubeletDies()
	w.watch(func(o operation) {
		if o.what == "update status of HostIncident" && o.done && slices.Contains(w.restarts(), "restart-1 Intended by "+a.self) {
			w.set(func() { w.renews["a"] = true })
			w.renew("a")
		}
	})
	a.until("the kubelet is back, and nothing is held", func() bool { return len(w.incidents()) == 1 && step(w, v1alpha1.StepClosed)() })
	w.expectRestarts("restart-1 Withdrawn by " + a.self)
	if len(a.orders) != 0 {
		t.Errorf("ordered: %+v", a.orders)
	}
}
