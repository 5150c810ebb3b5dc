// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// FenceBudget bounds the Off commands that change state, in a sliding window over the whole cluster.
type FenceBudget struct {
	// Count of Off commands; zero fences nothing.
	// +kubebuilder:default=2
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Count int32 `json:"count"`
	// +kubebuilder:default=3600
	// +kubebuilder:validation:Minimum=60
	// +kubebuilder:validation:Maximum=604800
	WindowSeconds int32 `json:"windowSeconds,omitempty"`
}

// Blindness says when Holdfast holds its own view to be the sick one.
type Blindness struct {
	// StaleHostsPercent of all hosts with a stale lease is too much to be true. At least two hosts must be stale.
	// +kubebuilder:default=50
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	StaleHostsPercent int32 `json:"staleHostsPercent,omitempty"`
	// APISilentSeconds without one successful live read means that the API view is bad.
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=300
	APISilentSeconds int32 `json:"apiSilentSeconds,omitempty"`
}

// IncidentRetention says which incidents that are over stay on record. One that is open stays, and one whose Off commands the fence budget still counts.
type IncidentRetention struct {
	// PerNode is how many stay for each node, the newest.
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	PerNode int32 `json:"perNode,omitempty"`
	// MaxAgeSeconds after they were last observed they go, however few there are.
	// +kubebuilder:default=2592000
	// +kubebuilder:validation:Minimum=3600
	// +kubebuilder:validation:Maximum=315360000
	MaxAgeSeconds int32 `json:"maxAgeSeconds,omitempty"`
}

// Witness says whether an agent watches on every host, and how it is reached.
// +kubebuilder:validation:XValidation:rule="self.gossipPort != self.port",message="gossipPort and port are both TCP ports of the host: they must differ"
type Witness struct {
	// Enabled has the manager keep an agent on every host.
	// +kubebuilder:default=false
	Enabled bool `json:"enabled,omitempty"`
	// GossipPort is the UDP and TCP port on which the agents of all hosts hear each other.
	// +kubebuilder:default=7948
	// +kubebuilder:validation:Minimum=1024
	// +kubebuilder:validation:Maximum=65535
	GossipPort int32 `json:"gossipPort,omitempty"`
	// Port is the TCP port on which the manager asks an agent.
	// +kubebuilder:default=7947
	// +kubebuilder:validation:Minimum=1024
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
	// RuntimeSocket is where the container runtime listens on every host. Its directory is shown to the agent.
	// +kubebuilder:default="/run/containerd/containerd.sock"
	// +kubebuilder:validation:MaxLength=100
	// +kubebuilder:validation:Pattern=`^(/[A-Za-z0-9_-][A-Za-z0-9._-]*){2,}$`
	RuntimeSocket string `json:"runtimeSocket,omitempty"`
	// KubeletUnit is the systemd unit that is the kubelet on every host, as kubelet.service. With it agents reach the system's D-Bus and can restart the kubelet
	// (onKubeletFailure.repair). Without it they restart nothing.
	// +kubebuilder:validation:MaxLength=100
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9:_.@-]+\.service$`
	KubeletUnit string `json:"kubeletUnit,omitempty"`
	// AwaitKubeletLease has every proof of a host's loss wait until the kubelet, if it lived, would have renewed its lease: 11 s after it last did, by
	// Kubernetes' defaults. Without it the word of the host's own agent, which would come sooner, is waited for where that can be relied on.
	// +kubebuilder:default=false
	AwaitKubeletLease bool `json:"awaitKubeletLease,omitempty"`
	// ResetConnections has the agents end TCP connections to the pods of a host that is proven lost, for two minutes after each pod's release. For it they get
	// the capabilities NET_ADMIN and NET_RAW.
	// +kubebuilder:default=true
	ResetConnections *bool `json:"resetConnections,omitempty"`
	// Watchdog has the agents arm a hardware watchdog on every host that has one of those named. Without it no host fences itself. It makes the agents privileged, and agents are then
	// replaced by nobody but a human, since to end one may be to reset its host.
	Watchdog *WitnessWatchdog `json:"watchdog,omitempty"`
}

// WitnessWatchdog is a hardware watchdog that resets a host when the API has not taken the word of its agent for too long.
// +kubebuilder:validation:XValidation:rule="self.device.matches('^/dev/watchdog[0-9]+$')",message="watchdog.device must be /dev/watchdogN with its number, as /dev/watchdog0: list those of a host with ls /sys/class/watchdog"
// +kubebuilder:validation:XValidation:rule="self.identities.all(i, i.matches('^[^, ]([^,]*[^, ])?$'))",message="watchdog.identities: one has a comma, or a space at an end: give each as cat /sys/class/watchdog/watchdog0/identity prints it"
// +kubebuilder:validation:XValidation:rule="self.identities.all(i, !['software', 'softdog', 'virtual', 'virtio', 'qemu', 'i6300esb', 'ib700', 'kvm', 'xen', 'hyper-v', 'hyperv', 'vmware', 'vbox', 'powervm', 'pseries', 'diag288', 'z/vm'].exists(v, i.lowerAscii().contains(v)))",message="watchdog.identities names software or a virtual machine's device, which is never armed: give those of hardware that you have seen reset a host"
type WitnessWatchdog struct {
	// Device on every host, as /dev/watchdog0. A host without it, or where it has another identity, does not fence itself.
	// +kubebuilder:validation:MaxLength=32
	Device string `json:"device"`
	// Identities that the device may have, as /sys/class/watchdog/watchdog0/identity gives them: those of hardware that you have seen reset a host.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=31
	Identities []string `json:"identities"`
	// ContactSeconds after the last word of an agent's that the API took, its host is let go. An API that is away for longer resets every host that is armed.
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=600
	ContactSeconds int32 `json:"contactSeconds,omitempty"`
	// TimeoutSeconds that the device is set to. Whoever takes an agent's place must be there before it is over.
	// +kubebuilder:default=60
	// +kubebuilder:validation:Minimum=4
	// +kubebuilder:validation:Maximum=600
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`
}

