// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/keyring"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
)

// owner is in whose name fields are applied.
const owner = client.FieldOwner("holdfast-manager")

// act brings the agents about, or ends them. Keys, authority and ConfigMap outlast the agents: those that come later go on with them.
func (r *Reconciler) act(ctx context.Context, s *sighting) {
	switch {
	case !s.place:
	case !s.config.Spec.Witness.Enabled:
		s.err = r.end(ctx, s)
	default:
		// The keys come first, since without them no agent starts; but whatever is wrong with them, those that run have theirs.
		turning, err := r.keys(ctx, s)
		if apierrors.IsConflict(err) {
			err = nil // somebody else has written: the next look sees what
		}
		s.turning = turning
		s.err = errors.Join(err, r.bring(ctx, s, s.config.Spec.Witness))
	}
}

// end removes the DaemonSet. The agents take leave, so that nobody holds them for dead. Where one may hold its host by a watchdog they stay, and those that come arm nothing.
func (r *Reconciler) end(ctx context.Context, s *sighting) error {
	agents, err := r.running(ctx)
	if agents == nil || err != nil {
		return err
	}
	if manifest.MayHold(agents) {
		unarmed := s.config.Spec.Witness
		unarmed.Watchdog = nil
		return r.bring(ctx, s, unarmed)
	}
	if err := r.Direct.Delete(ctx, agents); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("end the agents: %w", err)
	}
	return nil
}

// bring applies what the agents read, and the agents.
func (r *Reconciler) bring(ctx context.Context, s *sighting, settings v1alpha1.Witness) error {
	authority, err := r.Authority.Keep(ctx)
	if err != nil {
		return err
	}
	certificate, _, err := authority.PEM()
	if err != nil {
		return err
	}
	before, err := r.running(ctx)
	if err != nil {
		return err
	}
	wanted := manifest.Wanted{Image: r.Image, Settings: settings, CA: certificate, Seeds: seeds(s.nodes), ByHand: manifest.MayHold(before)}
	if err := r.apply(ctx, wanted.ConfigMap()); err != nil {
		return err
	}
	if err := r.apply(ctx, wanted.DaemonSet()); err != nil {
		return err
	}
	s.agents, err = r.running(ctx)
	return err
}

// running reads the DaemonSet; nil if there is none.
func (r *Reconciler) running(ctx context.Context) (*appsv1.DaemonSet, error) {
	agents := &appsv1.DaemonSet{}
	err := r.Direct.Get(ctx, types.NamespacedName{Namespace: manifest.Namespace, Name: manifest.Name}, agents)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return agents, err
}

// apply makes or changes an object. What others set on it beside stays.
func (r *Reconciler) apply(ctx context.Context, o client.Object) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	for _, empty := range [][]string{{"status"}, {"metadata", "creationTimestamp"}, {"spec", "template", "metadata", "creationTimestamp"}} {
		unstructured.RemoveNestedField(content, empty...)
	}
	applied := client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content})
	if err := r.Direct.Apply(ctx, applied, owner, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply %s %s/%s: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetNamespace(), o.GetName(), err)
	}
	return nil
}

// Annotations of the Secret with the keys.
const (
	// annotationSince is since when the keys are what they are.
	annotationSince = "guard.holdfast.dev/since"
	// annotationTurn asks for another key now.
	annotationTurn = "guard.holdfast.dev/turn"
)

// keys keeps the keys of the gossip, and takes the next step of their turn when it is time for it. The Secret is the journal of the turn: which step was
// taken is in its keys, and when, in its annotation. It says how far a turn is that is not over.
func (r *Reconciler) keys(ctx context.Context, s *sighting) (turning string, err error) {
	secret := &corev1.Secret{}
	name := types.NamespacedName{Namespace: manifest.Namespace, Name: manifest.Keys}
	if err := r.Secrets.Get(ctx, name, secret); apierrors.IsNotFound(err) {
		return "", r.firstKeys(ctx, name)
	} else if err != nil {
		return "", fmt.Errorf("read the gossip's keys: %w", err)
	}
	now := r.Clock.Now()
	ring := keyring.Ring{Files: secret.Data, Since: now}
	since, bad := time.Parse(time.RFC3339, secret.Annotations[annotationSince])
	if known := bad == nil && !since.After(now); known {
		ring.Since = since
	} else if err := r.writeKeys(ctx, secret, ring); err != nil { // the wait begins anew
		return "", err
	}
	_, wanted := secret.Annotations[annotationTurn]
	turned, changed, err := ring.Turn(now, wanted, s.hosts())
	if err != nil {
		return "", fmt.Errorf("the gossip's keys in Secret %s: %w; put it right, or delete the Secret to have a new key made: agents part until all have read it", name, err)
	}
	if changed {
		if phase, _ := ring.Phase(); phase == keyring.Resting {
			delete(secret.Annotations, annotationTurn)
		}
		if err := r.writeKeys(ctx, secret, turned); err != nil {
			return "", err
		}
	}
	return tell(turned, now, s.hosts()), nil
}

// tell says how far a turn is, and for whom it waits; nothing between two turns.
func tell(ring keyring.Ring, now time.Time, hosts []keyring.Host) string {
	phase, err := ring.Phase()
	if err != nil || phase == keyring.Resting {
		return ""
	}
	says := "the gossip's keys are being turned over: " + string(phase)
	if _, host := ring.Waits(now, hosts); host != "" {
		says += ", until " + host + " has read them"
	}
	return says
}

// firstKeys makes the Secret. Of two that make it at the same time the first is kept.
func (r *Reconciler) firstKeys(ctx context.Context, name types.NamespacedName) error {
	ring, err := keyring.New(r.Clock.Now())
	if err != nil {
		return err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Annotations: map[string]string{annotationSince: stamp(ring.Since)}},
		Type: corev1.SecretTypeOpaque, Data: ring.Files}
	if err := r.Secrets.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the gossip's keys: %w", err)
	}
	return nil
}

// writeKeys writes what the ring is, where nobody has written since.
func (r *Reconciler) writeKeys(ctx context.Context, secret *corev1.Secret, ring keyring.Ring) error {
	metav1.SetMetaDataAnnotation(&secret.ObjectMeta, annotationSince, stamp(ring.Since))
	secret.Data = ring.Files
	if err := r.Secrets.Update(ctx, secret); err != nil {
		return fmt.Errorf("write the gossip's keys: %w", err)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
