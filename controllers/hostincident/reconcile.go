// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostincident watches the hosts that carry guarded pods and brings each one's trouble to its end: gather, decide, plan, act, record.
package hostincident

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Reconciler brings hosts' trouble to its end. Requests are names of Nodes.
type Reconciler struct {
	// Client reads from the cache and writes; Live reads from the API server.
	Client client.Client
	Live   client.Reader
	Events events.EventRecorder

	Clock  *sight.Clock
	Leases *sight.Leases
	Powers *sight.Powers
	// Sleepers are the devices that did not answer.
	Sleepers *sight.Sleepers
	Board    *sight.Board
	// Witnesses are the agents; nil where there are none.
	Witnesses *sight.Witnesses
	// Resets has their agents reset connections; nil where there are none.
	Resets  *sight.Resets
	API     *sight.API
	Devices *guard.Devices
	// Bolt is called before a hold is armed: it keeps the records of holds from being deleted. Nil bolts nothing.
	Bolt func(context.Context) error

	// Self names this process, for the journal: a pod's name and a mark of this life of it.
	Self string
	// OwnHost is the Node that this process runs on: its lease says nothing about the way to other hosts.
	OwnHost string
	// CallDeadline bounds every driver call; it is shorter than the time in which another leader can take over (invariant I6).
	CallDeadline time.Duration

	phases phaseTimes
	// began is when this process began to lead, or when its view was last bad: a standby hears nobody, and silence that it met blind is nobody's.
	began atomic.Int64
	// contrasted is when the Leases of the agents that are asked were last read.
	contrasted atomic.Int64
	// fencing lets one Off command at a time be journalled and counted against the budget (invariant I5).
	fencing sync.Mutex
	// repairing lets one restart of a kubelet at a time be journalled and counted against those of other hosts.
	repairing sync.Mutex
}

// Reconcile looks at one host.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	w := r.gather(ctx, req.Name, fromCache)
	if found := r.decide(w); !w.concerns(found) {
		if w.doubted() || (len(w.seen.Writers) > 0 && r.Witnesses.Doubted(req.Name)) {
			// Asked from the first failed probe on, or from the first agent on that does not hear the host, the port has answered or not when the application's
			// own threshold is reached, or when most agents have given the host up.
			r.suspect(ctx, w)
		} else {
			r.Board.UnwatchPort(req.Name)
			r.Witnesses.Trust(req.Name)
		}
		if w.gone() { // whatever comes of its name is told as new
			r.Leases.Forget(req.Name)
			return ctrl.Result{}, nil
		}
		return r.again(w, plan.Make(found, w.seen, w.budget)), nil
	}
	r.suspect(ctx, w)

	w = r.gather(ctx, req.Name, live)
	found := r.decide(w)
	todo := plan.Make(found, w.seen, w.budget)
	if w.incident != nil && w.incident.Status.JournalVersion > v1alpha1.JournalVersion {
		return r.again(w, todo), r.stand(ctx, w, found, todo)
	}
	err := r.act(ctx, w, found, todo)
	return r.record(ctx, w, found, todo, err)
}

// suspect looks for the host from here, and has the vantage points look for it. These come first: where nothing answers us, their silence says that it is we who
// are cut off, and so they must have been asked.
func (r *Reconciler) suspect(ctx context.Context, w *world) {
	r.Witnesses.Suspect(ctx, w.seen.Host.Node)
	r.Board.WatchPort(w.seen.Host.Node, w.address)
}

// decide gives the verdict on what was seen. Where it finds this process blind, the watch over every host begins anew: hosts come back one by one when a
// view clears, and the first that is heard must not make the others' silence count.
func (r *Reconciler) decide(w *world) verdict.Found {
	found := verdict.Decide(w.seen, w.policy)
	if found.Blind() {
		r.began.Store(int64(w.seen.At))
	}
	return found
}

// concerns reports whether there is anything to do about the host: trouble on a host that carries writers, an incident that is open, or what is left of
// one that is not there any more.
func (w *world) concerns(found verdict.Found) bool {
	if w.incident != nil || w.seen.Orphaned() || toldOf(w.node) {
		return true
	}
	return len(w.seen.Writers) > 0 && found.Class != verdict.Healthy
}

// gone reports whether nothing is left of the host in the API, and nothing guarded: neither its Node, nor its lease, which goes after it.
func (w *world) gone() bool {
	n, l := w.seen.Node, w.seen.Lease
	return n.Read && n.Missing && l.Read && l.Missing && w.seen.Listed && len(w.seen.Writers) == 0 && w.incident == nil
}

// doubted reports whether a probe of an application on the host failed when it was last asked.
func (w *world) doubted() bool {
	return slices.ContainsFunc(w.seen.Apps, func(a evidence.App) bool { return a.Answered < a.Asked })
}

// again says when to look at the host next. A kubelet renews at a quarter of its lease: looking more seldom would see it late.
func (r *Reconciler) again(w *world, todo plan.Plan) ctrl.Result {
	next := todo.Next
	if len(w.seen.Writers) > 0 || w.incident != nil {
		next = min(next, w.seen.Lease.Duration/4)
	}
	return ctrl.Result{RequeueAfter: max(next, 50*time.Millisecond)}
}
