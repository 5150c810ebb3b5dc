// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire has what the witness agents and the manager say to each other, as JSON over mutual TLS: see docs/spec/witness.md.
//
// No instant crosses the wire, since no two hosts share a clock. What is dated is dated by its age, in milliseconds on the monotonic clock of whoever
// answers, up to the answer. Whoever asked takes the moment of asking less the age: the thing happened no earlier than that.
package wire

import (
	"errors"
	"time"
)

// Paths of the agent's API.
const (
	PathView    = "/v1/view"
	PathProbe   = "/v1/probe"
	PathReset   = "/v1/connections/reset"
	PathRecycle = "/v1/connections/recycle"
	PathRestart = "/v1/kubelet/restart"
)

// Limits of requests and answers.
const (
	// MetaBytes is how much one host's facts may take in gossip (memberlist.MetaMaxSize).
	MetaBytes = 512
	// Questions is how many a probe request may hold.
	Questions = 16
	// ProbeMillis bounds all answers to a probe request together.
	ProbeMillis = 2000
	// OpenMillis is how long it waits for a kernel to accept a connection, and for another agent to answer. A kernel sends a SYN again after a second: who waits
	// for less has asked once, and who waits for a little more has too.
	OpenMillis = 750
	// WaitMillis is how long a view may be awaited.
	WaitMillis = 30000
	// Addresses is how many addresses a reset request may name, and LoseMillis how long one may be lost at a time.
	Addresses  = 16
	LoseMillis = 120000
	// ResetMillis bounds what is done for a reset request.
	ResetMillis = 4000
	// Servers is how many addresses with ports a look for connections may name, and how many clients it may except; RoundBytes bounds the name of a round.
	Servers    = 512
	RoundBytes = 64
	// RecyclePerSecond is how many connections to pods that live an agent ends per second at most, and RecycleSeconds for how many seconds' worth it may be asked at a time.
	RecyclePerSecond = 20
	RecycleSeconds   = 5
	// RecycleMillis bounds what is done for a recycle request.
	RecycleMillis = 10000
	// RestartMillis is how long the end of a kubelet's restart is waited for.
	RestartMillis = 20000
	// WindowMillis is in what time the kubelet is restarted once, where the request says nothing else; it may say between LeastWindowMillis and MostWindowMillis.
	WindowMillis      = 600000
	LeastWindowMillis = 60000
	MostWindowMillis  = 86400000
	// ReasonBytes is how much of a reason may be given.
	ReasonBytes = 500
)

// Millis is an age as it is said: rounded up, and not below zero. What is dated by it happened no earlier than that.
func Millis(age time.Duration) int64 {
	return int64((max(age, 0) + time.Millisecond - 1) / time.Millisecond)
}

// Pulse is whether something on the agent's own host answered the agent when it was last asked.
type Pulse string

// Values of Pulse. The empty one is Unread.
const (
	Unread Pulse = ""
	Alive  Pulse = "Alive"
	Dead   Pulse = "Dead"
)

// Facts are what an agent says of its own host.
type Facts struct {
	Node string `json:"node"`
	// BootID is empty where what came of a host could not be read; nothing else is known of it then but its State.
	BootID     string `json:"bootID"`
	SystemUUID string `json:"systemUUID,omitempty"`
	// Kubelet answers on 127.0.0.1:10248/healthz; Runtime answers the CRI's Version; API answers this host at all, whoever is asking.
	Kubelet Pulse `json:"kubelet,omitempty"`
	Runtime Pulse `json:"runtime,omitempty"`
	API     Pulse `json:"api,omitempty"`
	// Storage is Dead where a block device under a pod's volume has requests under way and completes none, and Alive where the kernel counts and none is so.
	Storage Pulse `json:"storage,omitempty"`
	// Memory and IO are Dead while the host's processes do little else than wait for it.
	Memory Pulse `json:"memory,omitempty"`
	IO     Pulse `json:"io,omitempty"`
	// SelfFenceSeconds: a hardware watchdog resets this host at the latest so long after the beginning of the last question that the API, or where it is so set up a
	// majority of agents, answered it. 0: none does. It is no proof of anything, as what the host's Lease says may be: docs/adr/0015-a-host-that-fences-itself.md.
	SelfFenceSeconds int64 `json:"selfFenceSeconds,omitempty"`
	// Revision grows with each change of the above in one life of the agent.
	Revision uint64 `json:"revision"`
}

// State is what gossip makes of a host.
type State string

// Values of State. A host that left in order, and one that gossip has never heard of, are not in the view.
const (
	StateAlive State = "Alive"
	// StateSuspect: the agent that answers has asked it, directly and by way of others, in vain. What others suspect is not seen before they call it dead.
	StateSuspect State = "Suspect"
	StateDead    State = "Dead"
)

// Host is what the agent that answers knows of another one's host, or of its own.
type Host struct {
	Facts
	State State `json:"state"`
	// StateAge is how long it has been so.
	StateAge int64 `json:"stateAge"`
	// HeardAge is since this agent last asked the host's agent something that it answered itself, naming the boot above; absent if it never did. The answer
	// may be up to one round trip younger. What others say of the host is State only.
	HeardAge *int64 `json:"heardAge,omitempty"`
}

// View answers GET /v1/view?index=N, which waits until Index is not N any more, or for WaitMillis. Without an index it is answered at once.
type View struct {
	// Node and BootID are of the agent that answers.
	Node   string `json:"node"`
	BootID string `json:"bootID"`
	// Index changes whenever a host comes, goes, or changes State or Facts. It says nothing across lives of an agent.
	Index uint64 `json:"index"`
	Hosts []Host `json:"hosts"`
}

