// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

const (
	nodePolicy       = "holdfast-nodes/"
	fencedPolicy     = "holdfast-fenced-nodes/"
	attachmentPolicy = "holdfast-volumeattachments/"
	namespacePolicy  = "holdfast-namespaces/"
	incidentPolicy   = "holdfast-incidents/"
)

// clusterAttempt is one request by one caller against one object without a namespace, which Holdfast made before.
type clusterAttempt struct {
	given     func(name string) client.Object
	who       identity
	do        func(ctx context.Context, c client.Client, o client.Object) error
	refusedBy string
	words     []string
}

func (a clusterAttempt) run(ctx context.Context, t *testing.T) {
	t.Helper()
	o := a.given(fmt.Sprintf("x-%d", scenes.Add(1)))
	us := holdfast.client(t)
	wanted := o.DeepCopyObject().(client.Object)
	must(t, us.Create(ctx, o))
	if hi, ok := wanted.(*v1alpha1.HostIncident); ok && hi.Status.Step != "" {
		must(t, us.Status().Patch(ctx, o, rawPatch(`{"status":{"step":"`+string(hi.Status.Step)+`"}}`)))
	}
	err := a.do(ctx, a.who.client(t), o)
	judge(t, err, a.refusedBy, a.words)
}

func rawPatch(patch string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(patch)) }

func remove(ctx context.Context, c client.Client, o client.Object) error { return c.Delete(ctx, o) }

func change(patch string) func(context.Context, client.Client, client.Object) error {
	return func(ctx context.Context, c client.Client, o client.Object) error {
		return c.Patch(ctx, o, rawPatch(patch))
	}
}

func changeStatus(patch string) func(context.Context, client.Client, client.Object) error {
	return func(ctx context.Context, c client.Client, o client.Object) error {
		return c.Status().Patch(ctx, o, rawPatch(patch))
	}
}

// another creates an object of the same kind under another name.
func another(with func(name string) client.Object) func(context.Context, client.Client, client.Object) error {
	return func(ctx context.Context, c client.Client, o client.Object) error {
		return c.Create(ctx, with(o.GetName()+"-new"))
	}
}

func node(labels, annotations map[string]string, taints ...corev1.Taint) func(string) client.Object {
	return func(name string) client.Object {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations},
			Spec:       corev1.NodeSpec{Taints: taints},
		}
	}
}

func volumeAttachment(labels, annotations map[string]string) func(string) client.Object {
	return func(name string) client.Object {
		pv := "pv-1"
		return &storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations},
			Spec: storagev1.VolumeAttachmentSpec{
				Attacher: "csi.example.com", NodeName: hostName, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv},
			},
		}
	}
}

func namespace(annotations map[string]string) func(string) client.Object {
	return func(name string) client.Object {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}
	}
}

func hostIncident(step v1alpha1.IncidentStep) func(string) client.Object {
	return func(name string) client.Object {
		return &v1alpha1.HostIncident{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1alpha1.HostIncidentSpec{NodeName: hostName, NodeUID: "u", BootID: "b", SystemUUID: "s", Episode: 1},
			Status:     v1alpha1.HostIncidentStatus{Step: step},
		}
	}
}

var (
	carries   = map[string]string{v1alpha1.LabelCarries: "true"}
	volume    = map[string]string{v1alpha1.LabelGuardedVolume: "true"}
	override  = map[string]string{v1alpha1.AnnotationOverride: "the machine was sold"}
	outOfUse  = corev1.Taint{Key: v1alpha1.TaintOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}
	fenced    = corev1.Taint{Key: v1alpha1.TaintFenced, Value: incident, Effect: corev1.TaintEffectNoExecute}
	annotated = map[string]string{v1alpha1.AnnotationHeld: "db-0=x", v1alpha1.AnnotationClaims: "db=data-db-*"}
)

const (
	setOutOfService  = `{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","value":"nodeshutdown","effect":"NoExecute"}]}}`
	outOfServiceSoft = `{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","effect":"NoSchedule"}]}}`
	setUnreachable   = `{"spec":{"taints":[{"key":"node.kubernetes.io/unreachable","effect":"NoExecute"}]}}`
	withFencedToo    = `{"spec":{"taints":[{"key":"node.kubernetes.io/unreachable","effect":"NoExecute"},{"key":"guard.holdfast.dev/fenced","value":"node-1-boot","effect":"NoExecute"}]}}`
	fencedByOther    = `{"spec":{"taints":[{"key":"guard.holdfast.dev/fenced","value":"other","effect":"NoExecute"}]}}`
	noTaints         = `{"spec":{"taints":null}}`
	cordon           = `{"spec":{"unschedulable":true}}`
	nodeReady        = `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`
	withoutCarries   = `{"metadata":{"labels":{"guard.holdfast.dev/carries":null}}}`
	withCarries      = `{"metadata":{"labels":{"guard.holdfast.dev/carries":"true"}}}`
	withoutVolume    = `{"metadata":{"labels":{"guard.holdfast.dev/volume":null}}}`
	attached         = `{"status":{"attached":true}}`
	driverFinalizer  = `{"metadata":{"finalizers":["external-attacher/csi-example-com"]}}`
	withoutHeld      = `{"metadata":{"annotations":{"guard.holdfast.dev/held":null}}}`
	withoutClaims    = `{"metadata":{"annotations":{"guard.holdfast.dev/claims":null}}}`
	otherHeld        = `{"metadata":{"annotations":{"guard.holdfast.dev/held":"db-0=y"}}}`
	theirLabel       = `{"metadata":{"labels":{"example.com/team":"a"}}}`
)

