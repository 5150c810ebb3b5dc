// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

const (
	nodePolicy       = "holdfast-nodes/"
	fencedPolicy     = "holdfast-fenced-nodes/"
	attachmentPolicy = "holdfast-volumeattachments/"
	namespacePolicy  = "holdfast-namespaces/"
	incidentPolicy   = "holdfast-incidents/"
	appPolicy        = "holdfast-apps/"
	profilePolicy    = "holdfast-profiles/"
	configPolicy     = "holdfast-configs/"
	kindPolicy       = "holdfast-kinds/"
	claimPolicy      = "holdfast-claims/"
	driverPolicy     = "holdfast-drivers/"
	volumePolicy     = "holdfast-volumes/"
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
	switch wanted := wanted.(type) { // what a creation leaves out
	case *v1alpha1.HostIncident:
		if wanted.Status.Step != "" {
			must(t, us.Status().Patch(ctx, o, rawPatch(`{"status":{"step":"`+string(wanted.Status.Step)+`"}}`)))
		}
	case *storagev1.VolumeAttachment:
		if wanted.Status.Attached {
			must(t, us.Status().Patch(ctx, o, rawPatch(attached)))
		}
	}
	if a.who.user == kubeletOfIt.user {
		a.who.user = "system:node:" + o.GetName()
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

	otherBoot       = `{"status":{"nodeInfo":{"bootID":"b2"}}}`
	otherMachine    = `{"status":{"nodeInfo":{"systemUUID":"s2"}}}`
	notInUse        = `{"status":{"volumesInUse":null}}`
	alsoInUse       = `{"status":{"volumesInUse":["v1","v2"]}}`
	noneAttached    = `{"status":{"volumesAttached":[]}}`
	detached        = `{"status":{"attached":false}}`
	ourFinalizer    = `{"metadata":{"finalizers":["guard.holdfast.dev/app"]}}`
	approved        = `{"metadata":{"annotations":{"guard.holdfast.dev/approved":"b"}}}`
	withoutHoldMark = `{"metadata":{"labels":{"guard.holdfast.dev/hold":null}}}`
	otherClaim      = `{"spec":{"claimRef":{"name":"theirs","uid":"u2"}}}`
	noClaim         = `{"spec":{"claimRef":null}}`
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

	"the boot ID of a carrying node is its kubelet's":             {reporting(node(carries, nil)), alice, changeStatus(otherBoot), nodePolicy + "NodeIdentity", []string{"node x-", "boot ID", "own kubelet"}},
	"the system UUID of a carrying node is its kubelet's":         {reporting(node(carries, nil)), otherKubelet, changeStatus(otherMachine), nodePolicy + "NodeIdentity", nil},
	"the volumes in use of a carrying node are its kubelet's":     {reporting(node(carries, nil)), taintManager, changeStatus(notInUse), nodePolicy + "NodeIdentity", nil},
	"attach/detach may not change the volumes in use":             {reporting(node(carries, nil)), attachDetach, changeStatus(notInUse), nodePolicy + "NodeIdentity", nil},
	"a volume more in use does no harm":                           {reporting(node(carries, nil)), alice, changeStatus(alsoInUse), "", nil},
	"a kubelet reports its own boot":                              {reporting(node(carries, nil)), kubeletOfIt, changeStatus(otherBoot), "", nil},
	"a kubelet reports that it uses no volume":                    {reporting(node(carries, nil)), kubeletOfIt, changeStatus(notInUse), "", nil},
	"the volumes attached to a carrying node are attach/detach's": {reporting(node(carries, nil)), alice, changeStatus(noneAttached), nodePolicy + "AttachedVolumes", []string{"attach/detach"}},
	"attach/detach takes a volume off its list":                   {reporting(node(carries, nil)), attachDetach, changeStatus(noneAttached), "", nil},
	"the node controller reports of a carrying node":              {reporting(node(carries, nil)), taintManager, changeStatus(nodeReady), "", nil},
	"a node that carries nothing may be told to have booted":      {reporting(node(nil, nil)), alice, changeStatus(otherBoot), "", nil},
	"a fenced node cannot be told to have booted":                 {reporting(node(nil, nil, fenced)), alice, changeStatus(otherBoot), fencedPolicy + "FencedIdentity", []string{"is fenced"}},
	"a fenced node's kubelet says that it has booted":             {reporting(node(nil, nil, fenced)), kubeletOfIt, changeStatus(otherBoot), "", nil},
	"a fenced node's other status is not watched":                 {reporting(node(nil, nil, fenced)), alice, changeStatus(nodeReady), "", nil},

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
	"the attachment of a guarded volume cannot be deleted":        {volumeAttachment(volume, nil), alice, remove, attachmentPolicy + "AttachmentDelete", []string{"volumeattachment x-", "attaches a guarded volume", "kubectl get hi"}},
	"the attach/detach controller may delete it":                  {volumeAttachment(volume, nil), attachDetach, remove, "", nil},
	"Holdfast may delete it":                                      {volumeAttachment(volume, nil), holdfast, remove, "", nil},
	"the attacher may set its finalizer":                          {volumeAttachment(volume, nil), attacher, change(driverFinalizer), "", nil},
	"the attacher may report":                                     {volumeAttachment(volume, nil), attacher, changeStatus(attached), "", nil},
	"an attachment can be deleted with verb and annotation":       {volumeAttachment(volume, override), breaker, remove, "", nil},
	"an attachment cannot be deleted with the verb alone":         {volumeAttachment(volume, nil), breaker, remove, attachmentPolicy + "AttachmentDelete", nil},
	"an attachment cannot be told to be detached":                 {attachedNow(volume, nil), alice, changeStatus(detached), attachmentPolicy + "AttachmentState", []string{"attaches a guarded volume", "nothing has asked"}},
	"nor by the attacher, before somebody has asked it to detach": {attachedNow(volume, nil), attacher, changeStatus(detached), attachmentPolicy + "AttachmentState", nil},
	"its driver's finalizer cannot be stripped":                   {attachedNow(volume, nil), alice, change(noFinalizers), attachmentPolicy + "AttachmentState", nil},
	"the attacher detaches what attach/detach has deleted":        {attachedNow(volume, nil), attacher, afterDelete(attachDetach, change(noFinalizers)), "", nil},
	"an attachment yields to an override":                         {attachedNow(volume, override), breaker, change(noFinalizers), "", nil},
	"another volume's attachment may be told to be detached":      {attachedNow(nil, nil), alice, changeStatus(detached), "", nil},
	"the attachment of another volume may be deleted":             {volumeAttachment(nil, nil), alice, remove, "", nil},
	"the label of a guarded attachment cannot be stripped":        {volumeAttachment(volume, nil), alice, change(withoutVolume), attachmentPolicy + "AttachmentKeys", []string{"- label guard.holdfast.dev/volume=true"}},
	"an attachment cannot be created guarded":                     {volumeAttachment(nil, nil), attachDetach, another(volumeAttachment(volume, nil)), attachmentPolicy + "AttachmentKeys", nil},
	"an attachment's override cannot be set without the verb":     {volumeAttachment(volume, nil), alice, change(withOverride), attachmentPolicy + "OverrideKey", nil},
}

// ofNamespaces are the attempts on namespaces.
var ofNamespaces = map[string]clusterAttempt{
	"the held names cannot be removed":                   {namespace(annotated), alice, change(withoutHeld), namespacePolicy + "NamespaceKeys", []string{"namespace x-", "- annotation guard.holdfast.dev/held=db-0=x"}},
	"the held names cannot be changed":                   {namespace(annotated), alice, change(otherHeld), namespacePolicy + "NamespaceKeys", nil},
	"nor through the namespace's status":                 {namespace(annotated), namespaceEnder, changeStatus(withoutHeld), namespacePolicy + "NamespaceKeys", nil},
	"the guarded claims cannot be removed":               {namespace(annotated), alice, change(withoutClaims), namespacePolicy + "NamespaceKeys", []string{"guard.holdfast.dev/claims"}},
	"a namespace cannot be created with our annotations": {namespace(nil), alice, another(namespace(annotated)), namespacePolicy + "NamespaceKeys", nil},
	"a namespace with guarded pods cannot be finalized":  {namespace(annotated), alice, finalize, namespacePolicy + "NamespaceFinalize", []string{"namespace x-", "has guarded pods"}},
	"the namespace controller may finalize it":           {namespace(annotated), namespaceEnder, finalize, "", nil},
	"a namespace without guarded pods may be finalized":  {namespace(nil), alice, finalize, "", nil},
	"Holdfast may change its annotations":                {namespace(annotated), holdfast, change(withoutHeld), "", nil},
	"others may change their own keys on a namespace":    {namespace(annotated), alice, change(theirLabel), "", nil},
}

// ofIncidents are the attempts on HostIncidents.
var ofIncidents = map[string]clusterAttempt{
	"a new incident cannot be deleted":             {hostIncident(""), alice, remove, incidentPolicy + "OpenIncident", []string{"hostincident x-", "not closed", "kubectl get hi x-"}},
	"a holding incident cannot be deleted":         {hostIncident(v1alpha1.StepHolding), alice, remove, incidentPolicy + "OpenIncident", nil},
	"a resolved incident cannot be deleted":        {hostIncident(v1alpha1.StepResolved), alice, remove, incidentPolicy + "OpenIncident", nil},
	"a closed incident may be deleted":             {hostIncident(v1alpha1.StepClosed), alice, remove, "", nil},
	"a retired incident may be deleted":            {hostIncident(v1alpha1.StepRetired), alice, remove, "", nil},
	"an incident cannot be opened by others":       {hostIncident(""), alice, another(hostIncident("")), incidentPolicy + "IncidentBirth", []string{"hostincident x-"}},
	"the journal cannot be written by others":      {hostIncident(v1alpha1.StepHolding), alice, changeStatus(`{"status":{"step":"Closed"}}`), incidentPolicy + "Journal", []string{"journal", "guard.holdfast.dev/approved"}},
	"nor forged into a proof":                      {hostIncident(v1alpha1.StepHolding), ownKubelet, changeStatus(`{"status":{"distrusted":null}}`), incidentPolicy + "Journal", nil},
	"a human may approve a fence":                  {hostIncident(v1alpha1.StepHolding), alice, change(approved), "", nil},
	"an incident's keys are Holdfast's":            {hostIncident(v1alpha1.StepHolding), alice, change(ourFinalizer), incidentPolicy + "IncidentKeys", []string{"+ finalizer guard.holdfast.dev/app"}},
	"others may set their own keys on an incident": {hostIncident(v1alpha1.StepHolding), alice, change(theirLabel), "", nil},
	"Holdfast may write the journal":               {hostIncident(v1alpha1.StepHolding), holdfast, changeStatus(`{"status":{"step":"Closed"}}`), "", nil},
	"Holdfast may delete an incident":              {hostIncident(v1alpha1.StepHolding), holdfast, remove, "", nil},
}

// reporting is a node with a status, as its kubelet wrote it.
func reporting(given func(string) client.Object) func(string) client.Object {
	return func(name string) client.Object {
		n := given(name).(*corev1.Node)
		n.Status.NodeInfo = corev1.NodeSystemInfo{BootID: "b1", SystemUUID: "s1", MachineID: "m1"}
		n.Status.VolumesInUse = []corev1.UniqueVolumeName{"v1"}
		n.Status.VolumesAttached = []corev1.AttachedVolume{{Name: "v1"}}
		return n
	}
}

// kubeletOfIt stands for the kubelet of whichever node the attempt is about.
var kubeletOfIt = identity{user: "its own kubelet", groups: []string{"system:nodes"}}

// attachedNow is an attachment that its driver has attached.
func attachedNow(labels, annotations map[string]string) func(string) client.Object {
	return func(name string) client.Object {
		a := volumeAttachment(labels, annotations)(name).(*storagev1.VolumeAttachment)
		a.Finalizers = []string{"external-attacher/csi-example-com"}
		a.Status.Attached = true
		return a
	}
}

// afterDelete is what is done once somebody has deleted the object.
func afterDelete(who identity, do func(context.Context, client.Client, client.Object) error) func(context.Context, client.Client, client.Object) error {
	return func(ctx context.Context, c client.Client, o client.Object) error {
		theirs, err := client.New(who.config(), client.Options{Scheme: envtest.Scheme()})
		if err != nil {
			return err
		}
		if err := theirs.Delete(ctx, o); err != nil {
			return err
		}
		return do(ctx, c, o)
	}
}

// finalize takes the finalizers off a namespace's spec.
func finalize(ctx context.Context, c client.Client, o client.Object) error {
	ns := o.(*corev1.Namespace)
	ns.Spec.Finalizers = nil
	return c.SubResource("finalize").Update(ctx, ns)
}

// guardedApp, claim and persistentVolume are what the other rules are about. Claims of the namespace claims are guarded
// if their name ends in digits.
func guardedApp(finalizers ...string) func(string) client.Object {
	return func(name string) client.Object {
		return &v1alpha1.GuardedStatefulApp{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Finalizers: finalizers},
			Spec: v1alpha1.GuardedStatefulAppSpec{
				WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"},
				Health:      v1alpha1.Health{Probes: []v1alpha1.Probe{{Name: "sql", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt32(1)}}}},
			},
		}
	}
}

