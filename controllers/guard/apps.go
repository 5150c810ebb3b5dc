// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guard answers the questions that more than one controller asks: which pods are guarded, by which apps, on which volumes, with what
// policy, and by which device their host is fenced. It reads and changes nothing.
package guard

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Index names of the manager's cache.
const (
	// IndexPodNode finds pods by spec.nodeName.
	IndexPodNode = "spec.nodeName"
	// IndexPodIP finds pods by status.podIP.
	IndexPodIP = "status.podIP"
)

// App is one accepted GuardedStatefulApp with the claims that it guards.
type App struct {
	v1alpha1.GuardedStatefulApp
	// Claims of the workload that exist or are named by its pods, by name.
	Claims map[string]bool
	// Pods of the workload.
	Pods []corev1.Pod
	// Workload is nil when it is gone.
	Workload *appsv1.StatefulSet
}

// Wants reports whether the app's workload still has a place of the name given: it is there, neither it nor the app is being deleted, and it has not
// been scaled down below it.
func (a App) Wants(pod string) bool {
	w := a.Workload
	if w == nil || w.DeletionTimestamp != nil || a.DeletionTimestamp != nil {
		return false
	}
	ordinal, ok := strings.CutPrefix(pod, w.Name+"-")
	n, err := strconv.Atoi(ordinal)
	if !ok || err != nil {
		return false
	}
	start, replicas := 0, 1
	if w.Spec.Ordinals != nil {
		start = int(w.Spec.Ordinals.Start)
	}
	if w.Spec.Replicas != nil {
		replicas = int(*w.Spec.Replicas)
	}
	return n >= start && n < start+replicas
}

// Key is "namespace/name".
func (a App) Key() string { return a.Namespace + "/" + a.Name }

// Apps returns every app that is or was accepted with its workload's pods, sorted by key. What was accepted once stays under guard until the app is let
// go: a workload that was deleted or changed since may still have writers.
//
// What the apps ask for is read from specs, so that a brake which a human has just put on counts; their pods and workloads are read from c.
func Apps(ctx context.Context, c, specs client.Reader) ([]App, error) {
	var list v1alpha1.GuardedStatefulAppList
	if err := specs.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list guarded apps: %w", err)
	}
	var out []App
	for _, g := range list.Items {
		if !meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.ConditionAccepted) && !controllerutil.ContainsFinalizer(&g, v1alpha1.FinalizerApp) {
			continue
		}
		app, err := Resolve(ctx, c, g)
		if err != nil {
			return nil, err
		}
		out = append(out, app)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key() < out[j].Key() })
	return out, nil
}

// Resolve finds the pods and claims of an app. An app whose workload is gone keeps the pods that carry its label.
func Resolve(ctx context.Context, c client.Reader, g v1alpha1.GuardedStatefulApp) (App, error) {
	app := App{GuardedStatefulApp: g, Claims: map[string]bool{}}
	if g.Spec.WorkloadRef == nil {
		return app, nil
	}
	var sts appsv1.StatefulSet
	err := c.Get(ctx, types.NamespacedName{Namespace: g.Namespace, Name: g.Spec.WorkloadRef.Name}, &sts)
	if err != nil && !apierrors.IsNotFound(err) {
		return app, fmt.Errorf("get StatefulSet %s/%s: %w", g.Namespace, g.Spec.WorkloadRef.Name, err)
	}
	gone := err != nil
	if !gone {
		app.Workload = &sts
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(g.Namespace)); err != nil {
		return app, fmt.Errorf("list pods of %s: %w", app.Key(), err)
	}
	for _, p := range pods.Items {
		owned := !gone && metav1.IsControlledBy(&p, &sts)
		if owned || p.Labels[v1alpha1.LabelApp] == g.Name {
			app.Pods = append(app.Pods, p)
			for _, claim := range ClaimsOf(&p) {
				app.Claims[claim] = true
			}
		}
	}
	return app, nil
}

// ClaimsOf returns the names of the PersistentVolumeClaims that a pod names.
func ClaimsOf(p *corev1.Pod) []string {
	var out []string
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		}
	}
	return out
}

// Volumes returns the CSI volumes behind a pod's guarded claims. A claim that cannot be resolved is returned with an empty driver, which no
// isolation covers but one of the whole host.
func Volumes(ctx context.Context, c client.Reader, p *corev1.Pod) []evidence.Volume {
	var out []evidence.Volume
	for _, claim := range ClaimsOf(p) {
		v := evidence.Volume{Claim: claim}
		if pv, err := VolumeOf(ctx, c, p.Namespace, claim); err == nil && pv.Spec.CSI != nil {
			v.Driver, v.Handle = pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle
		}
		out = append(out, v)
	}
	return out
}

// VolumeOf returns the PersistentVolume bound to a claim.
func VolumeOf(ctx context.Context, c client.Reader, namespace, claim string) (*corev1.PersistentVolume, error) {
	var pvc corev1.PersistentVolumeClaim
	if err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: claim}, &pvc); err != nil {
		return nil, fmt.Errorf("get claim %s/%s: %w", namespace, claim, err)
	}
	if pvc.Spec.VolumeName == "" {
		return nil, fmt.Errorf("claim %s/%s is not bound", namespace, claim)
	}
	var pv corev1.PersistentVolume
	if err := c.Get(ctx, types.NamespacedName{Name: pvc.Spec.VolumeName}, &pv); err != nil {
		return nil, fmt.Errorf("get volume %s: %w", pvc.Spec.VolumeName, err)
	}
	return &pv, nil
}

// PolicyFor joins the policies of all apps on a host with its profile's floors and the cluster's settings: the most careful wins.
func PolicyFor(apps []App, profile *v1alpha1.FencingProfile, config v1alpha1.GuardConfigSpec) verdict.Policy {
	p := verdict.Policy{
		StaleAfter:     time.Duration(config.LeaseStaleSeconds) * time.Second,
		BlindPercent:   int(orDefault(config.Blindness.StaleHostsPercent, 50)),
		BlindAPISilent: time.Duration(orDefault(config.Blindness.APISilentSeconds, 5)) * time.Second,
		MinimumProof:   evidence.StrengthPowerOff,
		KeepTraffic:    true,
	}
	if profile != nil {
		p.ConfirmAfter = seconds(profile.Spec.Floors.ConfirmAfterSeconds)
	}
	for _, a := range apps {
		s := a.Spec
		p.ConfirmAfter = max(p.ConfirmAfter, seconds(s.OnHostLoss.ConfirmAfterSeconds))
		p.Shadow = p.Shadow || s.Mode == v1alpha1.ModeShadow
		p.Paused = p.Paused || s.Mode == v1alpha1.ModePaused
		p.ManualApproval = p.ManualApproval || s.OnHostLoss.Approval == "Manual"
		p.KeepTraffic = p.KeepTraffic && s.OnKubeletFailure.Traffic != "Follow"
		if s.OnHostLoss.Action == "Hold" {
			p.OnLoss = verdict.Hold
		}
		if s.OnKubeletFailure.WhenNotServing != v1alpha1.NotServingFence {
			p.NotServing = verdict.Hold
		}
		if s.OnIsolation.WhenNotServing != v1alpha1.NotServingFence {
			p.Isolated = verdict.Hold
		}
	}
	return p
}

func orDefault(v, d int32) int32 {
	if v == 0 {
		return d
	}
	return v
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }
