// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// terminal lists the phases in which a pod has stopped for good.
const terminal = "['Failed', 'Succeeded']"

// removalGradeDelete refuses what takes a pod's name off a writer at once. The grace that admission sees is the
// effective one; it is absent when the stored object's is 0 already.
var removalGradeDelete = rule{
	name: "RemovalGradeDelete",
	on:   on(remove),
	allow: "variables.holdfast || variables.ownKubelet || variables.neverRan || variables.stopped || !variables.removalGrade" +
		" || variables.overridden",
	message: "'removing ' + variables.pod + ' at once is refused: ' + variables.why + '. ' + variables.way",
}

// controllerDelete refuses the deletes that follow from a host's state. They are graceful, and still end in a dead
// name or in a container killed on the kubelet's return.
var controllerDelete = rule{
	name:    "ControllerDelete",
	on:      on(remove),
	allow:   "variables.holdfast || variables.neverRan || variables.stopped || !(request.userInfo.username in " + quoteAll(hostControllers) + ")",
	message: "'deleting ' + variables.pod + ' by ' + request.userInfo.username + ' is refused: ' + variables.why + '. ' + variables.way",
}

// terminalPhase refuses the word "stopped" from anybody who cannot know: attach/detach, the scheduler and the
// StatefulSet controller believe it.
var terminalPhase = rule{
	name: "TerminalPhase",
	on:   on(update),
	allow: "variables.holdfast || variables.ownKubelet || variables.neverRan || variables.stopped" +
		" || !(has(object.status) && has(object.status.phase) && object.status.phase in " + terminal + ") || variables.overridden",
	message: "'phase ' + object.status.phase + ' of ' + variables.pod + ' is refused: only its own kubelet can say that it stopped; '" +
		" + variables.why + '. ' + variables.way",
}

// stoppedContainers refuses the same word container by container: on a terminating pod attach/detach believes it.
var stoppedContainers = rule{
	name: "StoppedContainers",
	on:   on(update),
	allow: "variables.holdfast || variables.ownKubelet || variables.neverRan || variables.stopped || (" +
		stillRunning("initContainerStatuses") + " && " + stillRunning("containerStatuses") + " && " + stillRunning("ephemeralContainerStatuses") +
		") || variables.overridden",
	message: "'container statuses of ' + variables.pod + ' that no longer run are refused: only its own kubelet can say that they stopped; '" +
		" + variables.why + '. ' + variables.way",
}

// stillRunning holds if every container that may run before the request may run after it. A status that is neither
// terminated nor waiting counts as running, as attach/detach counts.
func stillRunning(list string) string {
	down := func(c string) string {
		return fmt.Sprintf("(has(%[1]s.state) && (has(%[1]s.state.terminated) || has(%[1]s.state.waiting)))", c)
	}
	return fmt.Sprintf("(!has(oldObject.status) || !has(oldObject.status.%[1]s) || oldObject.status.%[1]s.all(c, %[2]s || "+
		"(has(object.status) && has(object.status.%[1]s) && object.status.%[1]s.exists(n, n.name == c.name && !%[3]s))))",
		list, down("c"), down("n"))
}

// podAddress keeps the address at which the application is asked whether it lives.
var podAddress = rule{
	name:  "PodAddress",
	on:    on(update),
	allow: "variables.holdfast || variables.ownKubelet || variables.neverRan || " + sameAddress("podIPs") + " && " + sameAddress("hostIPs"),
	message: "'changing the address of ' + variables.pod + ' is refused: only its own kubelet knows it, and Holdfast asks the application there " +
		"whether it lives; ' + variables.why + '. ' + variables.way",
}

// sameAddress holds if the list of addresses in the status stays as it is. The single fields podIP and hostIP are
// their first elements, by the API server's own validation.
func sameAddress(list string) string {
	of := func(root string) string {
		return fmt.Sprintf("(has(%[1]s.status) && has(%[1]s.status.%[2]s) ? %[1]s.status.%[2]s.map(a, has(a.ip) ? a.ip : '') : [])", root, list)
	}
	return "(" + of("object") + " == " + of("oldObject") + ")"
}

