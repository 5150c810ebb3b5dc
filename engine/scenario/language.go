// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// phrase is one thing that can be said in a story. Words in angle brackets stand for one word, which do is given in order.
type phrase struct {
	words string
	do    func(w *World, args []string) error
}

// phrases are the whole language, beside "host NAME boot ID", "at TIME", "decide" and "run". Each is a sentence about the truth, or about what the
// observer can read; none is about instants.
var phrases = []phrase{
	// What there is.
	{"app <pod>", func(w *World, a []string) error { w.AddPod(a[0], "csi.example.org"); return nil }},
	{"app <pod> on driver <driver>", func(w *World, a []string) error { w.AddPod(a[0], a[1]); return nil }},
	{"app <pod> on drivers <driver> and <driver>", func(w *World, a []string) error { w.AddPod(a[0], a[1], a[2]); return nil }},
	{"device <method>", func(w *World, a []string) error { w.AddDevice(a[0]); return nil }},
	{"device <method> cuts only driver <driver>", func(w *World, a []string) error {
		d := w.AddDevice(a[0])
		d.CoversHost, d.CoversDrivers = false, []string{a[1]}
		return nil
	}},
	{"<n> witnesses watch", func(w *World, a []string) error {
		var n int
		if err := number(a[0], &n); err != nil {
			return err
		}
		w.AddWitnesses(n)
		return nil
	}},
	{"policy <setting>", setPolicy},
	{"cluster of <n> hosts", func(w *World, a []string) error { return number(a[0], &w.cluster.hosts) }},

	// What happens to the host.
	{"host loses power", truth(func(w *World) { w.losePower() })},
	{"machine is destroyed", truth(func(w *World) { w.losePower(); w.host.destroyed = true })},
	{"host boots as <boot>", func(w *World, a []string) error { w.bootAs(a[0]); return nil }},
	{"host hangs", truth(func(w *World) { w.host.kernel = false })},
	{"host thaws", truth(func(w *World) { w.host.kernel, w.host.userspace = w.host.powered, w.host.powered })},
	{"userspace freezes", truth(func(w *World) { w.host.userspace = false })},
	{"kubelet dies", truth(func(w *World) { w.host.kubelet = false })},
	{"kubelet returns", truth(func(w *World) { w.host.kubelet, w.host.hung = w.host.powered, false; w.postStatus() })},
	{"kubelet's connection hangs", truth(func(w *World) { w.host.hung = true })},
	{"kubelet's connection goes on", truth(func(w *World) { w.host.hung = false; w.postStatus() })},
	{"kubelet comes back by no restart", truth(func(w *World) { w.host.beyondRepair = true })},
	{"another host's kubelet is restarted", truth(func(w *World) { w.elsewhere = repair{at: w.now} })},
	{"kubelet posts its status", truth(func(w *World) { w.postStatus() })},
	{"runtime dies", truth(func(w *World) { w.host.runtimeDown = true; w.postStatus() })},
	{"runtime returns", truth(func(w *World) { w.host.runtimeDown = false; w.postStatus() })},
	{"runtime cannot be read", truth(func(w *World) { w.host.runtimeUnread = true })},
	{"host loses its storage", truth(func(w *World) { w.host.noStorage = true })},
	{"host loses the API", truth(func(w *World) { w.host.toAPI = false })},
	{"host reaches the API", truth(func(w *World) { w.host.toAPI = true; w.postStatus() })},
	{"host cannot be reached", truth(func(w *World) { w.host.toUs = false })},
	{"host can be reached", truth(func(w *World) { w.host.toUs = true })},
	{"host is cut from the witnesses", allWitnesses(func(x *witness) { x.cut = true })},
	{"host reaches the witnesses", allWitnesses(func(x *witness) { x.cut = false })},
	{"agent dies", truth(func(w *World) { w.host.agent = false })},
	{"agent leaves in order", truth(func(w *World) { w.leave() })},
	{"host has a watchdog that lets go after <span> and resets after <timeout>", func(w *World, a []string) error {
		span, wrong := time.ParseDuration(a[0])
		timeout, wrongToo := time.ParseDuration(a[1])
		w.host.watchdog = watchdog{span: span, timeout: timeout}
		return errors.Join(wrong, wrongToo)
	}},
	{"watchdog resets nothing", truth(func(w *World) { w.host.watchdog.broken = true })},
	{"watchdog is <n> percent slow", func(w *World, a []string) error { return number(a[0], &w.host.watchdog.slow) }},
	{"agent returns", truth(func(w *World) { w.host.agent = w.host.powered })},
	{"another machine <machine> takes the name in boot <boot>", func(w *World, a []string) error {
		n := &w.host.node
		n.SystemUUID, n.BootID, n.Ready = a[0], a[1], evidence.ReadyTrue
		return nil
	}},
	{"Node is created anew", truth(func(w *World) { w.host.node.UID = "node-uid-2" })},
	{"Node is deleted", truth(func(w *World) { w.host.node.Missing = true })},
	{"lease is deleted", truth(func(w *World) { w.host.leaseDeleted = true })},

	// What happens to the pods.
	{"app <pod> stops serving", onPod(func(_ *World, p *pod) { p.serves = false })},
	{"app <pod> serves", onPod(func(_ *World, p *pod) { p.serves = true })},
	{"app <pod> is not probed", onPod(func(_ *World, p *pod) { p.probed = false })},
	{"app <pod> shares its address", onPod(func(_ *World, p *pod) { p.shares, p.user = true, "shop/another" })},
	{"app <pod> is on the host's network", onPod(func(_ *World, p *pod) { p.Addresses = nil })},
	{"address of <pod> is given to <other>", func(w *World, a []string) error { return w.given(a[0], a[1]) }},
	{"app <pod> is kept by a finalizer", onPod(func(_ *World, p *pod) { p.finalizer = true })},
	{"app <pod> loses that finalizer", onPod(func(w *World, p *pod) {
		p.finalizer = false
		if p.Removed {
			w.deletePod(p)
		}
	})},
	{"app <pod> finishes", onPod(func(_ *World, p *pod) { p.serves, p.Finished = false, true })},
	{"app <pod> appears", func(w *World, a []string) error {
		w.AddPod(a[0], "csi.example.org")
		w.pods[len(w.pods)-1].serves = w.kubeletSpeaks()
		return nil
	}},
	{"volumes stay attached", truth(func(w *World) { w.stuckVolumes = true })},
	{"successors do not start", truth(func(w *World) { w.noSuccessors = true })},

	// What the fence devices do.
	{"device <method> says <state>", func(w *World, a []string) error { return says(w, a[0], a[1]) }},
	{"device <method> tells the truth", onDevice(func(d *device) { d.answer = tellTruth })},
	{"device <method> obeys", onDevice(func(d *device) { d.takes = (*World).accept })},
	{"device <method> ignores commands", onDevice(func(d *device) { d.takes = answering(evidence.AttemptAccepted) })},
	{"device <method> refuses commands", onDevice(func(d *device) { d.takes = answering(evidence.AttemptFailed) })},
	{"device <method> swallows commands", onDevice(func(d *device) { d.takes = answering(evidence.AttemptUnclear) })},
	{"device <method> loses its answers", onDevice(func(d *device) {
		d.takes = func(w *World, d *device) evidence.AttemptState { w.accept(d); return evidence.AttemptUnclear }
	})},
	{"device <method> belongs to another machine", onDevice(func(d *device) { d.Identity = evidence.IdentityDiffers })},
	{"device <method> does not say whose it is", onDevice(func(d *device) { d.Identity = evidence.IdentityUnchecked })},

	// What the agents on other hosts do: hear the host or not, answer us or not.
	{"witness <name> is cut from the host", onWitness(func(x *witness) { x.cut = true })},
	{"witness <name> reaches the host", onWitness(func(x *witness) { x.cut = false })},
	{"witness <name> falls silent", onWitness(func(x *witness) { x.mute = true })},
	{"witness <name> answers", onWitness(func(x *witness) { x.mute = false })},
	{"witnesses fall silent", allWitnesses(func(x *witness) { x.mute = true })},
	{"witnesses answer", allWitnesses(func(x *witness) { x.mute = false })},
	{"witnesses know nothing of the host", allWitnesses(func(x *witness) { x.blank = true })},
	{"witnesses die", allWitnesses(func(x *witness) { x.dead = true })},
	{"witnesses return", allWitnesses(func(x *witness) { x.dead = false })},

	// What the rest of the cluster, the observer and people do.
	{"others fall silent", truth(func(w *World) { w.cluster.othersSilent = true })},
	{"others renew", truth(func(w *World) { w.cluster.othersSilent = false })},
	{"<n> hosts are late", func(w *World, a []string) error { return number(a[0], &w.cluster.stale) }},
	{"API falls silent", truth(func(w *World) { w.cluster.apiSilent = true })},
	{"API answers", truth(func(w *World) { w.cluster.apiSilent = false })},
	{"Node cannot be read", truth(func(w *World) { w.host.nodeUnread = true })},
	{"Node can be read", truth(func(w *World) { w.host.nodeUnread = false })},
	{"lease cannot be read", truth(func(w *World) { w.host.leaseUnread = true })},
	{"lists cannot be read", truth(func(w *World) { w.host.listsUnread = true })},
	{"lists can be read", truth(func(w *World) { w.host.listsUnread = false })},
	{"port is not asked", truth(func(w *World) { w.host.portUnasked = true })},
	{"leader changes", truth(func(w *World) { w.restartObserver() })},
	{"leader dies before its next call", truth(func(w *World) { w.crashBeforeCall = true })},
	{"human approves", truth(func(w *World) { w.journal.Approved = true })},
	{"human attests the death of boot <boot> for <span>", func(w *World, a []string) error {
		holds, err := time.ParseDuration(a[1])
		if err != nil {
			return fmt.Errorf("human attests: %w", err)
		}
		w.attestations = append(w.attestations, attestation{made: w.now, holds: holds,
			Attestation: evidence.Attestation{Name: fmt.Sprintf("word-%d", len(w.attestations)+1), BootID: a[0]}})
		return nil
	}},
	{"budget <used> of <max> is spent", func(w *World, a []string) error {
		if err := number(a[0], &w.Budget.Used); err != nil {
			return err
		}
		return number(a[1], &w.Budget.Max)
	}},
}

