// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// scene is a held writer and all that it hangs on: the pod db-0 of the StatefulSet db, on a host of its own, with an
// attached volume, and beside it the newcomer backup that waits at the gate. Nobody removes what a scene leaves.
type scene struct {
	number                          int32
	namespace, node, incident       string
	volume, attachment, driver      string
	pod, va, host, claim, pv, space types.UID
	made                            []client.Object // by the attempt
}

const (
	writer   = "db-0"
	app      = "db"
	guarded  = "data-db-0"
	backup   = "backup"
	address  = "192.0.2.10"
	attacher = "external-attacher/csi-example-com"
)

var scenes atomic.Int32

// set makes a scene, as Holdfast and the kubelet would have left it.
func set(ctx context.Context, t *testing.T) *scene {
	t.Helper()
	n := scenes.Add(1)
	name := func(what string) string { return fmt.Sprintf("%s-%d", what, n) }
	s := &scene{number: n, namespace: name("shop"), node: name("node"), incident: name("incident"), volume: name("pv"), attachment: name("va"),
		driver: name("csi") + ".example.com"}
	us := holdfast.client(t)
	space, host, pv, claim, va, pod := s.spaceObject(), s.hostObject(), s.volumeObject(), s.claimObject(), s.attachmentObject(), s.writerObject()
	for _, o := range []client.Object{space, host, s.leaseObject(), s.driverObject(), pv, claim, va, s.setObject(), s.appObject(), s.incidentObject(), pod,
		s.newcomerObject()} {
		if err := us.Create(ctx, o); err != nil {
			t.Fatalf("%T %s: %v", o, o.GetName(), err)
		}
	}
	must(t, us.Status().Patch(ctx, pod, merge(`{"status":{"phase":"Running","hostIP":"192.0.2.1","hostIPs":[{"ip":"192.0.2.1"}],"podIP":"`+address+`","podIPs":[{"ip":"`+address+`"}],
		"containerStatuses":[{"name":"db","image":"db","imageID":"","ready":true,"restartCount":0,"state":{"running":{}},
		"resources":{"requests":{"cpu":"100m"}}}]}}`))) // the kubelet can resize
	must(t, us.Status().Patch(ctx, va, merge(`{"status":{"attached":true}}`)))
	must(t, us.Status().Patch(ctx, &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: s.incident}}, merge(`{"status":{"step":"Holding"}}`)))
	must(t, us.Status().Patch(ctx, pv, merge(`{"status":{"phase":"Bound"}}`)))
	must(t, us.Status().Patch(ctx, claim, merge(`{"status":{"phase":"Bound"}}`)))
	must(t, cluster.Client.Create(ctx, s.editorRights()))
	must(t, allowed(ctx, "editor", s.namespace, "delete"))
	s.pod, s.va, s.host, s.claim, s.pv, s.space = pod.UID, va.UID, host.UID, claim.UID, pv.UID, space.UID
	return s
}

func merge(patch string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(patch)) }

func (s *scene) in(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: s.namespace, Name: name}
}

func (s *scene) spaceObject() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace, Annotations: map[string]string{
		v1alpha1.AnnotationClaims: app + "=data-db-*@db-*", v1alpha1.AnnotationHeld: writer + "=" + s.incident,
	}}}
}

func (s *scene) hostObject() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: s.node, Labels: map[string]string{v1alpha1.LabelCarries: "guarded"}},
		Status: corev1.NodeStatus{
			NodeInfo:        corev1.NodeSystemInfo{BootID: "boot-1", SystemUUID: "system-1", MachineID: "machine-1"},
			VolumesInUse:    []corev1.UniqueVolumeName{"kubernetes.io/csi/v"},
			VolumesAttached: []corev1.AttachedVolume{{Name: "kubernetes.io/csi/v", DevicePath: ""}},
			Allocatable:     corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourcePods: resource.MustParse("10")},
			Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}},
		},
	}
}

func (s *scene) leaseObject() *coordinationv1.Lease {
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: s.node},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: ptr.To(s.node), LeaseDurationSeconds: ptr.To[int32](40)},
	}
}

func (s *scene) driverObject() *storagev1.CSIDriver {
	return &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: s.driver, Labels: map[string]string{v1alpha1.LabelGuardedVolume: "guarded"}},
		Spec:       storagev1.CSIDriverSpec{AttachRequired: ptr.To(true)},
	}
}

var gigabyte = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}

func (s *scene) volumeObject() *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: s.volume, Labels: map[string]string{v1alpha1.LabelGuardedVolume: app}, Finalizers: []string{"kubernetes.io/pv-protection"}},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: gigabyte,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: s.driver, VolumeHandle: s.volume}},
			ClaimRef:               &corev1.ObjectReference{Namespace: s.namespace, Name: guarded},
		},
	}
}

func (s *scene) claimObject() *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: s.in(guarded), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: s.volume, StorageClassName: ptr.To(""),
		Resources: corev1.VolumeResourceRequirements{Requests: gigabyte},
	}}
	c.Finalizers = []string{"kubernetes.io/pvc-protection"}
	return c
}

