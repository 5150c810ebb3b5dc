// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// began is what the wall clocks of these tests show first. Nothing may depend on it.
var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func stepped() (*clocktesting.FakeClock, *Clock) {
	source := clocktesting.NewFakeClock(began)
	return source, NewClock(source)
}

// renewed is the lease of host "a", renewed so long after the kubelet's own idea of midnight.
func renewed(after time.Duration) *coordinationv1.Lease {
	at := metav1.NewMicroTime(time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC).Add(after))
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec: coordinationv1.LeaseSpec{RenewTime: &at, LeaseDurationSeconds: ptr.To[int32](8)}}
}

func at(seconds float64) evidence.Instant { return evidence.Instant(seconds * float64(time.Second)) }

func TestALeaseIsJudgedByWhenItMovedAndNotByWhatItSays(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	leases.SeeLease(renewed(time.Hour), clock.Instant(), true)
	source.Step(5 * time.Second)
	got := leases.Lease("a", true, false)
	if got.Moved || got.Age != 5*time.Second || got.Duration != 8*time.Second {
		t.Errorf("a lease that was seen once, 5 s ago: %+v", got)
	}
}

func TestOnlyLiveReadsBoundARenewalFromBelow(t *testing.T) {
	tests := []struct {
		name string
		live bool
		want evidence.Instant
	}{
		{"live reads", true, at(2)},
		{"a cache, which may lag by any time", false, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			source, clock := stepped()
			leases := NewLeases(clock)
			leases.SeeLease(renewed(0), clock.Instant(), test.live)
			source.Step(2 * time.Second)
			leases.SeeLease(renewed(0), clock.Instant(), test.live)
			source.Step(time.Second)
			leases.SeeLease(renewed(2*time.Second), clock.Instant(), test.live)
			source.Step(time.Second)
			got := leases.Lease("a", true, false)
			if !got.Moved || got.NotBefore != test.want || got.Age != time.Second {
				t.Errorf("got %+v, want moved, not before %v, age 1s", got, test.want)
			}
		})
	}
}

func TestARenewalSeenInTheCacheIsBoundedByTheLiveReadBefore(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	source.Step(time.Second)
	leases.SeeLease(renewed(0), clock.Instant(), true)
	source.Step(time.Second)
	leases.SeeLease(renewed(time.Second), clock.Instant(), false)
	if got := leases.Lease("a", true, false); got.NotBefore != at(1) {
		t.Errorf("not before %v, want the live read at 1s", got.NotBefore)
	}
}

func TestACacheThatGoesBackwardsShowsNoRenewal(t *testing.T) {
	for _, older := range []time.Duration{9 * time.Second, 9*time.Second + 500*time.Millisecond, 9*time.Second + 550*time.Millisecond} {
		source, clock := stepped()
		leases := NewLeases(clock)
		leases.SeeLease(renewed(10*time.Second), clock.Instant(), true)
		source.Step(4 * time.Second)
		leases.SeeLease(renewed(older), clock.Instant(), false)
		if got := leases.Lease("a", true, false); got.Moved || got.Age != 4*time.Second {
			t.Errorf("renewal %s after one of 10s: %+v", older, got)
		}
	}
}

func TestRenewalsSortByTimeAlsoAtWholeSeconds(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	leases.SeeLease(renewed(10*time.Second), clock.Instant(), true)
	source.Step(4 * time.Second)
	leases.SeeLease(renewed(10*time.Second+300*time.Millisecond), clock.Instant(), false)
	if got := leases.Lease("a", true, false); !got.Moved || got.Age != 0 {
		t.Errorf("10.3 s after 10 s was not taken for a renewal: %+v", got)
	}
}

func TestAKubeletWhoseClockWasPutBackIsStillHeardLive(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	leases.SeeLease(renewed(time.Hour), clock.Instant(), true)
	source.Step(3 * time.Second)
	leases.SeeLease(renewed(time.Minute), clock.Instant(), true)
	if got := leases.Lease("a", true, false); !got.Moved || got.Age != 0 {
		t.Errorf("a live read shows another value, so the kubelet wrote: %+v", got)
	}
}

func TestTwoObserversOwnTheirOwnTime(t *testing.T) {
	source, first := stepped()
	one := NewLeases(first)
	one.SeeLease(renewed(0), first.Instant(), true)
	source.Step(time.Minute)
	second := NewClock(source) // a new leader
	two := NewLeases(second)
	two.SeeLease(renewed(0), second.Instant(), true)
	source.Step(time.Second)
	if a, b := one.Lease("a", true, false).Age, two.Lease("a", true, false).Age; a != 61*time.Second || b != time.Second {
		t.Errorf("ages %s and %s, want 1m1s and 1s: a new observer has seen nothing for longer than it has looked", a, b)
	}
	if two.Lease("a", true, false).Moved {
		t.Error("the second observer has seen nothing move")
	}
}

