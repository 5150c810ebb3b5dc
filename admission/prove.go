// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

const (
	// defaultPatience covers the time in which API servers learn of new policies and annotations.
	defaultPatience = 5 * time.Second
	// retryEvery is how often a path is tried within that time.
	retryEvery = 200 * time.Millisecond
	// buryWithin bounds the removal of the canaries after the proof.
	buryWithin = 10 * time.Second
)

// Server is one API server, as a caller sees it that is not Holdfast.
type Server struct {
	// Name is its address, for the report.
	Name string
	// Probe talks to this server only, without a cache, under the second identity. That needs, in Holdfast's
	// namespace, the verbs create, delete and patch on pods, patch on pods/status and create on pods/eviction, and
	// must not have the verb override.
	Probe client.Client
}

// Canary is what a proof needs.
type Canary struct {
	Identity Identity
	// Holdfast is the manager's own client, without a cache.
	Holdfast     client.Client
	Servers      []Server
	Capabilities Capabilities
	// Version is what must answer, from [Installed]. The zero value means the current one.
	Version Version
	// Patience is how long a server may take until it refuses everything; zero means five seconds.
	Patience time.Duration
}

// Proof says what each API server refused.
type Proof struct {
	// Version is the one whose policies answered.
	Version Version
	Servers []ServerProof
	// Stored lists differences between the stored policies and those wanted, which no request can show.
	Stored []Unproven
}

// ServerProof is the part of one API server.
type ServerProof struct {
	Server string
	// Proven lists the paths that were tried and found shut, in the order tried.
	Proven   []string
	Unproven []Unproven
}

// Unproven is one path that is not known to be shut.
type Unproven struct {
	// Path names what was tried, or the policy that differs.
	Path string
	// What happened instead, and what to do.
	What string
}

func (u Unproven) String() string { return u.Path + ": " + u.What }

// Holds says whether everything was proven, on at least one server.
func (p Proof) Holds() bool { return len(p.Servers) > 0 && len(p.Open()) == 0 }

// Open lists everything unproven, each with its server.
func (p Proof) Open() []string {
	var open []string
	for _, u := range p.Stored {
		open = append(open, u.String())
	}
	for _, s := range p.Servers {
		for _, u := range s.Unproven {
			open = append(open, s.Server+": "+u.String())
		}
	}
	return open
}

// Prove tries, as somebody who is not Holdfast and only in dry runs, what the policies must refuse: nothing that a
// hole would let through happens. Each answer must come from the rule meant and from the version wanted. An error
// means that the proof could not be tried.
func Prove(ctx context.Context, c Canary) (proof Proof, err error) {
	if len(c.Servers) == 0 {
		return Proof{}, errors.New("proving the admission policies: no API server to ask; name at least one")
	}
	if c.Version == (Version{}) {
		c.Version = Current()
	}
	if c.Patience <= 0 {
		c.Patience = defaultPatience
	}
	proof.Version = c.Version
	if proof.Stored, err = c.compare(ctx); err != nil {
		return Proof{}, err
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), buryWithin)
		defer cancel()
		err = errors.Join(err, c.bury(last))
	}()
	if err := c.hatch(ctx); err != nil {
		return Proof{}, err
	}
	for _, s := range c.Servers {
		proof.Servers = append(proof.Servers, c.ask(ctx, s))
	}
	return proof, ctx.Err()
}

// ask tries every path on one server.
func (c Canary) ask(ctx context.Context, s Server) ServerProof {
	result := ServerProof{Server: s.Name}
	patient, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	for _, p := range c.paths() {
		what := c.try(ctx, s.Probe, p)
		for what != "" && wait(patient, retryEvery) {
			what = c.try(ctx, s.Probe, p)
		}
		if what == "" {
			result.Proven = append(result.Proven, p.name)
			continue
		}
		result.Unproven = append(result.Unproven, Unproven{Path: p.name, What: what})
	}
	return result
}

// wait returns true after d, or false as soon as ctx is done.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// path is one way around the guard. An empty rule means that the request must succeed.
type path struct {
	name string
	rule rule
	try  func(ctx context.Context, c client.Client) error
}

// try says what is wrong with the answer, or "".
func (c Canary) try(ctx context.Context, probe client.Client, p path) string {
	err := p.try(ctx, probe)
	if p.rule.name == "" {
		if err != nil {
			return err.Error()
		}
		return ""
	}
	switch {
	case err == nil:
		return "was let through; install the policies again, and see whether their bindings are there"
	case !apierrors.IsForbidden(err):
		return "could not be tried: " + err.Error()
	case !strings.Contains(err.Error(), p.rule.mark()):
		return "was refused, but not by rule " + p.rule.name + "; does the canary's identity have the verbs it needs? " + err.Error()
	case !strings.Contains(err.Error(), "[policies "+c.Version.String()+"]"):
		return "was refused by policies of another version than " + c.Version.String() + ": " + err.Error()
	}
	return ""
}