func claim(suffix string, annotations map[string]string) func(string) client.Object {
	return func(name string) client.Object {
		return &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: claimsHome, Name: name + suffix, Annotations: annotations, Finalizers: []string{"kubernetes.io/pvc-protection"}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
			},
		}
	}
}

func persistentVolume(labels, annotations map[string]string) func(string) client.Object {
	return func(name string) client.Object {
		return &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations, Finalizers: []string{"kubernetes.io/pv-protection"}},
			Spec: corev1.PersistentVolumeSpec{
				AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: name}},
				ClaimRef:               &corev1.ObjectReference{Namespace: "shop", Name: "data-db-0", UID: "u1"},
			},
		}
	}
}

const claimsHome = "claims"

// ofApps are the attempts on GuardedStatefulApps.
var ofApps = map[string]clusterAttempt{
	"an app's finalizer cannot be stripped":    {guardedApp(v1alpha1.FinalizerApp), alice, change(noFinalizers), appPolicy + "AppKeys", []string{"- finalizer guard.holdfast.dev/app"}},
	"nor through the status":                   {guardedApp(v1alpha1.FinalizerApp), alice, changeStatus(noFinalizers), appPolicy + "AppKeys|" + appPolicy + "AppStatus", nil},
	"an app's status is Holdfast's":            {guardedApp(), alice, changeStatus(`{"status":{"conditions":[]}}`), appPolicy + "AppStatus", []string{"what Holdfast has found"}},
	"a user may change an app":                 {guardedApp(v1alpha1.FinalizerApp), alice, change(`{"spec":{"mode":"Paused"}}`), "", nil},
	"a user may bring an app with our keys":    {guardedApp(), alice, another(guardedApp(v1alpha1.FinalizerApp)), "", nil},
	"a user may delete an app":                 {guardedApp(v1alpha1.FinalizerApp), alice, remove, "", nil},
	"Holdfast may take an app's finalizer off": {guardedApp(v1alpha1.FinalizerApp), holdfast, change(noFinalizers), "", nil},
	"Holdfast may write an app's status":       {guardedApp(), holdfast, changeStatus(`{"status":{"conditions":[]}}`), "", nil},
}

