// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	clientfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// gossip is what every agent says of host "h", and remembers whether it was asked to look for it.
type gossip struct {
	mu     sync.Mutex
	state  wire.State
	index  uint64
	moved  chan struct{}
	probed map[string]bool
}

func (g *gossip) say(state wire.State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = state
	g.index++
	close(g.moved)
	g.moved = make(chan struct{})
}

func (g *gossip) probedBy(n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.probed) == n
}

type gossiper struct {
	*gossip
	node string
}

func (g gossiper) View(context.Context, string) (wire.View, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return wire.View{Node: g.node, BootID: "b", Index: g.index, Hosts: []wire.Host{{Facts: wire.Facts{Node: "h", BootID: "b1"}, State: g.state}}}, nil
}

func (g gossiper) Await(ctx context.Context, address string, index uint64) (wire.View, error) {
	for {
		g.mu.Lock()
		moved := g.moved
		g.mu.Unlock()
		if view, err := g.View(ctx, address); view.Index != index {
			return view, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return wire.View{}, ctx.Err()
		}
	}
}

func (g gossiper) Probe(_ context.Context, _ string, questions []wire.Question) (wire.ProbeAnswer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probed[g.node] = true
	out := wire.ProbeAnswer{Node: g.node, BootID: "b"}
	for _, q := range questions {
		out.Answers = append(out.Answers, wire.Answer{Name: q.Name, Outcome: wire.Silent})
	}
	return out, nil
}

func (gossiper) Reset(context.Context, string, wire.ResetRequest) (wire.ResetAnswer, error) {
	return wire.ResetAnswer{}, errors.ErrUnsupported
}

func (gossiper) Recycle(context.Context, string, wire.RecycleRequest) (wire.RecycleAnswer, error) {
	return wire.RecycleAnswer{}, wire.ErrNothingDone
}

func (gossiper) Restart(context.Context, string, wire.RestartRequest) (wire.RestartAnswer, error) {
	return wire.RestartAnswer{}, wire.ErrNothingDone
}

func (gossiper) Close() {}

// watch is a manager of one host that is well by everything but what agents say.
type watch struct {
	*Reconciler
	*testing.T
	gossip *gossip
	// dialled has a value for each time that the host's port was asked from here; nobody answers there.
	dialled chan struct{}
	told    chan string
}

func newWatch(t *testing.T, guarded bool) *watch {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	objects := []client.Object{&v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}, well("h"), renewing("h")}
	if guarded {
		objects = append(objects, guardedPod()...)
	}
	api := clientfake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithIndex(&corev1.Pod{}, guard.IndexPodNode, func(o client.Object) []string { return one(o.(*corev1.Pod).Spec.NodeName) }).
		WithIndex(&corev1.Pod{}, guard.IndexPodIP, func(o client.Object) []string { return guard.PodIPs(o.(*corev1.Pod)) }).Build()
	w := &watch{T: t, gossip: &gossip{state: wire.StateAlive, moved: make(chan struct{}), probed: map[string]bool{}}, dialled: make(chan struct{}, 1000), told: make(chan string, 1000)}
	own := sight.NewClock(clock.RealClock{})
	changed := func(host string) { w.told <- host }
	w.Reconciler = &Reconciler{Client: api, Live: api, Clock: own, Leases: sight.NewLeases(own), Powers: sight.NewPowers(own), Sleepers: sight.NewSleepers(own, changed),
		Board: sight.NewBoard(own, changed), API: sight.NewAPI(own), Devices: &guard.Devices{}, Self: "manager", Witnesses: sight.NewWitnesses(own, changed)}
	w.Board.Dial = func(context.Context, string, string) (net.Conn, error) {
		w.dialled <- struct{}{}
		return nil, &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}
	}
	w.Witnesses.Reach = func(node string) sight.Agent { return gossiper{w.gossip, node} }
	w.Witnesses.Targets = w.Board.Targets
	w.Witnesses.Roll = func(context.Context) (sight.Roll, error) {
		return sight.Roll{On: true, Port: wire.Port, Hosts: []sight.Host{{Node: "h", Address: "192.0.2.1", Ready: true}, {Node: "x", Address: "192.0.2.2", Ready: true},
			{Node: "y", Address: "192.0.2.3", Ready: true}}}, nil
	}
	for _, run := range []func(context.Context) error{w.Board.Start, w.Witnesses.Start} {
		ctx, stop := context.WithCancel(context.Background())
		over := make(chan error)
		go func() { over <- run(ctx) }()
		t.Cleanup(func() { stop(); <-over })
	}
	w.until("both others to answer", func() bool { return w.Witnesses.Of("h").Expected == 2 })
	return w
}

func well(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "n1"}}
	n.Status.NodeInfo.BootID, n.Status.NodeInfo.SystemUUID = "b1", "m1"
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return n
}

func renewing(name string) *coordinationv1.Lease {
	at, lasts := metav1.NowMicro(), int32(40)
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name},
		Spec: coordinationv1.LeaseSpec{RenewTime: &at, LeaseDurationSeconds: &lasts}}
}