func (s *scene) attachmentObject() *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: s.attachment, Labels: map[string]string{v1alpha1.LabelGuardedVolume: app}, Finalizers: []string{attacher}},
		Spec:       storagev1.VolumeAttachmentSpec{Attacher: s.driver, NodeName: s.node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &s.volume}},
	}
}

// podOn is a pod that names the guarded claim.
func (s *scene) podOn(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: s.in(name), Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "db", Image: "db", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")},
		}}},
		Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: guarded},
		}}},
	}}
}

func (s *scene) writerObject() *corev1.Pod {
	p := s.podOn(writer)
	p.Labels = map[string]string{"app": app, v1alpha1.LabelApp: app, v1alpha1.LabelHold: s.incident}
	p.Finalizers = []string{v1alpha1.FinalizerHold}
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: app, UID: "the-set", Controller: ptr.To(true)}}
	p.Spec.NodeName = s.node
	return p
}

func (s *scene) newcomerObject() *corev1.Pod { return s.podOn(backup) }

func (s *scene) setObject() *appsv1.StatefulSet {
	labels := map[string]string{"app": app}
	return &appsv1.StatefulSet{ObjectMeta: s.in(app), Spec: appsv1.StatefulSetSpec{
		ServiceName: app, Replicas: ptr.To[int32](1), Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db"}}}},
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: gigabyte},
		}}},
	}}
}

func (s *scene) appObject() *v1alpha1.GuardedStatefulApp {
	g := &v1alpha1.GuardedStatefulApp{ObjectMeta: s.in(app), Spec: v1alpha1.GuardedStatefulAppSpec{
		WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: app},
		Health:      v1alpha1.Health{Probes: []v1alpha1.Probe{{Name: "sql", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt32(5432)}}}},
	}}
	g.Finalizers = []string{v1alpha1.FinalizerApp}
	return g
}

func (s *scene) incidentObject() *v1alpha1.HostIncident {
	return &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: s.incident},
		Spec: v1alpha1.HostIncidentSpec{NodeName: s.node, NodeUID: "u", BootID: "boot-1", SystemUUID: "system-1", Episode: 1}}
}

func (s *scene) editorRights() *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{ObjectMeta: s.in("editor"), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:aggregate-to-edit"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "editor"}}}
}

// harm lists what is no longer as it has to be while the writer is held. It reads as an administrator.
func (s *scene) harm(ctx context.Context) []string {
	var harm []string
	say := func(ok bool, format string, args ...any) {
		if !ok {
			harm = append(harm, fmt.Sprintf(format, args...))
		}
	}
	read := func(o client.Object, what string) bool {
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(o), o)
		say(err == nil, "%s: %v", what, err)
		return err == nil
	}
	s.harmToPods(ctx, read, say)
	s.harmToHost(read, say)
	s.harmToVolume(read, say)
	s.harmToRecords(read, say)
	return harm
}

type (
	reader = func(o client.Object, what string) bool
	sayer  = func(ok bool, format string, args ...any)
)

func (s *scene) harmToPods(ctx context.Context, read reader, say sayer) {
	pod := &corev1.Pod{ObjectMeta: s.in(writer)}
	if read(pod, "the writer") {
		say(pod.UID == s.pod, "the writer is another pod")
		say(pod.DeletionTimestamp == nil, "the writer is being deleted")
		say(pod.Labels[v1alpha1.LabelApp] == app && pod.Labels[v1alpha1.LabelHold] == s.incident, "the writer's labels are %v", pod.Labels)
		say(slices.Contains(pod.Finalizers, v1alpha1.FinalizerHold), "the writer's finalizers are %v", pod.Finalizers)
		say(pod.Spec.NodeName == s.node, "the writer is on %q", pod.Spec.NodeName)
		say(pod.Status.Phase == corev1.PodRunning, "the writer's phase is %s", pod.Status.Phase)
		say(len(pod.Status.PodIPs) == 1 && pod.Status.PodIPs[0].IP == address, "the writer's addresses are %v", pod.Status.PodIPs)
		statuses := pod.Status.ContainerStatuses
		say(len(statuses) == 1 && statuses[0].State.Running != nil, "the writer's containers are %+v", statuses)
	}
	var pods corev1.PodList
	err := cluster.Client.List(ctx, &pods, client.InNamespace(s.namespace))
	say(err == nil, "the pods: %v", err)
	for _, p := range pods.Items {
		names := slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == guarded
		})
		gated := slices.Contains(p.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: v1alpha1.GateNewcomer})
		say(p.UID == s.pod || !names || gated && p.Spec.NodeName == "" && p.Labels[v1alpha1.LabelApp] == app,
			"pod %s can start on the claim: gates %v, node %q, labels %v", p.Name, p.Spec.SchedulingGates, p.Spec.NodeName, p.Labels)
	}
}

