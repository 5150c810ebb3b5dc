// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardconfig

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// act bolts what an open incident needs, installs the policies where they are not in force, and has the canary try them.
func (r *Reconciler) act(ctx context.Context, s *sighting) {
	if r.Bolt != nil {
		if err := r.Bolt.Sweep(ctx); err != nil {
			logf.FromContext(ctx).Error(err, "The bolt cannot be moved; trying again")
		}
	}
	if err := r.retain(ctx, s.config.Spec); err != nil {
		logf.FromContext(ctx).Error(err, "Old incidents cannot be deleted; trying again")
	}
	if s.proven {
		return
	}
	caps, err := admission.Discover(r.Client.RESTMapper())
	if err != nil {
		s.err = err
		return
	}
	if s.installed, s.err = admission.Install(ctx, r.Direct, r.Identity, caps); s.err != nil {
		return
	}
	proof, err := admission.Prove(ctx, admission.Canary{Identity: r.Identity, Holdfast: r.Direct, Servers: r.Servers, Capabilities: caps, Version: s.installed.Version})
	s.proof, s.err = &proof, err
}

// retain deletes records of incidents that are over: for each node all but the newest, and those that have been over for too long. Whatever is deleted is
// exactly what was judged here, however old the cache is.
func (r *Reconciler) retain(ctx context.Context, spec v1alpha1.GuardConfigSpec) error {
	keep := spec.IncidentRetention
	if keep.PerNode == 0 || keep.MaxAgeSeconds == 0 || spec.FenceBudget.WindowSeconds == 0 {
		return nil // the API server has not filled in the defaults: nothing is known
	}
	var list v1alpha1.HostIncidentList
	if err := r.Client.List(ctx, &list); err != nil {
		return err
	}
	now := r.Clock.Now()
	counting := now.Add(-time.Duration(spec.FenceBudget.WindowSeconds) * time.Second)
	slices.SortFunc(list.Items, func(a, b v1alpha1.HostIncident) int { return ended(&b).Compare(ended(&a)) })
	var failed []error
	newer := map[string]int32{} // by node
	for i := range list.Items {
		h := &list.Items[i]
		if !h.Status.Step.Over() {
			continue
		}
		newer[h.Spec.NodeName]++
		old := now.Sub(ended(h)) > time.Duration(keep.MaxAgeSeconds)*time.Second
		if (newer[h.Spec.NodeName] <= keep.PerNode && !old) || counted(h, list.Items, counting) {
			continue
		}
		exactly := client.Preconditions{UID: &h.UID, ResourceVersion: &h.ResourceVersion}
		failed = append(failed, client.IgnoreNotFound(r.Client.Delete(ctx, h, exactly)))
	}
	return errors.Join(failed...)
}

// ended is when an incident that is over was last observed.
func ended(h *v1alpha1.HostIncident) time.Time {
	if h.Status.LastObserved != nil {
		return h.Status.LastObserved.Time
	}
	return h.CreationTimestamp.Time
}

// counted reports whether the fence budget still rests on a record: on an Off command in it, on its being there before a later episode, or on a journal
// that this code cannot read.
func counted(h *v1alpha1.HostIncident, all []v1alpha1.HostIncident, counting time.Time) bool {
	if h.Status.JournalVersion > v1alpha1.JournalVersion {
		return true
	}
	for _, a := range h.Status.Attempts {
		if a.IntendedAt.After(counting) {
			return true
		}
	}
	return slices.ContainsFunc(all, func(o v1alpha1.HostIncident) bool {
		return o.Spec.NodeName == h.Spec.NodeName && o.Spec.BootID == h.Spec.BootID && o.Spec.Episode == h.Spec.Episode+1 && o.CreationTimestamp.After(counting)
	})
}

// Bolt keeps the GuardConfig and the definitions of our kinds from being deleted while anything is held: an admission policy goes by the label that it
// puts on them. Whoever deletes a definition deletes every journal with it.
type Bolt struct {
	// Direct reads and writes without a cache.
	Direct client.Client
	Clock  *sight.Clock

	mu sync.Mutex
	// shot is when the bolt was last known to be shot, by this process.
	shot    evidence.Instant
	hasShot bool
}

const (
	// boltValue is what the label of the hold says on what is bolted.
	boltValue = "armed"
	// boltTimeout bounds the time for which a hold waits for the bolt.
	boltTimeout = 2 * time.Second
)

// bolted are the definitions that are bolted: all of ours.
var bolted = []string{"fencingprofiles", "guardconfigs", "guardedstatefulapps", "hostattestations", "hostincidents"}

// Arm shoots the bolt. It is called before a hold is armed; within some seconds of the last time it asks nobody. An error is no reason not to arm the
// hold: the data come before the records.
func (b *Bolt) Arm(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hasShot && b.Clock.Instant().Sub(b.shot) < tellEvery {
		return nil
	}
	return b.move(ctx, true)
}

// Sweep shoots the bolt while an incident is open, and draws it when none is. The lock keeps it from being drawn between the opening of an incident in
// this process and the first hold; where two processes believe that they lead, the next sweep puts it right.
func (b *Bolt) Sweep(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list v1alpha1.HostIncidentList
	if err := b.Direct.List(ctx, &list); err != nil {
		return fmt.Errorf("list incidents: %w", err)
	}
	open := false
	for _, h := range list.Items {
		open = open || !h.Status.Step.Over()
	}
	return b.move(ctx, open)
}

// move puts the label on everything, or takes it off; the caller holds the lock.
func (b *Bolt) move(ctx context.Context, shoot bool) error {
	call, done := context.WithTimeout(ctx, boltTimeout)
	defer done()
	failed := []error{b.label(call, v1alpha1.GroupVersion.WithKind("GuardConfig"), v1alpha1.GuardConfigName, shoot)}
	definition := schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}
	for _, plural := range bolted {
		failed = append(failed, b.label(call, definition, plural+"."+v1alpha1.GroupVersion.Group, shoot))
	}
	err := errors.Join(failed...)
	b.shot, b.hasShot = b.Clock.Instant(), shoot && err == nil
	return err
}

func (b *Bolt) label(ctx context.Context, kind schema.GroupVersionKind, name string, shoot bool) error {
	var o metav1.PartialObjectMetadata
	o.SetGroupVersionKind(kind)
	if err := b.Direct.Get(ctx, client.ObjectKey{Name: name}, &o); err != nil {
		if apierrors.IsNotFound(err) {
			return nil // what is not there cannot be deleted
		}
		return fmt.Errorf("get %s %s: %w", kind.Kind, name, err)
	}
	if (o.Labels[v1alpha1.LabelHold] == boltValue) == shoot {
		return nil
	}
	base := o.DeepCopy()
	metav1.SetMetaDataLabel(&o.ObjectMeta, v1alpha1.LabelHold, boltValue)
	if !shoot {
		delete(o.Labels, v1alpha1.LabelHold)
	}
	if err := b.Direct.Patch(ctx, &o, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("label %s %s: %w", kind.Kind, name, err)
	}
	return nil
}
