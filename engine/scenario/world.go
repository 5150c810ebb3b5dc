// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scenario is a small world with one host in it, an observer that watches it as the manager does, and a language to tell
// stories in: what happens, what is decided, what is done, and what comes of it.
//
// The world has a truth (the host runs or it does not; a device lies or it does not), and the observer sees only what the planes show. All
// instants of a snapshot are worked out by the observer from its own looks, in the way the shell does it; nobody writes them by hand.
package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Constants of the simulated cluster: a kubelet's and the controller-manager's defaults, and the sample app's.
const (
	tick          = 250 * time.Millisecond
	leaseDuration = 40 * time.Second
	renewEvery    = leaseDuration / 4
	monitorGrace  = 50 * time.Second
	probeEvery    = 2 * time.Second
	probeFailures = 3
	callDeadline  = 5 * time.Second
	settleTime    = 10 * time.Second
	warmUp        = 64 * time.Second // the observer has watched for so long when a story begins: the last renewals are then nearly four seconds old
)

// World is one host with its devices, as they truly are, in a cluster.
type World struct {
	now    time.Duration // since the observer was first started
	later  []event
	Policy verdict.Policy
	Budget plan.Budget

	host    host
	pods    []*pod
	devices []*device
	cluster cluster
	// witnesses are the agents on other hosts, and gossiped is when any of them last heard the host's own.
	witnesses []*witness
	gossiped  time.Duration
	// touched is when any of them last wrote its own Lease because of that.
	touched time.Duration

	journal    evidence.Journal
	incident   evidence.Host // that the open incident names
	incidents  int
	successors []evidence.Successor
	// addresses are those of the pods that the incident has released.
	addresses    []*address
	attached     []evidence.Attachment
	attestations []attestation
	// repairs are restarts of kubelets, of this host's and of another's.
	repairs, elsewhere repair
	// cut are the methods that keep the host from the volumes they cover.
	cut map[string]bool

	eyes observer
	// life counts the observers that there have been.
	life int
	// crashBeforeCall lets the observer die between journal and driver call, once.
	crashBeforeCall bool
	stuckVolumes    bool
	noSuccessors    bool

	// Broken lists what was done to a host that could still write. It stays empty unless a device lies.
	Broken []string
	told   []string
	moves  map[Move]bool
	// turns are the verdicts that followed on each other when Holdfast acted, and turned is the latest.
	turns  map[Turn]bool
	turned string
	// stepped is when the incident came to its step.
	stepped time.Duration
}

// Turn is one verdict after another.
type Turn struct{ From, To string }

// Move is one step of an incident to another; the first is from the empty step.
type Move struct{ From, To evidence.Step }

type event struct {
	at time.Duration
	do func()
}

type host struct {
	name, uid, machine, boot             string
	powered, kernel, userspace, kubelet  bool
	destroyed, agent                     bool
	runtimeUnread, noStorage             bool
	hung, beyondRepair                   bool // the kubelet's connection to the API; and the kubelet comes back by no restart
	toAPI, toUs                          bool
	runtimeDown                          bool
	node                                 evidence.Node // the object: Ready, taints, identity as the API shows them
	statuses, renewals                   int
	lastRenewal                          time.Duration
	leaseDeleted                         bool
	nodeUnread, leaseUnread, listsUnread bool
	portUnasked                          bool
	word                                 word
	watchdog                             watchdog
}

type pod struct {
	evidence.Writer
	serves, probed, shares bool
	// containersReady is what the kubelet says of the pod, or who spoke for it; ready is the Ready condition, which the node controller takes back too.
	containersReady, ready bool
	finalizer              bool // of somebody else
	// user is who else has its address.
	user string
}

// says is somebody speaking as a kubelet does of its pod.
func (p *pod) says(ready bool) { p.containersReady, p.ready = ready, ready }

type device struct {
	evidence.Power
	answer func(truth evidence.PowerState) evidence.PowerState
	takes  func(w *World, d *device) evidence.AttemptState
}

// truth is what an honest device says: of its host, or of the volumes that it cuts.
func (d *device) truth(w *World) evidence.PowerState {
	if d.CoversHost && w.host.destroyed {
		return evidence.PowerGone
	}
	if (d.CoversHost && !w.host.powered) || (!d.CoversHost && w.cut[d.Method]) {
		return evidence.PowerOff
	}
	return evidence.PowerOn
}