func guardedPod() []client.Object {
	labels := map[string]string{"app": "db"}
	app := &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", Finalizers: []string{v1alpha1.FinalizerApp}}}
	app.Spec.PodSelector = &metav1.LabelSelector{MatchLabels: labels}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", UID: "p1", Labels: labels}}
	p.Spec.NodeName, p.Status.PodIP, p.Status.Phase = "h", "198.51.100.1", corev1.PodRunning
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	return []client.Object{app, p, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"}}}
}

func (w *watch) until(what string, is func() bool) {
	w.Helper()
	tick, deadline := time.NewTicker(time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			w.Fatalf("waited 20 s for %s", what)
		}
	}
}

func (w *watch) look() {
	w.Helper()
	if _, err := w.Reconcile(w.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "h"}}); err != nil {
		w.Fatal(err)
	}
}

// doubted awaits the word that agents doubt the host, after which the manager looks at it.
func (w *watch) doubt() {
	w.Helper()
	w.gossip.say(wire.StateDead)
	w.until("the agents to doubt the host", func() bool { return w.Witnesses.Doubted("h") })
	if host := <-w.told; host != "h" {
		w.Fatalf("told to look at %s", host)
	}
	w.look()
}

// TestWhatAgentsDoubtIsAskedAtOnce: the lease is fresh and no application fails, and still the port is asked from here and from there, so that a loss is known
// seconds before either is late.
func TestWhatAgentsDoubtIsAskedAtOnce(t *testing.T) {
	w := newWatch(t, true)
	w.look()
	if n := len(w.dialled); n != 0 || w.gossip.probedBy(2) {
		t.Fatalf("a host that nobody doubts is asked, %d times from here", n)
	}
	w.doubt()
	w.until("the port to be asked in vain", func() bool { return w.Board.Port("h").Silent() })
	w.until("both agents to look for it", func() bool { return w.gossip.probedBy(2) })
	w.until("the host to be given up", func() bool {
		s := w.gather(t.Context(), "h", fromCache).seen
		return s.WitnessesCallItDead() && s.WitnessQuorum()
	})
	found := w.decide(w.gather(t.Context(), "h", fromCache))
	if found.Rule() != "NothingAnswers" {
		t.Errorf("%s by %s", found.Class, found.Rule())
	}
	w.gossip.say(wire.StateAlive)
	w.until("the agents to hear it", func() bool { return !w.Witnesses.Doubted("h") })
	w.look()
	if w.Board.Port("h") != (evidence.Port{}) {
		t.Error("the port is asked on although nobody doubts the host")
	}
}

func TestAHostWithoutGuardedPodsIsNotAsked(t *testing.T) {
	w := newWatch(t, false)
	w.doubt()
	if n := len(w.dialled); n != 0 || w.gossip.probedBy(2) {
		t.Errorf("it is asked, %d times from here", n)
	}
}

// A host that was taken away is looked at until nothing is left of it, and then no more: clusters that grow and shrink have had thousands of those.
func TestAHostThatIsGoneIsForgotten(t *testing.T) {
	w := newWatch(t, false)
	next := func() time.Duration {
		t.Helper()
		result, err := w.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "h"}})
		if err != nil {
			t.Fatal(err)
		}
		return result.RequeueAfter
	}
	remembered := func() bool { return w.Leases.Lease("h", true, false).Age > 0 }
	for what, o := range map[string]client.Object{"Node": well("h"), "lease": renewing("h")} {
		if next() == 0 || !remembered() {
			t.Errorf("it is forgotten although its %s is there", what)
		}
		if err := w.Client.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if after := next(); after != 0 || remembered() {
		t.Errorf("it is looked at again after %s, and its lease is remembered: %v", after, remembered())
	}
	guarded := newWatch(t, true)
	for _, o := range []client.Object{well("h"), renewing("h")} {
		if err := guarded.Client.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if w := guarded.gather(t.Context(), "h", fromCache); w.gone() {
		t.Error("a guarded pod is there, and its host is gone")
	}
}

// copied notes which lists of the whole cluster were asked for as copies.
type copied struct {
	client.Client
	lists map[string]bool
}

func (c copied) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	o := (&client.ListOptions{}).ApplyOptions(opts)
	switch list.(type) {
	case *corev1.NodeList, *coordinationv1.LeaseList:
		c.lists[fmt.Sprintf("%T", list)] = o.UnsafeDisableDeepCopy == nil || !*o.UnsafeDisableDeepCopy
	}
	return c.Client.List(ctx, list, opts...)
}

// Every host is looked at every ten seconds: in a cluster of thousands nobody can copy all others for that.
func TestALookAtOneHostCopiesNoOthers(t *testing.T) {
	w := newWatch(t, true)
	lists := map[string]bool{}
	w.Reconciler.Client = copied{w.Reconciler.Client, lists}
	w.look()
	if want := map[string]bool{"*v1.NodeList": false, "*v1.LeaseList": false}; !maps.Equal(lists, want) {
		t.Errorf("copied are %v, want %v", lists, want)
	}
}