func truth(do func(*World)) func(*World, []string) error {
	return func(w *World, _ []string) error { do(w); return nil }
}

func onPod(do func(*World, *pod)) func(*World, []string) error {
	return func(w *World, a []string) error {
		for _, p := range w.pods {
			if p.Name == a[0] {
				do(w, p)
				return nil
			}
		}
		return fmt.Errorf("no app %q on the host", a[0])
	}
}

func onDevice(do func(*device)) func(*World, []string) error {
	return func(w *World, a []string) error {
		d := w.device(a[0])
		if d == nil {
			return fmt.Errorf("no device %q", a[0])
		}
		do(d)
		return nil
	}
}

func answering(s evidence.AttemptState) func(*World, *device) evidence.AttemptState {
	return func(*World, *device) evidence.AttemptState { return s }
}

func says(w *World, method, state string) error {
	d := w.device(method)
	for _, s := range []evidence.PowerState{evidence.PowerUnread, evidence.PowerOn, evidence.PowerOff, evidence.PowerGone} {
		if s.String() != state {
			continue
		}
		if d == nil {
			return fmt.Errorf("no device %q", method)
		}
		d.answer = always(s)
		return nil
	}
	return fmt.Errorf("device says On, Off, Gone or Unreadable, not %q", state)
}

func number(word string, to *int) error {
	n, err := strconv.Atoi(word)
	if err != nil {
		return fmt.Errorf("%q is not a number", word)
	}
	*to = n
	return nil
}

