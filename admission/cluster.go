// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"strings"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// nodeDelete refuses what Kubernetes reads as "nothing runs there any more".
var nodeDelete = rule{
	name:  "NodeDelete",
	on:    on(remove),
	allow: "variables.holdfast || variables.overridden",
	message: "'deleting ' + variables.subject + ' is refused: it carries guarded pods, and their volumes would be given to others while the pods may " +
		"still be writing there. Drain it first; Holdfast takes its label " + v1alpha1.LabelCarries + " off when no guarded pod is left. " +
		"If the host is dead, Holdfast releases them once it is proven off: kubectl get hi. ' + variables.way",
}

// outOfServiceTaint refuses the taint that detaches volumes without asking the kubelet, on a Ready node too.
var outOfServiceTaint = rule{
	name: "OutOfServiceTaint",
	on:   on(create, update),
	allow: "variables.holdfast || variables.overridden || !" + tainted("object", v1alpha1.TaintOutOfService) +
		" || (request.operation == 'UPDATE' && " + tainted("oldObject", v1alpha1.TaintOutOfService) + ")",
	message: "'taint " + v1alpha1.TaintOutOfService + " on ' + variables.subject + ' is refused: it carries guarded pods, and the taint takes their " +
		"volumes away while the pods may still be writing. Holdfast sets it itself once the host is proven off: kubectl get hi. ' + variables.way",
}

// nodeKeys keeps Holdfast's keys on nodes for Holdfast.
var nodeKeys = keysRule("NodeKeys")

// nodeOverrideKey lets only those set an override who may use it.
var nodeOverrideKey = clusterOverrideKey

// fencedTaint keeps the taint that stops a returning kubelet from starting what has moved.
var fencedTaint = rule{
	name:  "FencedTaint",
	on:    on(update),
	allow: "variables.holdfast || variables.overridden || " + fencedTaints("object") + " == " + fencedTaints("oldObject"),
	message: "'changing taint " + v1alpha1.TaintFenced + " of ' + variables.subject + ' is refused: Holdfast sets it when it fences the host and takes " +
		"it off when the host has come back clean: kubectl get hi. ' + variables.way",
}

// nodeIdentity keeps what tells one boot of one machine from another, and the kubelet's list of volumes in use: by the
// one a fenced host is let back, by the other attach/detach knows what is still mounted.
var nodeIdentity = rule{
	name:    "NodeIdentity",
	on:      on(update),
	allow:   "variables.holdfast || variables.ownKubelet || (" + sameIdentity + " && " + stillListed("volumesInUse", "v") + ")",
	message: "'changing boot ID, system UUID, machine ID or volumes in use of ' + variables.subject + ' is refused: only its own kubelet knows them'",
}

// attachedVolumes keeps attach/detach's own list: it starts from there after a restart.
var attachedVolumes = rule{
	name:    "AttachedVolumes",
	on:      on(update),
	allow:   "variables.holdfast || " + asked(attachDetach) + " || " + stillListed("volumesAttached", "v.name"),
	message: "'taking volumes off the list of those attached to ' + variables.subject + ' is refused: only the attach/detach controller knows them'",
}

// fencedIdentity is nodeIdentity for a host that was fenced and carries nothing any more.
var fencedIdentity = rule{
	name:    "FencedIdentity",
	on:      on(update),
	allow:   "variables.holdfast || variables.ownKubelet || " + fencedTaints("oldObject") + ".size() == 0 || " + sameIdentity,
	message: "'changing boot ID, system UUID or machine ID of ' + variables.subject + ' is refused: it is fenced, and only its own kubelet can say that it has booted again'",
}

// sameIdentity holds if boot and machine stay as they were reported.
var sameIdentity = func() string {
	of := func(root, field string) string {
		return fmt.Sprintf("(has(%[1]s.status) && has(%[1]s.status.nodeInfo) ? %[1]s.status.nodeInfo.%[2]s : '')", root, field)
	}
	var same []string
	for _, field := range []string{"bootID", "systemUUID", "machineID"} {
		same = append(same, of("object", field)+" == "+of("oldObject", field))
	}
	return "(" + strings.Join(same, " && ") + ")"
}()