// Resets reports whether connections to the pods of lost hosts are reset: where agents run, unless somebody said no.
func (w Witness) Resets() bool {
	return w.Enabled && (w.ResetConnections == nil || *w.ResetConnections)
}

// GuardConfigSpec holds what concerns the whole cluster.
type GuardConfigSpec struct {
	// +kubebuilder:default={count: 2, windowSeconds: 3600}
	FenceBudget FenceBudget `json:"fenceBudget,omitempty,omitzero"`
	// +kubebuilder:default={staleHostsPercent: 50, apiSilentSeconds: 5}
	Blindness Blindness `json:"blindness,omitempty,omitzero"`
	// LeaseStaleSeconds after which a kubelet's lease counts as stale. Zero means the lease's own duration.
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=600
	LeaseStaleSeconds int32 `json:"leaseStaleSeconds,omitempty"`
	// +kubebuilder:default={perNode: 10, maxAgeSeconds: 2592000}
	IncidentRetention IncidentRetention `json:"incidentRetention,omitempty,omitzero"`
	// +kubebuilder:default={enabled: false, gossipPort: 7948, port: 7947, runtimeSocket: "/run/containerd/containerd.sock"}
	Witness Witness `json:"witness,omitempty,omitzero"`
}

// GuardConfigStatus says whether the guard itself stands.
type GuardConfigStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// PolicyVersion is the version of the admission policies that were proven effective.
	PolicyVersion string `json:"policyVersion,omitempty"`
	// PoliciesProvenAt tells when the canary was last refused everything it should be refused.
	PoliciesProvenAt *metav1.Time `json:"policiesProvenAt,omitempty"`
	Leader           string       `json:"leader,omitempty"`
	LastObserved     *metav1.Time `json:"lastObserved,omitempty"`
}

// GuardConfig holds what concerns the whole cluster; its name is "cluster".
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=gc,categories=holdfast
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'cluster'",message="there is one GuardConfig and its name is cluster"
// +kubebuilder:printcolumn:name="Policies",type=string,JSONPath=`.status.policyVersion`
// +kubebuilder:printcolumn:name="Proven",type=date,JSONPath=`.status.policiesProvenAt`
// +kubebuilder:printcolumn:name="Leader",type=string,JSONPath=`.status.leader`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GuardConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	Spec   GuardConfigSpec   `json:"spec,omitempty,omitzero"`
	Status GuardConfigStatus `json:"status,omitempty,omitzero"`
}

// GuardConfigList is a list of GuardConfig.
// +kubebuilder:object:root=true
type GuardConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GuardConfig `json:"items"`
}