func node(boot string, heartbeat time.Duration, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Status: corev1.NodeStatus{
		NodeInfo:   corev1.NodeSystemInfo{BootID: boot},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, LastHeartbeatTime: metav1.NewTime(began.Add(heartbeat))}},
	}}
}

func TestAStatusSpeaksForItsOwnBoot(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	see := func(n *corev1.Node) {
		source.Step(time.Second)
		leases.SeeNode(n, clock.Instant(), true)
	}
	see(node("one", 0, corev1.ConditionTrue))
	if spoke, _ := leases.Spoke("a"); spoke {
		t.Error("a status that was only found there is no motion")
	}
	see(node("one", 10*time.Second, corev1.ConditionTrue))
	if spoke, notBefore := leases.Spoke("a"); !spoke || notBefore != at(1) {
		t.Errorf("spoke %v not before %v, want true, 1s", spoke, notBefore)
	}
	see(node("two", 20*time.Second, corev1.ConditionTrue))
	if spoke, _ := leases.Spoke("a"); spoke {
		t.Error("what boot one posted is taken for boot two's")
	}
	see(node("two", 20*time.Second, corev1.ConditionUnknown)) // written by the controller-manager
	see(node("two", 90*time.Second, corev1.ConditionUnknown))
	if spoke, _ := leases.Spoke("a"); spoke {
		t.Error("the controller-manager's Unknown is taken for the kubelet's word")
	}
}

func TestLateCountsAndFindsTheOthersLatestRenewal(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	see := func(host string, after time.Duration) {
		l := renewed(after)
		l.Name = host
		leases.SeeLease(l, clock.Instant(), true)
	}
	for i, host := range []string{"a", "b", "c", "own"} {
		see(host, time.Duration(i)*time.Second)
	}
	source.Step(10 * time.Second)
	see("b", time.Minute)
	see("own", time.Minute)
	late := func(l evidence.Lease) bool { return l.Age > 3*time.Second }
	count, other, notBefore := leases.Late([]string{"a", "b", "c", "own"}, late, "a", "own")
	if count != 2 || !other || notBefore != 0 {
		t.Errorf("late %d, other %v not before %v; want 2 (a and c), b's renewal, not before 0", count, other, notBefore)
	}
	if _, other, _ := leases.Late([]string{"a", "own"}, late, "a", "own"); other {
		t.Error("the host in question and the observer's own host are no others")
	}
}

func TestTheAPIIsSilentFromItsLastAnswer(t *testing.T) {
	source, clock := stepped()
	api := NewAPI(clock)
	source.Step(7 * time.Second)
	if got := api.SilentFor(); got != 7*time.Second {
		t.Errorf("silent for %s", got)
	}
	api.Answered()
	source.Step(time.Second)
	if got := api.SilentFor(); got != time.Second {
		t.Errorf("silent for %s after an answer", got)
	}
}

// posted is the status of host "a" in boot b1, posted so long after the kubelet's own idea of midnight.
func posted(after time.Duration) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	n.Status.NodeInfo.BootID = "b1"
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		LastHeartbeatTime: metav1.NewTime(time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC).Add(after))}}
	return n
}

// TestUnknownBoundsTheNextStatus: what the controller-manager writes keeps the kubelet's date, and a live read of it is a look at which nothing new was posted.
func TestUnknownBoundsTheNextStatus(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	unknown := func(live bool) {
		n := posted(0)
		n.Status.Conditions[0].Status = corev1.ConditionUnknown
		source.Step(time.Minute)
		leases.SeeNode(n, clock.Instant(), live)
	}
	leases.SeeNode(posted(0), clock.Instant(), true)
	unknown(true)
	unknown(false) // a cache may lag
	leases.SeeNode(posted(time.Hour), clock.Instant(), true)
	if spoke, notBefore := leases.Spoke("a"); !spoke || notBefore != at(60) {
		t.Errorf("spoke %v not before %v, want true, 1m", spoke, notBefore)
	}
}

func TestACacheThatLagsIsNoSignOfLife(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	leases.SeeNode(posted(0), clock.Instant(), true)
	source.Step(time.Second)
	leases.SeeNode(posted(time.Minute), clock.Instant(), true) // the last that it ever posts
	for range 3 {
		source.Step(time.Second)
		leases.SeeNode(posted(0), clock.Instant(), false)
		leases.SeeNode(posted(time.Minute), clock.Instant(), true)
	}
	if spoke, notBefore := leases.Spoke("a"); !spoke || notBefore != at(0) {
		t.Errorf("spoke %v not before %v: a cache that shows the old status again and again was taken for new ones", spoke, notBefore)
	}
}

