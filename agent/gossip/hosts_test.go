// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// book is hosts as a knows them, in a time that goes on when the test says so.
func book() (*hosts, *clocktesting.FakeClock) {
	clk := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	return newHosts(factsOf("a", "a1"), "192.0.2.1:7948", clk), clk
}

// age of when a host was heard, -1 if never.
func age(h *hosts, node string) int64 {
	if heard := of(h.now(), node).HeardAge; heard != nil {
		return *heard
	}
	return -1
}

func TestTheWordOfOthersDatesNobody(t *testing.T) {
	h, clk := book()
	h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
	if got := age(h, "b"); got != -1 {
		t.Fatalf("b never answered, and was heard %d ms ago", got)
	}
	h.heard("b", "b1", clk.Now())
	clk.Step(3 * time.Second)
	changed := factsOf("b", "b1")
	changed.Kubelet, changed.Revision = wire.Dead, 2
	h.joined(changed, "192.0.2.2:7948")
	h.suspect("b")
	h.left("b")
	h.joined(changed, "192.0.2.2:7948")
	if got := age(h, "b"); got != 3000 {
		t.Fatalf("b answered 3000 ms ago, and was heard %d ms ago", got)
	}
}

func TestAnAnswerIsOfABoot(t *testing.T) {
	h, clk := book()
	h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
	for _, boot := range []string{"b2", ""} {
		if h.heard("b", boot, clk.Now()) || age(h, "b") != -1 {
			t.Fatalf("an answer of boot %q is taken for one of b1", boot)
		}
	}
	if !h.heard("b", "b1", clk.Now()) || age(h, "b") != 0 {
		t.Fatal("an answer of b1 is not taken")
	}
	clk.Step(time.Second)
	h.joined(factsOf("b", "b2"), "192.0.2.2:7948")
	if got := of(h.now(), "b"); got.HeardAge != nil || got.StateAge != 0 || got.BootID != "b2" {
		t.Fatalf("the second boot begins with what the first one left: %+v", got)
	}
	if h.heard("b", "b1", clk.Now()) {
		t.Fatal("an answer of the first boot is taken for one of the second")
	}
	if h.heard("nobody", "b1", clk.Now()) {
		t.Fatal("an answer of nobody is taken")
	}
}

func TestAnOldAnswerMakesNobodyOlder(t *testing.T) {
	h, clk := book()
	h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
	h.heard("b", "b1", clk.Now())
	h.heard("b", "b1", clk.Now().Add(-time.Minute))
	if got := age(h, "b"); got != 0 {
		t.Fatalf("heard %d ms ago", got)
	}
}

func TestAgesAreRoundedUp(t *testing.T) {
	h, clk := book()
	h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
	h.heard("b", "b1", clk.Now())
	clk.Step(1500 * time.Microsecond)
	if got := of(h.now(), "b"); *got.HeardAge != 2 || got.StateAge != 2 {
		t.Fatalf("1.5 ms are %d and %d", *got.HeardAge, got.StateAge)
	}
}

func TestASuspicionEndsWithAnAnswer(t *testing.T) {
	h, clk := book()
	h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
	if !h.suspect("b") || h.suspect("b") || h.suspect("a") || h.suspect("nobody") {
		t.Fatal("a suspicion is news once, and never of this host or of nobody")
	}
	clk.Step(time.Second)
	h.heard("b", "b2", clk.Now())
	if got := of(h.now(), "b"); got.State != wire.StateSuspect || got.StateAge != 1000 {
		t.Fatalf("after an answer of another boot it is %+v", got)
	}
	h.heard("b", "b1", clk.Now())
	if got := of(h.now(), "b"); got.State != wire.StateAlive || got.StateAge != 0 {
		t.Fatalf("after its answer it is %+v", got)
	}
}

func TestTheDeadStayInTheViewForLong(t *testing.T) {
	h, clk := book()
	h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
	h.heard("b", "b1", clk.Now())
	h.left("b")
	clk.Step(15 * time.Minute)
	h.forget()
	if got := of(h.now(), "b"); got.State != wire.StateDead || got.StateAge != 900_000 || *got.HeardAge != 900_000 {
		t.Fatalf("after 15 minutes b is %+v", got)
	}
	index := h.now().Index
	clk.Step(rememberDead)
	h.forget()
	if view := h.now(); len(view.Hosts) != 1 || view.Index == index {
		t.Fatalf("after long the view is %+v", view)
	}
}

func TestAFarewellIsOfABootAndOfTheMoment(t *testing.T) {
	for name, c := range map[string]struct {
		boot string
		late time.Duration
		dead bool
	}{
		"said and gone":              {"b1", 0, false},
		"said by another boot":       {"b2", 0, true},
		"said, and stayed, and died": {"b1", rememberFarewell, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, clk := book()
			h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
			h.farewell("b", c.boot)
			clk.Step(c.late)
			h.left("b")
			if got := of(h.now(), "b"); (got.State == wire.StateDead) != c.dead {
				t.Fatalf("b is %+v", got)
			}
		})
	}
}