// stillListed holds if everything in the list of the old status, each v told by the expression key, is in the new one.
func stillListed(list, key string) string {
	of := func(root string) string {
		return fmt.Sprintf("(has(%[1]s.status) && has(%[1]s.status.%[2]s) ? %[1]s.status.%[2]s.map(v, %[3]s) : [])", root, list, key)
	}
	return of("oldObject") + ".all(was, was in " + of("object") + ")"
}

// attachmentDelete refuses the delete that makes a driver detach a volume. The attach/detach controller may: it
// detaches by force only what no pod wants any more, and the other rules keep a guarded pod wanting it.
var attachmentDelete = rule{
	name:  "AttachmentDelete",
	on:    on(remove),
	allow: "variables.holdfast || " + asked(attachDetach) + " || variables.overridden",
	message: "'deleting ' + variables.subject + ' is refused: it attaches a guarded volume, and its writer may still be writing. Delete the pod " +
		"gracefully and Kubernetes detaches the volume; if the host is dead, Holdfast releases it once the host is proven off: kubectl get hi. ' + variables.way",
}

// attachmentState keeps an attachment that nobody has asked to end: attached, and with the finalizers by which its driver
// learns of the end. The driver's attacher changes neither before that.
var attachmentState = rule{
	name: "AttachmentState",
	on:   on(update),
	allow: "variables.holdfast || variables.overridden || has(oldObject.metadata.deletionTimestamp) || (" +
		"(!(has(oldObject.status) && oldObject.status.attached) || (has(object.status) && object.status.attached)) && " +
		"(!has(oldObject.metadata.finalizers) || oldObject.metadata.finalizers.all(f, has(object.metadata.finalizers) && f in object.metadata.finalizers)))",
	message: "'detaching ' + variables.subject + ' by its status or finalizers is refused: it attaches a guarded volume, its writer may still be writing, " +
		"and nothing has asked the driver to detach. Delete the pod gracefully and Kubernetes detaches the volume. ' + variables.way",
}

// attachmentKeys keeps Holdfast's keys on VolumeAttachments for Holdfast.
var attachmentKeys = keysRule("AttachmentKeys")

// attachmentOverrideKey lets only those set an override who may use it.
var attachmentOverrideKey = clusterOverrideKey

// namespaceKeys keeps Holdfast's keys on namespaces for Holdfast: evictions and labelling go by them.
var namespaceKeys = keysRule("NamespaceKeys")

// namespaceFinalize keeps a namespace with guarded pods until it is empty: without the namespace there are no lists for
// the other policies to read.
var namespaceFinalize = rule{
	name: "NamespaceFinalize",
	on:   on(update),
	allow: "variables.holdfast || " + asked(namespaceEnder) + " || !variables.listed || (has(oldObject.spec) && has(oldObject.spec.finalizers)" +
		" ? oldObject.spec.finalizers.all(f, has(object.spec) && has(object.spec.finalizers) && f in object.spec.finalizers) : true)",
	message: "'taking finalizers off the spec of ' + variables.subject + ' is refused: it has guarded pods, and without the namespace they would be nobody\\'s. " +
		"Delete the namespace; it ends once its pods have stopped or Holdfast has released them: kubectl get hi'",
}

// clusterOverrideKey is the rule OverrideKey for objects without a namespace.
var clusterOverrideKey = rule{
	name:  podOverrideKey.name,
	on:    on(create, update),
	allow: "variables.holdfast || " + overrideUntouched + " || variables.mayOverride",
	message: "'changing annotation " + v1alpha1.AnnotationOverride + " of ' + variables.subject + ' is refused: it needs the verb override on " +
		"guardedstatefulapps in all namespaces, which ' + request.userInfo.username + ' does not have'",
}

// keysRule refuses every change of Holdfast's keys by others.
func keysRule(name string) rule {
	return rule{
		name:    name,
		on:      on(create, update),
		allow:   "variables.holdfast || variables.changed.size() == 0",
		message: keysMessage,
	}
}

const keysMessage = "'changing guard.holdfast.dev keys of ' + variables.subject + ' (' + variables.changed.join(', ') + ') is refused: " +
	"they are for Holdfast to set and remove'"