func TestALiveAnswerThatComesLateTellsNothingNew(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	asked := clock.Instant()
	source.Step(time.Second)
	leases.SeeLease(renewed(time.Minute), clock.Instant(), true)
	leases.SeeLease(renewed(0), asked, true) // asked before, answered after
	source.Step(time.Second)
	leases.SeeLease(renewed(time.Minute), clock.Instant(), true)
	if got := leases.Lease("a", true, false); got.Moved {
		t.Errorf("a lease that stood still has moved: %+v", got)
	}
}

// said is a word of the agent of host "a" in its own Lease.
func said(boot string, after time.Duration) *coordinationv1.Lease {
	lease := renewed(after)
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds = ptr.To(boot), ptr.To[int32](5)
	return lease
}

func TestAnAgentsWordIsDatedByLiveReads(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	if got := leases.Agent("a", true, true, 0); got.Age != 0 || got.Moved || !got.Missing || got.BootID != "" {
		t.Errorf("of a host that nothing is known of: %+v", got)
	}
	leases.SeeAgent(said("b1", 0), clock.Instant(), false)
	source.Step(10 * time.Second)
	leases.SeeAgent(said("b1", 0), clock.Instant(), true)
	source.Step(10 * time.Second)
	if got := leases.Agent("a", true, false, at(19)); got.Age != 20*time.Second || got.Moved || got.BootID != "b1" || got.Every != 5*time.Second || got.At != at(20) || got.Asked != at(19) {
		t.Errorf("a word that has stood for 20 s: %+v", got)
	}
	leases.SeeAgent(said("b1", time.Second), clock.Instant(), false)
	if got := leases.Agent("a", false, false, at(20)); got.Age != 0 || !got.Moved || got.NotBefore != at(10) || got.Read {
		t.Errorf("the next word, seen in the cache: %+v", got)
	}
	leases.SeeAgent(said("b1", 0), clock.Instant(), false)
	if got := leases.Agent("a", true, false, at(20)); !got.Moved || got.NotBefore != at(10) {
		t.Errorf("a cache that goes backwards: %+v", got)
	}
	source.Step(time.Second)
	leases.SeeAgent(said("b2", 2*time.Second), clock.Instant(), true)
	if got := leases.Agent("a", true, false, at(21)); got.BootID != "b2" || !got.Moved || got.Age != 0 || got.NotBefore != at(10) {
		t.Errorf("the first word of the next boot: %+v", got)
	}
}

// armed is a word that says how long the host lives after it.
func armed(boot string, after time.Duration, seconds string) *coordinationv1.Lease {
	lease := said(boot, after)
	lease.Annotations = map[string]string{wire.AnnotationSelfFence: seconds, wire.AnnotationPulse: "true"}
	return lease
}

func TestAWordThatAnnouncesAResetCountsFromWhenItWasHere(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	asked := clock.Instant()
	source.Step(3 * time.Second) // the answer was long on its way, and the word may be younger than the question
	leases.SeeAgent(armed("b1", 0, "40"), asked, true)
	source.Step(50 * time.Second)
	got := leases.Agent("a", true, false, at(50))
	if got.Bound != 40*time.Second || !got.Pulse || got.Since != at(3) || got.Stood() != 47*time.Second || got.Outlived {
		t.Errorf("%+v, stood %s", got, got.Stood())
	}
	leases.SeeAgent(armed("b1", 0, "40"), at(50), true)
	if got := leases.Agent("a", true, false, at(50)); got.Since != at(3) {
		t.Errorf("seen again, it counts from %v", got.Since)
	}
	leases.SeeAgent(said("b1", 0), at(51), true) // the same time, and the announcement taken back
	if got := leases.Agent("a", true, false, at(51)); got.Bound != 0 || got.Pulse || got.Stood() >= 0 {
		t.Errorf("taken back: %+v", got)
	}
}

// A write that changes nothing in the word was taken by the API all the same, and may be a contact.
func TestEveryWriteOfTheLeaseBeginsTheCountAnew(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	first, second := armed("b1", 0, "40"), armed("b1", 0, "40")
	first.ResourceVersion, second.ResourceVersion = "7", "8"
	leases.SeeAgent(first, clock.Instant(), true)
	source.Step(20 * time.Second)
	leases.SeeAgent(second, clock.Instant(), true)
	source.Step(time.Second)
	if got := leases.Agent("a", true, false, clock.Instant()); got.Stood() != time.Second || got.Moved || got.Age != 21*time.Second {
		t.Errorf("stood %s: %+v", got.Stood(), got)
	}
}