func TestAFarewellMayComeAfterTheDeathThatItIsAbout(t *testing.T) {
	for name, c := range map[string]struct {
		boot string
		late time.Duration
		dead bool
	}{
		"gone and said":               {"b1", rememberFarewell - 1, false},
		"gone, and another boot said": {"b2", 0, true},
		"dead for long, and said":     {"b1", rememberFarewell, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, clk := book()
			h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
			h.left("b")
			clk.Step(c.late)
			before := h.now().Index
			h.farewell("b", c.boot)
			if got := of(h.now(), "b"); (got.State == wire.StateDead) != c.dead || (h.now().Index == before) != c.dead {
				t.Fatalf("b is %+v; the index was %d and is %d", got, before, h.now().Index)
			}
		})
	}
}

func TestTheIndexGrowsWithWhatIsSeenAndWithNothingElse(t *testing.T) {
	h, clk := book()
	grows := func(what string, want bool, change func()) {
		t.Helper()
		before := h.now().Index
		change()
		if after := h.now().Index; (after != before) != want {
			t.Fatalf("%s: the index was %d and is %d", what, before, after)
		}
	}
	b := factsOf("b", "b1")
	grows("a new host", true, func() { h.joined(b, "192.0.2.2:7948") })
	grows("the same again", false, func() { h.joined(b, "192.0.2.2:7948") })
	grows("an answer", false, func() { h.heard("b", "b1", clk.Now()) })
	grows("time", false, func() { clk.Step(time.Second) })
	grows("a suspicion", true, func() { h.suspect("b") })
	grows("a death", true, func() { h.left("b") })
	grows("its return", true, func() { h.joined(b, "192.0.2.2:7948") })
	grows("the word of others on this host", false, func() { h.joined(factsOf("a", "a2"), "192.0.2.9:7948"); h.left("a") })
	own := factsOf("a", "a1")
	own.Kubelet = wire.Dead
	grows("own facts", true, func() { h.setOwn(own) })
	grows("the same own facts", false, func() { h.setOwn(own) })
}

