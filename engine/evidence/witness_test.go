// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"testing"
	"time"
)

// heardAt is a sign that was dated to within two seconds.
func heardAt(d time.Duration) Sign {
	return Sign{Heard: true, NotBefore: ago(d), NotAfter: ago(d - 2*time.Second)}
}

// deadBy is a host that all of three vantage points call dead, after each has asked its port and its application in vain.
func deadBy() Snapshot {
	s := Snapshot{At: now, Host: Host{Node: "n0", BootID: "b1"}, Apps: []App{{Pod: "db-0", PodUID: "u", Exclusive: true}}, Cluster: Cluster{Observing: 20 * time.Second}}
	s.Witnesses = Witnesses{On: true, Expected: 3}
	for _, name := range []string{"n1", "n2", "n3"} {
		s.Witnesses.Vantages = append(s.Witnesses.Vantages, Vantage{Witness: name, Answered: true, At: now, State: GossipDead, StateFor: 15 * time.Second,
			Port: AnswerNone, PortAsked: ago(time.Second), Apps: []AppThere{{PodUID: "u", Says: ThereSilent, Asked: ago(time.Second)}}})
	}
	return s
}

func TestASingleVantagePointThatHearsTheHostIsEnough(t *testing.T) {
	if _, heard := deadBy().WitnessHears(); heard || !deadBy().WitnessesCallItDead() || !deadBy().WitnessQuorum() || !deadBy().FailsThere("u") {
		t.Fatal("a host that everybody calls dead is not")
	}
	for what, c := range map[string]struct {
		say  func(*Snapshot, *Vantage)
		want bool
	}{
		"gossip says Alive":   {func(_ *Snapshot, v *Vantage) { v.State = GossipAlive }, true},
		"gossip says Suspect": {func(_ *Snapshot, v *Vantage) { v.State = GossipSuspect }, true},
		"gossip does not know it, and it was asked in vain": {func(_ *Snapshot, v *Vantage) { v.State = GossipUnread }, false},
		"its agent answers although gossip calls it dead":   {func(_ *Snapshot, v *Vantage) { v.Agent = heardAt(3 * time.Second) }, true},
		"its agent answered before gossip called it dead": {func(_ *Snapshot, v *Vantage) {
			v.Agent, v.StateFor = heardAt(4*time.Second), 3*time.Second
		}, false},
		"its agent of another boot answers":   {func(_ *Snapshot, v *Vantage) { v.Agent, v.AgentBoot = heardAt(3*time.Second), "b2" }, true},
		"its port refuses":                    {func(_ *Snapshot, v *Vantage) { v.Port = AnswerReset }, true},
		"its port refused in an older round":  {func(_ *Snapshot, v *Vantage) { v.Port, v.PortAsked = AnswerReset, ago(6*time.Second) }, false},
		"its application answers":             {func(_ *Snapshot, v *Vantage) { v.Apps[0].Says = ThereAnswered }, true},
		"its kernel refuses for it":           {func(_ *Snapshot, v *Vantage) { v.Apps[0].Says = ThereRefused }, true},
		"another pod with its address does":   {func(s *Snapshot, v *Vantage) { v.Apps[0].Says, s.Apps[0].Exclusive = ThereAnswered, false }, false},
		"that vantage point does not answer":  {func(_ *Snapshot, v *Vantage) { v.State, v.Answered = GossipAlive, false }, false},
		"its answer is of an older round":     {func(_ *Snapshot, v *Vantage) { v.State, v.At = GossipAlive, ago(6*time.Second) }, false},
		"it is the host's own agent":          {func(_ *Snapshot, v *Vantage) { v.State, v.Witness = GossipAlive, "n0" }, false},
		"no agents are configured after all":  {func(s *Snapshot, v *Vantage) { v.State, s.Witnesses.On = GossipAlive, false }, false},
		"nobody is expected, and one answers": {func(s *Snapshot, v *Vantage) { v.State, s.Witnesses.Expected = GossipAlive, 0 }, true},
	} {
		t.Run(what, func(t *testing.T) {
			s := deadBy()
			c.say(&s, &s.Witnesses.Vantages[2])
			words, heard := s.WitnessHears()
			if heard != c.want {
				t.Errorf("heard is %v (%s)", heard, words)
			}
			if heard && s.WitnessesCallItDead() {
				t.Error("and is called dead all the same")
			}
		})
	}
}