func TestAHostThatSpeaksAfterItsResetHasOutlivedIt(t *testing.T) {
	for name, c := range map[string]struct {
		bound string
		read  time.Duration // last live, before the next word
		boot  string
		want  bool
	}{
		"long after":                      {"40", 45 * time.Second, "b1", true},
		"that was not read long after":    {"40", 44 * time.Second, "b1", false},
		"in the next boot":                {"40", 45 * time.Second, "b2", false},
		"that it had not announced":       {"", 45 * time.Second, "b1", false},
		"that is too short to be true":    {"3", 45 * time.Second, "b1", false},
		"that is no number":               {"-40", 45 * time.Second, "b1", false},
		"that is longer than any of ours": {"7201", 3 * time.Hour, "b1", false},
	} {
		source, clock := stepped()
		leases := NewLeases(clock)
		leases.SeeAgent(armed("b1", 0, c.bound), clock.Instant(), true)
		source.Step(c.read)
		leases.SeeAgent(armed("b1", 0, c.bound), clock.Instant(), true)
		source.Step(time.Minute)
		leases.SeeAgent(armed(c.boot, time.Second, c.bound), clock.Instant(), false)
		if got := leases.Agent("a", true, false, 0); got.Outlived != c.want {
			t.Errorf("a reset %s: outlived %v", name, got.Outlived)
		}
		leases.SeeAgent(armed(c.boot, 2*time.Second, c.bound), clock.Instant(), true)
		if got := leases.Agent("a", true, false, 0); got.Outlived != c.want {
			t.Errorf("a reset %s: after another word, outlived %v", name, got.Outlived)
		}
	}
}

func TestALeaseThatIsEmptiedTakesBackWhatItSaid(t *testing.T) {
	_, clock := stepped()
	leases := NewLeases(clock)
	leases.SeeAgent(armed("b1", 0, "40"), clock.Instant(), true)
	leases.SeeAgent(renewed(0), clock.Instant(), true)
	if got := leases.Agent("a", true, false, 0); got.Bound != 0 || got.BootID != "" {
		t.Errorf("%+v", got)
	}
}

func TestALeaseThatSaysNothingIsNoWord(t *testing.T) {
	_, clock := stepped()
	leases := NewLeases(clock)
	leases.SeeAgent(renewed(0), clock.Instant(), true)
	nobody := said("b1", 0)
	nobody.Spec.RenewTime = nil
	leases.SeeAgent(nobody, clock.Instant(), true)
	leases.SeeAgent(said("a boot ID that is longer than any boot ID can be, and is therefore none at all", 0), clock.Instant(), true)
	if got := leases.Agent("a", true, false, 0); got.BootID != "" || got.Moved {
		t.Errorf("%+v", got)
	}
}

// written is the Lease of the agent of a host in so manieth a version, with the word that it has had from the first.
func written(host, version string) *coordinationv1.Lease {
	lease := said("b1", 0)
	lease.Name, lease.ResourceVersion = host, version
	return lease
}

func TestWhatAnAgentWritesShowsThatTheAPITakesIt(t *testing.T) {
	source, clock := stepped()
	leases := NewLeases(clock)
	hosts := []string{"a", "own", "c"}
	never := func(evidence.Lease) bool { return false }
	other := func() (bool, evidence.Instant) {
		_, other, notBefore := leases.Late(hosts, never, "a", "own")
		return other, notBefore
	}
	for _, h := range hosts {
		leases.SeeAgent(written(h, "99"), clock.Instant(), true)
	}
	source.Step(5 * time.Second)
	if some, _ := other(); some {
		t.Error("a Lease that was there from the first shows something")
	}
	leases.SeeAgent(written("a", "100"), clock.Instant(), true)
	leases.SeeAgent(written("own", "101"), clock.Instant(), true)
	if some, _ := other(); some {
		t.Error("the agent of the host in question, or of our own, shows something")
	}
	leases.SeeAgent(written("c", "99"), clock.Instant(), true)
	source.Step(5 * time.Second)
	leases.SeeAgent(written("c", "102"), clock.Instant(), false)
	if some, since := other(); !some || since != at(5) {
		t.Errorf("what another host's agent wrote: %v, not before %v", some, since)
	}
	leases.SeeAgent(written("c", "99"), clock.Instant(), false)
	if some, since := other(); !some || since != at(5) {
		t.Errorf("a cache that goes backwards: %v, not before %v", some, since)
	}
	if got := leases.Agent("c", true, false, at(10)); got.Moved || got.Age != 10*time.Second {
		t.Errorf("it is taken for a word: %+v", got)
	}
	source.Step(time.Second)
	leases.SeeLease(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: renewed(0).Spec}, clock.Instant(), true)
	source.Step(time.Second)
	leases.SeeLease(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: renewed(time.Second).Spec}, clock.Instant(), true)
	if _, since := other(); since != at(11) {
		t.Errorf("a later renewal of its kubelet: not before %v", since)
	}
}
