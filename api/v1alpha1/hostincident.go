// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// HostIncidentSpec names the host and the boot that the incident is about.
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec of a HostIncident is immutable: it names one host in one boot"
type HostIncidentSpec struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// +kubebuilder:validation:MaxLength=64
	NodeUID string `json:"nodeUID"`
	// +kubebuilder:validation:MaxLength=64
	BootID string `json:"bootID"`
	// +kubebuilder:validation:MaxLength=64
	SystemUUID string `json:"systemUUID"`
	// Episode counts incidents of the same boot, from 1.
	// +kubebuilder:validation:Minimum=1
	Episode int32 `json:"episode"`
}

// IncidentStep is how far an incident has come.
// +kubebuilder:validation:Enum=Suspected;Holding;Confirmed;Fencing;Releasing;Recovering;Resolved;Closed;Retired
type IncidentStep string

const (
	// StepSuspected: something is wrong, nothing is decided.
	StepSuspected IncidentStep = "Suspected"
	// StepHolding: the host lives; its writers are held where they are.
	StepHolding IncidentStep = "Holding"
	// StepConfirmed: the loss is confirmed; fencing comes next.
	StepConfirmed IncidentStep = "Confirmed"
	// StepFencing: an Off was journalled.
	StepFencing IncidentStep = "Fencing"
	// StepReleasing: proof stands; writers are being released.
	StepReleasing IncidentStep = "Releasing"
	// StepRecovering: everything is released; successors start.
	StepRecovering IncidentStep = "Recovering"
	// StepResolved: successors serve; the host has not come back.
	StepResolved IncidentStep = "Resolved"
	// StepClosed: over.
	StepClosed IncidentStep = "Closed"
	// StepRetired: over; the host will never come back.
	StepRetired IncidentStep = "Retired"
)

// Over reports whether an incident at this step has ended.
func (s IncidentStep) Over() bool { return s == StepClosed || s == StepRetired }

// AttemptState is what is known about one Off command. See docs/spec/fencing.md.
// +kubebuilder:validation:Enum=Intended;Accepted;Failed;Unclear;Settled;Superseded
type AttemptState string

const (
	// AttemptIntended: journalled; the device may or may not have been called.
	AttemptIntended AttemptState = "Intended"
	// AttemptAccepted: the device took the command; nothing is believed yet.
	AttemptAccepted AttemptState = "Accepted"
	// AttemptFailed: the device refused, or was never reached.
	AttemptFailed AttemptState = "Failed"
	// AttemptUnclear: no answer came; the command may have worked.
	AttemptUnclear AttemptState = "Unclear"
	// AttemptSettled: an Accepted command was followed by a reading of Off.
	AttemptSettled AttemptState = "Settled"
	// AttemptSuperseded: a later reading showed that the command had no effect, or nobody knows whether it was taken; a new one may be made.
	AttemptSuperseded AttemptState = "Superseded"
)

// Attempt is one Off command, journalled before it is given.
type Attempt struct {
	// ID is unique in the incident.
	ID     string       `json:"id"`
	Method string       `json:"method"`
	Level  int32        `json:"level"`
	State  AttemptState `json:"state"`
	// Device is the address and port of the device that was commanded: what another one reads says nothing of this attempt.
	Device     string       `json:"device,omitempty"`
	IntendedAt metav1.Time  `json:"intendedAt"`
	AnsweredAt *metav1.Time `json:"answeredAt,omitempty"`
	SettledAt  *metav1.Time `json:"settledAt,omitempty"`
	// By names the leader that made the attempt.
	By string `json:"by,omitempty"`
	// PowerBefore is what the device read just before the command.
	PowerBefore string `json:"powerBefore,omitempty"`
	// Message is the device's answer in words, without secrets.
	Message string `json:"message,omitempty"`
}

// RepairState is what is known about one restart of a kubelet.
// +kubebuilder:validation:Enum=Intended;Withdrawn;Done;Failed;Unclear
type RepairState string

const (
	// RepairIntended: journalled; the agent may or may not have been asked.
	RepairIntended RepairState = "Intended"
	// RepairWithdrawn: by a last look it was not owed any more; the agent was not asked.
	RepairWithdrawn RepairState = "Withdrawn"
	// RepairDone: the agent says that the restart was ordered, or is over.
	RepairDone RepairState = "Done"
	// RepairFailed: nothing was restarted.
	RepairFailed RepairState = "Failed"
	// RepairUnclear: no answer came; it may have been restarted.
	RepairUnclear RepairState = "Unclear"
)

// Repair is one restart of the host's kubelet by its agent, journalled before it is asked for.
type Repair struct {
	// ID is unique in the incident.
	ID         string       `json:"id"`
	State      RepairState  `json:"state"`
	IntendedAt metav1.Time  `json:"intendedAt"`
	AnsweredAt *metav1.Time `json:"answeredAt,omitempty"`
	// By names the leader that made it.
	By string `json:"by,omitempty"`
	// Because says why it was owed, and Message what the agent answered.
	Because string `json:"because,omitempty"`
	Message string `json:"message,omitempty"`
}

// ProofPart is what one method contributes to a proof.
type ProofPart struct {
	Method   string        `json:"method"`
	Strength ProofStrength `json:"strength"`
	// Covers is Host or a list of CSI drivers.
	// +listType=set
	Covers []string `json:"covers"`
	// Identity that the device reported, normalised.
	Identity  string `json:"identity"`
	AttemptID string `json:"attemptID"`
}

