// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const now = Instant(10 * time.Minute)

func ago(d time.Duration) Instant { return now - Instant(d) }

// alive is a host of which every plane was heard at a different time.
func alive() Snapshot {
	return Snapshot{At: now, Host: Host{BootID: "b1"},
		Node:  Node{Read: true, BootID: "b1", Spoke: true, SpokeNotBefore: ago(50 * time.Second)},
		Lease: Lease{Read: true, At: now, Age: 39 * time.Second, Moved: true, NotBefore: ago(40 * time.Second)},
		Port:  Port{Answer: AnswerSpoke, Asked: ago(30 * time.Second), HasAnswer: true, LastAnswer: ago(30 * time.Second)},
		Apps: []App{{Pod: "db-0", Exclusive: true, HasAnswer: true, LastAnswer: ago(20 * time.Second), HasKernel: true, LastKernel: ago(10 * time.Second)},
			{Pod: "shared", HasAnswer: true, LastAnswer: now}},
		Cluster: Cluster{Observing: 10 * time.Minute}}
}

func TestLifeIsTheStrongestSignSince(t *testing.T) {
	for name, c := range map[string]struct {
		since time.Duration
		rank  Rank
		who   string
	}{
		"all planes: the writer is the strongest":                    {time.Minute, RankWriter, "Application db-0"},
		"a sign at the very instant counts":                          {20 * time.Second, RankWriter, "Application db-0"},
		"after the writer, only the kernel":                          {19 * time.Second, RankKernel, "Application db-0"},
		"after everything, nothing: a shared address does not count": {9 * time.Second, RankNone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if rank, who := alive().Life(ago(c.since)); rank != c.rank || who != c.who {
				t.Errorf("is %s by %q", rank, who)
			}
		})
	}
}

func TestLifeKeepsWhatWasSeen(t *testing.T) {
	s := alive()
	s.Apps = nil
	s.Lease.Read, s.Port.Answer, s.Port.Asked = false, AnswerNone, now
	if rank, who := s.Life(ago(40 * time.Second)); rank != RankUserspace || who != "Lease" {
		t.Errorf("a lease that cannot be read now: %s by %q", rank, who)
	}
	if rank, who := s.Life(ago(30 * time.Second)); rank != RankKernel || who != "KubeletPort" {
		t.Errorf("a port that does not answer now: %s by %q", rank, who)
	}
}

func TestAnotherBootsKubeletIsNoLifeOfThisOne(t *testing.T) {
	s := alive()
	s.Apps, s.Port = nil, Port{}
	s.Node.BootID = "b2"
	if rank, who := s.Life(0); rank != RankNone {
		t.Errorf("is %s by %s", rank, who)
	}
	s.Node.BootID = ""
	if !s.SameBoot() {
		t.Error("a Node without a boot ID is taken for another boot")
	}
}

func TestLastLifeIsNeverBeforeTheObserver(t *testing.T) {
	s := alive()
	if got := s.SilentFor(); got != 10*time.Second {
		t.Errorf("silent for %s after the kernel's answer", got)
	}
	s = Snapshot{At: now, Cluster: Cluster{Observing: 3 * time.Second}}
	if got := s.SilentFor(); got != 3*time.Second {
		t.Errorf("an observer of three seconds says that a host was silent for %s", got)
	}
}

func TestUncutNamesTheVolumeThatNoMethodCuts(t *testing.T) {
	a, b := Power{Method: "a", CoversDrivers: []string{"a"}}, Power{Method: "b", CoversDrivers: []string{"b", ""}}
	host := Power{Method: "host", CoversHost: true}
	two := []Writer{{Name: "w", Volumes: []Volume{{Claim: "x", Driver: "a"}, {Claim: "y", Driver: "b"}}}}
	for _, c := range []struct {
		what    string
		writers []Writer
		by      []Power
		uncut   string
	}{
		{"one driver's method leaves the other's volume", two, []Power{a}, "y"},
		{"nor does it cut that of another writer", append(slices.Clone(two[:0:0]), Writer{Volumes: two[0].Volumes[:1]}, Writer{Volumes: two[0].Volumes[1:]}), []Power{a}, "y"},
		{"two methods together cut both", two, []Power{a, b}, ""},
		{"the host's cuts everything", two, []Power{host}, ""},
		{"a volume of unknown driver is cut with the host only", []Writer{{Volumes: []Volume{{Claim: "z"}}}}, []Power{a, b}, "z"},
		{"so is a writer of unknown volumes", []Writer{{Name: "w"}}, []Power{a, b}, "of w"},
		{"and is, with the host", []Writer{{Name: "w"}}, []Power{a, host}, ""},
		{"nothing cuts nothing", two, nil, "x"},
	} {
		if got := Uncut(c.writers, c.by); got != c.uncut {
			t.Errorf("%s: uncut is %q, want %q", c.what, got, c.uncut)
		}
	}
}

func TestLeastTakesAsFewMethodsAsItNeeds(t *testing.T) {
	a, b := Power{Method: "a", CoversDrivers: []string{"a"}}, Power{Method: "b", CoversDrivers: []string{"b"}}
	h1, h2 := Power{Method: "h1", CoversHost: true}, Power{Method: "h2", CoversHost: true}
	two := []Writer{{Volumes: []Volume{{Claim: "x", Driver: "a"}, {Claim: "y", Driver: "b"}}}}
	for _, c := range []struct {
		by   []Power
		want []string
	}{
		{[]Power{h1, h2}, []string{"h1"}},
		{[]Power{a, h1, b}, []string{"h1"}},
		{[]Power{a, b, h1}, []string{"a", "b"}},
		{[]Power{a, a}, nil},
		{nil, nil},
	} {
		var got []string
		for _, p := range Least(two, c.by) {
			got = append(got, p.Method)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("of %v it takes %v, want %v", c.by, got, c.want)
		}
	}
	if got := Least(nil, []Power{b, h1}); len(got) != 1 || got[0].Method != "b" {
		t.Errorf("without writers it takes %v, want the first", got)
	}
}

func TestWeakSaysWhatIsAskedFor(t *testing.T) {
	p := Power{Method: "fabric", Strength: StrengthPowerOff}
	if got := p.Weak(StrengthPowerOff); got != "" {
		t.Errorf("says %q of a method that is strong enough", got)
	}
	if got := p.Weak(StrengthPowerOff + 1); !strings.Contains(got, "fabric proves PowerOff") {
		t.Errorf("says %q", got)
	}
	p.Strength = StrengthNone
	if p.Weak(StrengthNone) == "" {
		t.Error("a method that proves nothing is enough")
	}
}