// ofClaims are the attempts on PersistentVolumeClaims.
var ofClaims = map[string]clusterAttempt{
	"a guarded claim keeps its protection":                      {claim("", nil), alice, change(noFinalizers), claimPolicy + "ClaimProtection", []string{"persistentvolumeclaim claims/x-", "app db guards", "pvc-protection"}},
	"a guarded claim keeps its protection through its status":   {claim("", nil), alice, changeStatus(noFinalizers), claimPolicy + "ClaimProtection", nil},
	"Kubernetes ends the protection itself":                     {claim("", nil), controller("pvc-protection-controller"), change(noFinalizers), "", nil},
	"another claim's protection is not watched":                 {claim("-free", nil), alice, change(noFinalizers), "", nil},
	"a guarded claim may be deleted: it waits for its pods":     {claim("", nil), alice, remove, "", nil},
	"a guarded claim's override cannot be set without the verb": {claim("", nil), alice, change(withOverride), claimPolicy + "OverrideKey", []string{"guardedstatefulapps db", "alice does not have"}},
	"a guarded claim's protection yields to an override":        {claim("", override), breaker, change(noFinalizers), "", nil},
	"not to the annotation alone":                               {claim("", override), alice, change(noFinalizers), claimPolicy + "ClaimProtection", nil},
}

