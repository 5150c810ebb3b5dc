// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Mode says how far Holdfast goes for an app. Holds stand in every mode.
// +kubebuilder:validation:Enum=Enforce;Shadow;Paused
type Mode string

const (
	// ModeEnforce holds, fences and migrates.
	ModeEnforce Mode = "Enforce"
	// ModeShadow holds, and only tells what it would have fenced and moved.
	ModeShadow Mode = "Shadow"
	// ModePaused holds and plans nothing.
	ModePaused Mode = "Paused"
)

// WorkloadReference names the guarded workload in the namespace of the GuardedStatefulApp.
type WorkloadReference struct {
	// +kubebuilder:validation:Enum=apps/v1
	APIVersion string `json:"apiVersion"`
	// +kubebuilder:validation:Enum=StatefulSet;Deployment
	Kind string `json:"kind"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// TCPProbe succeeds when the port accepts a connection.
type TCPProbe struct {
	// Port is a number or the name of a container port.
	Port intstr.IntOrString `json:"port"`
}

// HTTPProbe succeeds on a status from 200 to 399.
type HTTPProbe struct {
	// Port is a number or the name of a container port.
	Port intstr.IntOrString `json:"port"`
	// +kubebuilder:default="/"
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^/`
	Path string `json:"path,omitempty"`
	// +kubebuilder:default=HTTP
	// +kubebuilder:validation:Enum=HTTP;HTTPS
	Scheme string `json:"scheme,omitempty"`
}

// GRPCProbe succeeds when grpc.health.v1.Health/Check answers SERVING.
type GRPCProbe struct {
	// Port is a number or the name of a container port.
	Port intstr.IntOrString `json:"port"`
	// +kubebuilder:validation:MaxLength=253
	Service string `json:"service,omitempty"`
}

// Probe asks the application itself, at the pod's own address only.
// +kubebuilder:validation:XValidation:rule="[has(self.tcpSocket), has(self.httpGet), has(self.grpc)].filter(x, x).size() == 1",message="a probe has exactly one of tcpSocket, httpGet and grpc: remove the others"
// +kubebuilder:validation:XValidation:rule="self.timeoutSeconds <= self.periodSeconds",message="timeoutSeconds must not be longer than periodSeconds: lower timeoutSeconds or raise periodSeconds"
type Probe struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name      string     `json:"name"`
	TCPSocket *TCPProbe  `json:"tcpSocket,omitempty"`
	HTTPGet   *HTTPProbe `json:"httpGet,omitempty"`
	GRPC      *GRPCProbe `json:"grpc,omitempty"`
	// +kubebuilder:default=2
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=300
	PeriodSeconds int32 `json:"periodSeconds,omitempty"`
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=60
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10
	SuccessThreshold int32 `json:"successThreshold,omitempty"`
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=30
	FailureThreshold int32 `json:"failureThreshold,omitempty"`
}

// Health says how the application is asked whether it serves.
type Health struct {
	// StartupSeconds is how long a started pod may take before failing probes count.
	// +kubebuilder:default=120
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	StartupSeconds int32 `json:"startupSeconds,omitempty"`
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Probes []Probe `json:"probes"`
}

// Limit bounds how often an action may be taken in a sliding window.
type Limit struct {
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Count int32 `json:"count,omitempty"`
	// +kubebuilder:default=3600
	// +kubebuilder:validation:Minimum=60
	// +kubebuilder:validation:Maximum=604800
	WindowSeconds int32 `json:"windowSeconds,omitempty"`
}

// OnApplicationFailure is the answer to failing probes on a host that is well.
type OnApplicationFailure struct {
	// +kubebuilder:default=None
	// +kubebuilder:validation:Enum=None;Restart;Migrate
	Action string `json:"action,omitempty"`
	// +kubebuilder:default=60
	// +kubebuilder:validation:Minimum=5
	// +kubebuilder:validation:Maximum=86400
	AfterSeconds int32 `json:"afterSeconds,omitempty"`
	// +kubebuilder:default={count: 1, windowSeconds: 3600}
	Limit Limit `json:"limit,omitempty,omitzero"`
}

// WhenNotServing says what to do with a host that lives but whose application does not serve.
// +kubebuilder:validation:Enum=Hold;Fence
type WhenNotServing string

const (
	// NotServingHold waits and alerts.
	NotServingHold WhenNotServing = "Hold"
	// NotServingFence powers the host off, verified, and migrates.
	NotServingFence WhenNotServing = "Fence"
)

const (
	// TrafficKeep keeps the endpoint while the application serves.
	TrafficKeep = "Keep"
	// TrafficFollow leaves the endpoint to Kubernetes.
	TrafficFollow = "Follow"
)

