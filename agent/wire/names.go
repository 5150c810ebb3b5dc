// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

// Ports of the agents, where nothing else is configured. They are not memberlist's own 7946: others that use memberlist on the host network, as MetalLB does,
// have that one.
const (
	GossipPort = 7948
	Port       = 7947
)

// Signer is the signer of the certificates that agents ask for.
const Signer = "guard.holdfast.dev/witness"

// ManagerName is the URI of the manager's certificate.
const ManagerName = "holdfast:manager"

// WitnessName is the URI of the certificate of the agent on a Node.
func WitnessName(node string) string { return "holdfast:witness/" + node }

// Namespace is where the agents run, and each keeps the Lease of its host.
const Namespace = "holdfast-witness"

// Annotations of the Lease of a host.
const (
	// AnnotationSelfFence is within how many seconds of the word that the Lease is a watchdog resets the host, unless it says another. Absent where none does.
	AnnotationSelfFence = "guard.holdfast.dev/self-fence-seconds"
	// AnnotationPulse is "true" on a word that was not said because nobody is heard.
	AnnotationPulse = "guard.holdfast.dev/pulse"
)

// MaxSelfFenceSeconds is how many seconds a host may give itself at most: those of the longest span and twice the longest timeout of agent/watchdog, and more.
const MaxSelfFenceSeconds = 7200