func TestAQuorumIsMoreThanHalfOfThoseThatShouldAnswerAndHaveLooked(t *testing.T) {
	for what, c := range map[string]struct {
		say  func(*Snapshot)
		want bool
	}{
		"two of three":                {func(s *Snapshot) { s.Witnesses.Vantages[0].Answered = false }, true},
		"one of three":                {func(s *Snapshot) { s.Witnesses.Vantages = s.Witnesses.Vantages[:1] }, false},
		"two of four":                 {func(s *Snapshot) { s.Witnesses.Expected, s.Witnesses.Vantages = 4, s.Witnesses.Vantages[:2] }, false},
		"one of one":                  {func(s *Snapshot) { s.Witnesses.Expected, s.Witnesses.Vantages = 1, s.Witnesses.Vantages[:1] }, true},
		"one three times":             {func(s *Snapshot) { s.Witnesses.Vantages[1].Witness, s.Witnesses.Vantages[2].Witness = "n1", "n1" }, false},
		"nobody is expected":          {func(s *Snapshot) { s.Witnesses.Expected, s.Witnesses.Vantages = 0, nil }, true},
		"without agents":              {func(s *Snapshot) { s.Witnesses.On, s.Witnesses.Vantages = false, nil }, true},
		"two of three have not asked": {func(s *Snapshot) { s.Witnesses.Vantages[0].Port, s.Witnesses.Vantages[1].Port = 0, 0 }, false},
		"two asked in an older round": {func(s *Snapshot) {
			s.Witnesses.Vantages[0].PortAsked, s.Witnesses.Vantages[1].PortAsked = ago(6*time.Second), ago(6*time.Second)
		}, false},
		"asked before the host last answered": {func(s *Snapshot) { s.Port = Port{HasAnswer: true, LastAnswer: now} }, false},
	} {
		t.Run(what, func(t *testing.T) {
			s := deadBy()
			c.say(&s)
			if got := s.WitnessQuorum(); got != c.want {
				t.Errorf("quorum is %v", got)
			}
		})
	}
}

func TestWhatWitnessesHeardIsLifeOfItsBootAndIsKept(t *testing.T) {
	for what, c := range map[string]struct {
		say   func(*Snapshot, *Vantage)
		since time.Duration
		rank  Rank
	}{
		"its agent answered, in this boot":                    {func(_ *Snapshot, v *Vantage) { v.Agent, v.AgentBoot = heardAt(9*time.Second), "b1" }, 10 * time.Second, RankUserspace},
		"and the vantage point has fallen silent since":       {func(_ *Snapshot, v *Vantage) { v.Agent, v.AgentBoot, v.Answered = heardAt(9*time.Second), "b1", false }, 10 * time.Second, RankUserspace},
		"that may have been before":                           {func(_ *Snapshot, v *Vantage) { v.Agent, v.AgentBoot = heardAt(9*time.Second), "b1" }, 8 * time.Second, RankNone},
		"its agent answered in another boot":                  {func(_ *Snapshot, v *Vantage) { v.Agent, v.AgentBoot = heardAt(9*time.Second), "b2" }, time.Minute, RankNone},
		"its agent did not say in which":                      {func(s *Snapshot, v *Vantage) { v.Agent, s.Host.BootID = heardAt(9*time.Second), "" }, time.Minute, RankNone},
		"gossip alone calls it Alive":                         {func(_ *Snapshot, v *Vantage) { v.State = GossipAlive }, time.Minute, RankNone},
		"its port refused":                                    {func(_ *Snapshot, v *Vantage) { v.Port = AnswerReset }, time.Second, RankKernel},
		"its port spoke":                                      {func(_ *Snapshot, v *Vantage) { v.Port = AnswerSpoke }, time.Second, RankUserspace},
		"its port answered once, and does not now":            {func(_ *Snapshot, v *Vantage) { v.PortHeard = heardAt(9 * time.Second) }, 10 * time.Second, RankKernel},
		"its application answered once, and does not now":     {func(_ *Snapshot, v *Vantage) { v.Apps[0].Answered = heardAt(9 * time.Second) }, 10 * time.Second, RankWriter},
		"its kernel refused for the application once":         {func(_ *Snapshot, v *Vantage) { v.Apps[0].Replied = heardAt(9 * time.Second) }, 10 * time.Second, RankKernel},
		"another pod with the application's address answered": {func(s *Snapshot, v *Vantage) { v.Apps[0].Answered, s.Apps[0].Exclusive = heardAt(time.Second), false }, time.Minute, RankNone},
		"its agent reported to us, in this boot": {func(s *Snapshot, _ *Vantage) {
			s.Witnesses.Report = Report{Sign: heardAt(9 * time.Second), BootID: "b1"}
		}, 10 * time.Second, RankUserspace},
		"its agent reported to us, in another boot": {func(s *Snapshot, _ *Vantage) {
			s.Witnesses.Report = Report{Sign: heardAt(9 * time.Second), BootID: "b2"}
		}, time.Minute, RankNone},
		"no agents are configured after all": {func(s *Snapshot, v *Vantage) { v.Port, s.Witnesses.On = AnswerSpoke, false }, time.Minute, RankNone},
	} {
		t.Run(what, func(t *testing.T) {
			s := deadBy()
			c.say(&s, &s.Witnesses.Vantages[0])
			if rank, who := s.Life(ago(c.since)); rank != c.rank {
				t.Errorf("is %s by %q", rank, who)
			}
			if silent := s.SilentFor() >= 20*time.Second; silent == (c.rank != RankNone) && c.since < 20*time.Second && c.rank != RankNone {
				t.Errorf("and the host counts as silent for %s", s.SilentFor())
			}
		})
	}
}