// ofVolumes are the attempts on PersistentVolumes.
var ofVolumes = map[string]clusterAttempt{
	"a guarded volume keeps its protection":              {persistentVolume(volume, nil), alice, change(noFinalizers), volumePolicy + "VolumeProtection", []string{"persistentvolume x-", "a guarded claim is bound"}},
	"Kubernetes ends that protection itself":             {persistentVolume(volume, nil), controller("pv-protection-controller"), change(noFinalizers), "", nil},
	"a guarded volume stays with its claim":              {persistentVolume(volume, nil), alice, change(otherClaim), volumePolicy + "VolumeBinding", []string{"a second pod could write"}},
	"a guarded volume cannot be set free":                {persistentVolume(volume, nil), alice, change(noClaim), volumePolicy + "VolumeBinding", nil},
	"the binder may free it":                             {persistentVolume(volume, nil), controller("persistent-volume-binder"), change(noClaim), "", nil},
	"a guarded volume yields to an override":             {persistentVolume(volume, override), breaker, change(noClaim), "", nil},
	"another volume may be set free":                     {persistentVolume(nil, nil), alice, change(noClaim), "", nil},
	"the label of a guarded volume cannot be stripped":   {persistentVolume(volume, nil), alice, change(withoutVolume), volumePolicy + "VolumeKeys", []string{"- label guard.holdfast.dev/volume=true"}},
	"a volume's override cannot be set without the verb": {persistentVolume(volume, nil), alice, change(withOverride), volumePolicy + "OverrideKey", nil},
}

