// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"strings"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// prefix begins every key of Holdfast.
const prefix = "guard.holdfast.dev/"

// nodeController is the identity of Kubernetes that judges hosts by their leases.
const nodeController = "system:serviceaccount:kube-system:node-controller"

// The identities of Kubernetes that delete pods because of their host's state, not because of the workload.
var hostControllers = []string{
	nodeController,
	"system:serviceaccount:kube-system:taint-eviction-controller",
	"system:serviceaccount:kube-system:pod-garbage-collector",
	"system:serviceaccount:kube-system:device-taint-eviction-controller",
}

// attachDetach is the identity of Kubernetes that attaches and detaches volumes.
const attachDetach = "system:serviceaccount:kube-system:attachdetach-controller"

// The identities of Kubernetes that end the protection of what nobody uses any more, and that bind volumes to claims.
const (
	claimProtection  = "system:serviceaccount:kube-system:pvc-protection-controller"
	volumeProtection = "system:serviceaccount:kube-system:pv-protection-controller"
	volumeBinder     = "system:serviceaccount:kube-system:persistent-volume-binder"
	namespaceEnder   = "system:serviceaccount:kube-system:namespace-controller"
)

// asked holds if the user of that name asks.
func asked(by string) string { return "request.userInfo.username == " + quote(by) }

// quote writes s as a string of the expression language. Our strings hold no quotes and no backslashes.
func quote(s string) string { return "'" + s + "'" }

func quoteAll(list []string) string {
	quoted := make([]string, 0, len(list))
	for _, s := range list {
		quoted = append(quoted, quote(s))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// mapOf is the labels or annotations of root, which must not be null; absent is empty.
func mapOf(root, field string) string {
	return fmt.Sprintf("(has(%[1]s.metadata.%[2]s) ? %[1]s.metadata.%[2]s : {})", root, field)
}

// valueOf is the value of a label or annotation of root; absent is the empty string.
func valueOf(root, field, key string) string {
	return fmt.Sprintf("(has(%[1]s.metadata.%[2]s) && %[3]s in %[1]s.metadata.%[2]s ? %[1]s.metadata.%[2]s[%[3]s] : '')",
		root, field, quote(key))
}

// keysOf lists what root carries of Holdfast's keys, as "label key=value", "annotation key=value" and "finalizer key".
// The override is not among them: it belongs to those who may override.
func keysOf(root string) string {
	pairs := func(kind, field, but string) string {
		return fmt.Sprintf("%[1]s.filter(k, k.startsWith(%[2]s)%[3]s).map(k, %[4]s + k + '=' + %[5]s.metadata.%[6]s[k])",
			mapOf(root, field), quote(prefix), but, quote(kind+" "), root, field)
	}
	return pairs("label", "labels", "") +
		" + " + pairs("annotation", "annotations", " && k != "+quote(v1alpha1.AnnotationOverride)) +
		fmt.Sprintf(" + (has(%[1]s.metadata.finalizers) ? %[1]s.metadata.finalizers.filter(f, f.startsWith(%[2]s)).map(f, 'finalizer ' + f) : [])",
			root, quote(prefix))
}

// keyVariables are: before and after, Holdfast's keys on either side of the request, and added and removed, what the
// request would do to them.
func keyVariables() []variable {
	return []variable{
		{"before", "request.operation == 'CREATE' ? [] : (" + keysOf("oldObject") + ")"},
		{"after", "request.operation == 'DELETE' ? [] : (" + keysOf("object") + ")"},
		{"added", "variables.after.filter(k, !(k in variables.before))"},
		{"removed", "variables.before.filter(k, !(k in variables.after))"},
		{"changed", "variables.added.map(k, '+ ' + k) + variables.removed.map(k, '- ' + k)"},
	}
}

// holdfast says whether Holdfast itself asks.
func (id Identity) holdfast() variable {
	return variable{"holdfast", "request.userInfo.username == " + quote(id.Username())}
}

// mayOverride is the authorizer's answer for the caller. Both arguments are expressions; an empty namespace asks for
// all namespaces.
func mayOverride(namespace, app string) string {
	check := "authorizer.group('guard.holdfast.dev').resource('guardedstatefulapps')"
	if namespace != "" {
		check += ".namespace(" + namespace + ")"
	}
	if app != "" {
		check += ".name(" + app + ")"
	}
	return check + ".check('override').allowed()"
}

// overrideVariables are: reason, what the annotation on the stored object says, mayOverride and overridden. may is
// an expression.
func overrideVariables(may string) []variable {
	return []variable{
		{"reason", "request.operation == 'CREATE' ? '' : " + valueOf("oldObject", "annotations", v1alpha1.AnnotationOverride) + ".trim()"},
		{"mayOverride", may},
		{"overridden", "variables.reason != '' && variables.mayOverride"},
	}
}

// gatesOf lists Holdfast's scheduling gates on root.
func gatesOf(root string) string {
	return fmt.Sprintf("(has(%[1]s.spec) && has(%[1]s.spec.schedulingGates) ? %[1]s.spec.schedulingGates.map(g, g.name).filter(n, n.startsWith(%[2]s)) : [])",
		root, quote(prefix))
}

// overrideUntouched holds if the request leaves the override annotation as it is. On creation that means none.
const overrideUntouched = "variables.overrideAfter == variables.overrideBefore"

func overrideKeyVariables() []variable {
	return []variable{
		{"overrideBefore", "request.operation == 'CREATE' ? '' : " + valueOf("oldObject", "annotations", v1alpha1.AnnotationOverride)},
		{"overrideAfter", "request.operation == 'DELETE' ? '' : " + valueOf("object", "annotations", v1alpha1.AnnotationOverride)},
	}
}