// attestation is a human's word, with what only the world knows of it.
type attestation struct {
	evidence.Attestation
	made, holds time.Duration
}

// repair is the latest restart of a kubelet; at is zero where there was none.
type repair struct {
	at     time.Duration
	failed bool
}

type cluster struct {
	othersSilent bool
	othersAt     time.Duration
	othersCount  int
	hosts, stale int
	apiSilent    bool
}

// NewWorld makes a host that is well, and an observer that has watched it for a minute.
func NewWorld(name, boot string) *World {
	w := &World{
		Policy: verdict.Policy{ConfirmAfter: 15 * time.Second, MinimumProof: evidence.StrengthPowerOff, BlindPercent: 50, BlindAPISilent: 5 * time.Second,
			OnLoss: verdict.Act, NotServing: verdict.Hold, Isolated: verdict.Hold, KeepTraffic: true},
		Budget:  plan.Budget{Max: 2},
		host:    host{name: name, uid: "node-uid-1", machine: "machine-1", boot: boot},
		cluster: cluster{hosts: 3},
		moves:   map[Move]bool{},
		turns:   map[Turn]bool{},
		cut:     map[string]bool{},
	}
	w.host.node = evidence.Node{Read: true, UID: w.host.uid, SystemUUID: w.host.machine}
	w.host.toAPI, w.host.toUs = true, true
	w.rise()
	w.restartObserver()
	return w
}

// rise is what a host does when it comes up.
func (w *World) rise() {
	h := &w.host
	h.powered, h.kernel, h.userspace, h.kubelet, h.agent, h.runtimeDown = true, true, true, true, true, false
	h.lastRenewal = w.now - renewEvery
	w.postStatus()
}

// AddPod puts a guarded pod on the host, with one volume of each driver.
func (w *World) AddPod(name string, drivers ...string) {
	uid := fmt.Sprintf("uid-%s", name)
	var volumes []evidence.Volume
	for i, driver := range drivers {
		claim := "data-" + name
		if i > 0 {
			claim = fmt.Sprintf("data%d-%s", i+1, name)
		}
		volumes = append(volumes, evidence.Volume{Claim: claim, Driver: driver, Handle: "vol-" + name})
	}
	w.pods = append(w.pods, &pod{serves: true, probed: true, containersReady: true, ready: true,
		Writer: evidence.Writer{App: "shop/" + name, Namespace: "shop", Name: name, UID: uid, BootID: w.host.boot, Volumes: volumes,
			Addresses: []string{fmt.Sprintf("10.1.0.%d", len(w.pods)+1)}}})
	w.attached = append(w.attached, evidence.Attachment{Name: "att-" + name, Volume: "vol-" + name, Attached: true})
}

// AddDevice gives the host a fence device on the next level. It obeys, tells the truth, and covers the host.
func (w *World) AddDevice(method string) *device {
	d := &device{answer: tellTruth, takes: (*World).accept,
		Power: evidence.Power{Method: method, Level: len(w.devices) + 1, Strength: evidence.StrengthPowerOff, CoversHost: true, Identity: evidence.IdentityMatches}}
	w.devices = append(w.devices, d)
	return d
}

func tellTruth(truth evidence.PowerState) evidence.PowerState { return truth }

func always(s evidence.PowerState) func(evidence.PowerState) evidence.PowerState {
	return func(evidence.PowerState) evidence.PowerState { return s }
}

func (w *World) accept(d *device) evidence.AttemptState {
	w.after(300*time.Millisecond, func() {
		if !d.CoversHost {
			w.tell("the host is cut from the volumes of %s by command", strings.Join(d.CoversDrivers, ", "))
			w.cut[d.Method] = true
			return
		}
		if w.host.powered {
			w.tell("the host's power goes off by command")
			w.losePower()
		}
	})
	return evidence.AttemptAccepted
}

// after lets something happen later.
func (w *World) after(d time.Duration, do func()) {
	w.later = append(w.later, event{w.now + d, do})
}

// Advance lets time pass, with the observer watching and nobody acting.
func (w *World) Advance(d time.Duration) {
	for end := w.now + d; w.now < end; {
		w.now += min(tick, end-w.now)
		w.happen()
		w.look()
	}
}

