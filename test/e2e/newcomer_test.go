// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
)

// TestCase6Newcomers: others than the workload's own pod want the guarded claim, by every door. None of them writes on another host.
func TestCase6Newcomers(t *testing.T) {
	playCase(t, 6,
		variant{"on a healthy host", false, func(t *testing.T) { newcomers(t, false) }},
		variant{"on a held host", true, func(t *testing.T) { newcomers(t, true) }},
	)
}

func newcomers(t *testing.T, held bool) {
	s := play(t, free, everyKind...)
	s.begin()
	if held {
		s.must(s.host.KillKubelet(s.ctx))
		hi := s.incident("KubeletDown", verdict("KubeletDown"))
		s.mark("detected")
		for _, p := range s.guarded() {
			s.armed(p, hi)
		}
	}
	for _, p := range s.guarded() {
		s.backup(p)
		s.boundByHand(p)
		s.namedByHand(p)
		s.orphaned(p) // before its pod changes hands: an owner that was put on a pod only just is one that the garbage collector may not know of, and leave on it
		s.relabelled(p)
	}
	s.mark("held")
	if held {
		s.must(s.host.StartKubelet(s.ctx))
		s.incident("Closed", step(v1alpha1.StepClosed))
		s.mark("recovered")
	}
	s.sameContainers()
	s.onlyWriter()
	s.judged()
}

// intruder is a pod that would write to the part's volume, beside the ledger's own file, on another host than the scene's.
func (s *scene) intruder(p part, name string) *corev1.Pod {
	grace := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-" + p.Name, Namespace: stage.Namespace},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "ledger", Image: "holdfast.dev/lab/ledger:dev", ImagePullPolicy: corev1.PullNever,
				Args: []string{"--data=/data/" + name}, VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: p.Claim()}}}},
		},
	}
}

// elsewhere wants a pod on another host than the scene's.
func (s *scene) elsewhere(spec *corev1.PodSpec) {
	spec.NodeSelector = map[string]string{corev1.LabelHostname: s.another()}
}

// backup: a Job names the claim, to run on another host. Its pod waits at the gate, and says for what.
func (s *scene) backup(p part) {
	s.Helper()
	pod := s.intruder(p, "backup")
	s.elsewhere(&pod.Spec)
	job := &batchv1.Job{ObjectMeta: pod.ObjectMeta, Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: pod.Spec}}}
	s.must(s.Client.Create(s.ctx, job))
	waits, err := s.AwaitAnyPod(s.soon(), "the Job's pod to wait at the gate", func(w *corev1.Pod) bool {
		return slices.ContainsFunc(w.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == job.UID }) && s.waits(w)
	})
	s.must(err)
	s.must(s.Client.Delete(s.ctx, job, client.PropagationPolicy(metav1.DeletePropagationBackground)))
	s.must(s.AwaitGone(s.soon(), waits))
	s.untouched("a backup Job")
}

// waits reports whether a pod is at Holdfast's gate.
func (s *scene) waits(p *corev1.Pod) bool {
	return slices.Contains(p.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: v1alpha1.GateNewcomer})
}

// boundByHand: a pod waits at the gate, and somebody binds it to another host, or takes the gate off.
func (s *scene) boundByHand(p part) {
	s.Helper()
	pod := s.intruder(p, "bound")
	s.elsewhere(&pod.Spec)
	s.must(s.Client.Create(s.ctx, pod))
	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace}, Target: corev1.ObjectReference{Kind: "Node", Name: s.another()}}
	s.refused("a hand-made Binding", s.Client.SubResource("binding").Create(s.ctx, pod, binding))
	ungate := client.RawPatch(types.JSONPatchType, []byte(`[{"op":"remove","path":"/spec/schedulingGates"}]`))
	s.refused("taking the gate off", s.Client.Patch(s.ctx, pod.DeepCopy(), ungate), "refused")
	s.must(s.Client.Delete(s.ctx, pod))
	s.must(s.AwaitGone(s.soon(), pod))
	s.untouched("a hand-made Binding")
}