var saysCarries = []string{"node x-", "carries guarded pods", "kubectl get hi", "in all namespaces"}

// ofNodes are the attempts on nodes.
var ofNodes = map[string]clusterAttempt{
	"node deletion refused":                                       {node(carries, nil), alice, remove, nodePolicy + "NodeDelete", append([]string{"Drain it first"}, saysCarries...)},
	"the node controller may not delete a carrying node":          {node(carries, nil), taintManager, remove, nodePolicy + "NodeDelete", saysCarries},
	"a carrying node cannot be deleted with the verb alone":       {node(carries, nil), breaker, remove, nodePolicy + "NodeDelete", saysCarries},
	"a carrying node cannot be deleted with the annotation alone": {node(carries, override), alice, remove, nodePolicy + "NodeDelete", saysCarries},
	"a carrying node can be deleted with verb and annotation":     {node(carries, override), breaker, remove, "", nil},
	"a node that carries nothing may be deleted":                  {node(nil, nil), alice, remove, "", nil},
	"Holdfast may delete a node":                                  {node(carries, nil), holdfast, remove, "", nil},

	"the out-of-service taint refused":                        {node(carries, nil), alice, change(setOutOfService), nodePolicy + "OutOfServiceTaint", append([]string{"node.kubernetes.io/out-of-service"}, saysCarries...)},
	"the out-of-service taint refused with any effect":        {node(carries, nil), alice, change(outOfServiceSoft), nodePolicy + "OutOfServiceTaint", saysCarries},
	"the out-of-service taint works with verb and annotation": {node(carries, override), breaker, change(setOutOfService), "", nil},
	"the out-of-service taint works on a node without pods":   {node(nil, nil), alice, change(setOutOfService), "", nil},
	"the out-of-service taint may be taken off":               {node(carries, nil, outOfUse), alice, change(noTaints), "", nil},
	"a node with the taint may be changed otherwise":          {node(carries, nil, outOfUse), alice, change(cordon), "", nil},
	"Holdfast may set the out-of-service taint":               {node(carries, nil), holdfast, change(setOutOfService), "", nil},
	"the node controller may set its own taints":              {node(carries, nil), taintManager, change(setUnreachable), "", nil},
	"a carrying node may be cordoned":                         {node(carries, nil), alice, change(cordon), "", nil},
	"a kubelet may report its node":                           {node(carries, nil), ownKubelet, changeStatus(nodeReady), "", nil},
	"a carrying node may be labelled":                         {node(carries, nil), alice, change(theirLabel), "", nil},

	"the label of a carrying node cannot be stripped":            {node(carries, nil), alice, change(withoutCarries), nodePolicy + "NodeKeys", []string{"node x-", "- label guard.holdfast.dev/carries=true"}},
	"nor through nodes/status":                                   {node(carries, nil), ownKubelet, changeStatus(withoutCarries), nodePolicy + "NodeKeys", nil},
	"the label of a carrying node cannot be set":                 {node(nil, nil), alice, change(withCarries), nodePolicy + "NodeKeys", []string{"+ label guard.holdfast.dev/carries=true"}},
	"a node cannot be created carrying":                          {node(nil, nil), ownKubelet, another(node(carries, nil)), nodePolicy + "NodeKeys", nil},
	"a node's override cannot be set without the verb":           {node(carries, nil), alice, change(withOverride), nodePolicy + "OverrideKey", []string{"in all namespaces", "alice does not have"}},
	"a node's override can be set with the verb":                 {node(carries, nil), breaker, change(withOverride), "", nil},
	"Holdfast's taint cannot be taken off":                       {node(nil, nil, fenced), alice, change(noTaints), fencedPolicy + "FencedTaint", []string{"guard.holdfast.dev/fenced", "come back clean"}},
	"Holdfast's taint cannot be changed":                         {node(carries, nil, fenced), alice, change(fencedByOther), fencedPolicy + "FencedTaint", nil},
	"Holdfast's taint cannot be set by others":                   {node(nil, nil), alice, change(fencedByOther), fencedPolicy + "FencedTaint", nil},
	"Holdfast's taint may be taken off with verb and annotation": {node(nil, override, fenced), breaker, change(noTaints), "", nil},
	"Holdfast may take its taint off":                            {node(nil, nil, fenced), holdfast, change(noTaints), "", nil},
	"the node controller may add its taint beside Holdfast's":    {node(nil, nil, fenced), taintManager, change(withFencedToo), "", nil},
}

