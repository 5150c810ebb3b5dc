// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

// DefaultNamespace is where Holdfast runs unless it is installed elsewhere.
const DefaultNamespace = "holdfast-system"

// DefaultManager is the name of the manager's service account.
const DefaultManager = "holdfast-manager"

// ManagersLease is the Lease in Holdfast's namespace by which the managers elect who leads.
const ManagersLease = "holdfast-manager"

// Identity says who Holdfast is to the API server. Empty fields mean the defaults.
type Identity struct {
	// Namespace is the namespace Holdfast runs in.
	Namespace string
	// Manager is the manager's service account. It alone is past the rules, so nothing else may run under it.
	Manager string
}

// Username is the name under which the manager's requests arrive.
func (id Identity) Username() string {
	id = id.orDefault()
	return "system:serviceaccount:" + id.Namespace + ":" + id.Manager
}

func (id Identity) orDefault() Identity {
	if id.Namespace == "" {
		id.Namespace = DefaultNamespace
	}
	if id.Manager == "" {
		id.Manager = DefaultManager
	}
	return id
}