// namedByHand: a pod is created with its host in it.
func (s *scene) namedByHand(p part) {
	s.Helper()
	pod := s.intruder(p, "named")
	pod.Spec.NodeName = s.another()
	s.refused("nodeName set by hand", s.Client.Create(s.ctx, pod), "refused")
	s.untouched("nodeName set by hand")
}

// refused wants an error of the API server, with words.
func (s *scene) refused(what string, err error, words ...string) {
	s.Helper()
	if err == nil {
		s.Errorf("%s was let through", what)
		return
	}
	s.says(what, err.Error(), words...)
}

// relabelled: the ledger's pod loses the label by which its workload knows it, which may then make another. That one starts nowhere else.
func (s *scene) relabelled(p part) {
	s.Helper()
	label := func(value string) {
		patch := `{"metadata":{"labels":{"app":"` + value + `"}}}`
		to := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.pod.Namespace, Name: p.pod.Name}}
		s.must(s.Client.Patch(s.ctx, to, client.RawPatch(types.MergePatchType, []byte(patch))))
	}
	label("nobody")
	other := func(now *corev1.Pod) bool { return now.UID != p.pod.UID && now.DeletionTimestamp == nil }
	if p.Kind == "Deployment" {
		made, err := p.AwaitPod(s.soon(), "another pod of "+p.Name, func(now *corev1.Pod) bool {
			return other(now) && (s.waits(now) || now.Spec.NodeName != "")
		})
		s.must(err)
		if made.Spec.NodeName != "" && made.Spec.NodeName != s.host.Name() {
			s.Errorf("%s is on %s, and the ledger on %s", made.Name, made.Spec.NodeName, s.host.Name())
		}
	}
	_, err := s.AwaitAnyPod(s.soon(), p.pod.Name+" to be let go by its workload", func(now *corev1.Pod) bool {
		return now.UID == p.pod.UID && metav1.GetControllerOf(now) == nil
	})
	s.must(err)
	label(p.Name)
	_, err = p.AwaitPod(s.soon(), p.pod.Name+" to be its workload's again", func(now *corev1.Pod) bool {
		return now.UID == p.pod.UID && metav1.GetControllerOf(now) != nil
	})
	s.must(err)
	s.must(s.awaitAlone(p))
	s.untouched("a relabelled pod")
}

// awaitAlone waits until the part has no pod but its own.
func (s *scene) awaitAlone(p part) error {
	ctx := s.soon()
	for {
		pods, err := p.Pods(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(pods, func(q corev1.Pod) bool { return q.UID != p.pod.UID })
		if i < 0 {
			return nil
		}
		if err := s.AwaitGone(ctx, &pods[i]); err != nil {
			return err
		}
	}
}

// orphaned: the workload is deleted and leaves its pod behind, and comes back.
func (s *scene) orphaned(p part) {
	s.Helper()
	_, err := s.Kubectl(s.soon(), "delete", "-n", stage.Namespace, p.Workload(), "--cascade=orphan")
	s.must(err)
	s.untouched("a workload deleted without its pod")
	s.must(p.Engage(s.soon()))
	_, err = p.AwaitPod(s.soon(), p.pod.Name+" to have an owner", func(now *corev1.Pod) bool {
		owner := metav1.GetControllerOf(now)
		return now.UID == p.pod.UID && owner != nil && s.exists(owner)
	})
	s.must(err)
	s.must(s.awaitAlone(p))
	s.untouched("a workload that came back")
}

// exists reports whether the owner is there.
func (s *scene) exists(owner *metav1.OwnerReference) bool {
	out, err := s.Kubectl(s.ctx, "get", "-n", stage.Namespace, strings.ToLower(owner.Kind)+"/"+owner.Name, "-o", "jsonpath={.metadata.uid}")
	return err == nil && out == string(owner.UID)
}
