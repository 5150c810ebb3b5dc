// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guard answers the questions that more than one controller asks: which pods are guarded, by which apps, on which volumes, with what
// policy, and by which device their host is fenced. It reads and changes nothing.
package guard

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Index names of the manager's cache.
const (
	// IndexPodNode finds pods by spec.nodeName.
	IndexPodNode = "spec.nodeName"
	// IndexPodGated finds pods that wait at the gate, under "true".
	IndexPodGated = "gated"
	// IndexPodIP finds pods by each of their addresses.
	IndexPodIP = "status.podIP"
)

// App is one accepted GuardedStatefulApp with the claims that it guards.
type App struct {
	v1alpha1.GuardedStatefulApp
	// Workload is nil when it is gone.
	Workload *Workload
	// Claims that the app guards, by name: those that its workload names, as far as they exist, those that its own pods name, and those that were
	// guarded before.
	Claims map[string]bool
	// Pods of the workload.
	Pods []corev1.Pod
	// Guests are pods of others that name one of these claims, or carry the app's label.
	Guests []corev1.Pod
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
	var err error
	if app.Workload, err = WorkloadOf(ctx, c, &g); err != nil {
		return app, err
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(g.Namespace)); err != nil {
		return app, fmt.Errorf("list pods of %s: %w", app.Key(), err)
	}
	var others []corev1.Pod
	for _, p := range pods.Items {
		if !app.owns(&p) {
			others = append(others, p)
			continue
		}
		app.Pods = append(app.Pods, p)
		for _, claim := range ClaimsOf(&p) {
			app.Claims[claim] = true
		}
	}
	if app.Workload != nil && app.Workload.Kind == KindPods && len(app.Pods) > 0 {
		youngest := slices.MaxFunc(app.Pods, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
		app.Workload.Pod = corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: youngest.Labels}, Spec: youngest.Spec}
	}
	if err := app.guardClaims(ctx, c); err != nil {
		return app, err
	}
	for _, p := range others {
		if p.Labels[v1alpha1.LabelApp] == g.Name || slices.ContainsFunc(ClaimsOf(&p), func(claim string) bool { return app.Claims[claim] }) {
			app.Guests = append(app.Guests, p)
		}
	}
	return app, nil
}

// owns reports whether the pod is one of the app's own, also where the workload has left it behind.
func (a App) owns(p *corev1.Pod) bool {
	if a.Workload != nil && a.Workload.owns(p) {
		return true
	}
	left := metav1.GetControllerOf(p) == nil || a.Workload == nil
	return left && p.Labels[v1alpha1.LabelApp] == a.Name && wasOf(a.Spec.WorkloadRef, p.Name)
}

// guardClaims adds the claims that exist and that the template, or what is written down in the namespace, names: a claim whose last pod is gone is still
// the app's.
func (a App) guardClaims(ctx context.Context, c client.Reader) error {
	var ns corev1.Namespace
	if err := c.Get(ctx, types.NamespacedName{Name: a.Namespace}, &ns); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get namespace of %s: %w", a.Key(), err)
	}
	var entries []admission.Claim
	if a.Workload != nil {
		entries = a.Workload.Claims(a.Name)
	}
	for _, e := range admission.ParseClaims(ns.Annotations[v1alpha1.AnnotationClaims]) {
		if e.App == a.Name {
			entries = append(entries, e)
		}
	}
	var claims corev1.PersistentVolumeClaimList
	if err := c.List(ctx, &claims, client.InNamespace(a.Namespace)); err != nil {
		return fmt.Errorf("list claims of %s: %w", a.Key(), err)
	}
	for _, e := range entries {
		for i := range claims.Items {
			if e.Covers(claims.Items[i].Name) {
				a.Claims[claims.Items[i].Name] = true
			}
		}
	}
	return nil
}

// Entries are what the app writes into the list of guarded claims of its namespace: what its workload names now, and every other claim that it guards, for
// the admission policies to go by while no Holdfast process lives.
func (a App) Entries() []admission.Claim {
	var out []admission.Claim
	if a.Workload != nil {
		out = a.Workload.Claims(a.Name)
	}
	for _, claim := range slices.Sorted(maps.Keys(a.Claims)) {
		if !slices.ContainsFunc(out, func(e admission.Claim) bool { return e.Covers(claim) }) {
			out = append(out, admission.Claim{App: a.Name, Name: claim})
		}
	}
	return out
}

// All returns the app's own pods and those of others on its claims.
func (a *App) All() []*corev1.Pod {
	var out []*corev1.Pod
	for _, list := range [][]corev1.Pod{a.Pods, a.Guests} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}

// ClaimsOf returns the names of the PersistentVolumeClaims that a pod names.
func ClaimsOf(p *corev1.Pod) []string { return claimsOf(&p.Spec) }

func claimsOf(spec *corev1.PodSpec) []string {
	var out []string
	for _, v := range spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		}
	}
	return out
}

