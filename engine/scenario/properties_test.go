// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Sentences that a history is made of, by what they may break. Boots are numbered by the test.
var (
	troubles = []string{
		"host loses power", "host hangs", "host thaws", "userspace freezes", "kubelet dies", "kubelet returns", "runtime dies", "runtime returns",
		"host loses the API", "host reaches the API", "host cannot be reached", "host can be reached", "kubelet posts its status",
		"app db-0 stops serving", "app db-0 serves", "app db-0 is not probed", "app db-1 stops serving", "others fall silent", "others renew",
		"API falls silent", "API answers", "Node cannot be read", "Node can be read", "lease cannot be read", "lists cannot be read", "lists can be read",
		"port is not asked", "leader changes", "leader changes", "leader dies before its next call", "human approves", "boot",
		"kubelet's connection hangs", "kubelet's connection goes on",
	}
	witnessTroubles = []string{
		"host is cut from the witnesses", "host reaches the witnesses", "agent dies", "agent returns", "witness w1 is cut from the host", "witness w2 is cut from the host",
		"witness w1 reaches the host", "witness w1 falls silent", "witness w2 falls silent", "witness w3 falls silent", "witness w1 answers", "witnesses fall silent", "witnesses answer",
		"witnesses die", "witnesses return",
	}
	deviceTroubles = []string{"obeys", "ignores commands", "refuses commands", "swallows commands", "loses its answers", "says Unreadable", "tells the truth", "does not say whose it is"}
	settings       = []string{"whenNotServing=Fence", "onIsolation=Fence", "approval=Manual", "onHostLoss=Hold", "mode=Shadow", "mode=Enforce", "mode=Paused", "confirmAfter=5s", "confirmAfter=30s", "repair=RestartKubelet"}
)

// history is a world with what was said and done in it, for a report that can be read.
type history struct {
	*World
	t     *rapid.T
	lines []string
	boots int
}

func newHistory(t *rapid.T) *history {
	h := &history{World: NewWorld("node-3", "b1"), t: t, boots: 1}
	h.Budget.Max = 100
	h.AddPod("db-0", "csi.example.org")
	h.AddPod("db-1", "csi.example.org")
	h.AddDevice("ipmi")
	if rapid.Bool().Draw(t, "two devices") {
		h.AddDevice("pdu")
	}
	h.AddWitnesses(rapid.SampledFrom([]int{0, 0, 1, 2, 3, 3}).Draw(t, "witnesses"))
	h.Advance(warmUp)
	return h
}

// newCutHistory has devices that cut the volumes of one driver each, and leave the host running.
func newCutHistory(t *rapid.T) *history {
	h := &history{World: NewWorld("node-3", "b1"), t: t, boots: 1}
	h.Budget.Max = 100
	h.AddPod("db-0", "csi.example.org", "csi.other.org")
	h.AddPod("db-1", "csi.example.org")
	for method, driver := range map[string]string{"fabric": "csi.example.org", "array": "csi.other.org"} {
		d := h.AddDevice(method)
		d.CoversHost, d.CoversDrivers = false, []string{driver}
	}
	slices.SortFunc(h.devices, func(a, b *device) int { return strings.Compare(b.Method, a.Method) })
	h.Advance(warmUp)
	return h
}

func (h *history) utter(sentence string) {
	if sentence == "boot" {
		h.boots++
		sentence = fmt.Sprintf("host boots as b%d", h.boots)
	}
	h.lines = append(h.lines, fmt.Sprintf("at %s %s", h.clock(), sentence))
	if err := h.Say(sentence); err != nil && !strings.HasPrefix(err.Error(), "no app") && !strings.HasPrefix(err.Error(), "no witness") {
		h.t.Fatalf("%v", err)
	}
}

func (h *history) something(sentences []string) string {
	switch rapid.IntRange(0, 9).Draw(h.t, "kind") {
	case 0, 1:
		return "device " + rapid.SampledFrom([]string{h.devices[0].Method, h.devices[len(h.devices)-1].Method}).Draw(h.t, "device") + " " + rapid.SampledFrom(deviceTroubles).Draw(h.t, "trouble")
	case 2:
		return "policy " + rapid.SampledFrom(settings).Draw(h.t, "setting")
	case 3, 4:
		if len(h.witnesses) > 0 {
			return rapid.SampledFrom(witnessTroubles).Draw(h.t, "witness")
		}
	}
	return rapid.SampledFrom(sentences).Draw(h.t, "what")
}