const (
	// RepairNone leaves a kubelet alone.
	RepairNone = "None"
	// RepairRestartKubelet has the agent of a host that lives restart its kubelet, where that would help.
	RepairRestartKubelet = "RestartKubelet"
)

// OnKubeletFailure is the answer to a host whose kubelet is gone while the host lives.
type OnKubeletFailure struct {
	// Traffic Keep puts the endpoint back while the application's own probes pass.
	// +kubebuilder:default=Keep
	// +kubebuilder:validation:Enum=Keep;Follow
	Traffic string `json:"traffic,omitempty"`
	// Repair RestartKubelet has a kubelet whose lease has run out restarted by the host's agent, if runtime and API answer that, once in ten minutes. All apps on
	// the host have to ask for it.
	// +kubebuilder:default=None
	// +kubebuilder:validation:Enum=None;RestartKubelet
	Repair string `json:"repair,omitempty"`
	// +kubebuilder:default=Hold
	WhenNotServing WhenNotServing `json:"whenNotServing,omitempty"`
}

// OnIsolation is the answer to a host that lives but is cut off.
type OnIsolation struct {
	// +kubebuilder:default=Hold
	WhenNotServing WhenNotServing `json:"whenNotServing,omitempty"`
}

// ProofStrength orders what counts as proof that a host cannot write any more: Attested, SelfFenced, PowerOff, Gone, from the weakest to the strongest.
// +kubebuilder:validation:Enum=Attested;SelfFenced;PowerOff;Gone
type ProofStrength string

const (
	// ProofAttested is a human's word, with nothing that speaks against it.
	ProofAttested ProofStrength = "Attested"
	// ProofSelfFenced is a hardware watchdog that the host said is armed, and that must have reset it by now.
	ProofSelfFenced ProofStrength = "SelfFenced"
	// ProofPowerOff is an Off that was commanded and read back from the host's own power device.
	ProofPowerOff ProofStrength = "PowerOff"
	// ProofGone is a machine that does not exist any more at its provider.
	ProofGone ProofStrength = "Gone"
)

// MinimumProof is the weakest proof that lets a host's writers be released.
// +kubebuilder:validation:Enum=PowerOff;SelfFenced;Attested
type MinimumProof string

const (
	// MinimumProofPowerOff wants a device's proof.
	MinimumProofPowerOff MinimumProof = "PowerOff"
	// MinimumProofSelfFenced takes the host's own watchdog too, where no device can prove it.
	MinimumProofSelfFenced MinimumProof = "SelfFenced"
	// MinimumProofAttested takes a human's word too, and the watchdog.
	MinimumProofAttested MinimumProof = "Attested"
)

// OnHostLoss is the answer to a host that shows no sign of life.
type OnHostLoss struct {
	// +kubebuilder:default=FenceAndMigrate
	// +kubebuilder:validation:Enum=FenceAndMigrate;Hold
	Action string `json:"action,omitempty"`
	// ConfirmAfterSeconds is how long every source must be silent before a host whose power reads On is fenced.
	// +kubebuilder:default=15
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	ConfirmAfterSeconds int32 `json:"confirmAfterSeconds,omitempty"`
	// +kubebuilder:default=Automatic
	// +kubebuilder:validation:Enum=Automatic;Manual
	Approval string `json:"approval,omitempty"`
	// +kubebuilder:default=PowerOff
	MinimumProof MinimumProof `json:"minimumProof,omitempty"`
}

// RecycleAfter is after what connections are recycled.
// +kubebuilder:validation:Enum=Failover;ScaleOut;HostReturn
type RecycleAfter string

const (
	// RecycleAfterFailover: a successor of a pod that an incident released is ready.
	RecycleAfterFailover RecycleAfter = "Failover"
	// RecycleAfterScaleOut: more pods are ready than before.
	RecycleAfterScaleOut RecycleAfter = "ScaleOut"
	// RecycleAfterHostReturn: a pod is ready on a host from which an incident had released one.
	RecycleAfterHostReturn RecycleAfter = "HostReturn"
)

// Recycle has some of the clients' connections to the older pods end, so that they connect anew and new pods get load too.
type Recycle struct {
	// After lists the events after each of which one round is begun.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=3
	After []RecycleAfter `json:"after"`
	// Ports are those of the pods that clients connect to, each a number or the name of a container port. Connections to other ports, and those between pods of the app, are
	// left alone.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(p, type(p) == string ? p != '' : p > 0 && p < 65536)",message="a port is a number from 1 to 65535 or the name of a container port: correct it, or take it out"
	Ports []intstr.IntOrString `json:"ports"`
	// PerSecond is how many connections end in a second, on all hosts together.
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	PerSecond int32 `json:"perSecond,omitempty"`
	// MaxPercent is how many of the connections that there are when the round begins may end in it.
	// +kubebuilder:default=50
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxPercent int32 `json:"maxPercent,omitempty"`
}