// Question is one thing that an agent is asked to try from where it is.
type Question struct {
	// Name is the caller's own, and comes back with the answer.
	Name string `json:"name"`
	// Agent asks the agent of this host; Address is then the host's.
	Agent string `json:"agent,omitempty"`
	// Address is an IP address, and Port a TCP port there.
	Address string `json:"address"`
	Port    int32  `json:"port,omitempty"`
	// HTTP is the path of a GET that must answer 200 to 399; GRPC the name of a service for the standard health check; TLS wants a TLS hello to be
	// answered, if only by an alert, and with HTTP makes it HTTPS. Certificates are not judged. Without any of them a TCP connection is opened.
	HTTP *string `json:"http,omitempty"`
	GRPC *string `json:"grpc,omitempty"`
	TLS  bool    `json:"tls,omitempty"`
}

// Outcome is what came of a question.
type Outcome string

// Values of Outcome, the strongest sign of life first.
const (
	// Answered: what was asked for answered as it should.
	Answered Outcome = "Answered"
	// Failed: the connection was accepted, and what was asked for did not answer as it should, or not in time.
	Failed Outcome = "Failed"
	// Refused: a kernel refused the connection.
	Refused Outcome = "Refused"
	// Silent: no packet came back in time.
	Silent Outcome = "Silent"
	// Unreachable: a router or the neighbour table said that there is no such host.
	Unreachable Outcome = "Unreachable"
	// NotAsked: the question did not leave the agent, as without a route, or was not understood.
	NotAsked Outcome = "NotAsked"
)

// Answer is to one Question.
type Answer struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	// BootID is of the agent that answered, for a question to an agent.
	BootID string `json:"bootID,omitempty"`
	// Age is since the question was sent.
	Age int64  `json:"age"`
	Why string `json:"why,omitempty"`
}

// ProbeRequest is the body of POST /v1/probe.
type ProbeRequest struct {
	Questions []Question `json:"questions"`
}

// ProbeAnswer answers it: one Answer for each Question, in order.
type ProbeAnswer struct {
	// Node and BootID are of the agent that answers.
	Node    string   `json:"node"`
	BootID  string   `json:"bootID"`
	Answers []Answer `json:"answers"`
}

// ResetRequest is the body of POST /v1/connections/reset: at most Addresses of pods, each once.
type ResetRequest struct {
	// Lost are IP addresses behind which nobody is any more: TCP connections to them from this host and its pods end now, and none is opened, for ForMillis.
	Lost      []string `json:"lost,omitempty"`
	ForMillis int64    `json:"forMillis,omitempty"`
	// Back are addresses that belong to somebody again before their time is over. One that is not lost is no error.
	Back []string `json:"back,omitempty"`
}

// ResetAnswer answers it once all of it is done.
type ResetAnswer struct {
	// Node and BootID are of the agent that answers.
	Node   string `json:"node"`
	BootID string `json:"bootID"`
	// Found is how many connections to the lost addresses this host knew.
	Found int `json:"found"`
}

// RecycleRequest is the body of POST /v1/connections/recycle. It looks (Servers), or ends what was looked for (Most, PerSecond), and not both.
type RecycleRequest struct {
	// Round names what belongs together: a look, and what is then ended of it.
	Round string `json:"round"`
	// Servers are addresses of pods that live, each with a port. The established connections of this host's clients to them are noted; those that are opened afterwards are
	// no part of the round. Looking again under the same name notes nothing anew.
	Servers []string `json:"servers,omitempty"`
	// Except are addresses of clients that are left alone.
	Except []string `json:"except,omitempty"`
	// Most is how many connections are ended now, spread over servers and clients, and PerSecond how many of them in a second.
	Most      int `json:"most,omitempty"`
	PerSecond int `json:"perSecond,omitempty"`
}

// RecycleAnswer answers it once all of it is done.
type RecycleAnswer struct {
	// Node and BootID are of the agent that answers.
	Node   string `json:"node"`
	BootID string `json:"bootID"`
	// Found is how many connections a look found. Begun is how many were begun to be ended for this request, and Left how many of the round could be yet.
	Found int `json:"found,omitempty"`
	Begun int `json:"begun,omitempty"`
	Left  int `json:"left,omitempty"`
}

// RestartRequest is the body of POST /v1/kubelet/restart.
type RestartRequest struct {
	// BootID is the boot that the caller means; in another one nothing is done.
	BootID string `json:"bootID"`
	// Reason is for the agent's log.
	Reason string `json:"reason"`
	// WindowMillis is in what time the kubelet is restarted once at most, whoever asks. Absent: WindowMillis.
	WindowMillis int64 `json:"windowMillis,omitempty"`
}

// ErrNothingDone: the agent that was asked to act refused, or was not asked. After any other error it may have acted.
var ErrNothingDone = errors.New("nothing was done")

// ErrUnfit: it refused because its host is not as the request takes for granted, such as an address that lives there. It is ErrNothingDone too.
var ErrUnfit = errors.New("the host is not as the request takes for granted")

// RestartState is how far a restart came.
type RestartState string

// Values of RestartState.
const (
	// RestartDone: the service manager says that the kubelet was stopped and started again.
	RestartDone RestartState = "Done"
	// RestartBegun: the service manager was given the order, and has not said how it ended.
	RestartBegun RestartState = "Begun"
)

// RestartAnswer answers it.
type RestartAnswer struct {
	// Node and BootID are of the agent that answers.
	Node   string       `json:"node"`
	BootID string       `json:"bootID"`
	State  RestartState `json:"state"`
	// By is what restarted it, as the agent was set up.
	By string `json:"by"`
}