// live lets Holdfast act for a while, and checks every round.
func (h *history) live(d time.Duration) {
	for end := h.now + d; h.now < end; {
		h.round()
		next := max(tick, time.Duration(rapid.SampledFrom([]int{0, 0, 0, 0, 1, 4, 30}).Draw(h.t, "lag"))*time.Second)
		h.Advance(min(next, end-h.now))
	}
}

func (h *history) round() {
	before := len(h.journal.Attempts)
	for _, a := range h.journal.Attempts {
		if a.Unsettled() {
			before = -1
		}
	}
	r := h.Act()
	for _, s := range r.Done {
		h.lines = append(h.lines, fmt.Sprintf("at %s %s: %s", h.clock(), r.Found.Class, h.stepWords(s)))
		if s.Kind == plan.Isolate && r.Found.Class == verdict.Silent && h.heardBySomebodyWhoAnswers() {
			h.fail("commanded off as silent, and a vantage point that answers hears the host")
		}
	}
	if before < 0 && len(r.Done) > 0 && r.Done[len(r.Done)-1].Kind == plan.Isolate && !settledFirst(r.Done) {
		h.fail("commanded while an attempt was not settled")
	}
	for _, p := range h.pods {
		if r.Found.Class == verdict.Lost && r.Found.Proof.Fresh && h.host.boot == h.incident.BootID && h.mayWrite(p) {
			h.fail("declared lost while " + p.Name + " may write")
		}
	}
	if len(h.Broken) > 0 {
		h.fail(strings.Join(h.Broken, "; "))
	}
}

// heardBySomebodyWhoAnswers is the truth: an agent heard the host's own just now, and one that gossips with it answers us; or one that answers reaches the
// host's kernel.
func (h *history) heardBySomebodyWhoAnswers() bool {
	return slices.ContainsFunc(h.witnesses, func(x *witness) bool {
		return !x.mute && !x.dead && (h.gossiped == h.now || (!x.cut && h.host.powered && h.host.kernel))
	})
}

func settledFirst(steps []plan.Step) bool {
	for _, s := range steps {
		if s.Kind == plan.Settle {
			return true
		}
	}
	return false
}

func (h *history) fail(what string) {
	h.t.Fatalf("%s\n%s", what, strings.Join(h.lines, "\n"))
}

func (h *history) past() {
	for range rapid.IntRange(1, 12).Draw(h.t, "events") {
		h.utter(h.something(troubles))
		h.live(time.Duration(rapid.SampledFrom([]int{1, 2, 5, 15, 40, 90}).Draw(h.t, "seconds")) * time.Second)
	}
}

// TestHonestDevicesNeverRelease a host that may still write, whatever happens to host, network, API, leader and the devices' own way to answer.
func TestHonestDevicesNeverRelease(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { newHistory(t).past() })
}

// TestCutVolumesNeverRelease a pod of which one volume is not cut.
func TestCutVolumesNeverRelease(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { newCutHistory(t).past() })
}

// TestNoFenceOfAHostThatAWitnessHears, whatever else happens, and whatever device lies: three agents watch, we are cut from the host, and so is the API.
func TestNoFenceOfAHostThatAWitnessHears(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.AddWitnesses(3 - len(h.witnesses))
		h.Advance(tick)
		for _, sentence := range []string{"host cannot be reached", "host loses the API"} {
			h.utter(sentence)
		}
		if rapid.Bool().Draw(t, "liar") {
			h.utter("device ipmi ignores commands")
			h.utter("device ipmi says Off")
		}
		one := rapid.SampledFrom([]string{"w1", "w2", "w3"}).Draw(t, "hears")
		for _, x := range []string{"w1", "w2", "w3"} {
			if x != one && rapid.Bool().Draw(t, "cut") {
				h.utter("witness " + x + " is cut from the host")
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "events") {
			h.utter(rapid.SampledFrom([]string{"kubelet dies", "agent dies", "agent returns", "userspace freezes", "host thaws", "app db-0 stops serving", "app db-1 stops serving", "leader changes",
				"others fall silent", "others renew", "runtime dies", "app db-0 is not probed"}).Draw(t, "what"))
			h.live(time.Duration(rapid.SampledFrom([]int{1, 5, 15, 40, 90}).Draw(t, "seconds")) * time.Second)
		}
	})
}