// PolicyFor joins the policies of all apps on a host with its profile's floors and the cluster's settings: the most careful wins.
func PolicyFor(apps []App, profile *v1alpha1.FencingProfile, config v1alpha1.GuardConfigSpec) verdict.Policy {
	p := verdict.Policy{
		StaleAfter:     time.Duration(config.LeaseStaleSeconds) * time.Second,
		BlindPercent:   int(orDefault(config.Blindness.StaleHostsPercent, 50)),
		BlindAPISilent: time.Duration(orDefault(config.Blindness.APISilentSeconds, 5)) * time.Second,
		MinimumProof:   minimumProof(apps, profile),
		AwaitLease:     config.Witness.AwaitKubeletLease,
		KeepTraffic:    true,
		RestartKubelet: len(apps) > 0,

		ResetConnections: config.Witness.Resets(),
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
		p.KeepTraffic = p.KeepTraffic && s.OnKubeletFailure.Traffic != v1alpha1.TrafficFollow
		p.RestartKubelet = p.RestartKubelet && s.OnKubeletFailure.Repair == v1alpha1.RepairRestartKubelet
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

// settings are those of a joint policy that apps can ask for, each with what it came to in the words of the API.
var settings = []struct {
	name  string
	value func(verdict.Policy) string
}{
	{"mode", func(p verdict.Policy) string {
		return either(p.Paused, string(v1alpha1.ModePaused), either(p.Shadow, string(v1alpha1.ModeShadow), string(v1alpha1.ModeEnforce)))
	}},
	{"onHostLoss.action", func(p verdict.Policy) string { return either(p.OnLoss == verdict.Hold, "Hold", "FenceAndMigrate") }},
	{"onHostLoss.approval", func(p verdict.Policy) string { return either(p.ManualApproval, "Manual", "Automatic") }},
	{"onHostLoss.confirmAfterSeconds", func(p verdict.Policy) string { return strconv.Itoa(int(p.ConfirmAfter / time.Second)) }},
	{"onHostLoss.minimumProof", func(p verdict.Policy) string { return p.MinimumProof.String() }},
	{"onKubeletFailure.repair", func(p verdict.Policy) string {
		return either(p.RestartKubelet, v1alpha1.RepairRestartKubelet, v1alpha1.RepairNone)
	}},
	{"onKubeletFailure.whenNotServing", func(p verdict.Policy) string { return either(p.NotServing == verdict.Hold, "Hold", "Fence") }},
	{"onKubeletFailure.traffic", func(p verdict.Policy) string {
		return either(p.KeepTraffic, v1alpha1.TrafficKeep, v1alpha1.TrafficFollow)
	}},
}

func either(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

// namedAtMost bounds the names of those who asked for one setting.
const namedAtMost = 32

// Decided says what the settings of a joint policy came to, and which apps, or which profile, asked for just that.
func Decided(apps []App, profile *v1alpha1.FencingProfile, config v1alpha1.GuardConfigSpec) []v1alpha1.DecidedSetting {
	if len(apps) == 0 {
		return nil
	}
	joint := PolicyFor(apps, profile, config)
	var out []v1alpha1.DecidedSetting
	for _, s := range settings {
		d := v1alpha1.DecidedSetting{Setting: s.name, Value: s.value(joint)}
		for _, a := range apps {
			if s.value(PolicyFor([]App{a}, nil, config)) == d.Value {
				d.By = append(d.By, a.Key())
			}
		}
		if len(d.By) == 0 && profile != nil {
			d.By = []string{"FencingProfile " + profile.Name}
		}
		sort.Strings(d.By)
		d.By = d.By[:min(len(d.By), namedAtMost)]
		out = append(out, d)
	}
	return out
}

// minimumProof is the strongest that an app on the host, or the profile if there is one, asks for.
func minimumProof(apps []App, profile *v1alpha1.FencingProfile) evidence.Strength {
	if len(apps) == 0 {
		return evidence.StrengthPowerOff
	}
	least := evidence.StrengthAttested
	if profile != nil {
		least = proves(profile.Spec.MinimumProof)
	}
	for _, a := range apps {
		least = max(least, proves(a.Spec.OnHostLoss.MinimumProof))
	}
	return least
}

// proves is the strength that is asked for; what is not known is PowerOff.
func proves(m v1alpha1.MinimumProof) evidence.Strength {
	switch m {
	case v1alpha1.MinimumProofAttested:
		return evidence.StrengthAttested
	case v1alpha1.MinimumProofSelfFenced:
		return evidence.StrengthSelfFenced
	default:
		return evidence.StrengthPowerOff
	}
}

func orDefault(v, d int32) int32 {
	if v == 0 {
		return d
	}
	return v
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// PodIPs are all addresses of a pod, each once.
func PodIPs(p *corev1.Pod) []string {
	var out []string
	for _, ip := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
		if ip.IP != "" && !slices.Contains(out, ip.IP) {
			out = append(out, ip.IP)
		}
	}
	return out
}