// TestSilenceIsCountedFromTheLatestMomentOfASign: a view that was awaited for half a minute dates what it heard to within half a minute. As life it counts
// from the first of these moments, as the end of silence from the last.
func TestSilenceIsCountedFromTheLatestMomentOfASign(t *testing.T) {
	s := deadBy()
	v := &s.Witnesses.Vantages[0]
	v.AgentBoot, v.Agent = "b1", Sign{Heard: true, NotBefore: ago(18 * time.Second), NotAfter: ago(2 * time.Second)}
	if got := s.SilentFor(); got != 2*time.Second {
		t.Errorf("silent for %s", got)
	}
	if rank, _ := s.Life(ago(17 * time.Second)); rank != RankNone {
		t.Error("what may have been before an instant is life since")
	}
	v.Agent.NotAfter = now + Instant(time.Second)
	if got := s.SilentFor(); got != 0 {
		t.Errorf("silent for %s", got)
	}
}

func TestAnApplicationFailsThereOnlyByMoreThanHalf(t *testing.T) {
	for what, c := range map[string]struct {
		say  func(*Snapshot)
		want bool
	}{
		"all":                {func(*Snapshot) {}, true},
		"one was not asked":  {func(s *Snapshot) { s.Witnesses.Vantages[0].Apps = nil }, true},
		"two were not asked": {func(s *Snapshot) { s.Witnesses.Vantages[0].Apps, s.Witnesses.Vantages[1].Apps = nil, nil }, false},
		"it answers one":     {func(s *Snapshot) { s.Witnesses.Vantages[0].Apps[0].Says = ThereAnswered }, false},
		"nobody is expected": {func(s *Snapshot) { s.Witnesses = Witnesses{On: true} }, true},
		"another pod's":      {func(s *Snapshot) { s.Apps[0].PodUID = "other" }, false},
		"it answered in an older round": {func(s *Snapshot) {
			a := &s.Witnesses.Vantages[0].Apps[0]
			a.Says, a.Asked = ThereAnswered, ago(6*time.Second)
		}, true},
		"two were asked in an older one": {func(s *Snapshot) {
			for i := range 2 {
				s.Witnesses.Vantages[i].Apps[0].Asked = ago(6 * time.Second)
			}
		}, false},
	} {
		t.Run(what, func(t *testing.T) {
			s := deadBy()
			c.say(&s)
			if got := s.FailsThere("u"); got != c.want {
				t.Errorf("fails there: %v", got)
			}
		})
	}
}

func TestAReportIsOfThisBootAndOfLately(t *testing.T) {
	for what, c := range map[string]struct {
		report Report
		want   bool
	}{
		"of this boot": {Report{Sign: heardAt(9 * time.Second), BootID: "b1"}, true},
		"of another":   {Report{Sign: heardAt(9 * time.Second), BootID: "b2"}, false},
		"too old":      {Report{Sign: heardAt(11 * time.Second), BootID: "b1"}, false},
		"never":        {Report{BootID: "b1"}, false},
	} {
		s := deadBy()
		s.Witnesses.Report = c.report
		if _, ok := s.ReportNow(); ok != c.want {
			t.Errorf("%s: counts %v", what, ok)
		}
	}
}

