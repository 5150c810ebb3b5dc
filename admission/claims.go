// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// claimProtected keeps Kubernetes' own finalizer on a guarded claim: it ends when no pod uses the claim any more.
var claimProtected = rule{
	name:  "ClaimProtection",
	on:    on(update),
	allow: "variables.holdfast || " + asked(claimProtection) + " || variables.guards.size() == 0 || " + kept("kubernetes.io/pvc-protection") + " || variables.overridden",
	message: "'taking the finalizer kubernetes.io/pvc-protection off ' + variables.subject + ' is refused: app ' + variables.app + ' guards the claim, and a pod may still be " +
		"writing to it. Kubernetes takes it off once no pod uses the claim. To override, annotate the claim with " + v1alpha1.AnnotationOverride +
		"=<reason> and repeat; it needs the verb override on guardedstatefulapps ' + variables.app",
}

// claimOverrideKey lets only those set an override who may use it.
var claimOverrideKey = rule{
	name:  podOverrideKey.name,
	on:    on(update),
	allow: "variables.holdfast || variables.guards.size() == 0 || " + overrideUntouched + " || variables.mayOverride",
	message: "'changing annotation " + v1alpha1.AnnotationOverride + " of ' + variables.subject + ' is refused: it needs the verb override on " +
		"guardedstatefulapps ' + variables.app + ' in its namespace, which ' + request.userInfo.username + ' does not have'",
}

// volumeProtected keeps Kubernetes' own finalizer on a guarded volume.
var volumeProtected = rule{
	name:  "VolumeProtection",
	on:    on(update),
	allow: "variables.holdfast || " + asked(volumeProtection) + " || " + kept("kubernetes.io/pv-protection") + " || variables.overridden",
	message: "'taking the finalizer kubernetes.io/pv-protection off ' + variables.subject + ' is refused: a guarded claim is bound to it, and a pod may still " +
		"be writing. Kubernetes takes it off once the claim is gone. ' + variables.way",
}

// volumeBinding keeps a guarded volume with its claim: bound to another one, it would have writers that nobody counts.
var volumeBinding = rule{
	name:  "VolumeBinding",
	on:    on(update),
	allow: "variables.holdfast || " + asked(volumeBinder) + " || " + claimRef("object") + " == " + claimRef("oldObject") + " || variables.overridden",
	message: "'binding ' + variables.subject + ' to another claim, or to none, is refused: a guarded claim is bound to it, and through another one a second pod could " +
		"write. Delete the claim first. ' + variables.way",
}

// driverDelete refuses to take away what says that a driver's volumes are attached: attach/detach detaches, under
// running pods, what it is then told needs no attaching.
var driverDelete = rule{
	name:  "DriverDelete",
	on:    on(remove),
	allow: "variables.holdfast || variables.overridden",
	message: "'deleting ' + variables.subject + ' is refused: guarded volumes are of this driver, and without it, or with another one of its name, Kubernetes may " +
		"detach them while their writers may still be writing. Update it instead. ' + variables.way",
}

var (
	volumeKeys        = keysRule("VolumeKeys")
	volumeOverrideKey = clusterOverrideKey
	driverKeys        = keysRule("DriverKeys")
	driverOverrideKey = clusterOverrideKey
)

// kept holds if the finalizer stays where it was.
func kept(finalizer string) string {
	of := func(root string) string {
		return fmt.Sprintf("(has(%[1]s.metadata.finalizers) && %[2]s in %[1]s.metadata.finalizers)", root, quote(finalizer))
	}
	return "(!" + of("oldObject") + " || " + of("object") + ")"
}

// claimRef tells the claim that a volume is bound to.
func claimRef(root string) string {
	field := func(name string) string {
		return fmt.Sprintf("(has(%[1]s.spec.claimRef) && has(%[1]s.spec.claimRef.%[2]s) ? %[1]s.spec.claimRef.%[2]s : '')", root, name)
	}
	return "(" + field("namespace") + " + '/' + " + field("name") + " + '/' + " + field("uid") + ")"
}

// claims are the rules for guarded claims, told by the list of their namespace.
func claims(id Identity, stamp string) policy {
	vars := []variable{
		id.holdfast(),
		{"home", "has(request.namespace) ? request.namespace : ''"},
		{"subject", "'persistentvolumeclaim ' + variables.home + '/' + oldObject.metadata.name"},
		{"stamp", stampIf("variables.home == "+quote(id.orDefault().Namespace), stamp)},
		{"guards", guardsOf("[oldObject.metadata.name]")},
		{"app", "variables.guards.size() == 0 ? '' : variables.guards[0][0]"},
	}
	vars = append(vars, overrideVariables(mayOverride("variables.home", "variables.app"))...)
	return policy{
		name:      "holdfast-claims",
		match:     match{"", "v1", []string{"persistentvolumeclaims", "persistentvolumeclaims/*"}, on(update), ""},
		variables: append(vars, overrideKeyVariables()...),
		rules: []rule{
			claimProtected,
			claimOverrideKey,
		},
		audited: true,
	}
}

// volumes are the rules for PersistentVolumes that guarded claims are bound to.
func volumes(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-volumes",
		match:     match{"", "v1", []string{"persistentvolumes", "persistentvolumes/*"}, on(create, update), v1alpha1.LabelGuardedVolume},
		variables: clusterVariables(id, stamp, "persistentvolume"),
		rules: []rule{
			volumeProtected,
			volumeBinding,
			volumeKeys,
			volumeOverrideKey,
		},
		audited: true,
	}
}

// drivers are the rules for CSIDrivers of guarded volumes.
func drivers(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-drivers",
		match:     match{"storage.k8s.io", "v1", []string{"csidrivers", "csidrivers/*"}, on(create, update, remove), v1alpha1.LabelGuardedVolume},
		variables: clusterVariables(id, stamp, "csidriver"),
		rules: []rule{
			driverDelete,
			driverKeys,
			driverOverrideKey,
		},
		audited: true,
	}
}
