// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package draw says what happens to a host in a case of chaos, and in which states of the matrix that leaves it. It touches neither a clock nor a cluster.
package draw

import (
	"maps"
	"math/rand/v2"
	"strings"

	"github.com/holdfast-dev/holdfast/engine/scenario"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
)

// Whole is what happens to a host as a whole.
type Whole string

// Values of Whole.
const (
	// Runs: nothing.
	Runs Whole = ""
	// Powerless: it loses its power.
	Powerless Whole = "power lost"
	// Frozen: no process runs, the kernel answers.
	Frozen Whole = "hangs"
	// Deaf: the kernel is silent too.
	Deaf Whole = "hangs, silent"
)

// Faults are what strikes one host at one moment.
type Faults struct {
	Whole Whole
	// Kubelet is killed; the others are stopped, and do not answer.
	Kubelet, Runtime, Agent, App bool
	// API and Peers are the directions in which the host is cut from these; 0 is not at all.
	API, Peers fault.Direction
	Storage    bool
	// Device is what its BMC does from then on.
	Device bmc.Mode
}

var directions = []fault.Direction{fault.Both, fault.Both, fault.In, fault.Out}

// Case is the n-th case of a seed; it does not depend on the others.
func Case(seed, n uint64) Faults {
	random := rand.New(rand.NewPCG(seed, n))
	chance := func(percent int) bool { return random.IntN(100) < percent }
	f := Faults{Device: bmc.Clear}
	switch d := random.IntN(100); {
	case d < 15:
		f.Device = bmc.Ignore
	case d < 30:
		f.Device = bmc.LieOff
	case d < 45:
		f.Device = bmc.Dead
	}
	switch d := random.IntN(100); {
	case d < 18:
		f.Whole = Powerless
		return f
	case d < 28:
		f.Whole = Frozen
		return f
	case d < 36:
		f.Whole = Deaf
		return f
	}
	f.Kubelet, f.Runtime, f.Agent, f.App, f.Storage = chance(40), chance(15), chance(30), chance(30), chance(15)
	if chance(35) {
		f.API = directions[random.IntN(len(directions))]
	}
	if chance(35) {
		f.Peers = directions[random.IntN(len(directions))]
	}
	return f
}

// String says what strikes.
func (f Faults) String() string {
	var words []string
	say := func(is bool, what string) {
		if is {
			words = append(words, what)
		}
	}
	say(f.Whole != Runs, string(f.Whole))
	say(f.Kubelet, "kubelet killed")
	say(f.Runtime, "runtime stopped")
	say(f.Agent, "agent stopped")
	say(f.App, "app stopped")
	say(f.API != 0, "api cut "+f.API.String())
	say(f.Peers != 0, "peers cut "+f.Peers.String())
	say(f.Storage, "storage cut")
	say(f.Device != bmc.Clear, "bmc "+string(f.Device))
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, " + ")
}

// States are those of the matrix in which the host may be. There is more than one where the matrix does not know what struck: a way that is cut in one
// direction may be alive or dead, an application without its volume may answer or not, a kubelet waits for a runtime that hangs, a device that reads On and ignores commands is neither one that obeys nor one that cannot be read, and
// one that lies may be convicted.
func (f Faults) States() []scenario.State {
	s := scenario.State{}
	for plane, dead := range map[string]bool{"kubelet": f.Kubelet || f.Whole != Runs, "runtime": f.Runtime || f.Whole != Runs, "agent": f.Agent || f.Whole != Runs,
		"app": f.App || f.Whole != Runs, "api": f.API == fault.Both || f.Whole == Deaf, "peer": f.Peers == fault.Both || f.Whole == Deaf, "storage": f.Storage} {
		s[plane] = word(dead)
	}
	s["bmc"] = f.device()
	if f.Whole == Powerless && s["bmc"] == "unreadable" { // nobody says that the power is lost, and no kernel answers either
		s["api"], s["peer"] = "dead", "dead"
	}
	if f.Whole == Frozen && s["bmc"] == "dead" { // a kernel that answers speaks against the device, as anything that is alive would
		s["runtime"] = "alive"
	}
	states := []scenario.State{s}
	if f.API == fault.In || f.API == fault.Out {
		states = either(states, "api", "dead")
	}
	if f.Peers == fault.In || f.Peers == fault.Out {
		states = either(states, "peer", "dead")
	}
	if f.Runtime && !f.Kubelet { // a kubelet waits for its runtime for minutes before it says so
		states = either(states, "runtime", "alive")
	}
	if f.Storage && !f.App { // it may wait for its volume, and then does not answer
		states = either(states, "app", "dead")
	}
	if f.Device == bmc.Ignore && f.Whole != Powerless {
		states = either(states, "bmc", "unreadable")
	}
	if f.Device == bmc.LieOff && f.API == fault.In { // a renewal on its way still gets out, and convicts the device: from then on it is as good as none
		states = either(states, "bmc", "unreadable")
	}
	return states
}

// device is what there is to read.
func (f Faults) device() string {
	switch {
	case f.Device == bmc.Dead:
		return "unreadable"
	case f.Device == bmc.LieOff, f.Whole == Powerless:
		return "dead"
	default:
		return "alive"
	}
}

func word(dead bool) string {
	if dead {
		return "dead"
	}
	return "alive"
}

// either adds to each state the same with another word for the plane.
func either(states []scenario.State, plane, other string) []scenario.State {
	out := states
	for _, s := range states {
		t := maps.Clone(s)
		t[plane] = other
		out = append(out, t)
	}
	return out
}