func TestWitnessLifeIsOfThePresent(t *testing.T) {
	s := deadBy()
	if rank, words := s.WitnessLife(); rank != RankNone {
		t.Errorf("is %s by %s", rank, words)
	}
	v := &s.Witnesses.Vantages[0]
	v.State = GossipAlive
	if rank, _ := s.WitnessLife(); rank != RankNone {
		t.Error("gossip alone is life")
	}
	v.Agent, v.AgentBoot = heardAt(3*time.Second), "b2"
	if rank, _ := s.WitnessLife(); rank != RankNone {
		t.Error("another boot's agent is life of this one")
	}
	v.AgentBoot = "b1"
	if rank, _ := s.WitnessLife(); rank != RankUserspace {
		t.Errorf("is %s with its agent heard", rank)
	}
	v.Apps[0].Says = ThereAnswered
	if rank, _ := s.WitnessLife(); rank != RankWriter {
		t.Errorf("is %s with its application heard", rank)
	}
	if by, ok := s.AnswersThere("u"); !ok || by != "n1" {
		t.Errorf("answers %q", by)
	}
}

// calledFor is a host that was lost a while ago, with everything that makes its agent's silence count.
func calledFor() Snapshot {
	s := deadBy()
	s.Cluster.Observing = time.Minute
	for i := range s.Witnesses.Vantages {
		v := &s.Witnesses.Vantages[i]
		v.StateFor, v.Agent, v.AgentBoot = 2*time.Second, heardAt(6*time.Second), "b1"
	}
	s.AgentLease = AgentLease{Read: true, At: now, Asked: now, BootID: "b1", Every: time.Second, Age: time.Minute}
	s.Witnesses.Report = Report{Sign: heardAt(6 * time.Second), BootID: "b1", API: PulseAlive}
	return s
}

