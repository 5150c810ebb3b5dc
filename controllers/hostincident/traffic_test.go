// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/workqueue"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// owing is a manager of a host whose kubelet died, and of a pod there which serves, and which the node controller took out of traffic.
func owing(t *testing.T) *watch {
	t.Helper()
	w := newWatch(t, true)
	w.Live = nil // whoever reads live, waits
	w.Board.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "192.0.2.") {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		return here, nil
	}
	probe := v1alpha1.Probe{Name: "port", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt32(5432)}}
	w.Board.Set("shop/db", []sight.Target{{App: "shop/db", Pod: "shop/db-0", UID: "p1", Host: "h", IP: "198.51.100.1", Health: v1alpha1.Health{Probes: []v1alpha1.Probe{probe}}}})
	if err := w.Client.Patch(t.Context(), renewing("h"), client.RawPatch(types.MergePatchType, []byte(`{"spec":{"leaseDurationSeconds":1}}`))); err != nil {
		t.Fatal(err)
	}
	w.Board.WatchPort("h", "192.0.2.1")
	w.until("the kubelet to be called dead", func() bool {
		return w.decide(w.gather(t.Context(), "h", fromCache)).Class == verdict.KubeletDown
	})
	p := w.pod()
	setPodCondition(p, corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionTrue})
	setPodCondition(p, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse})
	if err := w.Client.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *watch) pod() *corev1.Pod {
	w.Helper()
	p := &corev1.Pod{}
	if err := w.Client.Get(w.Context(), types.NamespacedName{Namespace: "shop", Name: "db-0"}, p); err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *watch) putBack() error {
	_, err := traffic{w.Reconciler}.Reconcile(w.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "h"}})
	return err
}

// TestAnEndpointIsPutBackWithoutALookThatWaits: neither the API server nor a device is read before it.
func TestAnEndpointIsPutBackWithoutALookThatWaits(t *testing.T) {
	w := owing(t)
	if !silenced(w.pod()) {
		t.Error("a pod that is not Ready is no occasion")
	}
	if err := w.putBack(); err != nil {
		t.Fatal(err)
	}
	if p := w.pod(); !isTrue(p, corev1.PodReady) || silenced(p) {
		t.Errorf("the endpoint is not put back: %+v", p.Status.Conditions)
	}
}

// TestAHostThatIsFencedServesByALiveLookAlone: what is remembered of a host may be older than the command that switched it off.
func TestAHostThatIsFencedServesByALiveLookAlone(t *testing.T) {
	for says, c := range map[string]struct {
		status v1alpha1.HostIncidentStatus
		want   bool
	}{
		"held":      {v1alpha1.HostIncidentStatus{Step: v1alpha1.StepHolding}, true},
		"commanded": {v1alpha1.HostIncidentStatus{Step: v1alpha1.StepFencing, Attempts: []v1alpha1.Attempt{{ID: "1", Method: "power", State: v1alpha1.AttemptIntended}}}, false},
		"proven":    {v1alpha1.HostIncidentStatus{Step: v1alpha1.StepReleasing, Proof: &v1alpha1.Proof{}}, false},
	} {
		w := owing(t)
		h := &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: "h-1"}, Status: c.status,
			Spec: v1alpha1.HostIncidentSpec{NodeName: "h", NodeUID: "n1", BootID: "b1", SystemUUID: "m1", Episode: 1}}
		if err := w.Client.Create(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if err := w.putBack(); err != nil {
			t.Fatal(err)
		}
		if got := isTrue(w.pod(), corev1.PodReady); got != c.want {
			t.Errorf("%s: put back from memory is %v", says, got)
		}
	}
}

// TestWhatWeTookOutIsNotPutBackFromMemory: it was done by what a live look told.
func TestWhatWeTookOutIsNotPutBackFromMemory(t *testing.T) {
	w := owing(t)
	p := w.pod()
	if err := w.serve(t.Context(), p, corev1.ConditionFalse, stopsServing, "lost"); err != nil {
		t.Fatal(err)
	}
	if err := w.putBack(); err != nil {
		t.Fatal(err)
	}
	if p := w.pod(); isTrue(p, corev1.PodReady) || silenced(p) {
		t.Errorf("the endpoint is put back: %+v", p.Status.Conditions)
	}
}

// meanwhile has every pod changed by somebody else before its status is patched, and counts.
type meanwhile struct {
	client.Client
	patches int
}

func (m *meanwhile) Status() client.SubResourceWriter { return conflicting{m.Client.Status(), m} }

type conflicting struct {
	client.SubResourceWriter
	m *meanwhile
}

func (c conflicting) Patch(_ context.Context, o client.Object, _ client.Patch, _ ...client.SubResourcePatchOption) error {
	c.m.patches++
	return apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, o.GetName(), nil)
}

// A pod that changed is an event of its own; an error would have it tried again by what was seen before.
func TestAPodThatChangedMeanwhileIsNoError(t *testing.T) {
	w := owing(t)
	changed := &meanwhile{Client: w.Client}
	w.Client = changed
	if err := w.putBack(); err != nil || changed.patches != 1 {
		t.Errorf("tried %d times, want once: %v", changed.patches, err)
	}
}

// TestAnEndpointIsPutBackOnceItsEndHasSettled: the EndpointSlice controller loses a second over a change that comes before its own last one is back.
func TestAnEndpointIsPutBackOnceItsEndHasSettled(t *testing.T) {
	now := clocktesting.NewFakeClock(time.Now())
	q := workqueue.NewTypedRateLimitingQueueWithConfig(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request](), workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{Clock: now})
	defer q.ShutDown()
	for _, host := range []string{"h", ""} { // one that is nowhere yet has no host
		p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: host}}
		settled().Update(t.Context(), event.UpdateEvent{ObjectOld: p, ObjectNew: p}, q)
	}
	got := make(chan reconcile.Request)
	go func() {
		for {
			host, over := q.Get()
			if over {
				close(got)
				return
			}
			got <- host
		}
	}()
	waited := time.Duration(0)
	for tick := time.NewTicker(time.Millisecond); ; { // the queue takes what it is to wait for in its own time
		select {
		case host := <-got:
			if host.Name != "h" || waited < settling {
				t.Errorf("%q is looked at after %v, want %q after %v", host.Name, waited, "h", settling)
			}
			return
		case <-tick.C:
			if waited < settling && now.HasWaiters() {
				now.Step(settling / 4)
				waited += settling / 4
			}
		}
	}
}
