// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SecretReference names a Secret in Holdfast's own namespace, so that nobody can point Holdfast at the Secrets of others.
type SecretReference struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// HostDevice is the fence device of one host.
type HostDevice struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// Address of the device: an IP address or a host name, without port.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Address string `json:"address"`
	// CredentialsSecretRef overrides the method's. The Secret has the keys username and password.
	CredentialsSecretRef *SecretReference `json:"credentialsSecretRef,omitempty"`
	// PinnedSystemUUID is the identity that a human read off the machine; it replaces node.status.nodeInfo.systemUUID in the comparison
	// with the device where the two cannot agree.
	// +kubebuilder:validation:MaxLength=64
	PinnedSystemUUID string `json:"pinnedSystemUUID,omitempty"`
}

// IPMIMethod speaks IPMI 2.0 over LAN (lanplus) to a BMC.
// +kubebuilder:validation:XValidation:rule="has(self.credentialsSecretRef) || self.hosts.all(h, has(h.credentialsSecretRef))",message="a host has no credentials: set credentialsSecretRef, or credentialsSecretRef in every one of hosts"
type IPMIMethod struct {
	// +kubebuilder:default=623
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
	// CipherSuite: 3 (HMAC-SHA1, AES-128) is what every BMC has; 17 (HMAC-SHA256, AES-128) where the BMC offers it.
	// +kubebuilder:default=3
	// +kubebuilder:validation:Enum=3;17
	CipherSuite int32 `json:"cipherSuite,omitempty"`
	// CredentialsSecretRef is the default for hosts that name none. The Secret has the keys username and password.
	CredentialsSecretRef *SecretReference `json:"credentialsSecretRef,omitempty"`
	// +listType=map
	// +listMapKey=nodeName
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=5000
	Hosts []HostDevice `json:"hosts"`
}

// FencingMethod is one way of isolating a host.
// +kubebuilder:validation:XValidation:rule="has(self.ipmi)",message="a method names its driver: set ipmi"
// +kubebuilder:validation:XValidation:rule="self.settleSeconds >= self.timeoutSeconds",message="settleSeconds must not be shorter than timeoutSeconds: raise settleSeconds or lower timeoutSeconds"
type FencingMethod struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// TimeoutSeconds bounds one call of the device. A timeout is a failure.
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=120
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`
	// SettleSeconds is how long an accepted Off may take until the device reads Off; then the attempt has failed.
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=600
	SettleSeconds int32       `json:"settleSeconds,omitempty"`
	IPMI          *IPMIMethod `json:"ipmi,omitempty"`
}

// FencingLevel is tried as a whole before the next one.
type FencingLevel struct {
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Methods []FencingMethod `json:"methods"`
}

// Floors are the least timings that any app may ask for on these hosts.
type Floors struct {
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	ConfirmAfterSeconds int32 `json:"confirmAfterSeconds,omitempty"`
}

// FencingProfileSpec says which hosts are fenced how.
// +kubebuilder:validation:XValidation:rule="self.levels.all(l, l.methods.all(m, self.levels.exists_one(o, o.methods.exists(n, n.name == m.name))))",message="levels[].methods[].name must be unique over all levels: rename one of the methods"
type FencingProfileSpec struct {
	// NodeSelector chooses the hosts; nothing else does. Hosts that two profiles choose are fenced by neither.
	// +kubebuilder:validation:XValidation:rule="(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && self.matchExpressions.size() > 0)",message="nodeSelector is empty and would choose every host: set matchLabels or matchExpressions"
	NodeSelector metav1.LabelSelector `json:"nodeSelector"`
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Levels []FencingLevel `json:"levels"`
	// +kubebuilder:default={confirmAfterSeconds: 5}
	Floors Floors `json:"floors,omitempty,omitzero"`
	// +kubebuilder:default=PowerOff
	MinimumProof MinimumProof `json:"minimumProof,omitempty"`
	// CheckEverySeconds is how often each device is read while nothing is wrong.
	// +kubebuilder:default=60
	// +kubebuilder:validation:Minimum=5
	// +kubebuilder:validation:Maximum=3600
	CheckEverySeconds int32 `json:"checkEverySeconds,omitempty"`
}

// HostReadiness says whether one host could be fenced now.
type HostReadiness struct {
	NodeName string `json:"nodeName"`
	// Ready is True or False.
	Ready   string `json:"ready"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
	// Power is On, Off, Gone or Unreadable.
	Power string `json:"power,omitempty"`
	// Identity is Matches, Differs or Unchecked.
	Identity string `json:"identity,omitempty"`
	// Method that was read.
	Method string `json:"method,omitempty"`
	// LastGoodRead tells when the device last answered with the right identity.
	LastGoodRead *metav1.Time `json:"lastGoodRead,omitempty"`
}

// FencingProfileStatus says whether the hosts could be fenced now.
type FencingProfileStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	Hosts      int32              `json:"hosts"`
	Ready      int32              `json:"ready"`
	Unready    int32              `json:"unready"`
	// +listType=map
	// +listMapKey=nodeName
	Readiness []HostReadiness `json:"readiness,omitempty"`
	LastDrill *metav1.Time    `json:"lastDrill,omitempty"`
}

// FencingProfile says which hosts are fenced how.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=fp,categories=holdfast
// +kubebuilder:printcolumn:name="Hosts",type=integer,JSONPath=`.status.hosts`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Unready",type=integer,JSONPath=`.status.unready`
// +kubebuilder:printcolumn:name="Last-Drill",type=date,JSONPath=`.status.lastDrill`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type FencingProfile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   FencingProfileSpec   `json:"spec"`
	Status FencingProfileStatus `json:"status,omitempty,omitzero"`
}

// FencingProfileList is a list of FencingProfile.
// +kubebuilder:object:root=true
type FencingProfileList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FencingProfile `json:"items"`
}