// TestLiarsAreCaughtByWhateverAnswers: a device that says Off, whatever it is told, releases nothing as long as the host's kernel answers the leader.
func TestLiarsAreCaughtByWhateverAnswers(t *testing.T) {
	answering := []string{"kubelet dies", "kubelet returns", "runtime dies", "runtime returns", "host loses the API", "host reaches the API", "app db-0 stops serving",
		"app db-0 serves", "app db-0 is not probed", "app db-1 stops serving", "others fall silent", "others renew", "Node cannot be read", "Node can be read", "leader changes",
		"userspace freezes", "leader dies before its next call"}
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		for _, d := range h.devices {
			h.utter("device " + d.Method + " ignores commands")
			h.utter("device " + d.Method + " says Off")
		}
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			what := rapid.SampledFrom(answering).Draw(t, "what")
			if oneInFive := rapid.IntRange(1, 5).Draw(t, "setting"); oneInFive == 1 {
				what = "policy whenNotServing=Fence"
			}
			h.utter(what)
			h.live(time.Duration(rapid.SampledFrom([]int{1, 5, 15, 40, 90}).Draw(t, "seconds")) * time.Second)
		}
	})
}

// TestLiarsAreCaughtByTheAgentOfTheHost: a device that says Off, whatever it is told, releases nothing of a host that is cut off from everybody but the API, as
// long as its agent lives; also without a kubelet.
func TestLiarsAreCaughtByTheAgentOfTheHost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.AddWitnesses(3 - len(h.witnesses))
		h.Advance(tick)
		for _, d := range h.devices {
			h.utter("device " + d.Method + " ignores commands")
			h.utter("device " + d.Method + " says Off")
		}
		if rapid.Bool().Draw(t, "without a kubelet") {
			h.utter("kubelet dies")
			h.live(time.Duration(rapid.IntRange(0, 30).Draw(t, "before")) * time.Second)
		}
		h.utter("host cannot be reached")
		h.utter("host is cut from the witnesses")
		for range rapid.IntRange(1, 8).Draw(t, "events") {
			h.live(time.Duration(rapid.SampledFrom([]int{1, 2, 5, 15, 40, 90}).Draw(t, "seconds")) * time.Second)
			h.utter(rapid.SampledFrom([]string{"kubelet dies", "kubelet returns", "runtime dies", "app db-0 stops serving", "app db-0 is not probed", "app db-1 stops serving",
				"others fall silent", "others renew", "leader changes", "leader dies before its next call", "witness w1 falls silent", "witness w1 answers", "Node cannot be read",
				"Node can be read"}).Draw(t, "what"))
		}
		h.live(20 * time.Second)
	})
}

