// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/events"
)

// way is one way around a hold. It has to be refused, with these words.
type way struct {
	name  string
	try   func() error
	words []string
}

// waysAround tries them one after the other; none moves anything.
func (s *scene) waysAround(ways []way) {
	s.Helper()
	for _, w := range ways {
		if err := w.try(); err == nil {
			s.Errorf("%s was let through", w.name)
		} else {
			s.says(w.name, err.Error(), w.words...)
		}
		s.untouched(w.name)
	}
	_, err := s.Kubectl(s.soon(), "uncordon", s.host.Name()) // drain cordons before it tries
	s.must(err)
	for _, p := range s.guarded() {
		s.scaledToNothing(p)
	}
}

// kubectl is a try by the administrator on the command line.
func (s *scene) kubectl(args ...string) func() error {
	return func() error {
		_, err := s.Kubectl(s.within(30*time.Second), args...)
		return err
	}
}

// heldWays are tried while the hold is armed: graceful ones too.
func heldWays(s *scene, hi *v1alpha1.HostIncident) []way {
	held := []string{"refused", "held by HostIncident " + hi.Name, "may still be writing", "kubectl get hi " + hi.Name}
	override := append(slices.Clone(held), v1alpha1.AnnotationOverride)
	ways := []way{
		{"kubectl drain", s.kubectl("drain", s.host.Name(), "--pod-selector=app="+stage.App, "--timeout=20s"), held},
		{"delete of the incident", s.kubectl("delete", "hi", hi.Name, "--wait=false"), []string{"refused", hi.Name}},
	}
	for _, p := range s.guarded() {
		pod := []string{"-n", stage.Namespace, p.pod.Name}
		ways = append(ways,
			way{"kubectl delete of " + p.pod.Name, s.kubectl(append([]string{"delete", "pod"}, pod...)...), override},
			way{"graceful delete of " + p.pod.Name, func() error {
				return s.Client.Delete(s.ctx, p.pod, client.GracePeriodSeconds(30))
			}, override},
			way{"eviction of " + p.pod.Name, func() error { return s.evict(p, nil) }, held},
		)
		ways = append(ways, podWays(s, p, override, held)...)
	}
	return append(ways, hostWays(s)...)
}

// alwaysWays are refused though nothing is armed and Holdfast is dead.
func alwaysWays(s *scene) []way {
	refused := []string{"refused", "may still be writing"}
	var ways []way
	for _, p := range s.guarded() {
		ways = append(ways, podWays(s, p, refused, []string{"refused"})...)
	}
	return append(ways, hostWays(s)...)
}

// podWays remove a pod at once, or make Kubernetes believe that it has stopped, or take its guard off. An eviction does not know why.
func podWays(s *scene, p part, words, evicted []string) []way {
	now := client.GracePeriodSeconds(0)
	as := func(user string, do func(client.Client) error, groups ...string) func() error {
		return func() error {
			c, err := s.As(user, groups...)
			s.must(err)
			return do(c)
		}
	}
	merge := func(sub string, patch string) func() error {
		return func() error {
			to := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.pod.Namespace, Name: p.pod.Name}}
			if sub != "" {
				return s.Client.SubResource(sub).Patch(s.ctx, to, client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
			}
			return s.Client.Patch(s.ctx, to, client.RawPatch(types.MergePatchType, []byte(patch)))
		}
	}
	remove := func(c client.Client) error { return c.Delete(s.ctx, p.pod) }
	stopped := `{"status":{"containerStatuses":[{"name":"ledger","state":{"running":null,"terminated":{"exitCode":0}},"image":"","imageID":"","ready":false,"restartCount":0}]}}`
	pod := p.pod.Name
	return []way{
		{"delete at once of " + pod, func() error { return s.Client.Delete(s.ctx, p.pod, now) }, words},
		{"delete of the collection of " + pod, func() error {
			return s.Client.DeleteAllOf(s.ctx, &corev1.Pod{}, client.InNamespace(stage.Namespace), client.MatchingLabels{"app": p.Name}, now)
		}, words},
		{"eviction at once of " + pod, func() error { return s.evict(p, new(int64)) }, evicted},
		{"delete by the node controller of " + pod, as(taintManager, remove), words},
		{"delete by the garbage collector of pods of " + pod, as("system:serviceaccount:kube-system:pod-garbage-collector", remove), words},
		{"delete by another host's kubelet of " + pod, as("system:node:"+s.another(), func(c client.Client) error { return c.Delete(s.ctx, p.pod, now) }, "system:nodes"), nil},
		{"phase Failed of " + pod, merge("status", `{"status":{"phase":"Failed"}}`), words},
		{"stopped containers of " + pod, merge("status", stopped), words},
		{"stripped guard of " + pod, merge("", `{"metadata":{"labels":{"`+v1alpha1.LabelApp+`":null}}}`), words},
	}
}

