// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guardedstatefulapp puts workloads under guard: it accepts or refuses them, marks what the admission policies protect, has the
// application probed, and tells people how things stand.
package guardedstatefulapp

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// Reconciler puts one workload under guard.
type Reconciler struct {
	// Client reads from the cache and writes; Live reads from the API server.
	Client  client.Client
	Live    client.Reader
	Clock   *sight.Clock
	Board   *sight.Board
	Devices *guard.Devices
	// Recycles ends connections to older pods, and Events tells of it; without them nothing is recycled, and nothing told.
	Recycles *sight.Recycles
	Events   events.EventRecorder
	// Self names this process.
	Self string

	// nodes lets one app at a time mark Nodes: they carry pods of several.
	nodes sync.Mutex
	// separate is true once the controller manager was seen to give its controllers identities of their own.
	separate atomic.Bool
}

// lookEvery is how often an app is looked at when nothing happens; status stays at most a minute old while a leader lives.
const lookEvery = 20 * time.Second

// roundEvery is how often it is looked at while connections are recycled, or new pods are the reason to do so soon.
const roundEvery = 2 * time.Second

// Reconcile looks at one app.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.gather(ctx, req)
	if seen == nil || err != nil {
		return ctrl.Result{}, err
	}
	acted := r.act(ctx, seen)
	if seen.gone {
		return ctrl.Result{}, acted
	}
	err = errors.Join(acted, r.record(ctx, seen, acted))
	if apierrors.IsConflict(err) {
		logf.FromContext(ctx).V(1).Info("Looking again", "because", err.Error())
		return ctrl.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	return ctrl.Result{RequeueAfter: seen.again()}, err
}

// refusal is why an app is not accepted, or not protected.
type refusal struct {
	reason  string
	message string
}

// key is "namespace/name".
func key(g *v1alpha1.GuardedStatefulApp) string { return g.Namespace + "/" + g.Name }