// Connections says what is done about the connections of the app's clients while its pods live.
type Connections struct {
	// Recycle is off where it is not given. It needs agents that reset connections (GuardConfig, spec.witness).
	Recycle *Recycle `json:"recycle,omitempty"`
}

// Objectives are what the user wants and Holdfast checks its settings against.
type Objectives struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	RecoverWithinSeconds *int32 `json:"recoverWithinSeconds,omitempty"`
}

// GuardedStatefulAppSpec puts one workload under guard.
// +kubebuilder:validation:XValidation:rule="has(self.workloadRef) != has(self.podSelector)",message="set exactly one of workloadRef and podSelector"
// +kubebuilder:validation:XValidation:rule="has(self.workloadRef) == has(oldSelf.workloadRef) && (!has(self.workloadRef) || self.workloadRef == oldSelf.workloadRef)",message="workloadRef is immutable: delete this GuardedStatefulApp and create another"
// +kubebuilder:validation:XValidation:rule="has(self.podSelector) == has(oldSelf.podSelector) && (!has(self.podSelector) || self.podSelector == oldSelf.podSelector)",message="podSelector is immutable: delete this GuardedStatefulApp and create another"
// +kubebuilder:validation:XValidation:rule="self.health.probes.all(p, self.onHostLoss.confirmAfterSeconds >= 2 * p.periodSeconds)",message="onHostLoss.confirmAfterSeconds must be at least twice every health.probes[].periodSeconds: raise confirmAfterSeconds or lower periodSeconds"
// +kubebuilder:validation:XValidation:rule="!has(self.objectives) || !has(self.objectives.recoverWithinSeconds) || self.objectives.recoverWithinSeconds > self.onHostLoss.confirmAfterSeconds",message="objectives.recoverWithinSeconds must be longer than onHostLoss.confirmAfterSeconds: raise recoverWithinSeconds or lower confirmAfterSeconds"
// +kubebuilder:validation:XValidation:rule="!has(self.objectives) || !has(self.objectives.recoverWithinSeconds) || self.objectives.recoverWithinSeconds >= self.health.startupSeconds",message="objectives.recoverWithinSeconds must not be shorter than health.startupSeconds: raise recoverWithinSeconds or lower startupSeconds"
type GuardedStatefulAppSpec struct {
	WorkloadRef *WorkloadReference    `json:"workloadRef,omitempty"`
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// +kubebuilder:default=Enforce
	Mode   Mode   `json:"mode,omitempty"`
	Health Health `json:"health"`
	// +kubebuilder:default={action: None}
	OnApplicationFailure OnApplicationFailure `json:"onApplicationFailure,omitempty,omitzero"`
	// +kubebuilder:default={traffic: Keep}
	OnKubeletFailure OnKubeletFailure `json:"onKubeletFailure,omitempty,omitzero"`
	// +kubebuilder:default={whenNotServing: Hold}
	OnIsolation OnIsolation `json:"onIsolation,omitempty,omitzero"`
	// +kubebuilder:default={action: FenceAndMigrate}
	OnHostLoss  OnHostLoss  `json:"onHostLoss,omitempty,omitzero"`
	Connections Connections `json:"connections,omitempty,omitzero"`
	Objectives  *Objectives `json:"objectives,omitempty"`
}

// EvidenceRecord is one dated reading of one source, as the verdict saw it.
type EvidenceRecord struct {
	// Source is the name of the source, for example Lease, KubeletPort, Application, Power, Cluster.
	Source string `json:"source"`
	// Reading is the finding in words, for example "stale for 14s".
	Reading string `json:"reading"`
	// Rank is the kind of life that the reading shows: None, Kernel, Userspace, Writer.
	Rank string `json:"rank,omitempty"`
	// ObservedAt tells when; it decides nothing.
	ObservedAt metav1.Time `json:"observedAt"`
}

// Member is one pod of the app.
type Member struct {
	Pod    string `json:"pod"`
	PodUID string `json:"podUID"`
	Host   string `json:"host,omitempty"`
	// Healthy is True, False or Unknown.
	Healthy string `json:"healthy"`
	// Held is the name of the HostIncident that holds the pod, empty when it is free.
	Held string `json:"held,omitempty"`
	// Claims are the names of the PersistentVolumeClaims that the pod names.
	// +listType=set
	Claims []string `json:"claims,omitempty"`
	// Verdict of the pod's host.
	Verdict string `json:"verdict,omitempty"`
}

