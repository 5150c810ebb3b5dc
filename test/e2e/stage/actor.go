// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"text/template"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/lab"
)

// Role is what kind of ledger an Actor plays.
type Role struct {
	// Name of the workload, of its GuardedStatefulApp, and of the label app of its pods.
	Name string
	// Kind of the workload: StatefulSet or Deployment.
	Kind string
	// Class of its one volume: enforcing or permissive.
	Class string
	// Unguarded leaves it to Kubernetes.
	Unguarded bool
	// WhenNotServing is what Holdfast does when its host lives and it serves nobody: Hold, also when empty, or Fence.
	WhenNotServing v1alpha1.WhenNotServing
	// Interval between two lines, as the ledger's flag wants it. Default 10ms.
	Interval string
}

// Workload is the role's object as kubectl names it.
func (r Role) Workload() string {
	return map[string]string{"StatefulSet": "statefulset/", "Deployment": "deployment/"}[r.Kind] + r.Name
}

// Volume is the name of its volume on the array, and of its PersistentVolume.
func (r Role) Volume() string { return r.Name + "-0" }

// Claim is the name of its PersistentVolumeClaim.
func (r Role) Claim() string {
	if r.Kind == "StatefulSet" {
		return "data-" + r.Name + "-0"
	}
	return r.Name + "-data"
}

func (r Role) manifest() string {
	return map[string]string{"StatefulSet": "statefulset.yaml.tmpl", "Deployment": "deployment.yaml.tmpl"}[r.Kind]
}

// lead is the ledger that is always there.
var lead = Role{Name: App, Kind: "StatefulSet", Class: "enforcing"}

// Actor is one ledger: a workload of one pod with a volume, a Service, and a client outside the hosts that follows the Service and keeps what was
// acknowledged. Array, client and the ledger's own file are what it is judged by.
type Actor struct {
	Role
	// Endpoints records what the Service led to.
	Endpoints *Endpoints

	stage *Stage
	acks  string
}

// Enter brings an actor on and returns once it serves its client and, if it is guarded, Holdfast says that it is Ready. One of the same role that plays
// already is kept.
func (s *Stage) Enter(ctx context.Context, r Role) (*Actor, error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	a, err := s.engage(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	if !r.Unguarded && !s.options.WithoutHoldfast {
		if err := a.guard(ctx); err != nil {
			return nil, fmt.Errorf("guard %s: %w", r.Name, err)
		}
	}
	return a, a.startClient(ctx)
}

// engage makes the volume, starts the workload and follows its Service.
func (s *Stage) engage(ctx context.Context, r Role) (*Actor, error) {
	a := &Actor{Role: r, stage: s}
	if err := s.Lab.CreateVolume(ctx, lab.Volume{Name: r.Volume(), Claim: r.Claim(), Namespace: Namespace, Class: r.Class}); err != nil {
		return nil, err
	}
	if err := a.Engage(ctx); err != nil {
		return nil, err
	}
	if err := a.followEndpoints(); err != nil {
		return nil, err
	}
	_, err := a.AwaitPod(ctx, r.Name+" to be ready", PodReady)
	return a, err
}

// Engage makes the actor's workload and Services what they are to be.
func (a *Actor) Engage(ctx context.Context) error { return a.apply(ctx, a.manifest()) }

func (a *Actor) guard(ctx context.Context) error {
	if err := a.apply(ctx, "guard.yaml.tmpl"); err != nil {
		return err
	}
	return a.AwaitReady(ctx)
}

// Muster has the actor, which is a StatefulSet, have so many members, each with a volume of its own, and waits until they are ready and the others gone. What is
// acknowledged by other members than the first cannot be judged.
func (a *Actor) Muster(ctx context.Context, members int) error {
	for n := range members {
		name := fmt.Sprintf("%s-%d", a.Name, n)
		if err := a.stage.Lab.CreateVolume(ctx, lab.Volume{Name: name, Claim: "data-" + name, Namespace: Namespace, Class: a.Class}); err != nil {
			return err
		}
	}
	if _, err := a.stage.Kubectl(ctx, "scale", "-n", Namespace, a.Workload(), fmt.Sprintf("--replicas=%d", members)); err != nil {
		return err
	}
	err := follow(ctx, a.stage.Client, &corev1.PodList{}, []client.ListOption{client.InNamespace(Namespace), client.MatchingLabels{"app": a.Name}}, func(now map[string]*corev1.Pod) bool {
		for _, p := range now {
			if !PodReady(p) {
				return false
			}
		}
		return len(now) == members
	})
	if err != nil {
		return fmt.Errorf("%s is to have %d members: %w", a.Name, members, err)
	}
	return nil
}

// Exit takes the actor off: the guard, then the workload. Its volume stays, with everything that was written.
func (a *Actor) Exit(ctx context.Context) error {
	pods, err := a.Pods(ctx)
	if err != nil {
		return err
	}
	if _, err := a.stage.Kubectl(ctx, "delete", "-n", Namespace, "gsa/"+a.Name, "--ignore-not-found"); err != nil {
		return err
	}
	if _, err := a.stage.Kubectl(ctx, "delete", "-n", Namespace, a.Workload(), "--ignore-not-found"); err != nil {
		return err
	}
	for _, p := range pods {
		if err := a.stage.AwaitGone(ctx, &p); err != nil {
			return err
		}
	}
	return nil
}

// apply fills the role into a manifest and applies it.
func (a *Actor) apply(ctx context.Context, name string) error {
	t, err := template.ParseFiles(filepath.Join(a.stage.Lab.Root(), "test", "e2e", "manifests", name))
	if err != nil {
		return err
	}
	var yaml bytes.Buffer
	if err := t.Execute(&yaml, a.Role); err != nil {
		return err
	}
	_, err = a.stage.kubectl(ctx, yaml.Bytes(), "apply", "--server-side", "--force-conflicts", "-f", "-")
	return err
}

// Ledger returns the actor's pod: the one that is not being deleted, if there are two.
func (a *Actor) Ledger(ctx context.Context) (*corev1.Pod, error) {
	pods, err := a.Pods(ctx)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("%s has no pod", a.Name)
	}
	slices.SortFunc(pods, func(p, q corev1.Pod) int { return p.CreationTimestamp.Compare(q.CreationTimestamp.Time) })
	if i := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.DeletionTimestamp == nil }); i >= 0 {
		return &pods[i], nil
	}
	return &pods[0], nil
}

