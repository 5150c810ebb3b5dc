// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// attempt is one request that could get around the hold.
type attempt struct {
	verb, what string
	do         func(ctx context.Context, c dynamic.Interface, s *scene) error
	// except names identities that may, and why that is no way around.
	except map[string]string
}

// target is a resource as it is served, and the object of a scene that it is about.
type target struct {
	gvr         schema.GroupVersionResource
	subresource string
	namespaced  bool
	named       func(s *scene) string
	// home is the namespace of the object if it is not the scene's.
	home string
}

func (r target) of(c dynamic.Interface, s *scene) dynamic.ResourceInterface {
	switch {
	case !r.namespaced:
		return c.Resource(r.gvr)
	case r.home != "":
		return c.Resource(r.gvr).Namespace(r.home)
	}
	return c.Resource(r.gvr).Namespace(s.namespace)
}

func (r target) subresources() []string {
	if r.subresource == "" {
		return nil
	}
	return []string{r.subresource}
}

// patches are a JSON merge patch as it is, and as an update of the whole object.
func (r target) patches(patch string, except map[string]string) []attempt {
	return []attempt{
		{"patch", patch, func(ctx context.Context, c dynamic.Interface, s *scene) error {
			_, err := r.of(c, s).Patch(ctx, r.named(s), types.MergePatchType, []byte(patch), metav1.PatchOptions{}, r.subresources()...)
			return err
		}, except},
		{"update", patch, func(ctx context.Context, c dynamic.Interface, s *scene) error {
			all, err := dynamic.NewForConfig(cluster.Config)
			if err != nil {
				return err
			}
			o, err := r.of(all, s).Get(ctx, r.named(s), metav1.GetOptions{}, r.subresources()...)
			if err != nil { // some subresources can only be written
				o, err = r.of(all, s).Get(ctx, r.named(s), metav1.GetOptions{})
			}
			if err != nil {
				return fmt.Errorf("reading what is to be updated: %w", err)
			}
			var change map[string]any
			if err := json.Unmarshal([]byte(patch), &change); err != nil {
				return err
			}
			o.Object = merged(o.Object, change)
			_, err = r.of(c, s).Update(ctx, o, metav1.UpdateOptions{}, r.subresources()...)
			return err
		}, except},
	}
}

// merged is a JSON merge patch applied.
func merged(to, patch map[string]any) map[string]any {
	to = maps.Clone(to)
	if to == nil {
		to = map[string]any{}
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(to, key)
		case map[string]any:
			below, _ := to[key].(map[string]any)
			to[key] = merged(below, value)
		default:
			to[key] = value
		}
	}
	return to
}

// deletes are the ways to delete an object.
func (r target) deletes(except map[string]string) []attempt {
	zero, one := int64(0), int64(1)
	orphan, foreground, background := metav1.DeletePropagationOrphan, metav1.DeletePropagationForeground, metav1.DeletePropagationBackground
	var all []attempt
	for what, options := range map[string]metav1.DeleteOptions{
		"as usual":        {},
		"at once":         {GracePeriodSeconds: &zero},
		"within a second": {GracePeriodSeconds: &one},
		"orphaning":       {PropagationPolicy: &orphan},
		"foreground":      {PropagationPolicy: &foreground},
		"background":      {PropagationPolicy: &background, GracePeriodSeconds: &zero},
	} {
		all = append(all, attempt{"delete", what, func(ctx context.Context, c dynamic.Interface, s *scene) error {
			return r.of(c, s).Delete(ctx, r.named(s), options)
		}, except})
	}
	for what, options := range map[string]metav1.DeleteOptions{"as usual": {}, "at once": {GracePeriodSeconds: &zero}} {
		all = append(all, attempt{"deletecollection", what, func(ctx context.Context, c dynamic.Interface, s *scene) error {
			only := metav1.ListOptions{FieldSelector: "metadata.name=" + r.named(s)} // other scenes are others' business
			return r.of(c, s).DeleteCollection(ctx, options, only)
		}, except})
	}
	return all
}

// create makes an object; typed ones name their kind by the scheme.
func (r target) create(what string, object func(s *scene) client.Object) attempt {
	return attempt{"create", what, func(ctx context.Context, c dynamic.Interface, s *scene) error {
		o := object(s)
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return err
		}
		u := &unstructured.Unstructured{Object: content}
		gvk, err := cluster.Client.GroupVersionKindFor(o)
		if err != nil {
			return err
		}
		u.SetGroupVersionKind(gvk)
		made, err := r.of(c, s).Create(ctx, u, metav1.CreateOptions{}, r.subresources()...)
		if err == nil && r.subresource == "" {
			s.made = append(s.made, made)
		}
		return err
	}, nil}
}
