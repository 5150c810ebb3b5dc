// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Conditions of a GuardedStatefulApp. Those of the first group are True when all is well, those of the
// second are True when something is not. All are written from the start, Unknown where nothing is known yet.
const (
	ConditionAccepted           = "Accepted"
	ConditionProtected          = "Protected"
	ConditionApplicationHealthy = "ApplicationHealthy"
	ConditionFencingReady       = "FencingReady"
	ConditionPostureClean       = "PostureClean"
	ConditionReady              = "Ready"

	ConditionHeld             = "Held"
	ConditionReconciling      = "Reconciling"
	ConditionStalled          = "Stalled"
	ConditionConflicted       = "Conflicted"
	ConditionApprovalRequired = "ApprovalRequired"
	ConditionBudgetExhausted  = "BudgetExhausted"
)

// Conditions of a HostIncident; it has ConditionStalled as well.
const (
	ConditionProofEstablished = "ProofEstablished"
	ConditionReleased         = "Released"
	ConditionRecovered        = "Recovered"
	ConditionReturnCleared    = "ReturnCleared"

	ConditionBlocked      = "Blocked"
	ConditionProofRefuted = "ProofRefuted"
)

// ConditionPoliciesEffective of the GuardConfig: the admission policies were tried by a canary, and refused what they must.
const ConditionPoliciesEffective = "PoliciesEffective"

// ConditionWitnessesReady of the GuardConfig: an agent runs on every host, as the GuardConfig asks.
const ConditionWitnessesReady = "WitnessesReady"

// ConditionLetIn of a pod: whether it may pass Holdfast's gate. While it is False, its message says for what the pod waits.
const ConditionLetIn = "guard.holdfast.dev/LetIn"

// Reasons, one list for every kind. A reason that depends on the verdict is the verdict's own name.
const (
	ReasonPending            = "Pending"
	ReasonAccepted           = "Accepted"
	ReasonWorkloadMissing    = "WorkloadMissing"
	ReasonWorkloadTaken      = "WorkloadTaken"
	ReasonNoVolumes          = "NoVolumes"
	ReasonPreflightFailed    = "PreflightFailed"
	ReasonPoliciesEffective  = "PoliciesEffective"
	ReasonPoliciesMissing    = "PoliciesMissing"
	ReasonPoliciesNotProven  = "PoliciesNotProven"
	ReasonPodsUnlabelled     = "PodsUnlabelled"
	ReasonPartiallyProtected = "PartiallyProtected"
	ReasonProbesPass         = "ProbesPass"
	ReasonProbesFail         = "ProbesFail"
	ReasonNotProbed          = "NotProbed"
	ReasonHostsReady         = "HostsReady"
	ReasonHostsUnready       = "HostsUnready"
	ReasonNoProfile          = "NoProfile"
	ReasonProfileConflicted  = "ProfileConflicted"
	ReasonNoFindings         = "NoFindings"
	ReasonFindings           = "Findings"
	ReasonNothingHeld        = "NothingHeld"
	ReasonAllWell            = "AllWell"
	ReasonNotAllWell         = "NotAllWell"
	ReasonAwaitingApproval   = "AwaitingApproval"
	ReasonNoneNeeded         = "NoneNeeded"
	ReasonWithinBudget       = "WithinBudget"
	ReasonBudgetSpent        = "BudgetSpent"
	ReasonBudgetUnknown      = "BudgetUnknown"

	ReasonWaiting = "Waiting"
	ReasonLetIn   = "LetIn"

	ReasonVerifiedOff      = "VerifiedOff"
	ReasonVerifiedGone     = "VerifiedGone"
	ReasonAttested         = "AttestedDead"
	ReasonSelfFenced       = "SelfFenced"
	ReasonNotEstablished   = "NotEstablished"
	ReasonPodsReleased     = "PodsReleased"
	ReasonNotReleased      = "NotReleased"
	ReasonApplicationsUp   = "ApplicationsUp"
	ReasonNotRecovered     = "NotRecovered"
	ReasonNewBoot          = "NewBoot"
	ReasonNotReturned      = "NotReturned"
	ReasonNotBlocked       = "NotBlocked"
	ReasonStepOverdue      = "StepOverdue"
	ReasonWithinBounds     = "WithinBounds"
	ReasonIdentityMismatch = "IdentityMismatch"
	ReasonLifeAfterOff     = "LifeAfterOff"
	ReasonNotRefuted       = "NotRefuted"

	ReasonNoMethod           = "NoFencingMethod"
	ReasonDeviceContradicted = "DeviceContradicted"
	ReasonOtherMachine       = "OtherMachine"
	ReasonForeignFinalizer   = "ForeignFinalizer"
	ReasonActionHold         = "ActionHold"
	ReasonSameBoot           = "SameBoot"
	ReasonUnsettledAttempt   = "UnsettledAttempt"

	ReasonOverlap          = "OverlappingProfiles"
	ReasonSecretMissing    = "SecretMissing"
	ReasonSecretMalformed  = "SecretMalformed"
	ReasonDeviceUnreadable = "DeviceUnreadable"
	ReasonDeviceDenied     = "DeviceDenied"
	ReasonHostUnlisted     = "HostUnlisted"
	ReasonNodeMissing      = "NodeMissing"
	ReasonDeviceReady      = "DeviceReady"

	ReasonWitnessesReady    = "AgentsReady"
	ReasonWitnessesUnready  = "AgentsUnready"
	ReasonWitnessesFailing  = "AgentsFailing"
	ReasonWitnessesDisabled = "Disabled"
	ReasonRollingOut        = "RollingOut"
	ReasonNamespaceMissing  = "NamespaceMissing"
)
