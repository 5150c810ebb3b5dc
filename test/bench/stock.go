// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
)

// stockNamespace is where nothing is guarded.
const stockNamespace = "stock"

// pair is a case of B0 and one of B1 that share a host and its loss, and wait for what Kubernetes does about it.
type pair struct {
	host  *lab.Host
	cases []played
	// measured is closed when both have their rows.
	measured chan struct{}
}

// pairs puts cases of B0 and B1 together.
func pairs(sets, deployments []figures.Case) [][]figures.Case {
	var out [][]figures.Case
	for i := range max(len(sets), len(deployments)) {
		var both []figures.Case
		if i < len(sets) {
			both = append(both, sets[i])
		}
		if i < len(deployments) {
			both = append(both, deployments[i])
		}
		out = append(out, both)
	}
	return out
}

// stockTurn begins the next pair if none waits: one host at a time is dark for so long.
func (b *bench) stockTurn(ctx context.Context) error {
	if b.pair != nil {
		select {
		case <-b.pair.measured:
		default:
			return nil
		}
		if err := b.attempt(ctx, "the return of "+b.pair.host.Name(), b.endPair); err != nil {
			return err
		}
	}
	if len(b.pairs) == 0 {
		return nil
	}
	next := b.pairs[0]
	b.pairs = b.pairs[1:]
	return b.attempt(ctx, fmt.Sprintf("stock case %d", next[0].Number), func(ctx context.Context) error { return b.beginPair(ctx, next) })
}

// stockEnds plays what is left of the stock cases.
func (b *bench) stockEnds(ctx context.Context) error {
	for len(b.pairs) > 0 || b.pair != nil {
		if err := b.stockTurn(ctx); err != nil {
			return err
		}
		if b.pair == nil {
			continue
		}
		campaign.Tell("waiting for stock case %d", b.pair.cases[0].Number)
		select {
		case <-b.pair.measured:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// beginPair takes the power of a host that has both.
func (b *bench) beginPair(ctx context.Context, cases []figures.Case) error {
	if err := b.well(ctx); err != nil {
		return err
	}
	host, err := b.pick(ctx, cases[0], "", "")
	if err != nil {
		return err
	}
	p := &pair{host: host, measured: make(chan struct{})}
	for _, c := range cases {
		pod, err := b.startStock(ctx, c, host.Name())
		if err != nil {
			return err
		}
		p.cases = append(p.cases, played{Case: c, pod: pod, volume: pod.Labels["app"]})
	}
	if err := b.moment(ctx, cases[0], host.Name()); err != nil {
		return err
	}
	if p.cases, err = b.strike(ctx, host, p.cases...); err != nil {
		return err
	}
	b.dark, b.pair = append(b.dark, host.Name()), p
	b.waiting.Go(func() { b.await(ctx, p) })
	return wait(ctx, stagger)
}

// await measures a pair, and keeps what went wrong.
func (b *bench) await(ctx context.Context, p *pair) {
	defer close(p.measured)
	var both sync.WaitGroup
	for _, c := range p.cases {
		both.Go(func() {
			if err := b.measure(ctx, c, b.o.censor); err != nil {
				b.writing.Lock()
				defer b.writing.Unlock()
				b.failed = errors.Join(b.failed, fmt.Errorf("%s case %d: %w", c.Kind, c.Number, err))
			}
		})
	}
	both.Wait()
}

// endPair takes the applications away and gives their host its power.
func (b *bench) endPair(ctx context.Context) error {
	p := b.pair
	b.pair = nil
	b.dark = slices.DeleteFunc(b.dark, func(h string) bool { return h == p.host.Name() })
	for _, c := range p.cases {
		if err := b.stopStock(ctx, c.pod); err != nil {
			return err
		}
	}
	return b.comeBack(ctx, p.host)
}

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