// ofAttachments are the attempts on VolumeAttachments.
var ofAttachments = map[string]clusterAttempt{
	"the attachment of a guarded volume cannot be deleted":    {volumeAttachment(volume, nil), alice, remove, attachmentPolicy + "AttachmentDelete", []string{"volumeattachment x-", "attaches a guarded volume", "kubectl get hi"}},
	"the attach/detach controller may delete it":              {volumeAttachment(volume, nil), attachDetach, remove, "", nil},
	"Holdfast may delete it":                                  {volumeAttachment(volume, nil), holdfast, remove, "", nil},
	"the attacher may set its finalizer":                      {volumeAttachment(volume, nil), attacher, change(driverFinalizer), "", nil},
	"the attacher may report":                                 {volumeAttachment(volume, nil), attacher, changeStatus(attached), "", nil},
	"an attachment can be deleted with verb and annotation":   {volumeAttachment(volume, override), breaker, remove, "", nil},
	"an attachment cannot be deleted with the verb alone":     {volumeAttachment(volume, nil), breaker, remove, attachmentPolicy + "AttachmentDelete", nil},
	"the attachment of another volume may be deleted":         {volumeAttachment(nil, nil), alice, remove, "", nil},
	"the label of a guarded attachment cannot be stripped":    {volumeAttachment(volume, nil), alice, change(withoutVolume), attachmentPolicy + "AttachmentKeys", []string{"- label guard.holdfast.dev/volume=true"}},
	"an attachment cannot be created guarded":                 {volumeAttachment(nil, nil), attachDetach, another(volumeAttachment(volume, nil)), attachmentPolicy + "AttachmentKeys", nil},
	"an attachment's override cannot be set without the verb": {volumeAttachment(volume, nil), alice, change(withOverride), attachmentPolicy + "OverrideKey", nil},
}

// ofNamespaces are the attempts on namespaces.
var ofNamespaces = map[string]clusterAttempt{
	"the held names cannot be removed":                   {namespace(annotated), alice, change(withoutHeld), namespacePolicy + "NamespaceKeys", []string{"namespace x-", "- annotation guard.holdfast.dev/held=db-0=x"}},
	"the held names cannot be changed":                   {namespace(annotated), alice, change(otherHeld), namespacePolicy + "NamespaceKeys", nil},
	"nor through the namespace's status":                 {namespace(annotated), namespaceEnder, changeStatus(withoutHeld), namespacePolicy + "NamespaceKeys", nil},
	"the guarded claims cannot be removed":               {namespace(annotated), alice, change(withoutClaims), namespacePolicy + "NamespaceKeys", []string{"guard.holdfast.dev/claims"}},
	"a namespace cannot be created with our annotations": {namespace(nil), alice, another(namespace(annotated)), namespacePolicy + "NamespaceKeys", nil},
	"Holdfast may change its annotations":                {namespace(annotated), holdfast, change(withoutHeld), "", nil},
	"others may change their own keys on a namespace":    {namespace(annotated), alice, change(theirLabel), "", nil},
}

// ofIncidents are the attempts on HostIncidents.
var ofIncidents = map[string]clusterAttempt{
	"a new incident cannot be deleted":      {hostIncident(""), alice, remove, incidentPolicy + "OpenIncident", []string{"hostincident x-", "not closed", "kubectl get hi x-"}},
	"a holding incident cannot be deleted":  {hostIncident(v1alpha1.StepHolding), alice, remove, incidentPolicy + "OpenIncident", nil},
	"a resolved incident cannot be deleted": {hostIncident(v1alpha1.StepResolved), alice, remove, incidentPolicy + "OpenIncident", nil},
	"a closed incident may be deleted":      {hostIncident(v1alpha1.StepClosed), alice, remove, "", nil},
	"a retired incident may be deleted":     {hostIncident(v1alpha1.StepRetired), alice, remove, "", nil},
	"Holdfast may delete an incident":       {hostIncident(v1alpha1.StepHolding), holdfast, remove, "", nil},
}

func TestNodes(t *testing.T)             { runCluster(t, ofNodes) }
func TestVolumeAttachments(t *testing.T) { runCluster(t, ofAttachments) }
func TestNamespaces(t *testing.T)        { runCluster(t, ofNamespaces) }
func TestHostIncidents(t *testing.T)     { runCluster(t, ofIncidents) }

func runCluster(t *testing.T, attempts map[string]clusterAttempt) {
	ctx := guarded(t)
	for name, a := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a.run(ctx, t)
		})
	}
}