// ofDrivers are the attempts on CSIDrivers.
var ofDrivers = map[string]clusterAttempt{
	"the driver of guarded volumes cannot be deleted":    {csiDriver(volume, nil), alice, remove, driverPolicy + "DriverDelete", []string{"csidriver x-", "guarded volumes are of this driver"}},
	"nor by attach/detach":                               {csiDriver(volume, nil), attachDetach, remove, driverPolicy + "DriverDelete", nil},
	"a driver can be deleted with verb and annotation":   {csiDriver(volume, override), breaker, remove, "", nil},
	"another driver may be deleted":                      {csiDriver(nil, nil), alice, remove, "", nil},
	"the driver may be updated":                          {csiDriver(volume, nil), alice, change(`{"spec":{"storageCapacity":true}}`), "", nil},
	"the driver's label cannot be stripped":              {csiDriver(volume, nil), alice, change(withoutVolume), driverPolicy + "DriverKeys", nil},
	"a driver's override cannot be set without the verb": {csiDriver(volume, nil), alice, change(withOverride), driverPolicy + "OverrideKey", nil},
}

func csiDriver(labels, annotations map[string]string) func(string) client.Object {
	return func(name string) client.Object {
		return &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}}
	}
}

func TestDrivers(t *testing.T) { runCluster(t, ofDrivers) }

// ofKinds are the attempts on CustomResourceDefinitions that say that something is held.
var ofKinds = map[string]clusterAttempt{
	"a kind cannot be deleted while something is held": {kind(holdLabel, nil), alice, remove, kindPolicy + "KindDelete", []string{"customresourcedefinition x-", "pods are held", "kubectl get hi"}},
	"a kind cannot be hidden while something is held":  {kind(holdLabel, nil), alice, change(unserved), kindPolicy + "KindServed", []string{"no longer serving"}},
	"a kind may get another version":                   {kind(holdLabel, nil), alice, change(alsoServed), "", nil},
	"a kind cannot be told that nothing is held":       {kind(holdLabel, nil), alice, change(withoutHoldMark), kindPolicy + "KindKeys", []string{"- label guard.holdfast.dev/hold=mine"}},
	"nor through its status":                           {kind(holdLabel, nil), alice, changeStatus(withoutHoldMark), kindPolicy + "KindKeys", nil},
	"a kind's override cannot be set without the verb": {kind(holdLabel, nil), alice, change(withOverride), kindPolicy + "OverrideKey", nil},
	"a kind can be deleted with verb and annotation":   {kind(holdLabel, override), breaker, remove, "", nil},
	"a kind cannot be deleted with the verb alone":     {kind(holdLabel, nil), breaker, remove, kindPolicy + "KindDelete", nil},
	"a kind may be deleted while nothing is held":      {kind(nil, nil), alice, remove, "", nil},
	"Holdfast may say that nothing is held any more":   {kind(holdLabel, nil), holdfast, change(withoutHoldMark), "", nil},
}

func kind(labels, annotations map[string]string) func(string) client.Object {
	return func(name string) client.Object {
		anything := &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}
		return &apiextensionsv1.CustomResourceDefinition{
			ObjectMeta: metav1.ObjectMeta{Name: name + ".admission.example.com", Labels: labels, Annotations: annotations},
			Spec: apiextensionsv1.CustomResourceDefinitionSpec{
				Group: "admission.example.com", Scope: apiextensionsv1.ClusterScoped,
				Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: name, Kind: "K" + strings.ReplaceAll(name, "-", "")},
				Versions: []apiextensionsv1.CustomResourceDefinitionVersion{
					{Name: "v1", Served: true, Storage: true, Schema: anything}, {Name: "v2", Schema: anything},
				},
			},
		}
	}
}

const (
	v1Of = `{"name":"v1","served":%t,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}`
	v2Of = `{"name":"v2","served":true,"storage":false,"schema":{"openAPIV3Schema":{"type":"object"}}}`
)

