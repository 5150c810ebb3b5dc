// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// Capabilities say what the API server can do beyond the least that Holdfast needs.
type Capabilities struct {
	// MutatingPolicies: MutatingAdmissionPolicy is served as admissionregistration.k8s.io/v1. Without it the
	// manager has to label pods after their creation, and newcomers start ungated unless their template has the gate.
	MutatingPolicies bool
}

// Discover asks the API server.
func Discover(mapper meta.RESTMapper) (Capabilities, error) {
	_, err := mapper.RESTMapping(schema.GroupKind{Group: admissionv1.GroupName, Kind: "MutatingAdmissionPolicy"}, "v1")
	if meta.IsNoMatchError(err) {
		return Capabilities{}, nil
	}
	if err != nil {
		return Capabilities{}, fmt.Errorf("asking the API server for MutatingAdmissionPolicy: %w", err)
	}
	return Capabilities{MutatingPolicies: true}, nil
}

// Installed tells what Install did and found. The lists hold "kind/name".
type Installed struct {
	// Version is the version that is in force now: the newest that any of the objects is of.
	Version Version
	// Written were created or changed.
	Written []string
	// Newer are left as another, newer manager wrote them.
	Newer []string
	// Deferred differ in content under the same number and are left alone because something is held.
	Deferred []string
	// Held says whether any namespace lists a held pod.
	Held bool
}

// Install brings the policies and their bindings into the API server. A newer version is never replaced by an older
// one, nothing is deleted, and while something is held only a newer number, or the repair of what somebody changed
// by hand, is written. The client must not read from a cache. A conflict with another writer is an error; try again.
func Install(ctx context.Context, c client.Client, id Identity, caps Capabilities) (Installed, error) {
	held, err := anythingHeld(ctx, c, id)
	if err != nil {
		return Installed{}, fmt.Errorf("looking for held pods before installing admission policies: %w", err)
	}
	in := Installed{Held: held}
	var failed []error
	for _, want := range Objects(id, caps) {
		if err := in.install(ctx, c, want); err != nil {
			failed = append(failed, fmt.Errorf("installing %s: %w", label(want), err))
		}
	}
	return in, errors.Join(failed...)
}

// install brings one object in.
func (in *Installed) install(ctx context.Context, c client.Client, want client.Object) error {
	found := want.DeepCopyObject().(client.Object)
	err := c.Get(ctx, client.ObjectKeyFromObject(want), found)
	if apierrors.IsNotFound(err) {
		in.saw(Current())
		in.Written = append(in.Written, label(want))
		return c.Create(ctx, want)
	}
	if err != nil {
		return err
	}
	theirs := ParseVersion(found.GetAnnotations()[AnnotationVersion])
	switch decide(theirs, Current(), sameSpec(found, want), in.Held) {
	case keepNewer:
		in.saw(theirs)
		in.Newer = append(in.Newer, label(want))
		return nil
	case keepHeld:
		in.saw(theirs)
		in.Deferred = append(in.Deferred, label(want))
		return nil
	case keepSame:
		in.saw(theirs)
		return nil
	case write:
		in.saw(Current())
		in.Written = append(in.Written, label(want))
		return c.Update(ctx, overlay(found, want))
	}
	return errors.New("no decision")
}

func (in *Installed) saw(v Version) {
	if v.Number > in.Version.Number || in.Version.Number == 0 {
		in.Version = v
	}
}

// step is what to do with an object that exists.
type step int

const (
	_ step = iota
	write
	keepSame
	keepNewer
	keepHeld
)

// decide compares the version found with ours. same says whether the content found is ours already.
func decide(theirs, ours Version, same, held bool) step {
	switch {
	case theirs.Number > ours.Number:
		return keepNewer
	case theirs == ours && same:
		return keepSame
	case theirs.Number < ours.Number, theirs == ours, !held:
		return write
	default:
		return keepHeld
	}
}

// anythingHeld says whether any namespace lists a held pod. The canary in Holdfast's own namespace does not count.
func anythingHeld(ctx context.Context, c client.Reader, id Identity) (bool, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := c.List(ctx, list); err != nil {
		return false, err
	}
	for _, ns := range list.Items {
		for _, h := range ParseHeld(ns.Annotations[v1alpha1.AnnotationHeld]) {
			if ns.Name != id.orDefault().Namespace || h.Pod != canaryHeld {
				return true, nil
			}
		}
	}
	return false, nil
}

// sameSpec compares everything that takes effect.
func sameSpec(found, want client.Object) bool {
	switch want := want.(type) {
	case *admissionv1.ValidatingAdmissionPolicy:
		return equality.Semantic.DeepEqual(found.(*admissionv1.ValidatingAdmissionPolicy).Spec, want.Spec)
	case *admissionv1.ValidatingAdmissionPolicyBinding:
		return equality.Semantic.DeepEqual(found.(*admissionv1.ValidatingAdmissionPolicyBinding).Spec, want.Spec)
	case *admissionv1.MutatingAdmissionPolicy:
		return equality.Semantic.DeepEqual(found.(*admissionv1.MutatingAdmissionPolicy).Spec, want.Spec)
	case *admissionv1.MutatingAdmissionPolicyBinding:
		return equality.Semantic.DeepEqual(found.(*admissionv1.MutatingAdmissionPolicyBinding).Spec, want.Spec)
	}
	return false
}

// overlay is want in the place of found: what others wrote beside the spec stays, and the update fails if found has
// changed since.
func overlay(found, want client.Object) client.Object {
	labels, annotations := maps.Clone(found.GetLabels()), maps.Clone(found.GetAnnotations())
	if labels == nil {
		labels = map[string]string{}
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	maps.Copy(labels, want.GetLabels())
	maps.Copy(annotations, want.GetAnnotations())
	o := want.DeepCopyObject().(client.Object)
	o.SetLabels(labels)
	o.SetAnnotations(annotations)
	o.SetFinalizers(found.GetFinalizers())
	o.SetOwnerReferences(found.GetOwnerReferences())
	o.SetResourceVersion(found.GetResourceVersion())
	o.SetUID(found.GetUID())
	return o
}

// label is "kind/name".
func label(o client.Object) string {
	return o.GetObjectKind().GroupVersionKind().Kind + "/" + o.GetName()
}