// RecycleRound is one round of recycling.
type RecycleRound struct {
	// Number counts the rounds of this app; the journal of one is never taken up by another leader.
	Number int64 `json:"number"`
	// After is the event, and Pods are the new pods that it brought.
	After RecycleAfter `json:"after"`
	// +listType=atomic
	Pods []string `json:"pods,omitempty"`
	// By names the leader that began it.
	By      string      `json:"by"`
	BeganAt metav1.Time `json:"beganAt"`
	// EndedAt is absent while it is under way; Because says then why it ended.
	EndedAt *metav1.Time `json:"endedAt,omitempty"`
	Because string       `json:"because,omitempty"`
	// Hosts is how many agents looked for connections, Found how many they found, Limit how many of them may end, and Ended how many were begun to be ended.
	Hosts int32 `json:"hosts,omitempty"`
	Found int32 `json:"found,omitempty"`
	Limit int32 `json:"limit,omitempty"`
	Ended int32 `json:"ended,omitempty"`
}

// ConnectionsStatus is the journal of recycling: by it no event is answered twice, whoever leads.
type ConnectionsStatus struct {
	// Known are the UIDs of the pods that are not new, and Size how many there were when all were ready.
	// +listType=set
	Known []string `json:"known,omitempty"`
	Size  int32    `json:"size,omitempty"`
	// Away are hosts from which incidents released pods of the app, and on which none has come since.
	// +listType=set
	Away []string `json:"away,omitempty"`
	// Waits says for what the next round waits, where new pods are the reason for one.
	Waits string `json:"waits,omitempty"`
	// Round is the last one.
	Round *RecycleRound `json:"round,omitempty"`
}

// GuardedStatefulAppStatus says what is held, why, since when and on what evidence.
type GuardedStatefulAppStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Workload is "kind/name", for the column.
	Workload string `json:"workload,omitempty"`
	// Healthy is "answering/members".
	Healthy string `json:"healthy,omitempty"`
	// Verdict, Host, Since, Reason and Proof are those of the member that needs most attention.
	Verdict string       `json:"verdict,omitempty"`
	Host    string       `json:"host,omitempty"`
	Since   *metav1.Time `json:"since,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	Proof   string       `json:"proof,omitempty"`
	// Incident is the open HostIncident of that host.
	Incident string `json:"incident,omitempty"`
	// Evidence is what that verdict rests on.
	// +listType=atomic
	Evidence []EvidenceRecord `json:"evidence,omitempty"`
	// +listType=map
	// +listMapKey=pod
	Members []Member `json:"members,omitempty"`
	// Connections is kept while the app asks for recycling.
	Connections *ConnectionsStatus `json:"connections,omitempty"`
	// ObservedBy names the leader that wrote this status, and LastObserved tells when it last looked (at most a minute old while a leader lives).
	ObservedBy   string       `json:"observedBy,omitempty"`
	LastObserved *metav1.Time `json:"lastObserved,omitempty"`
}

// GuardedStatefulApp puts one workload under guard.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="metadata.name must not be longer than 63 characters: guarded pods carry it as a label"
// +kubebuilder:resource:shortName=gsa,categories=holdfast
// +kubebuilder:printcolumn:name="Workload",type=string,JSONPath=`.status.workload`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Protected",type=string,JSONPath=`.status.conditions[?(@.type=="Protected")].status`
// +kubebuilder:printcolumn:name="Healthy",type=string,JSONPath=`.status.healthy`
// +kubebuilder:printcolumn:name="Held",type=string,JSONPath=`.status.conditions[?(@.type=="Held")].status`
// +kubebuilder:printcolumn:name="Verdict",type=string,JSONPath=`.status.verdict`
// +kubebuilder:printcolumn:name="Host",type=string,JSONPath=`.status.host`
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.since`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Proof",type=string,JSONPath=`.status.proof`,priority=1
// +kubebuilder:printcolumn:name="Fencing",type=string,JSONPath=`.status.conditions[?(@.type=="FencingReady")].status`,priority=1
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`,priority=1
type GuardedStatefulApp struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   GuardedStatefulAppSpec   `json:"spec"`
	Status GuardedStatefulAppStatus `json:"status,omitempty,omitzero"`
}

// GuardedStatefulAppList is a list of GuardedStatefulApp.
// +kubebuilder:object:root=true
type GuardedStatefulAppList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GuardedStatefulApp `json:"items"`
}
