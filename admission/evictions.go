// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// heldEviction refuses every eviction of a held pod. An eviction carries no labels of its pod, so the held names
// stand in an annotation of the namespace.
var heldEviction = rule{
	name:  "HeldEviction",
	on:    on(create),
	allow: "variables.holdfast || variables.held.size() == 0",
	message: "'evicting ' + variables.pod + ' is refused: it is held by HostIncident ' + variables.incident + ', its host is suspect and it may still " +
		"be writing there. It is released once the host is back or proven off: kubectl get hi ' + variables.incident" +
		" + '. An eviction cannot be overridden; a delete can, see docs/spec/admission.md'",
}

// removalGradeEviction refuses evictions that remove at once wherever there are guarded apps: which pod is guarded
// cannot be seen.
var removalGradeEviction = rule{
	name:  "RemovalGradeEviction",
	on:    on(create),
	allow: "variables.holdfast || !variables.guarded || !variables.removalGrade",
	message: "'evicting ' + variables.pod + ' with grace period 0 is refused: namespace ' + variables.home + ' has guarded apps, and an eviction " +
		"does not say whether the pod is one of theirs. Evict it without a grace period of 0; if its host is dead, Holdfast releases " +
		"guarded pods once the host is proven off: kubectl get hi'",
}

// evictions are refused by name.
func evictions(id Identity, stamp string) policy {
	return policy{
		name:  "holdfast-evictions",
		match: match{"", "v1", []string{"pods/eviction"}, on(create), ""},
		variables: []variable{
			id.holdfast(),
			{"home", "has(request.namespace) ? request.namespace : ''"},
			{"name", "has(request.name) ? request.name : ''"},
			{"stamp", stampIf("variables.home == "+quote(id.orDefault().Namespace)+" && variables.name.startsWith("+quote(canaryPrefix)+")", stamp)},
			{"pod", "'pod ' + variables.home + '/' + variables.name"},
			{"held", namespaceEntries(v1alpha1.AnnotationHeld) + ".filter(e, e == variables.name || e.startsWith(variables.name + '='))"},
			{"incident", "variables.held.size() == 0 || !variables.held[0].contains('=') ? '' : variables.held[0].substring(variables.held[0].indexOf('=') + 1)"},
			{"guarded", fmt.Sprintf("%s.size() > 0 || %s.size() > 0", namespaceEntries(v1alpha1.AnnotationClaims), namespaceEntries(v1alpha1.AnnotationHeld))},
			{"removalGrade", "has(object.deleteOptions) && has(object.deleteOptions.gracePeriodSeconds) && object.deleteOptions.gracePeriodSeconds == 0"},
		},
		rules: []rule{
			heldEviction,
			removalGradeEviction,
		},
	}
}

// namespaceEntries lists the entries of a comma-separated annotation of the request's namespace, trimmed, without
// empty ones.
func namespaceEntries(key string) string {
	return fmt.Sprintf("(has(namespaceObject.metadata.annotations) && %[1]s in namespaceObject.metadata.annotations"+
		" ? namespaceObject.metadata.annotations[%[1]s].split(',').map(e, e.trim()).filter(e, e != '') : [])", quote(key))
}