// Proof is why the host cannot write any more, in this boot.
type Proof struct {
	// Strength is that of the weakest part.
	Strength ProofStrength `json:"strength"`
	// Method names the methods of all parts, separated by commas.
	Method string `json:"method"`
	// Covers is what the parts cover together: Host or a list of CSI drivers.
	// +listType=set
	Covers []string `json:"covers"`
	BootID string   `json:"bootID"`
	// Identity and AttemptID are those of the first part.
	Identity      string      `json:"identity"`
	AttemptID     string      `json:"attemptID"`
	EstablishedAt metav1.Time `json:"establishedAt"`
	// Parts are the methods that together cover every volume of every pod that was on the host.
	// +listType=map
	// +listMapKey=method
	Parts []ProofPart `json:"parts,omitempty"`
}

// IncidentPod is one guarded pod of the host.
type IncidentPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	App       string `json:"app"`
	// Addresses are those that the pod had for itself; a pod on its host's network has none.
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	Addresses []string `json:"addresses,omitempty"`
	// ReleasedAt is set once the object is gone after proof.
	ReleasedAt *metav1.Time `json:"releasedAt,omitempty"`
}

// ConnectionReset is one address of a released pod, the connections to which are reset on the hosts that are left.
type ConnectionReset struct {
	Address string      `json:"address"`
	Since   metav1.Time `json:"since"`
	// EndedAt is when the address was let go, and Ended why.
	EndedAt *metav1.Time `json:"endedAt,omitempty"`
	Ended   string       `json:"ended,omitempty"`
	// Hosts is how many hosts are asked, Done how many have done it at least once, and Connections how many connections they found.
	Hosts       int32 `json:"hosts,omitempty"`
	Done        int32 `json:"done,omitempty"`
	Connections int32 `json:"connections,omitempty"`
}

// Phase is one stretch of the incident's time.
type Phase struct {
	Name      string      `json:"name"`
	StartedAt metav1.Time `json:"startedAt"`
	// DurationMillis is measured on the leader's monotonic clock; -1 while the phase runs.
	DurationMillis int64 `json:"durationMillis"`
}

// RuleFinding is what one rule of docs/spec/verdicts.md said.
type RuleFinding struct {
	Rule    string `json:"rule"`
	Says    string `json:"says"`
	Because string `json:"because"`
}

// DecidedSetting is one setting by which the host is treated, and who asked for it: of several apps on a host the most careful wins.
type DecidedSetting struct {
	Setting string `json:"setting"`
	Value   string `json:"value"`
	// By names apps ("namespace/name"), or the FencingProfile whose floor it is.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	By []string `json:"by,omitempty"`
}

// JournalVersion is the version of the journal that this code writes. A manager leaves a journal of a newer version alone: it holds, and takes no step
// that cannot be undone. One of an older version is brought up to this one. Zero is what the first release wrote.
const JournalVersion = 1

// HostIncidentStatus is the journal.
type HostIncidentStatus struct {
	// JournalVersion says how the journal is to be read.
	JournalVersion int32 `json:"journalVersion,omitempty"`
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	Step       IncidentStep       `json:"step,omitempty"`
	Verdict    string             `json:"verdict,omitempty"`
	// Since is when the present verdict began.
	Since *metav1.Time `json:"since,omitempty"`
	// Doing and Next say in words what is being done and what would end the present step.
	Doing string `json:"doing,omitempty"`
	Next  string `json:"next,omitempty"`
	// +listType=atomic
	Findings []RuleFinding `json:"findings,omitempty"`
	// +listType=atomic
	Evidence []EvidenceRecord `json:"evidence,omitempty"`
	// +listType=map
	// +listMapKey=id
	Attempts []Attempt `json:"attempts,omitempty"`
	// Repairs are restarts of the host's kubelet, the latest eight.
	// +listType=map
	// +listMapKey=id
	// +kubebuilder:validation:MaxItems=8
	Repairs []Repair `json:"repairs,omitempty"`
	Proof   *Proof   `json:"proof,omitempty"`
	// Distrusted methods lied in this incident; a human resets them by closing it.
	// +listType=set
	Distrusted []string `json:"distrusted,omitempty"`
	// +listType=map
	// +listMapKey=uid
	Pods []IncidentPod `json:"pods,omitempty"`
	// Resets are the addresses of released pods, the connections to which are or were reset.
	// +listType=map
	// +listMapKey=address
	// +kubebuilder:validation:MaxItems=128
	Resets []ConnectionReset `json:"resets,omitempty"`
	// Apps is the number of guarded apps on the host, for the column.
	Apps int32 `json:"apps,omitempty"`
	// Settings are those that the apps on the host, their profile and the GuardConfig ask for together.
	// +listType=map
	// +listMapKey=setting
	Settings []DecidedSetting `json:"settings,omitempty"`
	// ProofSummary is for the column.
	ProofSummary string `json:"proofSummary,omitempty"`
	// +listType=map
	// +listMapKey=name
	Phases       []Phase      `json:"phases,omitempty"`
	LastObserved *metav1.Time `json:"lastObserved,omitempty"`
	ObservedBy   string       `json:"observedBy,omitempty"`
}

// HostIncident is the journal of one host's trouble in one boot. Creating it is the lock.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="metadata.name must not be longer than 63 characters: held pods carry it as a label"
// +kubebuilder:resource:scope=Cluster,shortName=hi,categories=holdfast
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Verdict",type=string,JSONPath=`.status.verdict`
// +kubebuilder:printcolumn:name="Step",type=string,JSONPath=`.status.step`
// +kubebuilder:printcolumn:name="Proof",type=string,JSONPath=`.status.proofSummary`
// +kubebuilder:printcolumn:name="Apps",type=integer,JSONPath=`.status.apps`
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.since`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type HostIncident struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   HostIncidentSpec   `json:"spec"`
	Status HostIncidentStatus `json:"status,omitempty,omitzero"`
}

// HostIncidentList is a list of HostIncident.
// +kubebuilder:object:root=true
type HostIncidentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []HostIncident `json:"items"`
}