func TestEveryPartOfAnAgentsSilenceCounts(t *testing.T) {
	if !calledFor().AgentWouldHaveCalled() {
		t.Fatal("the silence of an agent that would have called does not count")
	}
	for what, c := range map[string]struct {
		say  func(*Snapshot)
		want bool
	}{
		"gossip gave it up a moment ago": {func(s *Snapshot) { s.Witnesses.Vantages[1].StateFor = 1999 * time.Millisecond }, false},
		"no quorum has given it up": {func(s *Snapshot) {
			s.Witnesses.Vantages[0].State, s.Witnesses.Vantages[1].State = GossipUnread, GossipUnread
		}, false},
		"somebody hears it":                             {func(s *Snapshot) { s.Witnesses.Vantages[2].State = GossipSuspect }, false},
		"its port answered after that":                  {func(s *Snapshot) { s.Port = Port{HasAnswer: true, LastAnswer: ago(time.Second)} }, false},
		"its application answered after that":           {func(s *Snapshot) { s.Apps[0].HasAnswer, s.Apps[0].LastAnswer = true, ago(1900*time.Millisecond) }, false},
		"its application answered before":               {func(s *Snapshot) { s.Apps[0].HasAnswer, s.Apps[0].LastAnswer = true, ago(4*time.Second) }, true},
		"its kubelet renewed after that":                {func(s *Snapshot) { s.Lease = Lease{Read: true, Moved: true, At: now, Age: time.Second} }, false},
		"we have not watched for so long":               {func(s *Snapshot) { s.Cluster.Observing = time.Second }, false},
		"its agent never answered two of three":         {func(s *Snapshot) { s.Witnesses.Vantages[0].Agent, s.Witnesses.Vantages[2].Agent = Sign{}, Sign{} }, false},
		"its agent never answered one of three":         {func(s *Snapshot) { s.Witnesses.Vantages[0].Agent = Sign{} }, true},
		"two had answers of another boot only":          {func(s *Snapshot) { s.Witnesses.Vantages[0].AgentBoot, s.Witnesses.Vantages[1].AgentBoot = "b0", "b0" }, false},
		"the Lease was not read":                        {func(s *Snapshot) { s.AgentLease.Read = false }, false},
		"there is no Lease":                             {func(s *Snapshot) { s.AgentLease.Missing = true }, false},
		"the Lease is of another boot":                  {func(s *Snapshot) { s.AgentLease.BootID = "b0" }, false},
		"nobody knows the boot":                         {func(s *Snapshot) { s.AgentLease.BootID, s.Host.BootID = "", "" }, false},
		"the Lease was read too early":                  {func(s *Snapshot) { s.AgentLease.Asked = ago(time.Millisecond) }, false},
		"the next word may be on its way":               {func(s *Snapshot) { s.AgentLease.Age = 2 * time.Second }, false},
		"the next word comes in a minute":               {func(s *Snapshot) { s.AgentLease.Every = time.Minute }, false},
		"the agent did not reach the API at last":       {func(s *Snapshot) { s.Witnesses.Report.API = PulseDead }, false},
		"nor can it be told whether it did":             {func(s *Snapshot) { s.Witnesses.Report.API = PulseUnread }, false},
		"the agent of another boot reached it":          {func(s *Snapshot) { s.Witnesses.Report.BootID = "b0" }, false},
		"nobody has heard what it says of the API":      {func(s *Snapshot) { s.Witnesses.Report = Report{BootID: "b1", API: PulseAlive} }, false},
		"nobody should answer, and so nobody is a most": {func(s *Snapshot) { s.Witnesses.Expected = 0 }, false},
		"no agents are configured":                      {func(s *Snapshot) { s.Witnesses.On = false }, false},
	} {
		s := calledFor()
		c.say(&s)
		if got := s.AgentWouldHaveCalled(); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestAWordInTheAgentsLeaseIsLifeOfItsBoot(t *testing.T) {
	for what, c := range map[string]struct {
		say         func(*Snapshot)
		calls, life bool
	}{
		"it was said":                  {func(*Snapshot) {}, true, true},
		"it was said in another boot":  {func(s *Snapshot) { s.AgentLease.BootID = "b2" }, false, false},
		"it was there from the first":  {func(s *Snapshot) { s.AgentLease.Moved = false }, false, false},
		"and cannot be read any more":  {func(s *Snapshot) { s.AgentLease.Read = false }, true, true},
		"it was said long ago":         {func(s *Snapshot) { s.AgentLease.Age, s.AgentLease.NotBefore = 11*time.Second, ago(12*time.Second) }, false, true},
		"it may have been said before": {func(s *Snapshot) { s.AgentLease.NotBefore = ago(21 * time.Second) }, true, false},
		"the next comes in half a minute": {func(s *Snapshot) {
			s.AgentLease.Every, s.AgentLease.Age, s.AgentLease.NotBefore = 25*time.Second, 30*time.Second, ago(30*time.Second)
		}, true, false},
		"and did not come": {func(s *Snapshot) {
			s.AgentLease.Every, s.AgentLease.Age, s.AgentLease.NotBefore = 25*time.Second, 31*time.Second, ago(31*time.Second)
		}, false, false},
		"it says that the next comes in a day": {func(s *Snapshot) {
			s.AgentLease.Every, s.AgentLease.Age, s.AgentLease.NotBefore = 24*time.Hour, 66*time.Second, ago(66*time.Second)
		}, false, false},
		"agents are not configured":         {func(s *Snapshot) { s.Witnesses.On = false }, false, false},
		"the boot of the host is not known": {func(s *Snapshot) { s.Host.BootID, s.AgentLease.BootID = "", "" }, false, false},
	} {
		s := deadBy()
		s.AgentLease = AgentLease{Read: true, At: now, Asked: now, BootID: "b1", Every: time.Second, Age: time.Second, Moved: true, NotBefore: ago(2 * time.Second)}
		c.say(&s)
		rank, who := s.Life(ago(20 * time.Second))
		if s.AgentCalls() != c.calls || (rank == RankUserspace) != c.life {
			t.Errorf("%s: calls is %v, and %s shows life of rank %s", what, s.AgentCalls(), who, rank)
		}
		if _, spoke := s.AgentSpoke(ago(20 * time.Second)); spoke != c.life {
			t.Errorf("%s: spoke is %v", what, spoke)
		}
		if last := s.At - Instant(s.AgentLease.Age); c.calls && s.LastLife() != max(last, ago(20*time.Second)) {
			t.Errorf("%s: last life is %s ago", what, s.At.Sub(s.LastLife()))
		}
	}
}

func TestWhatAHostSaysOfItself(t *testing.T) {
	for want, r := range map[string]Report{
		"kubelet unread, runtime unread, API unread": {},
		"kubelet dead, runtime alive, API alive":     {Kubelet: PulseDead, Runtime: PulseAlive, API: PulseAlive, Storage: PulseAlive, Memory: PulseAlive, IO: PulseAlive},
		"kubelet dead, runtime alive, API dead, a volume's device completes nothing, its processes wait for storage": {
			Kubelet: PulseDead, Runtime: PulseAlive, API: PulseDead, Storage: PulseDead, IO: PulseDead},
		"kubelet alive, runtime alive, API alive, its processes wait for memory": {
			Kubelet: PulseAlive, Runtime: PulseAlive, API: PulseAlive, Memory: PulseDead},
	} {
		if got := r.String(); got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
}