func (s *scene) harmToHost(read reader, say sayer) {
	host := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node}}
	if read(host, "the node") {
		say(host.UID == s.host && host.DeletionTimestamp == nil, "the node is another one, or is being deleted")
		say(host.Labels[v1alpha1.LabelCarries] != "", "the node's labels are %v", host.Labels)
		say(!slices.ContainsFunc(host.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == v1alpha1.TaintOutOfService || t.Key == v1alpha1.TaintFenced
		}), "the node's taints are %v", host.Spec.Taints)
		say(host.Status.NodeInfo.BootID == "boot-1" && host.Status.NodeInfo.SystemUUID == "system-1", "the node says that it is %+v", host.Status.NodeInfo)
		say(len(host.Status.VolumesInUse) == 1 && len(host.Status.VolumesAttached) == 1, "the node's volumes are %v, attached %v", host.Status.VolumesInUse, host.Status.VolumesAttached)
	}
}

func (s *scene) harmToVolume(read reader, say sayer) {
	va := s.attachmentObject()
	if read(va, "the attachment") {
		say(va.UID == s.va && va.DeletionTimestamp == nil && va.Status.Attached, "the attachment is another one, is being deleted, or not attached: %+v", va.Status)
		say(va.Labels[v1alpha1.LabelGuardedVolume] != "" && slices.Contains(va.Finalizers, attacher), "the attachment's labels are %v, its finalizers %v", va.Labels, va.Finalizers)
	}
	claim := s.claimObject()
	if read(claim, "the claim") { // one that was deleted waits for its pods
		say(claim.UID == s.claim && slices.Contains(claim.Finalizers, "kubernetes.io/pvc-protection"), "the claim is another one, or unprotected: %v", claim.Finalizers)
		say(claim.Spec.VolumeName == s.volume, "the claim is bound to %s", claim.Spec.VolumeName)
	}
	pv := s.volumeObject()
	if read(pv, "the volume") { // the same
		ref := pv.Spec.ClaimRef
		say(pv.UID == s.pv && slices.Contains(pv.Finalizers, "kubernetes.io/pv-protection"), "the volume is another one, or unprotected: %v", pv.Finalizers)
		say(ref != nil && ref.Namespace == s.namespace && ref.Name == guarded, "the volume is bound to %+v", ref)
		say(pv.Labels[v1alpha1.LabelGuardedVolume] != "", "the volume's labels are %v", pv.Labels)
	}
	driver := s.driverObject()
	if read(driver, "the driver") {
		say(driver.Spec.AttachRequired != nil && *driver.Spec.AttachRequired && driver.Labels[v1alpha1.LabelGuardedVolume] != "", "the driver no longer attaches, or is unmarked: %v", driver.Labels)
	}
}

func (s *scene) harmToRecords(read reader, say sayer) {
	space := s.spaceObject()
	want := space.Annotations
	if read(space, "the namespace") { // one that was deleted waits for its pods
		say(space.UID == s.space && slices.Contains(space.Spec.Finalizers, corev1.FinalizerKubernetes), "the namespace is another one, or unprotected: %v", space.Spec.Finalizers)
		for key, value := range want {
			say(space.Annotations[key] == value, "the namespace lists %v", space.Annotations)
		}
	}
	incident := s.incidentObject()
	if read(incident, "the incident") {
		say(incident.DeletionTimestamp == nil && incident.Status.Step == v1alpha1.StepHolding, "the incident is being deleted, or at step %q", incident.Status.Step)
	}
	g := s.appObject()
	if read(g, "the app") { // one that was deleted waits for the end of the hold
		say(slices.Contains(g.Finalizers, v1alpha1.FinalizerApp), "the app's finalizers are %v", g.Finalizers)
	}
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	if read(config, "the GuardConfig") {
		say(config.DeletionTimestamp == nil && config.Labels[v1alpha1.LabelHold] == "armed", "the GuardConfig is being deleted, or unbolted: %v", config.Labels)
	}
	kind := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: incidentKind}}
	if read(kind, "the kind") {
		say(kind.DeletionTimestamp == nil && kind.Labels[v1alpha1.LabelHold] == "armed" && kind.Spec.Versions[0].Served, "the kind is being deleted, unbolted or not served: %v", kind.Labels)
	}
}

const incidentKind = "hostincidents.guard.holdfast.dev"

// refusal tells why an attempt failed: by a rule of Holdfast, for want of rights, or by the API server's own rules. An
// error that says none of these is a broken attempt.
func refusal(err error) string {
	text := err.Error()
	switch {
	case apierrors.IsForbidden(err) && strings.Contains(text, "ValidatingAdmissionPolicy 'holdfast-"):
		_, rule, _ := strings.Cut(text, "denied request: [")
		rule, _, _ = strings.Cut(rule, "]")
		return "rule " + rule
	case apierrors.IsForbidden(err) && strings.Contains(text, "attempting to grant RBAC permissions not currently held"):
		return "no escalation"
	case apierrors.IsForbidden(err) && strings.Contains(text, "cannot "):
		return "no rights"
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return "the API: " + text
	}
	return ""
}
