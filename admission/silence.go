// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

const (
	// silentFor bounds how long after a manager last renewed its lease silence takes no endpoint out. Longer than an outage that is mended soon; and as long as
	// a dead host keeps its endpoints if every manager died at the same time.
	silentFor = 5 * time.Minute
	// settledAfter is how long a new leader has been there before silence counts again. A kubelet that is back renews its host's lease every 10 s and speaks
	// of its pods every 10 s; both are over by then.
	settledAfter = 15 * time.Second
)

// hostSilence keeps the endpoint of a guarded pod while nobody of Holdfast leads: the node controller goes by the silence of a host alone, and there is
// nobody who could look whether the application serves.
var hostSilence = rule{
	name:  "HostSilence",
	on:    on(update),
	allow: "!(" + asked(nodeController) + ") || variables.written == '' || !variables.unled",
	message: "'taking ' + variables.pod + ' out of its Services is refused: its host ' + variables.node + ' is silent to the API, and no manager of Holdfast leads " +
		"that could see whether the application serves. It ends once a manager leads, or " + silentFor.String() + " after one last did'",
}

// silence are the rules for what the node controller writes about pods. They read the lease of the managers.
func silence(id Identity, stamp string) policy {
	allow := admissionv1.AllowAction
	return policy{
		name:      "holdfast-silent-hosts",
		match:     match{"", "v1", []string{"pods/status"}, on(update), v1alpha1.LabelTraffic},
		variables: append(podVariables(id, stamp, "oldObject"), silenceVariables()...),
		rules:     []rule{hostSilence},
		paramKind: &admissionv1.ParamKind{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		params:    &admissionv1.ParamRef{Namespace: id.orDefault().Namespace, Name: ManagersLease, ParameterNotFoundAction: &allow},
	}
}

// silenceVariables are: written, the moment at which the request takes Ready from the pod, by the clock of whoever asks, or empty; age and led, how long
// before that the managers' lease was renewed and taken; and unled, which holds if nobody leads then, or has only begun to.
func silenceVariables() []variable {
	ready := func(root string) string {
		return fmt.Sprintf("has(%[1]s.status) && has(%[1]s.status.conditions) && %[1]s.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')", root)
	}
	since := func(field string) string {
		return fmt.Sprintf("variables.written != '' && has(params.spec) && has(params.spec.%[1]s) ? timestamp(variables.written) - timestamp(params.spec.%[1]s) : duration('%[2]s')",
			field, 2*silentFor)
	}
	return []variable{
		{"written", "(" + ready("oldObject") + ") && !(" + ready("object") + ") && has(object.status.conditions)" +
			" && object.status.conditions.exists(c, c.type == 'Ready' && has(c.lastTransitionTime))" +
			" ? string(object.status.conditions.filter(c, c.type == 'Ready' && has(c.lastTransitionTime))[0].lastTransitionTime) : ''"},
		{"age", since("renewTime")},
		{"led", since("acquireTime")},
		{"unled", fmt.Sprintf("variables.age <= duration('%[1]s') && (variables.led > duration('-%[2]s') && variables.led < duration('%[2]s')"+
			" || variables.age > duration(string(has(params.spec.leaseDurationSeconds) ? params.spec.leaseDurationSeconds : 0) + 's'))", silentFor, settledAfter)},
	}
}