// Pods are all pods with the actor's label.
func (a *Actor) Pods(ctx context.Context) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := a.stage.Client.List(ctx, &pods, client.InNamespace(Namespace), client.MatchingLabels{"app": a.Name})
	return pods.Items, err
}

// AwaitPod waits for a pod of the actor to reach something.
func (a *Actor) AwaitPod(ctx context.Context, what string, reached func(*corev1.Pod) bool) (*corev1.Pod, error) {
	return awaitObject(ctx, a.stage, &corev1.PodList{}, what, func(p *corev1.Pod) bool {
		return p.Namespace == Namespace && p.Labels["app"] == a.Name && reached(p)
	})
}

// AwaitApp waits for the actor's GuardedStatefulApp to reach something.
func (a *Actor) AwaitApp(ctx context.Context, what string, reached func(*v1alpha1.GuardedStatefulApp) bool) (*v1alpha1.GuardedStatefulApp, error) {
	return awaitObject(ctx, a.stage, &v1alpha1.GuardedStatefulAppList{}, what, func(g *v1alpha1.GuardedStatefulApp) bool {
		return g.Namespace == Namespace && g.Name == a.Name && reached(g)
	})
}

// AwaitReady waits until the actor is guarded and well.
func (a *Actor) AwaitReady(ctx context.Context) error {
	_, err := a.AwaitApp(ctx, a.Name+" to be Ready", func(g *v1alpha1.GuardedStatefulApp) bool {
		return g.Status.ObservedGeneration >= g.Generation && Is(g.Status.Conditions, v1alpha1.ConditionReady)
	})
	return err
}

// Amend patches the actor's GuardedStatefulApp, by a JSON merge patch.
func (a *Actor) Amend(ctx context.Context, patch string) error {
	g := &v1alpha1.GuardedStatefulApp{}
	g.Namespace, g.Name = Namespace, a.Name
	return a.stage.Client.Patch(ctx, g, client.RawPatch(types.MergePatchType, []byte(patch)))
}

// Place brings actors to the host as an administrator would, by a graceful delete with the other hosts cordoned, and waits until each is Ready there
// and its client is served.
func (s *Stage) Place(ctx context.Context, host string, actors ...*Actor) ([]*corev1.Pod, error) {
	placed := make([]*corev1.Pod, len(actors))
	var moving []int
	for i, a := range actors {
		p, err := a.Ledger(ctx)
		if err != nil {
			return nil, err
		}
		if placed[i] = p; p.Spec.NodeName != host {
			moving = append(moving, i)
		}
	}
	if len(moving) == 0 {
		return placed, nil
	}
	others := slices.DeleteFunc(s.hostNames(), func(name string) bool { return name == host })
	if _, err := s.Kubectl(ctx, append([]string{"cordon"}, others...)...); err != nil {
		return nil, err
	}
	err := s.move(ctx, host, actors, placed, moving)
	_, uncordon := s.Kubectl(ctx, append([]string{"uncordon"}, others...)...)
	return placed, errors.Join(err, uncordon)
}

// move deletes the pods of those moving, all at once, and waits for their successors.
func (s *Stage) move(ctx context.Context, host string, actors []*Actor, placed []*corev1.Pod, moving []int) error {
	for _, i := range moving {
		if err := s.Client.Delete(ctx, placed[i]); err != nil {
			return err
		}
	}
	for _, i := range moving {
		old := placed[i].UID
		moved, err := actors[i].AwaitPod(ctx, actors[i].Name+" on "+host, func(p *corev1.Pod) bool {
			return p.UID != old && p.Spec.NodeName == host && PodReady(p)
		})
		if err != nil {
			return err
		}
		placed[i] = moved
		if err := actors[i].AwaitServed(ctx); err != nil {
			return err
		}
	}
	return nil
}
