// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"

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

// attachmentDelete refuses the delete that makes a driver detach a volume. The attach/detach controller may: it
// detaches by force only what no pod wants any more, and the other rules keep a guarded pod wanting it.
var attachmentDelete = rule{
	name:  "AttachmentDelete",
	on:    on(remove),
	allow: "variables.holdfast || request.userInfo.username == " + quote(attachDetach) + " || variables.overridden",
	message: "'deleting ' + variables.subject + ' is refused: it attaches a guarded volume, and its writer may still be writing. Delete the pod " +
		"gracefully and Kubernetes detaches the volume; if the host is dead, Holdfast releases it once the host is proven off: kubectl get hi. ' + variables.way",
}

// attachmentKeys keeps Holdfast's keys on VolumeAttachments for Holdfast.
var attachmentKeys = keysRule("AttachmentKeys")

// attachmentOverrideKey lets only those set an override who may use it.
var attachmentOverrideKey = clusterOverrideKey

// namespaceKeys keeps Holdfast's keys on namespaces for Holdfast: evictions and labelling go by them.
var namespaceKeys = keysRule("NamespaceKeys")

// openIncident refuses to lose the journal of a host's trouble before it is over.
var openIncident = rule{
	name: "OpenIncident",
	on:   on(remove),
	allow: "variables.holdfast || (has(oldObject.status) && has(oldObject.status.step) && oldObject.status.step in [" +
		quote(string(v1alpha1.StepClosed)) + ", " + quote(string(v1alpha1.StepRetired)) + "])",
	message: "'deleting ' + variables.subject + ' is refused: it is not closed, and what it holds would be held without a reason to read. " +
		"It closes once its host is back or retired: kubectl get hi ' + variables.name",
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
		name:  name,
		on:    on(create, update),
		allow: "variables.holdfast || variables.changed.size() == 0",
		message: "'changing guard.holdfast.dev keys of ' + variables.subject + ' (' + variables.changed.join(', ') + ') is refused: " +
			"they are for Holdfast to set and remove'",
	}
}

// nodes are the rules for nodes that carry guarded pods.
func nodes(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-nodes",
		match:     match{"", "v1", []string{"nodes", "nodes/*"}, on(create, update, remove), v1alpha1.LabelCarries},
		variables: clusterVariables(id, stamp, "node"),
		rules: []rule{
			nodeDelete,
			outOfServiceTaint,
			nodeKeys,
			nodeOverrideKey,
		},
		audited: true,
	}
}

// fencedNodes watches Holdfast's own taint on every node: a fenced node carries nothing any more. A node's status
// cannot change its taints, so heartbeats do not pass here.
func fencedNodes(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-fenced-nodes",
		match:     match{"", "v1", []string{"nodes"}, on(update), ""},
		variables: clusterVariables(id, stamp, "node"),
		rules: []rule{
			fencedTaint,
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
			attachmentKeys,
			attachmentOverrideKey,
		},
		audited: true,
	}
}

// namespaces are the rules for what the other policies read on namespaces.
func namespaces(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-namespaces",
		match:     match{"", "v1", []string{"namespaces", "namespaces/*"}, on(create, update), ""},
		variables: clusterVariables(id, stamp, "namespace"),
		rules: []rule{
			namespaceKeys,
		},
	}
}

// incidents are the rules for the journal.
func incidents(id Identity, stamp string) policy {
	return policy{
		name: "holdfast-incidents",
		match: match{v1alpha1.GroupVersion.Group, v1alpha1.GroupVersion.Version, []string{"hostincidents"}, on(remove),
			""},
		variables: clusterVariables(id, stamp, "hostincident"),
		rules: []rule{
			openIncident,
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

// tainted holds if root has a taint of the key, with whatever effect: attach/detach looks at the key only.
func tainted(root, key string) string {
	return fmt.Sprintf("(has(%[1]s.spec) && has(%[1]s.spec.taints) && %[1]s.spec.taints.exists(t, t.key == %[2]s))", root, quote(key))
}

// fencedTaints lists Holdfast's own taints of root as "value:effect".
func fencedTaints(root string) string {
	return fmt.Sprintf("(has(%[1]s.spec) && has(%[1]s.spec.taints) ? %[1]s.spec.taints.filter(t, t.key == %[2]s)"+
		".map(t, (has(t.value) ? t.value : '') + ':' + t.effect) : [])", root, quote(v1alpha1.TaintFenced))
}