// nodes are the rules for nodes that carry guarded pods.
func nodes(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-nodes",
		match:     match{"", "v1", []string{"nodes", "nodes/*"}, on(create, update, remove), v1alpha1.LabelCarries},
		variables: nodeVariables(id, stamp),
		rules: []rule{
			nodeDelete,
			outOfServiceTaint,
			nodeIdentity,
			attachedVolumes,
			nodeKeys,
			nodeOverrideKey,
		},
		audited: true,
	}
}

// fencedNodes watches Holdfast's own taint on every node, and what a fenced one says of itself: a fenced node carries
// nothing any more.
func fencedNodes(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-fenced-nodes",
		match:     match{"", "v1", []string{"nodes", "nodes/status"}, on(update), ""},
		variables: nodeVariables(id, stamp),
		rules: []rule{
			fencedTaint,
			fencedIdentity,
		},
	}
}

// attachments are the rules for VolumeAttachments of guarded claims.
func attachments(id Identity, stamp string) policy {
	return policy{
		name: "holdfast-volumeattachments",
		match: match{"storage.k8s.io", "v1", []string{"volumeattachments", "volumeattachments/*"}, on(create, update, remove),
			v1alpha1.LabelGuardedVolume},
		variables: clusterVariables(id, stamp, "volumeattachment"),
		rules: []rule{
			attachmentDelete,
			attachmentState,
			attachmentKeys,
			attachmentOverrideKey,
		},
		audited: true,
	}
}

// namespaces are the rules for what the other policies read on namespaces.
func namespaces(id Identity, stamp string) policy {
	return policy{
		name:  "holdfast-namespaces",
		match: match{"", "v1", []string{"namespaces", "namespaces/*"}, on(create, update), ""},
		variables: append(clusterVariables(id, stamp, "namespace"), variable{"listed", "request.operation == 'UPDATE' && (" +
			valueOf("oldObject", "annotations", v1alpha1.AnnotationClaims) + " != '' || " + valueOf("oldObject", "annotations", v1alpha1.AnnotationHeld) + " != '')"}),
		rules: []rule{
			namespaceKeys,
			namespaceFinalize,
		},
	}
}

// clusterVariables are what the rules for objects without a namespace speak in; kind is the word for them.
func clusterVariables(id Identity, stamp, kind string) []variable {
	vars := []variable{
		id.holdfast(),
		{"name", "has(request.name) ? request.name : (request.operation == 'DELETE' ? oldObject.metadata.name : object.metadata.name)"},
		{"subject", quote(kind+" ") + " + variables.name"},
		{"stamp", stampIf("variables.name.startsWith("+quote(canaryPrefix)+")", stamp)},
		{"way", "'To override, annotate it with " + v1alpha1.AnnotationOverride + "=<reason> and repeat; it needs the verb override on " +
			"guardedstatefulapps in all namespaces'"},
	}
	vars = append(vars, overrideVariables(mayOverride("", ""))...)
	vars = append(vars, overrideKeyVariables()...)
	return append(vars, keyVariables()...)
}

// nodeVariables are clusterVariables for nodes, and ownKubelet.
func nodeVariables(id Identity, stamp string) []variable {
	return append(clusterVariables(id, stamp, "node"), variable{"ownKubelet",
		"request.userInfo.username == 'system:node:' + variables.name && has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups"})
}

// tainted holds if root has a taint of the key, with whatever effect: attach/detach looks at the key only.
func tainted(root, key string) string {
	return fmt.Sprintf("(has(%[1]s.spec) && has(%[1]s.spec.taints) && %[1]s.spec.taints.exists(t, t.key == %[2]s))", root, quote(key))
}

// fencedTaints lists Holdfast's own taints of root as "value:effect".
func fencedTaints(root string) string {
	return fmt.Sprintf("(has(%[1]s.spec) && has(%[1]s.spec.taints) ? %[1]s.spec.taints.filter(t, t.key == %[2]s)"+
		".map(t, (has(t.value) ? t.value : '') + ':' + t.effect) : [])", root, quote(v1alpha1.TaintFenced))
}
