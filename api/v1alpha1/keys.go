// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Keys that Holdfast puts on objects of others. Only Holdfast and its own policies may add or remove them.
const (
	// LabelApp marks a pod that names a guarded claim; the value is the GuardedStatefulApp's name.
	// The *always* policies select pods by it.
	LabelApp = "guard.holdfast.dev/app"
	// LabelHold marks a pod whose host is suspect; the value is the HostIncident's name.
	// The *armed* policies select pods by it. The GuardConfig and the definitions of our kinds carry it, with the value "armed", while an incident is open:
	// they must not be deleted then.
	LabelHold = "guard.holdfast.dev/hold"
	// LabelTraffic marks a guarded pod whose app wants its endpoint kept; the value is TrafficKeep. While no manager leads, the silence of its host
	// does not take such a pod out of its Services.
	LabelTraffic = "guard.holdfast.dev/traffic"
	// FinalizerHold keeps the name of a held pod taken. It exists only while the hold is armed.
	FinalizerHold = "guard.holdfast.dev/hold"
	// LabelCarries marks a Node that carries pods of guarded apps: the Node must not be deleted.
	LabelCarries = "guard.holdfast.dev/carries"
	// LabelGuardedVolume marks a VolumeAttachment of a guarded claim, which must not be deleted, and a PersistentVolume
	// bound to one, which must stay bound to it.
	LabelGuardedVolume = "guard.holdfast.dev/volume"
	// AnnotationHeld on a Namespace lists the pods that are held in it, as "pod=incident" separated by commas:
	// an Eviction carries no pod labels, so the eviction policy reads it as namespaceObject.
	AnnotationHeld = "guard.holdfast.dev/held"
	// AnnotationClaims on a Namespace lists the guarded claims in it, as "app=claim[@place]" separated by commas. A "*"
	// that ends the claim stands for the digits of an ordinal. The place is the name of the only pod that may start on
	// the claim without GateNewcomer; a "*" that ends it stands for the same digits. Without a place every pod on the
	// claim is a newcomer. The policies for new pods read it; package admission computes the same in Go.
	AnnotationClaims = "guard.holdfast.dev/claims"
	// GateNewcomer is the scheduling gate of a pod that names a guarded claim and is not in its place there. Only
	// Holdfast lifts it, once nothing on another host may still write to a guarded claim of the pod; an override may too.
	GateNewcomer = "guard.holdfast.dev/newcomer"
	// AnnotationApproved on a HostIncident is a human's word that the host may be fenced; the value is the boot ID.
	AnnotationApproved = "guard.holdfast.dev/approved"
	// AnnotationAdmitted on a Namespace lists which pods are being let in on which claims, as "claim=UID" separated by commas. Of the pods that wait
	// at the gate, no other is let in on such a claim.
	AnnotationAdmitted = "guard.holdfast.dev/admitted"
	// AnnotationOverride on a pod, set by a caller with the verb override on guardedstatefulapps,
	// lets that caller past the hold; the value is the reason.
	AnnotationOverride = "guard.holdfast.dev/override"
	// FinalizerApp keeps a GuardedStatefulApp until nothing of it is held.
	FinalizerApp = "guard.holdfast.dev/app"
	// TaintFenced is Holdfast's own NoExecute taint; the value is the HostIncident's name.
	TaintFenced = "guard.holdfast.dev/fenced"
	// TaintOutOfService is the taint of Kubernetes that releases attachments at once.
	TaintOutOfService = "node.kubernetes.io/out-of-service"
)

// NodeConditionVerdict is our condition on Nodes: True while an incident of the host is open, with the verdict as its reason.
const NodeConditionVerdict = "HoldfastVerdict"

// GuardConfigName is the name of the only GuardConfig.
const GuardConfigName = "cluster"