// hostWays take the host's Node or its attachments away from under the pods.
func hostWays(s *scene) []way {
	ways := []way{
		{"kubectl delete node", s.kubectl("delete", "node", s.host.Name()),
			[]string{"refused", "carries guarded pods", "may still be writing", "Drain it first", "kubectl get hi", v1alpha1.AnnotationOverride}},
		{"out-of-service taint", s.kubectl("taint", "node", s.host.Name(), "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"), []string{"refused"}},
		{"our own taint", s.kubectl("taint", "node", s.host.Name(), v1alpha1.TaintFenced+"=:NoExecute"), []string{"refused"}},
	}
	var attachments storagev1.VolumeAttachmentList
	s.must(s.Client.List(s.ctx, &attachments))
	for _, a := range attachments.Items {
		ours := slices.ContainsFunc(s.guarded(), func(p part) bool {
			return a.Spec.Source.PersistentVolumeName != nil && *a.Spec.Source.PersistentVolumeName == p.Volume()
		})
		if ours && a.Spec.NodeName == s.host.Name() {
			ways = append(ways, way{"delete of the attachment of " + *a.Spec.Source.PersistentVolumeName, func() error { return s.Client.Delete(s.ctx, &a) }, []string{"refused"}})
		}
	}
	return ways
}

// another is a host that the scene is not about.
func (s *scene) another() string {
	for _, h := range s.Lab.Hosts() {
		if h.Name() != s.host.Name() {
			return h.Name()
		}
	}
	return ""
}

func (s *scene) evict(p part, grace *int64) error {
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.pod.Name, Namespace: stage.Namespace}}
	if grace != nil {
		eviction.DeleteOptions = &metav1.DeleteOptions{GracePeriodSeconds: grace}
	}
	return s.Client.SubResource("eviction").Create(s.ctx, p.pod, eviction)
}

// scaledToNothing: the workload may be scaled, and its controller is refused the pod.
func (s *scene) scaledToNothing(p part) {
	s.Helper()
	now, err := p.Ledger(s.ctx)
	s.must(err)
	if now.Labels[v1alpha1.LabelHold] == "" {
		return // an ordinary scale-down, which nothing refuses and no kubelet carries out
	}
	_, err = s.Kubectl(s.soon(), "scale", "-n", stage.Namespace, p.Workload(), "--replicas=0")
	s.must(err)
	controller := map[string]string{"StatefulSet": "statefulset", "Deployment": "replicaset"}[p.Kind]
	q := events.ToPod(stage.Namespace, p.pod.Name)
	q.Verbs, q.User = []string{"delete"}, "system:serviceaccount:kube-system:"+controller+"-controller"
	s.poll("the "+controller+" controller to try "+p.pod.Name, func() (bool, error) {
		found, err := s.Asked(s.since, q)
		for _, r := range found {
			if r.Code/100 != 4 {
				s.Errorf("the controller was not refused: %s", r)
			}
		}
		return len(found) > 0, err
	})
	s.untouched("a scale to nothing")
	_, err = s.Kubectl(s.soon(), "scale", "-n", stage.Namespace, p.Workload(), "--replicas=1")
	s.must(err)
}