// podKeys keeps Holdfast's keys on pods for Holdfast. An override may take a hold off, or Holdfast dead would mean
// held for good; the guard itself stays.
var podKeys = rule{
	name: "PodKeys",
	on:   on(update),
	allow: "variables.holdfast || (variables.added.size() == 0 && (variables.removed.size() == 0 || " +
		"(variables.overridden && variables.removed.all(k, k.startsWith(" + quote("label "+v1alpha1.LabelHold+"=") + ")" +
		" || k == " + quote("finalizer "+v1alpha1.FinalizerHold) + "))))",
	message: "'changing guard.holdfast.dev keys of ' + variables.pod + ' (' + variables.changed.join(', ') + ') is refused: '" +
		" + 'they are for Holdfast to set and remove; ' + variables.why + '. ' + variables.way",
}

// podOverrideKey lets only those set an override who may use it.
var podOverrideKey = rule{
	name:  "OverrideKey",
	on:    on(create, update),
	allow: "variables.holdfast || " + overrideUntouched + " || variables.mayOverride",
	message: "'changing annotation " + v1alpha1.AnnotationOverride + " of ' + variables.pod + ' is refused: it needs the verb override on " +
		"guardedstatefulapps ' + variables.app + ' in namespace ' + variables.home + ', which ' + request.userInfo.username + ' does not have'",
}

// heldDelete refuses every delete while a pod is held; its own kubelet may finish what was begun.
var heldDelete = rule{
	name:    "HeldDelete",
	on:      on(remove),
	allow:   "variables.holdfast || (variables.ownKubelet && has(oldObject.metadata.deletionTimestamp)) || variables.overridden",
	message: "'deleting ' + variables.pod + ' is refused, gracefully too: ' + variables.why + '. ' + variables.way",
}

// bornHeld keeps the hold for Holdfast to put on.
var bornHeld = rule{
	name:    "BornHeld",
	on:      on(create),
	allow:   "variables.holdfast",
	message: "'label " + v1alpha1.LabelHold + " on new ' + variables.pod + ' is refused: only Holdfast holds pods. Take it out of the pod template'",
}

// bornGuarded lets a new pod carry exactly the label that follows from the claims it names, and the gate if it names
// any: a pod template may bring both. The label of a hold is for BornHeld.
var bornGuarded = rule{
	name: "BornGuarded",
	on:   on(create),
	allow: "variables.holdfast || (variables.added.all(k, k.startsWith(" + quote("label "+v1alpha1.LabelHold+"=") + ") || variables.expected != '' && k == " + quote("label "+v1alpha1.LabelApp+"=") + " + variables.expected)" +
		" && variables.gates.all(g, variables.expected != '' && g == " + quote(v1alpha1.GateNewcomer) + "))",
	message: "'' + (variables.added + variables.gates.map(g, 'gate ' + g)).join(', ') + ' on new ' + variables.pod + ' is refused: ' + (variables.expected == ''" +
		" ? 'it names no guarded claim of namespace ' + variables.home" +
		" : 'its claims make it a pod of app ' + variables.expected)" +
		" + ', and only Holdfast sets guard.holdfast.dev keys and gates. Take them out of the pod template'",
}

// guardedPods are the rules that always stand.
func guardedPods(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-guarded-pods",
		match:     match{"", "v1", []string{"pods", "pods/*"}, on(update, remove), v1alpha1.LabelApp},
		variables: podVariables(id, stamp, "oldObject"),
		rules: []rule{
			removalGradeDelete,
			controllerDelete,
			terminalPhase,
			stoppedContainers,
			podAddress,
			podKeys,
			podOverrideKey,
		},
		audited: true,
	}
}

