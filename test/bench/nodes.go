// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func anyNode(*corev1.Node) bool { return true }

// unknown is what a Node is when the node lifecycle controller has lost its kubelet.
func unknown(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}

func hasTaint(n *corev1.Node, key string) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
}

// setTaints changes a Node's taints as kubectl taint does; the node controller sets its own at the same time, so it may take a second try.
func (b *bench) setTaints(ctx context.Context, host string, change func([]corev1.Taint) []corev1.Taint) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		var n corev1.Node
		if err := b.s.Client.Get(ctx, types.NamespacedName{Name: host}, &n); err != nil {
			return err
		}
		base := n.DeepCopy()
		n.Spec.Taints = change(slices.Clone(n.Spec.Taints))
		return b.s.Client.Patch(ctx, &n, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
	})
}