// paths are all ways that a request can show.
func (c Canary) paths() []path {
	guarded := func() *corev1.Pod { return canaryPod(c.Identity, canaryGuarded, nil) }
	held := func() *corev1.Pod { return canaryPod(c.Identity, canaryHeld, nil) }
	paths := []path{
		{"force delete", removalGradeDelete, func(ctx context.Context, p client.Client) error {
			return p.Delete(ctx, guarded(), client.GracePeriodSeconds(0), client.DryRunAll)
		}},
		{"phase Failed", terminalPhase, func(ctx context.Context, p client.Client) error {
			return p.Status().Patch(ctx, guarded(), merge(`{"status":{"phase":"Failed"}}`), client.DryRunAll)
		}},
		{"stopped containers", stoppedContainers, func(ctx context.Context, p client.Client) error {
			return p.Status().Patch(ctx, guarded(), merge(`{"status":{"containerStatuses":null}}`), client.DryRunAll)
		}},
		{"stripped label", podKeys, func(ctx context.Context, p client.Client) error {
			return p.Patch(ctx, guarded(), merge(stripped(v1alpha1.LabelApp)), client.DryRunAll)
		}},
		{"stripped label through status", podKeys, func(ctx context.Context, p client.Client) error {
			return p.Status().Patch(ctx, guarded(), merge(stripped(v1alpha1.LabelApp)), client.DryRunAll)
		}},
		{"override without the verb", podOverrideKey, func(ctx context.Context, p client.Client) error {
			return p.Patch(ctx, guarded(), merge(`{"metadata":{"annotations":{"`+v1alpha1.AnnotationOverride+`":"canary"}}}`), client.DryRunAll)
		}},
		{"delete while held", heldDelete, func(ctx context.Context, p client.Client) error {
			return p.Delete(ctx, held(), client.DryRunAll)
		}},
		{"stripped hold", podKeys, func(ctx context.Context, p client.Client) error {
			return p.Patch(ctx, held(), merge(stripped(v1alpha1.LabelHold)), client.DryRunAll)
		}},
		{"eviction while held", heldEviction, func(ctx context.Context, p client.Client) error {
			return p.SubResource("eviction").Create(ctx, held(), eviction(held(), nil), client.DryRunAll)
		}},
		{"eviction at once", removalGradeEviction, func(ctx context.Context, p client.Client) error {
			now := int64(0)
			return p.SubResource("eviction").Create(ctx, guarded(), eviction(guarded(), &now), client.DryRunAll)
		}},
		{"born guarded", bornGuarded, func(ctx context.Context, p client.Client) error {
			return p.Create(ctx, canaryPod(c.Identity, canaryNew, map[string]string{v1alpha1.LabelApp: canaryApp}), client.DryRunAll)
		}},
		{"forged address", podAddress, func(ctx context.Context, p client.Client) error {
			return p.Status().Patch(ctx, guarded(), merge(`{"status":{"podIP":"192.0.2.1","podIPs":[{"ip":"192.0.2.1"}]}}`), client.DryRunAll)
		}},
		{"lifted gate", newcomerGate, func(ctx context.Context, p client.Client) error {
			return p.Patch(ctx, guarded(), merge(`{"spec":{"schedulingGates":null}}`), client.DryRunAll)
		}},
		{"newcomer on a node", newcomerOnNode, func(ctx context.Context, p client.Client) error {
			pod := canaryOnClaim(c.Identity)
			pod.Spec.SchedulingGates, pod.Spec.NodeName = nil, canaryNew
			return p.Create(ctx, pod, client.DryRunAll)
		}},
		{"born held", bornHeld, func(ctx context.Context, p client.Client) error {
			return p.Create(ctx, canaryPod(c.Identity, canaryNew, map[string]string{v1alpha1.LabelHold: canaryIncident}), client.DryRunAll)
		}},
	}
	if c.Capabilities.MutatingPolicies {
		paths = append(paths, path{name: "label and gate at birth", try: c.bornGated})
	}
	return paths
}

// bornGated creates, in a dry run, a pod on the canary's claim, where it is not in its place, and looks for label and
// gate.
func (c Canary) bornGated(ctx context.Context, probe client.Client) error {
	pod := canaryOnClaim(c.Identity)
	if err := probe.Create(ctx, pod, client.DryRunAll); err != nil {
		return fmt.Errorf("a pod on a guarded claim could not be created: %w", err)
	}
	if got := pod.Labels[v1alpha1.LabelApp]; got != canaryApp {
		return fmt.Errorf("a new pod on a guarded claim got label %s=%q instead of %q; install the policy %s again",
			v1alpha1.LabelApp, got, canaryApp, labellingName)
	}
	if !slices.Contains(pod.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: v1alpha1.GateNewcomer}) {
		return fmt.Errorf("a new pod that is not in its place on a guarded claim got no gate %s; install the policy %s again",
			v1alpha1.GateNewcomer, labellingName)
	}
	return nil
}

// compare reads the stored policies: for those of the version wanted, content that differs was changed by hand.
func (c Canary) compare(ctx context.Context) ([]Unproven, error) {
	var differ []Unproven
	for _, want := range Objects(c.Identity, c.Capabilities) {
		found := want.DeepCopyObject().(client.Object)
		err := c.Holdfast.Get(ctx, client.ObjectKeyFromObject(want), found)
		switch {
		case apierrors.IsNotFound(err):
			differ = append(differ, Unproven{label(want), "is missing; install the policies again"})
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", label(want), err)
		case ParseVersion(found.GetAnnotations()[AnnotationVersion]).Number > Number:
			// A newer manager's; its content is not for us to judge.
		case !sameSpec(found, want):
			differ = append(differ, Unproven{label(want), "differs from what Holdfast installs; install the policies again"})
		}
	}
	return differ, nil
}

func merge(patch string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(patch)) }

func stripped(label string) string { return `{"metadata":{"labels":{"` + label + `":null}}}` }

func eviction(pod *corev1.Pod, grace *int64) *policyv1.Eviction {
	return &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: grace},
	}
}