// TestWatchdogsNeverRelease a host that may still write, whatever happens to host, agent, network, API and leader, and however slow hardware and clocks are within the
// margin. Most histories begin with a host that is cut off, and with no device that answers, so that it comes to that proof.
func TestWatchdogsNeverRelease(t *testing.T) {
	proven := 0
	happens := append(slices.Clone(troubles), "agent dies", "agent returns", "agent leaves in order", "agent leaves in order", "host is cut from the witnesses", "host reaches the witnesses",
		"userspace freezes", "host thaws", "witness w1 falls silent", "witness w1 answers", "device ipmi says Unreadable", "device ipmi tells the truth")
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.AddWitnesses(3 - len(h.witnesses))
		h.Policy.MinimumProof = evidence.StrengthSelfFenced
		h.utter("host has a watchdog that lets go after " + rapid.SampledFrom([]string{"10s", "20s", "1m"}).Draw(t, "span") + " and resets after " + rapid.SampledFrom([]string{"4s", "10s", "30s"}).Draw(t, "timeout"))
		h.utter(fmt.Sprintf("watchdog is %d percent slow", rapid.IntRange(0, 9).Draw(t, "slow")))
		h.live(time.Duration(rapid.IntRange(0, 20).Draw(t, "before")) * time.Second)
		for _, d := range h.devices {
			if rapid.IntRange(1, 4).Draw(t, "device") > 1 {
				h.utter("device " + d.Method + " says Unreadable")
			}
		}
		for _, sentence := range []string{"host cannot be reached", "host is cut from the witnesses", "host loses the API"} {
			if rapid.IntRange(1, 6).Draw(t, "cut") > 1 {
				h.utter(sentence)
				h.live(time.Duration(rapid.IntRange(0, 8).Draw(t, "between")) * time.Second)
			}
		}
		for range rapid.IntRange(0, 8).Draw(t, "events") {
			h.live(time.Duration(rapid.SampledFrom([]int{1, 2, 5, 15, 40, 90}).Draw(t, "seconds")) * time.Second)
			h.utter(rapid.SampledFrom(happens).Draw(t, "what"))
		}
		h.live(2 * time.Minute)
		if h.journal.Word == evidence.SelfFencing || strings.Contains(strings.Join(h.lines, "\n"), "RecordProof "+evidence.SelfFencing) {
			proven++
		}
	})
	if proven == 0 {
		t.Error("no history came to a proof by the watchdog")
	}
	t.Logf("%d histories came to a proof by the watchdog", proven)
}

// TestEverythingEnds: from any past, once the reads work, the device obeys and nobody holds it back, a host that comes back is let in and one that is
// dead is released. There is no way into a state without a way out.
func TestEverythingEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.past()
		h.repair()
		if rapid.Bool().Draw(t, "comes back") {
			h.Policy.NotServing, h.Policy.Isolated = verdict.Hold, verdict.Hold // else a kernel that boots may be taken for one that hangs, and the host is fenced instead
			for range 3 {                                                       // a command that was under way may switch it off again
				h.utter("boot")
				h.live(2 * time.Minute)
				if h.host.powered {
					break
				}
			}
			if h.journal.Open() || h.host.node.Fenced || h.host.node.OutOfService {
				h.fail(fmt.Sprintf("is not let in again: step %s, %s", h.stepWord(), h.why()))
			}
			for _, p := range h.pods {
				if p.Held {
					h.fail(p.Name + " is still held")
				}
			}
			return
		}
		h.utter("host loses power")
		h.live(5 * time.Minute)
		if len(h.pods) > 0 || len(h.attached) > 0 {
			h.fail(fmt.Sprintf("is not released: step %s, %s", h.stepWord(), h.why()))
		}
	})
}

func (h *history) why() string {
	r := h.Plan()
	return fmt.Sprintf("%s by %s: %v blocked %q", r.Found.Class, r.Found.Rule(), r.Plan.Refusals, r.Plan.Blocked)
}

func (h *history) repair() {
	for _, sentence := range []string{"others renew", "API answers", "Node can be read", "lists can be read", "policy mode=Enforce"} {
		h.utter(sentence)
	}
	for _, d := range h.devices {
		h.utter("device " + d.Method + " tells the truth")
		h.utter("device " + d.Method + " obeys")
		d.Identity = evidence.IdentityMatches
	}
	for _, sentence := range []string{"witnesses return", "witnesses answer", "host reaches the witnesses"} {
		h.utter(sentence)
	}
	h.host.leaseUnread, h.host.portUnasked = false, false
	h.Policy.OnLoss, h.Policy.ManualApproval = verdict.Act, false
	for _, p := range h.pods {
		p.probed = true
	}
}

// TestPlansComeToRest: carrying a plan out leads, in the same moment, to a plan that has nothing reversible left to do.
func TestPlansComeToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.past()
		for range 8 {
			h.round()
		}
		for _, s := range h.Plan().Plan.Steps {
			if !s.Kind.Irreversible() {
				h.fail("and still wants " + h.stepWords(s))
			}
		}
	})
}