// happen brings the truth up to the present.
func (w *World) happen() {
	for i := 0; i < len(w.later); i++ {
		if e := w.later[i]; e.at <= w.now {
			w.later = slices.Delete(w.later, i, i+1)
			i = -1
			e.do()
		}
	}
	h := &w.host
	if w.kubeletSpeaks() && !h.leaseDeleted && w.now-h.lastRenewal >= renewEvery {
		returns := w.now-h.lastRenewal > monitorGrace
		h.lastRenewal = w.now
		h.renewals++
		if h.node.Ready == evidence.ReadyUnknown {
			w.postStatus()
		}
		for _, p := range w.pods {
			if !returns { // else it speaks of its pods in its next round
				p.says(p.serves && !h.runtimeDown)
			}
		}
	}
	w.gossip()
	w.call()
	w.touch()
	w.count()
	if !w.cluster.othersSilent && w.now-w.cluster.othersAt >= renewEvery {
		w.cluster.othersAt = w.now
		w.cluster.othersCount++
	}
	if w.now-h.lastRenewal > monitorGrace && h.node.Ready != evidence.ReadyUnknown {
		h.node.Ready, h.node.ReadyReason = evidence.ReadyUnknown, "NodeStatusUnknown"
		for _, p := range w.pods {
			p.ready = false
		}
		w.eyes.woken = true
	}
}

func (w *World) kubeletSpeaks() bool {
	h := w.host
	return h.powered && h.kernel && h.userspace && h.kubelet && h.toAPI && !h.hung
}

// postStatus is the kubelet posting its Node's status, if it can.
func (w *World) postStatus() {
	h := &w.host
	if !w.kubeletSpeaks() {
		return
	}
	h.statuses++
	h.node.BootID, h.node.SystemUUID = h.boot, h.machine
	h.node.RuntimeDown = h.runtimeDown
	h.node.Ready, h.node.ReadyReason = evidence.ReadyTrue, "KubeletReady"
	if h.runtimeDown {
		h.node.Ready, h.node.ReadyReason = evidence.ReadyFalse, "KubeletNotReady"
	}
}

func (w *World) losePower() {
	h := &w.host
	h.powered, h.kernel, h.userspace, h.kubelet, h.agent = false, false, false, false, false
	for _, p := range w.pods {
		p.serves = false
	}
}

// bootAs powers the host on; its kernel answers after seven seconds, its kubelet two seconds later, its agent another two, its pods five seconds after the
// kubelet, unless the fenced taint keeps them from starting.
func (w *World) bootAs(boot string) {
	w.losePower()
	h := &w.host
	h.powered, h.runtimeDown, h.boot = true, false, boot
	h.watchdog.counts, h.watchdog.held, h.watchdog.stood = false, false, false
	h.toAPI, h.toUs = true, true
	clear(w.cut) // whoever switches a host on gives it its volumes back
	here := func() bool { return h.powered && h.boot == boot }
	w.after(7*time.Second, func() { h.kernel, h.userspace = here(), here() })
	w.after(9*time.Second, func() {
		if !here() {
			return
		}
		h.kubelet, h.hung = true, false
		h.lastRenewal = w.now - renewEvery
		w.postStatus()
	})
	w.after(11*time.Second, func() { h.agent = here() })
	w.after(14*time.Second, func() {
		if !w.kubeletSpeaks() || h.boot != boot || h.node.Fenced {
			return
		}
		for _, p := range w.pods {
			p.serves, p.BootID = true, boot
		}
	})
}

// mayWrite is the truth that everything is about: the process of that pod exists, running or frozen, and one of its volumes is not cut.
func (w *World) mayWrite(p *pod) bool {
	var cutting []evidence.Power
	for _, d := range w.devices {
		if w.cut[d.Method] {
			cutting = append(cutting, d.Power)
		}
	}
	return w.host.powered && !w.host.noStorage && w.host.boot == p.BootID && !p.Finished && evidence.Uncut([]evidence.Writer{p.Writer}, cutting) != ""
}

func (w *World) tell(format string, args ...any) {
	w.told = append(w.told, fmt.Sprintf(format, args...))
}

func (w *World) pod(uid string) *pod {
	for _, p := range w.pods {
		if p.UID == uid {
			return p
		}
	}
	return nil
}

func (w *World) device(method string) *device {
	for _, d := range w.devices {
		if d.Method == method {
			return d
		}
	}
	return nil
}