func setPolicy(w *World, a []string) error {
	key, value, _ := strings.Cut(a[0], "=")
	p := &w.Policy
	switch a[0] {
	case "onHostLoss=Hold":
		p.OnLoss = verdict.Hold
	case "whenNotServing=Fence":
		p.NotServing = verdict.Act
	case "onIsolation=Fence":
		p.Isolated = verdict.Act
	case "minimumProof=Attested":
		p.MinimumProof = evidence.StrengthAttested
	case "minimumProof=SelfFenced":
		p.MinimumProof = evidence.StrengthSelfFenced
	case "approval=Manual":
		p.ManualApproval = true
	case "traffic=None":
		p.KeepTraffic = false
	case "lease=Awaited":
		p.AwaitLease = true
	case "repair=RestartKubelet":
		p.RestartKubelet = true
	case "resetConnections=false":
		p.ResetConnections = false
	case "mode=Enforce":
		p.Shadow, p.Paused = false, false
	case "mode=Shadow":
		p.Shadow = true
	case "mode=Paused":
		p.Paused = true
	default:
		d, err := time.ParseDuration(value)
		switch {
		case err == nil && key == "confirmAfter":
			p.ConfirmAfter = d
		case err == nil && key == "staleAfter":
			p.StaleAfter = d
		default:
			return fmt.Errorf("no policy %q", a[0])
		}
	}
	return nil
}

// Say carries out one sentence.
func (w *World) Say(sentence string) error {
	given := strings.Fields(sentence)
	for _, p := range phrases {
		if args, ok := match(strings.Fields(p.words), given); ok {
			return p.do(w, args)
		}
	}
	return fmt.Errorf("no such sentence: %q", sentence)
}

func match(words, given []string) (args []string, ok bool) {
	if len(words) != len(given) {
		return nil, false
	}
	for i, word := range words {
		switch {
		case strings.HasPrefix(word, "<"):
			args = append(args, given[i])
		case word != given[i]:
			return nil, false
		}
	}
	return args, true
}