// heldPods are the rules that stand while the host is suspect.
func heldPods(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-held-pods",
		match:     match{"", "v1", []string{"pods", "pods/*"}, on(update, remove), v1alpha1.LabelHold},
		variables: podVariables(id, stamp, "oldObject"),
		rules: []rule{
			heldDelete,
			podKeys,
			podOverrideKey,
		},
		audited: true,
	}
}

// newGuardedPods watch over the birth of pods with Holdfast's keys.
func newGuardedPods(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-new-guarded-pods",
		match:     match{"", "v1", []string{"pods"}, on(create), ""},
		variables: append(podVariables(id, stamp, "object"), claimVariables()...),
		rules: []rule{
			bornGuarded,
			podOverrideKey,
		},
	}
}

// newHeldPods watch over the birth of held pods: there are none.
func newHeldPods(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-new-held-pods",
		match:     match{"", "v1", []string{"pods"}, on(create), v1alpha1.LabelHold},
		variables: podVariables(id, stamp, "object"),
		rules: []rule{
			bornHeld,
		},
	}
}

// podVariables are what the rules for pods speak in. root is the pod that they judge: the stored one, or the new one
// on creation.
func podVariables(id Identity, stamp, root string) []variable {
	vars := []variable{
		id.holdfast(),
		{"home", "has(request.namespace) ? request.namespace : ''"},
		{"name", fmt.Sprintf("has(%[1]s.metadata.name) ? %[1]s.metadata.name : (has(%[1]s.metadata.generateName) ? %[1]s.metadata.generateName + '*' : '')", root)},
		{"canary", "variables.home == " + quote(id.orDefault().Namespace) + " && variables.name.startsWith(" + quote(canaryPrefix) + ")"},
		{"stamp", stampIf("variables.canary", stamp)},
		{"pod", "'pod ' + variables.home + '/' + variables.name"},
		{"app", valueOf(root, "labels", v1alpha1.LabelApp)},
		{"incident", valueOf(root, "labels", v1alpha1.LabelHold)},
		{"node", fmt.Sprintf("has(%[1]s.spec.nodeName) ? %[1]s.spec.nodeName : ''", root)},
		{"ownKubelet", "variables.node != '' && request.userInfo.username == 'system:node:' + variables.node" +
			" && has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups"},
		{"neverRan", "variables.node == '' && !variables.canary"},
		{"stopped", fmt.Sprintf("has(%[1]s.status) && has(%[1]s.status.phase) && %[1]s.status.phase in %[2]s", root, terminal)},
		{"removalGrade", "request.operation == 'DELETE' && (has(request.options.gracePeriodSeconds) ? request.options.gracePeriodSeconds == 0" +
			fmt.Sprintf(" : (has(%[1]s.metadata.deletionGracePeriodSeconds) && %[1]s.metadata.deletionGracePeriodSeconds == 0))", root)},
		{"why", "variables.incident != ''" +
			" ? 'it is held by HostIncident ' + variables.incident + ', its host ' + variables.node + ' is suspect and it may still be writing there'" +
			" : 'it is guarded (app ' + variables.app + ') and may still be writing on host ' + variables.node"},
		{"way", "(variables.incident != ''" +
			" ? 'It is released once the host is back or proven off: kubectl get hi ' + variables.incident" +
			" : 'A graceful delete works while its kubelet does; if the host is dead, Holdfast releases the pod once the host is proven off: kubectl get hi')" +
			" + '. To override, annotate the pod with " + v1alpha1.AnnotationOverride + "=<reason> and repeat; it needs the verb override on guardedstatefulapps ' + variables.app"},
	}
	vars = append(vars, overrideVariables(mayOverride("variables.home", "variables.app"))...)
	vars = append(vars, overrideKeyVariables()...)
	return append(vars, keyVariables()...)
}

// stampIf ends the messages for the canary with the version, so that a proof can tell which version answered.
func stampIf(condition, stamp string) string {
	return condition + " ? " + quote(" [policies "+stamp+"]") + " : ''"
}