func TestAwaitAnswersAtOnceWhenTheIndexIsAnother(t *testing.T) {
	h, _ := book()
	index := h.now().Index
	if got := h.await(t.Context(), index-1); got.Index != index {
		t.Fatalf("index %d", got.Index)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if got := h.await(over, index); got.Index != index || len(got.Hosts) != 1 {
		t.Fatalf("when time is over: %+v", got)
	}
	got := make(chan wire.View)
	go func() { got <- h.await(t.Context(), index) }()
	h.joined(factsOf("b", "b1"), "192.0.2.2:7948")
	if view := <-got; view.Index == index || len(view.Hosts) != 2 {
		t.Fatalf("after a change: %+v", view)
	}
}

func TestFactsComeOutAsTheyWentIn(t *testing.T) {
	pulses := func(f *wire.Facts) []*wire.Pulse {
		return []*wire.Pulse{&f.Kubelet, &f.Runtime, &f.API, &f.Storage, &f.Memory, &f.IO}
	}
	for combination := range 729 { // 3^6
		facts := factsOf("b", "2f8a4c1e-6a39-4ad8-9a3e-0a7f5e0b7c11")
		facts.Revision, facts.SelfFenceSeconds = 1<<63, 140
		for _, pulse := range pulses(&facts) {
			*pulse = []wire.Pulse{wire.Unread, wire.Alive, wire.Dead}[combination%3]
			combination /= 3
		}
		raw, err := pack(facts)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > wire.MetaBytes/2 {
			t.Fatalf("ordinary facts take %d bytes", len(raw))
		}
		if got, err := unpack("b", raw); err != nil || got != facts {
			t.Fatalf("%+v came out as %+v, %v", facts, got, err)
		}
	}
}

func TestWhatIsNoFacts(t *testing.T) {
	for name, c := range map[string]struct {
		raw  string
		want error
	}{
		"nothing":           {"", errGarbled},
		"no JSON":           {"b1", errGarbled},
		"no boot":           {`{"n":1}`, errGarbled},
		"a boot with spice": {`{"b":"b1\n[INFO] memberlist: Suspect a has failed, no acks received"}`, errGarbled},
		"a long boot":       {`{"b":"` + strings.Repeat("1", maxID+1) + `"}`, errGarbled},
		"a bad UUID":        {`{"b":"b1","u":"?"}`, errGarbled},
		"a fence before":    {`{"b":"b1","w":-1}`, errGarbled},
		"a fence some day":  {`{"b":"b1","w":7201}`, errGarbled},
		"too much":          {`{"b":"b1","x":"` + strings.Repeat("x", wire.MetaBytes) + `"}`, errTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := unpack("b", []byte(c.raw)); !errors.Is(err, c.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
	later, err := unpack("b", []byte(`{"b":"b1","k":"Z","z":{"more":1}}`))
	if err != nil || later.Kubelet != wire.Unread {
		t.Fatalf("facts of a later version are %+v, %v", later, err)
	}
}

func TestSeeds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seeds")
	put(t, path, "192.0.2.1\n\n# the first rack\n192.0.2.2:17948\n2001:db8::1\n[2001:db8::2]:17948\n")
	want := []string{"192.0.2.1:7948", "192.0.2.2:17948", "[2001:db8::1]:7948", "[2001:db8::2]:17948"}
	if got, err := readSeeds(path, wire.GossipPort); err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %q, %v", got, err)
	}
	put(t, path, "192.0.2.1\nnode-2\n")
	if got, err := readSeeds(path, wire.GossipPort); err == nil || !strings.Contains(err.Error(), `line 2: "node-2" is no IP address`) || len(got) != 1 {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestEachKindIsLoggedOnceAMinute(t *testing.T) {
	var lines []string
	clk := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	j := newJournal(funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{}), clk)
	for range 1000 {
		j.note(kindUndecryptable, "no key")
		j.note(kindReplayed, "again")
	}
	if len(lines) != 2 {
		t.Fatalf("logged %q", lines)
	}
	clk.Step(logPeriod)
	j.note(kindUndecryptable, "no key")
	if len(lines) != 3 || !strings.Contains(lines[2], `"alikeNotLogged"=999`) {
		t.Fatalf("logged %q", lines)
	}
	if counts := j.counted(); counts.Undecryptable != 1001 || counts.Replayed != 1000 {
		t.Fatalf("counted %+v", counts)
	}
}

func TestTheLinesOfMemberlist(t *testing.T) {
	var suspects []string
	j := newJournal(logr.Discard(), clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)))
	j.suspected = func(node string) { suspects = append(suspects, node) }
	for _, line := range []string{
		"[INFO] memberlist: Suspect b has failed, no acks received\n",
		// Words of others in the middle of a line are not memberlist's own.
		"[ERR] memberlist: Failed to join: remote error: [INFO] memberlist: Suspect c has failed, no acks received\n",
		"[ERR] memberlist: failed to receive: No installed keys could decrypt the message from=192.0.2.9:1\n",
		"[WARN] memberlist: something else\n",
		"[DEBUG] memberlist: Stream connection from=192.0.2.9:1\n",
		"[ERR] memberlist: Conflicting address for b. Mine: 192.0.2.2:1 Theirs: 192.0.2.3:1 Old state: 0\n",
	} {
		if n, err := j.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	if !slices.Equal(suspects, []string{"b"}) {
		t.Fatalf("suspects are %q", suspects)
	}
	if counts := j.counted(); counts != (Counts{Streams: 1, Other: 2}) {
		t.Fatalf("counted %+v", counts)
	}
}

// TestTheSmallerSideStaysTheSmallerSide: two of five that are cut off from the others hear each other, and after a minute nobody else is left to be missed.
func TestTheSmallerSideStaysTheSmallerSide(t *testing.T) {
	five := func() (*hosts, *clocktesting.FakeClock) {
		h, clk := book()
		for _, other := range []string{"b", "c", "d", "e"} {
			h.joined(factsOf(other, other+"1"), "192.0.2.2:7948")
			h.heard(other, other+"1", clk.Now())
		}
		return h, clk
	}
	hears := func(h *hosts, others, heard int) {
		t.Helper()
		if got := h.standing(); got.Others != others || got.Heard != heard {
			t.Errorf("hears %d of %d others, want %d of %d", got.Heard, got.Others, heard, others)
		}
	}
	h, clk := five()
	for _, lost := range []string{"c", "d", "e"} {
		h.left(lost)
	}
	hears(h, 4, 1)
	clk.Step(30 * time.Minute)
	hears(h, 4, 1)
	h.joined(factsOf("c", "c1"), "192.0.2.2:7948")
	hears(h, 2, 2) // three of five are more than half
	clk.Step(time.Minute)
	hears(h, 2, 2)

	h, clk = five()
	for _, gone := range []string{"c", "d", "e"} { // one by one: they are missed for a minute each
		h.left(gone)
		h.standing()
		clk.Step(missed + time.Second)
	}
	hears(h, 1, 1)

	h, clk = five()
	for _, lost := range []string{"c", "d", "e"} {
		h.left(lost)
	}
	h.standing()
	clk.Step(rememberDead + time.Second)
	h.forget()
	hears(h, 1, 1) // whoever has not come back by then will not
}
