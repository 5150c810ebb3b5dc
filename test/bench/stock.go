// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
)

// stockNamespace is where nothing is guarded.
const stockNamespace = "stock"

// startStock starts an application that nobody guards, with the container of the guarded one and a volume of its own, on the host, and returns its
// pod once it is ready. It prefers the host and is not bound to it.
func (b *bench) startStock(ctx context.Context, c figures.Case, host string) (*corev1.Pod, error) {
	name := strings.ToLower(fmt.Sprintf("%s-%d-%d", c.Kind, c.Number, b.began))
	if err := b.s.Lab.CreateVolume(ctx, lab.Volume{Name: name, Namespace: stockNamespace}); err != nil {
		return nil, err
	}
	var guarded appsv1.StatefulSet
	if err := b.s.Client.Get(ctx, types.NamespacedName{Namespace: stage.Namespace, Name: stage.App}, &guarded); err != nil {
		return nil, err
	}
	if err := b.s.Client.Create(ctx, workload(c.Kind, name, host, guarded.Spec.Template)); err != nil {
		return nil, err
	}
	return b.s.AwaitAnyPod(ctx, name+" on "+host, func(p *corev1.Pod) bool {
		return p.Namespace == stockNamespace && p.Labels["app"] == name && p.Spec.NodeName == host && stage.PodReady(p)
	})
}

// workload is a StatefulSet or, for a Deployment's case, a Deployment that recreates.
func workload(kind figures.Kind, name, host string, template corev1.PodTemplateSpec) client.Object {
	labels := map[string]string{"app": name}
	template.ObjectMeta = metav1.ObjectMeta{Labels: labels}
	template.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
	template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
		Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}}}}}}}
	meta, one, selector := metav1.ObjectMeta{Namespace: stockNamespace, Name: name}, int32(1), &metav1.LabelSelector{MatchLabels: labels}
	if kind == figures.Deployment {
		return &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: selector, Template: template,
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}}}
	}
	return &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &one, Selector: selector, Template: template}}
}

// stopStock scales the application down to nothing, so that it writes no more. Its pod on a dead host stays; so does its volume.
func (b *bench) stopStock(ctx context.Context, pod *corev1.Pod) error {
	meta := metav1.ObjectMeta{Namespace: stockNamespace, Name: pod.Labels["app"]}
	for _, o := range []client.Object{&appsv1.StatefulSet{ObjectMeta: meta}, &appsv1.Deployment{ObjectMeta: meta}} {
		if err := b.s.Client.Delete(ctx, o, client.PropagationPolicy(metav1.DeletePropagationBackground)); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}
