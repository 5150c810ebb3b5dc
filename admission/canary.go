// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// The canaries are two pods in Holdfast's namespace that live as long as a proof takes. A scheduling gate keeps them
// from every node; the rules hold for them as if they ran.
const (
	canaryPrefix  = "holdfast-canary-"
	canaryGuarded = canaryPrefix + "guarded"
	canaryHeld    = canaryPrefix + "held"
	canaryNew     = canaryPrefix + "new" // is only ever created in a dry run

	canaryApp      = "holdfast-canary"
	canaryIncident = "holdfast-canary"
	canaryClaim    = "holdfast-canary-claim"
	canaryGate     = "canary.holdfast.dev/never-starts" // none of those that the rules are about
)

// IsCanary says whether the pod is one of Holdfast's own canaries, which nothing else needs to look after.
func IsCanary(id Identity, pod client.ObjectKey) bool {
	return pod.Namespace == id.orDefault().Namespace && (pod.Name == canaryGuarded || pod.Name == canaryHeld)
}

// canaryPod passes the restricted Pod Security Standard. Its image is never pulled.
func canaryPod(id Identity, name string, labels map[string]string) *corev1.Pod {
	yes, no := true, false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: id.orDefault().Namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			SchedulingGates:              []corev1.PodSchedulingGate{{Name: canaryGate}},
			AutomountServiceAccountToken: &no,
			RestartPolicy:                corev1.RestartPolicyNever,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   &yes,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name:  "canary",
				Image: "holdfast.invalid/canary:never-pulled",
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no,
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// canaryOnClaim is a new canary, ungated but for its own gate, on the claim that no pod has its place on.
func canaryOnClaim(id Identity) *corev1.Pod {
	pod := canaryPod(id, canaryNew, nil)
	pod.Spec.Volumes = []corev1.Volume{{Name: "claim", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: canaryClaim},
	}}}
	return pod
}

// hatch puts the canaries in place as Holdfast, and the entries for them on Holdfast's namespace.
func (c Canary) hatch(ctx context.Context) error {
	if err := c.announce(ctx); err != nil {
		return fmt.Errorf("annotating namespace %s for the canary: %w", c.Identity.orDefault().Namespace, err)
	}
	if err := c.bury(ctx); err != nil { // what a crash left behind
		return err
	}
	guarded := canaryPod(c.Identity, canaryGuarded, map[string]string{v1alpha1.LabelApp: canaryApp})
	guarded.Spec.SchedulingGates = append(guarded.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: v1alpha1.GateNewcomer})
	held := canaryPod(c.Identity, canaryHeld, map[string]string{v1alpha1.LabelHold: canaryIncident})
	for _, pod := range []*corev1.Pod{guarded, held} {
		if err := c.Holdfast.Create(ctx, pod); err != nil {
			return fmt.Errorf("creating the canary pod %s: %w", pod.Name, err)
		}
	}
	before := guarded.DeepCopy()
	guarded.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name:  "canary",
		Image: guarded.Spec.Containers[0].Image,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
	if err := c.Holdfast.Status().Patch(ctx, guarded, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("writing the canary's container status: %w", err)
	}
	return nil
}

// bury removes the canaries as Holdfast.
func (c Canary) bury(ctx context.Context) error {
	for _, name := range []string{canaryGuarded, canaryHeld} {
		err := c.Holdfast.Delete(ctx, canaryPod(c.Identity, name, nil), client.GracePeriodSeconds(0))
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the canary pod %s: %w", name, err)
		}
	}
	return nil
}

// announce lists the held canary and a claim nobody has on Holdfast's namespace. They stay there.
func (c Canary) announce(ctx context.Context) error {
	ns := &corev1.Namespace{}
	if err := c.Holdfast.Get(ctx, client.ObjectKey{Name: c.Identity.orDefault().Namespace}, ns); err != nil {
		return err
	}
	before := ns.DeepCopy()
	if ns.Annotations == nil {
		ns.Annotations = map[string]string{}
	}
	ns.Annotations[v1alpha1.AnnotationHeld] = withEntry(ns.Annotations[v1alpha1.AnnotationHeld], canaryHeld+"="+canaryIncident)
	ns.Annotations[v1alpha1.AnnotationClaims] = withEntry(ns.Annotations[v1alpha1.AnnotationClaims], canaryApp+"="+canaryClaim)
	if ns.Annotations[v1alpha1.AnnotationHeld] == before.Annotations[v1alpha1.AnnotationHeld] &&
		ns.Annotations[v1alpha1.AnnotationClaims] == before.Annotations[v1alpha1.AnnotationClaims] {
		return nil
	}
	return c.Holdfast.Patch(ctx, ns, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// withEntry is the comma-separated annotation with the entry in it.
func withEntry(annotation, entry string) string {
	for _, e := range entries(annotation) {
		if e == entry {
			return annotation
		}
	}
	if annotation == "" {
		return entry
	}
	return annotation + "," + entry
}
