// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// resetters are the agents of both hosts as far as they reset connections; of what they see nothing is asked.
type resetters struct {
	*life
	// lost are the addresses that the agent of host b has lost; orders counts what it was told. Both are guarded by the world's lock.
	lostAt map[string]bool
	orders int
	// hang keeps it from answering.
	hang bool
}

type resetter struct {
	*resetters
	node string
}

var errUnseeing = errors.New("this agent says nothing of what it sees")

func (resetter) View(context.Context, string) (wire.View, error) { return wire.View{}, errUnseeing }
func (resetter) Await(context.Context, string, uint64) (wire.View, error) {
	return wire.View{}, errUnseeing
}
func (resetter) Probe(context.Context, string, []wire.Question) (wire.ProbeAnswer, error) {
	return wire.ProbeAnswer{}, errUnseeing
}
func (resetter) Restart(context.Context, string, wire.RestartRequest) (wire.RestartAnswer, error) {
	return wire.RestartAnswer{}, wire.ErrNothingDone
}
func (resetter) Close() {}

// Reset does it. Only agents of hosts that are left are asked, and only for a pod whose object is gone.
func (a resetter) Reset(ctx context.Context, _ string, order wire.ResetRequest) (wire.ResetAnswer, error) {
	if a.node != a.host("b") {
		a.t.Errorf("the agent of %s is asked to reset connections", a.node)
	}
	if len(order.Lost) > 0 && a.theirs(a.tenants[0]) != nil {
		a.t.Errorf("connections to %v are reset, and the pod's object is there", order.Lost)
	}
	a.mu.Lock()
	hang := a.hang
	if a.orders++; !hang {
		for _, ip := range order.Lost {
			a.lostAt[ip] = true
		}
		for _, ip := range order.Back {
			delete(a.lostAt, ip)
		}
	}
	a.mu.Unlock()
	if hang {
		<-ctx.Done()
		return wire.ResetAnswer{}, ctx.Err()
	}
	return wire.ResetAnswer{Node: a.node, BootID: "boot-1", Found: 3}, nil
}

func (resetter) Recycle(context.Context, string, wire.RecycleRequest) (wire.RecycleAnswer, error) {
	return wire.RecycleAnswer{}, wire.ErrNothingDone
}

// resets gives a life agents that reset connections.
func (l *life) resets() *resetters {
	l.t.Helper()
	a := &resetters{life: l, lostAt: map[string]bool{}}
	l.set(func() { l.config.Witness.Enabled = true })
	witnesses := sight.NewWitnesses(l.hosts.Clock, func(string) {})
	witnesses.Reach = func(node string) sight.Agent { return resetter{a, node} }
	witnesses.Targets = func(string) []sight.Target { return nil }
	witnesses.Roll = func(context.Context) (sight.Roll, error) {
		return sight.Roll{On: true, Port: wire.Port, Hosts: []sight.Host{{Node: l.host("a"), Address: lostIP}, {Node: l.host("b"), Address: "10.0.0.2", Ready: true}}}, nil
	}
	l.hosts.Resets = sight.NewResets(witnesses, func(string) {})
	l.hosts.Resets.User = l.hosts.UserOf
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 2)
	for _, run := range []func(context.Context) error{witnesses.Start, l.hosts.Resets.Start} {
		go func() { over <- run(ctx) }()
	}
	end := l.end
	l.end = func() {
		if cancel != nil {
			cancel()
			cancel = nil
			if err := errors.Join(<-over, <-over); err != nil {
				l.t.Error(err)
			}
		}
		end()
	}
	l.t.Cleanup(func() { l.end() })
	return a
}

func (a *resetters) has(ip string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lostAt[ip]
}

func (w *world) reset() (out v1alpha1.ConnectionReset) {
	if h := w.incident(); len(h.Status.Resets) == 1 {
		out = h.Status.Resets[0]
	}
	return out
}

// released brings a life to where connections to the pod of the host that lost its power are reset, and the journal says so.
func (a *resetters) released() {
	a.t.Helper()
	a.settle()
	a.powerFails()
	a.until("connections to the pod are reset", func() bool { return a.has(podIP) })
	a.until("the journal says so", func() bool { return a.reset().Done == 1 })
}

func TestConnectionsToAReleasedPodAreResetForTwoMinutes(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	a := w.boot().resets()
	a.released()
	if c := w.reset(); c.Address != podIP || c.Hosts != 1 || c.Connections < 3 || c.EndedAt != nil || !slices.Equal(w.incident().Status.Pods[0].Addresses, []string{podIP}) {
		t.Errorf("%+v of %+v", c, w.incident().Status.Pods)
	}
	begin := w.clock.Now()
	a.until("the incident goes on", step(w, v1alpha1.StepRecovering))
	a.while(110*time.Second-w.clock.Since(begin), "they are reset", func() bool { return w.reset().EndedAt == nil })
	a.until("it is over by the journal", func() bool { return w.reset().EndedAt != nil })
	if took := w.clock.Since(begin); took > 2*time.Minute+10*time.Second {
		t.Errorf("it went on for %s", took)
	}
	w.toldTo(t, "ResetConnections", "HostIncident", "Node")
}

func TestAnAddressThatAnotherPodGetsIsLetGo(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	a := w.boot().resets()
	a.released()
	set := &appsv1.StatefulSet{}
	w.must(w.admin.Get(t.Context(), client.ObjectKeyFromObject(&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "db"}}), set))
	w.start(set, "b", podIP)
	a.until("it is let go", func() bool { return !a.has(podIP) })
	a.until("the journal says so", func() bool { return w.reset().EndedAt != nil })
	if why := w.reset().Ended; !strings.Contains(why, "pod "+w.name+"/db-0") {
		t.Errorf("because %q", why)
	}
	a.while(15*time.Second, "it is not lost", func() bool { return !a.has(podIP) })
}

// Another leader goes on by the journal, and lets go what the one before began.
func TestTheNextLeaderGoesOnAndLetsGoWhenTheHostIsBack(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	first := w.boot().resets()
	first.released()
	first.end()
	second := w.boot().resets()
	second.lookAtApp()
	second.until("the next one goes on", func() bool { return second.has(podIP) })
	w.returns()
	second.until("the incident is closed", step(w, v1alpha1.StepClosed))
	second.until("it is let go", func() bool { return !second.has(podIP) })
	if c := w.reset(); c.EndedAt == nil || c.Ended == "" || c.Since.IsZero() {
		t.Errorf("the incident is closed with %+v", c)
	}
}

// What the agents do, or do not, is waited for by nobody.
func TestAgentsThatDoNotAnswerDelayNothing(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	a := w.boot().resets()
	a.hang = true
	a.settle()
	w.powerFails()
	a.until("the pod is released", func() bool { return w.lost() == nil })
	a.until("an agent is asked", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.orders > 0 })
	begin := time.Now()
	a.until("the incident goes on", step(w, v1alpha1.StepRecovering))
	for range 5 {
		a.look()
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("five looks took %s", took)
	}
	if c := w.reset(); c.Address != podIP || c.Done != 0 || c.Connections != 0 {
		t.Errorf("%+v", c)
	}
}

// Without agents, and where it is not wanted, nothing is reset.
func TestNothingIsResetThatIsNotWanted(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	a := w.boot().resets()
	no := false
	w.set(func() { w.config.Witness.ResetConnections = &no })
	a.settle()
	w.powerFails()
	a.until("the incident goes on", step(w, v1alpha1.StepRecovering))
	a.while(10*time.Second, "nothing is reset", func() bool { return !a.has(podIP) && len(w.incident().Status.Resets) == 0 })
}