var (
	unserved   = fmt.Sprintf(`{"spec":{"versions":[`+v1Of+`,`+v2Of+`]}}`, false)
	alsoServed = fmt.Sprintf(`{"spec":{"versions":[`+v1Of+`,`+v2Of+`]}}`, true)
)

// configAttempts are on the only GuardConfig, which says that something is held; nothing happens to it.
var configAttempts = map[string]struct {
	who       identity
	do        func(c client.Client, o *v1alpha1.GuardConfig) error
	refusedBy string
}{
	"it cannot be deleted": {alice, func(c client.Client, o *v1alpha1.GuardConfig) error {
		return c.Delete(context.Background(), o, client.DryRunAll)
	}, configPolicy + "ConfigDelete"},
	"nor with all of its kind": {alice, func(c client.Client, o *v1alpha1.GuardConfig) error {
		return c.DeleteAllOf(context.Background(), o, client.DryRunAll)
	}, configPolicy + "ConfigDelete"},
	"its label stays": {alice, func(c client.Client, o *v1alpha1.GuardConfig) error {
		return c.Patch(context.Background(), o, rawPatch(withoutHoldMark), client.DryRunAll)
	}, configPolicy + "ConfigKeys"},
	"its status is Holdfast's": {alice, func(c client.Client, o *v1alpha1.GuardConfig) error {
		return c.Status().Patch(context.Background(), o, rawPatch(`{"status":{"policyVersion":"x"}}`), client.DryRunAll)
	}, configPolicy + "ConfigStatus"},
	"an override needs the verb": {alice, func(c client.Client, o *v1alpha1.GuardConfig) error {
		return c.Patch(context.Background(), o, rawPatch(withOverride), client.DryRunAll)
	}, configPolicy + "OverrideKey"},
	"a user may change it": {alice, func(c client.Client, o *v1alpha1.GuardConfig) error {
		return c.Patch(context.Background(), o, rawPatch(theirLabel), client.DryRunAll)
	}, ""},
	"Holdfast may delete it": {holdfast, func(c client.Client, o *v1alpha1.GuardConfig) error {
		return c.Delete(context.Background(), o, client.DryRunAll)
	}, ""},
}

func TestTheGuardConfigStaysWhileSomethingIsHeld(t *testing.T) {
	ctx := guarded(t)
	us := holdfast.client(t)
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName, Labels: holdLabel}}
	must(t, us.Create(ctx, config))
	t.Cleanup(func() { must(t, us.Delete(context.Background(), config)) })
	for name, a := range configAttempts {
		t.Run(name, func(t *testing.T) { judge(t, a.do(a.who.client(t), config.DeepCopy()), a.refusedBy, nil) })
	}
	must(t, us.Patch(ctx, config, rawPatch(withoutHoldMark)))
	must(t, alice.client(t).Delete(ctx, config.DeepCopy(), client.DryRunAll))
}

func TestAProfilesStatusIsHoldfasts(t *testing.T) {
	ctx := guarded(t)
	profile := &v1alpha1.FencingProfile{ObjectMeta: metav1.ObjectMeta{Name: "rack-a"}, Spec: v1alpha1.FencingProfileSpec{
		NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"rack": "a"}},
		Levels: []v1alpha1.FencingLevel{{Methods: []v1alpha1.FencingMethod{{Name: "bmc", IPMI: &v1alpha1.IPMIMethod{
			CredentialsSecretRef: &v1alpha1.SecretReference{Name: "bmc"},
			Hosts:                []v1alpha1.HostDevice{{NodeName: hostName, Address: "192.0.2.11"}},
		}}}}},
	}}
	must(t, alice.client(t).Create(ctx, profile))
	judge(t, changeStatus(`{"status":{"hosts":1,"ready":1,"unready":0}}`)(ctx, alice.client(t), profile), profilePolicy+"ProfileStatus", nil)
	must(t, changeStatus(`{"status":{"hosts":1,"ready":1,"unready":0}}`)(ctx, holdfast.client(t), profile))
	must(t, change(theirLabel)(ctx, alice.client(t), profile))
}

func TestApps(t *testing.T)    { runCluster(t, ofApps) }
func TestVolumes(t *testing.T) { runCluster(t, ofVolumes) }
func TestKinds(t *testing.T)   { runCluster(t, ofKinds) }
func TestClaims(t *testing.T) {
	ctx := guarded(t)
	must(t, holdfast.client(t).Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: claimsHome, Annotations: map[string]string{v1alpha1.AnnotationClaims: "db=x-*@db-*"},
	}}))
	runCluster(t, ofClaims)
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
