// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// HostAttestationSpec is what the human says.
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec of a HostAttestation is immutable: create another one"
type HostAttestationSpec struct {
	// NodeName of the host that is dead.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// BootID of the boot that is over, as in the spec of the HostIncident. An attestation says nothing of another boot.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	BootID string `json:"bootID"`
	// Reason says how the human knows: who saw what, and what keeps the machine from starting again.
	// +kubebuilder:validation:MinLength=20
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`
	// ExpiresInSeconds after its creation it counts for nothing.
	// +kubebuilder:default=3600
	// +kubebuilder:validation:Minimum=60
	// +kubebuilder:validation:Maximum=86400
	ExpiresInSeconds int32 `json:"expiresInSeconds,omitempty"`
}

// HostAttestation is a human's word that one host is dead in one boot: the last resort where no device can prove it, and the weakest proof.
// It is created and never changed; who created it stands in the API server's audit log.
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ha,categories=holdfast
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Boot",type=string,JSONPath=`.spec.bootID`
// +kubebuilder:printcolumn:name="Expires-In",type=integer,JSONPath=`.spec.expiresInSeconds`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`,priority=1
type HostAttestation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec HostAttestationSpec `json:"spec"`
}

// HostAttestationList is a list of HostAttestation.
// +kubebuilder:object:root=true
type HostAttestationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []HostAttestation `json:"items"`
}
