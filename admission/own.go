// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// openIncident refuses to lose the journal of a host's trouble before it is over.
var openIncident = rule{
	name: "OpenIncident",
	on:   on(remove),
	allow: "variables.holdfast || (has(oldObject.status) && has(oldObject.status.step) && oldObject.status.step in [" +
		quote(string(v1alpha1.StepClosed)) + ", " + quote(string(v1alpha1.StepRetired)) + "])",
	message: "'deleting ' + variables.subject + ' is refused: it is not closed, and what it holds would be held without a reason to read. " +
		"It closes once its host is back or retired: kubectl get hi ' + variables.name",
}

// incidentBirth keeps others from opening an incident: its name is the lock by which one boot has one journal.
var incidentBirth = rule{
	name:    "IncidentBirth",
	on:      on(create),
	allow:   "variables.holdfast",
	message: "'creating ' + variables.subject + ' is refused: Holdfast opens the journal of a host itself. To have a host fenced, see docs/spec/exits.md'",
}

// journal keeps what Holdfast has written about an incident.
var journal = statusRule("Journal", "it is the journal of what was seen and done, and Holdfast acts by it. To approve a fence, annotate the incident with "+
	v1alpha1.AnnotationApproved)

// incidentKeys keeps Holdfast's keys on incidents; the approval is a human's.
var incidentKeys = rule{
	name:    "IncidentKeys",
	on:      on(update),
	allow:   "variables.holdfast || variables.changed.all(k, k.contains(" + quote("annotation "+v1alpha1.AnnotationApproved+"=") + "))",
	message: keysMessage,
}

// appKeys keeps Holdfast's keys on apps, the finalizer above all. A backup may bring an app back with them.
var appKeys = rule{
	name:    "AppKeys",
	on:      on(update),
	allow:   "variables.holdfast || variables.changed.size() == 0",
	message: keysMessage,
}

// appStatus, profileStatus and configStatus keep what Holdfast has found.
var (
	appStatus     = statusRule("AppStatus", "it is what Holdfast has found")
	profileStatus = statusRule("ProfileStatus", "it is what Holdfast has found")
	configStatus  = statusRule("ConfigStatus", "it is what Holdfast has found")
)

// statusRule leaves a status to Holdfast.
func statusRule(name, why string) rule {
	return rule{
		name:    name,
		on:      on(update),
		allow:   "variables.holdfast || !has(request.subResource) || request.subResource != 'status'",
		message: "'writing the status of ' + variables.subject + ' is refused: " + why + "'",
	}
}

// configDelete and kindDelete refuse to take away what Holdfast works by while something is held. Deleting a
// CustomResourceDefinition deletes every object of the kind without asking admission for each.
var (
	configDelete = holdingDelete("ConfigDelete")
	kindDelete   = holdingDelete("KindDelete")
)

func holdingDelete(name string) rule {
	return rule{
		name:  name,
		on:    on(remove),
		allow: "variables.holdfast || !variables.holding || variables.overridden",
		message: "'deleting ' + variables.subject + ' is refused: pods are held, and Holdfast could not say why, nor release them. Wait until " +
			"no HostIncident is open: kubectl get hi. ' + variables.way",
	}
}

// kindServed refuses the other ways to make a kind's objects unreadable.
var kindServed = rule{
	name: "KindServed",
	on:   on(update),
	allow: "variables.holdfast || !variables.holding || variables.overridden || oldObject.spec.versions.all(was, !was.served || " +
		"object.spec.versions.exists(v, v.name == was.name && v.served))",
	message: "'no longer serving a version of ' + variables.subject + ' is refused: pods are held, and Holdfast could not read why. Wait until " +
		"no HostIncident is open: kubectl get hi. ' + variables.way",
}

var (
	configKeys        = keysRule("ConfigKeys")
	configOverrideKey = clusterOverrideKey
	kindKeys          = keysRule("KindKeys")
	kindOverrideKey   = clusterOverrideKey
)

// incidents are the rules for the journal.
func incidents(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-incidents",
		match:     ours(on(create, update, remove), "hostincidents", "hostincidents/*"),
		variables: clusterVariables(id, stamp, "hostincident"),
		rules: []rule{
			openIncident,
			incidentBirth,
			journal,
			incidentKeys,
		},
	}
}

// apps are the rules for what users ask of Holdfast.
func apps(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-apps",
		match:     ours(on(update), "guardedstatefulapps", "guardedstatefulapps/*"),
		variables: clusterVariables(id, stamp, "guardedstatefulapp"),
		rules: []rule{
			appKeys,
			appStatus,
		},
	}
}

// profiles are the rules for how hosts are fenced.
func profiles(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-profiles",
		match:     ours(on(update), "fencingprofiles/*"),
		variables: clusterVariables(id, stamp, "fencingprofile"),
		rules: []rule{
			profileStatus,
		},
	}
}

// configs are the rules for the GuardConfig.
func configs(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-configs",
		match:     ours(on(create, update, remove), "guardconfigs", "guardconfigs/*"),
		variables: append(clusterVariables(id, stamp, "guardconfig"), holding()),
		rules: []rule{
			configDelete,
			configKeys,
			configStatus,
			configOverrideKey,
		},
		audited: true,
	}
}

// kinds are the rules for Holdfast's CustomResourceDefinitions while something is held.
func kinds(id Identity, stamp string) policy {
	return policy{
		name: "holdfast-kinds",
		match: match{"apiextensions.k8s.io", "v1", []string{"customresourcedefinitions", "customresourcedefinitions/*"},
			on(create, update, remove), v1alpha1.LabelHold},
		variables: append(clusterVariables(id, stamp, "customresourcedefinition"), holding()),
		rules: []rule{
			kindDelete,
			kindServed,
			kindKeys,
			kindOverrideKey,
		},
		audited: true,
	}
}

// ours matches kinds of Holdfast.
func ours(operations []operation, resources ...string) match {
	return match{v1alpha1.GroupVersion.Group, v1alpha1.GroupVersion.Version, resources, operations, ""}
}

// holding says whether the stored object says that something is held.
func holding() variable {
	return variable{"holding", "request.operation != 'CREATE' && " + valueOf("oldObject", "labels", v1alpha1.LabelHold) + " != ''"}
}
