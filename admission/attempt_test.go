// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// attempt is one request by one caller against one scene. refusedBy is "policy/rule", empty if the request must be
// let through; words must all be in the refusal.
type attempt struct {
	scene     scene
	who       identity
	do        act
	refusedBy string
	words     []string
}

// act is a request.
type act func(ctx context.Context, c client.Client, s scene) error

// scene is what exists before the request: a namespace with the pod db-0 of the app db, which runs on host node-1.
type scene struct {
	unguarded   bool // without the label of the app
	held        bool // with the label and the finalizer of the incident node-1-boot
	unscheduled bool // on no host
	terminating bool // deleted gracefully before
	stopped     bool // its kubelet wrote phase Failed
	override    string
	claims      string // annotation of the namespace
	heldNames   string // annotation of the namespace

	namespace string // made by set
}

const (
	podName  = "db-0"
	incident = "node-1-boot"
)

var scenes atomic.Int32

// set brings the scene about, as Holdfast and the pod's kubelet.
func (s scene) set(ctx context.Context, t *testing.T) scene {
	t.Helper()
	s.namespace = fmt.Sprintf("shop-%d", scenes.Add(1))
	us, kubelet := holdfast.client(t), ownKubelet.client(t)
	annotations := map[string]string{}
	if s.claims != "" {
		annotations[v1alpha1.AnnotationClaims] = s.claims
	}
	if s.heldNames != "" {
		annotations[v1alpha1.AnnotationHeld] = s.heldNames
	}
	must(t, us.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace, Annotations: annotations}}))
	pod := newPod(s.namespace, podName)
	if !s.unguarded {
		pod.Labels = map[string]string{v1alpha1.LabelApp: "db"}
	}
	if !s.unscheduled {
		pod.Spec.NodeName = hostName
	}
	must(t, us.Create(ctx, pod))
	if !s.unscheduled {
		must(t, patchStatus(`{"status":{"phase":"Running","containerStatuses":[{"name":"db","image":"db","imageID":"",`+
			`"ready":true,"restartCount":0,"state":{"running":{}}}]}}`)(ctx, kubelet, s))
	}
	if s.stopped {
		must(t, patchStatus(`{"status":{"phase":"Failed"}}`)(ctx, kubelet, s))
	}
	if s.terminating {
		must(t, deletePod(ctx, us, s))
	}
	if s.held {
		must(t, patchPod(`{"metadata":{"labels":{"`+v1alpha1.LabelHold+`":"`+incident+`"}}}`)(ctx, us, s))
	}
	if s.held && !s.terminating { // the API server takes no new finalizer on a terminating object
		must(t, patchPod(`{"metadata":{"finalizers":["`+v1alpha1.FinalizerHold+`"]}}`)(ctx, us, s))
	}
	if s.override != "" {
		must(t, patchPod(`{"metadata":{"annotations":{"`+v1alpha1.AnnotationOverride+`":"`+s.override+`"}}}`)(ctx, breaker.client(t), s))
	}
	return s
}

func newPod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db"}}},
	}
}

// run makes the attempt and judges the answer.
func (a attempt) run(ctx context.Context, t *testing.T) {
	t.Helper()
	judge(t, a.do(ctx, a.who.client(t), a.scene.set(ctx, t)), a.refusedBy, a.words)
}

// judge compares an answer with the rule that should have refused, and its words.
func judge(t *testing.T, err error, refusedBy string, words []string) {
	t.Helper()
	if refusedBy == "" {
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		return
	}
	if !apierrors.IsForbidden(err) {
		t.Fatalf("not refused by %s: %v", refusedBy, err)
	}
	if !slices.ContainsFunc(strings.Split(refusedBy, "|"), func(by string) bool {
		policy, rule, _ := strings.Cut(by, "/")
		return strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+policy+"'") && strings.Contains(err.Error(), "["+rule+"] ")
	}) {
		t.Errorf("refused, but not by %s: %v", refusedBy, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the refusal does not say %q: %v", w, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func deletePod(ctx context.Context, c client.Client, s scene) error {
	return c.Delete(ctx, newPod(s.namespace, podName))
}

func deletePodWithin(seconds int64) act {
	return func(ctx context.Context, c client.Client, s scene) error {
		return c.Delete(ctx, newPod(s.namespace, podName), client.GracePeriodSeconds(seconds))
	}
}

var forceDelete = deletePodWithin(0)

func deleteCollection(seconds int64) act {
	return func(ctx context.Context, c client.Client, s scene) error {
		return c.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(s.namespace), client.GracePeriodSeconds(seconds))
	}
}

func evict(options *metav1.DeleteOptions) act {
	return func(ctx context.Context, c client.Client, s scene) error {
		pod := newPod(s.namespace, podName)
		return c.SubResource("eviction").Create(ctx, pod, &policyv1.Eviction{ObjectMeta: pod.ObjectMeta, DeleteOptions: options})
	}
}

func evictWithin(seconds int64) act {
	return evict(&metav1.DeleteOptions{GracePeriodSeconds: &seconds})
}

func patchPod(patch string) act {
	return func(ctx context.Context, c client.Client, s scene) error {
		return c.Patch(ctx, newPod(s.namespace, podName), client.RawPatch(types.MergePatchType, []byte(patch)))
	}
}

func patchStatus(patch string) act {
	return func(ctx context.Context, c client.Client, s scene) error {
		return c.Status().Patch(ctx, newPod(s.namespace, podName), client.RawPatch(types.MergePatchType, []byte(patch)))
	}
}

// createPod creates a pod db-1 that names the claims; labels and annotations may be nil.
func createPod(claims []string, labels, annotations map[string]string) act {
	return func(ctx context.Context, c client.Client, s scene) error {
		return c.Create(ctx, podOn(s.namespace, claims, labels, annotations))
	}
}

func podOn(namespace string, claims []string, labels, annotations map[string]string) *corev1.Pod {
	pod := newPod(namespace, "db-1")
	pod.Labels, pod.Annotations = labels, annotations
	for i, claim := range claims {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: fmt.Sprintf("v%d", i), VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
	}
	return pod
}
