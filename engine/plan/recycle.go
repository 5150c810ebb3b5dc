// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Trigger is after what connections to the older pods of an app are recycled.
type Trigger string

// Values of Trigger. What else brings a new pod, as a rollout or a restart, is none.
const (
	// Failover: a pod has come in the place of one that an incident released.
	Failover Trigger = "Failover"
	// HostReturn: a pod has come on a host from which an incident had released one.
	HostReturn Trigger = "HostReturn"
	// ScaleOut: more pods are ready than there were before.
	ScaleOut Trigger = "ScaleOut"
)

// RecycleSettles is for how long new pods have to be ready before clients are sent their way: by then their endpoints are known everywhere.
const RecycleSettles = 10 * time.Second

// mostAway is how many hosts a journal remembers as having lost a pod of the app.
const mostAway = 16

// CrewPod is one pod of an app that is ready.
type CrewPod struct {
	UID, Name, Host string
	// For how long it has been ready, as it says itself.
	For time.Duration
}

// CrewJournal is what the app's journal has of its pods.
type CrewJournal struct {
	// Kept is false where there is no journal yet.
	Kept bool
	// Known are the UIDs of the pods that are not new, Size how many pods there were when all were ready.
	Known []string
	Size  int
	// Away are hosts from which incidents released pods of the app, and on which none has come since.
	Away []string
	// Open is true while a round is under way.
	Open bool
}

// Crew is everything that decides whether connections of one app are recycled.
type Crew struct {
	// After is what the app asked for; nothing is nothing. Equipped says that agents are to reset connections, Enforced that the app is neither in mode Shadow nor paused.
	After              []Trigger
	Equipped, Enforced bool
	// Incident is the open incident that concerns the app, and Blind one whose verdict is Blind; empty where there is none.
	Incident, Blind string
	// Unheard is true unless every pod is known to answer its own probes, and Failing where one is known not to.
	Unheard, Failing bool
	// Want is how many pods there should be, and Sure whether anybody knows.
	Want int
	Sure bool
	// Beyond says what of the app is more than agents take, empty where nothing is.
	Beyond string
	// Ready are the pods that are ready, and Released which host each UID was on that an incident released, however long ago.
	Ready    []CrewPod
	Released map[string]string
	Journal  CrewJournal
	// Ours is true where this very process began the round that is open, Over why that has come to its end, empty while it has not.
	Ours bool
	Over string
}

// Recycling is what to do about the connections of one app. At most one of Begin and End is set.
type Recycling struct {
	// Begin says after what a round begins, to the pods Older, because of the pods Newer. The journal has to have it, and Note, before any agent is asked.
	Begin        Trigger
	Older, Newer []CrewPod
	// End says why the round that is open is over.
	End string
	// Note is what the journal is to have of the pods from now on; nil changes nothing. One that is not Kept is forgotten.
	Note *CrewJournal
	// Waits says for what a round waits that new pods would be the reason for.
	Waits string
}

// RecycleFor decides about the connections of one app.
func RecycleFor(c Crew) Recycling {
	why := c.forbidden()
	if c.Journal.Open {
		return Recycling{End: c.closing(why)}
	}
	if len(c.After) == 0 {
		if !c.Journal.Kept {
			return Recycling{}
		}
		return Recycling{Note: &CrewJournal{}}
	}
	if !c.Journal.Kept { // whoever asks for it begins with the pods that there are
		if !c.complete() || c.Incident != "" {
			return Recycling{}
		}
		return Recycling{Note: c.now(nil)}
	}
	newer := c.newer()
	if why == "" {
		why = c.unsettled(newer)
	}
	if why != "" {
		if len(newer) == 0 {
			why = ""
		}
		return Recycling{Waits: why}
	}
	trigger, away := c.trigger(newer)
	out := Recycling{Note: c.now(away)}
	if out.Note.same(c.Journal) {
		out.Note = nil
	}
	older := slices.DeleteFunc(slices.Clone(c.Ready), func(p CrewPod) bool { return !slices.Contains(c.Journal.Known, p.UID) })
	if trigger != "" && len(older) > 0 {
		out.Begin, out.Older, out.Newer = trigger, older, newer
	}
	return out
}

// forbidden says why no connection is recycled now, whatever came.
func (c Crew) forbidden() string {
	switch {
	case len(c.After) == 0:
		return "the app does not ask for it"
	case !c.Equipped:
		return "agents are not to reset connections (GuardConfig, spec.witness)"
	case c.Beyond != "":
		return c.Beyond
	case !c.Enforced:
		return "the app is paused or in mode Shadow"
	case c.Blind != "":
		return "incident " + c.Blind + " says that we may be blind"
	case c.Incident != "":
		return "incident " + c.Incident + " is open"
	case c.Failing:
		return "not every pod answers its own probes"
	}
	return ""
}

// closing says why a round that is open ends. One that another process began is not taken up: how far that came is not known.
func (c Crew) closing(forbidden string) string {
	switch {
	case !c.Ours:
		return "another leader began it, or nobody came to it"
	case c.Over != "":
		return c.Over
	case forbidden == "" && c.lacking():
		return "not all pods that it is about are ready any more"
	}
	return forbidden
}

// lacking reports whether a pod that was ready when the round began is not now: its connections are its own affair, and its address may be another's soon.
func (c Crew) lacking() bool {
	return slices.ContainsFunc(c.Journal.Known, func(uid string) bool {
		return !slices.ContainsFunc(c.Ready, func(p CrewPod) bool { return p.UID == uid })
	})
}

func (c Crew) complete() bool { return len(c.Ready) > 0 && len(c.Ready) >= c.Want }

func (c Crew) newer() []CrewPod {
	return slices.DeleteFunc(slices.Clone(c.Ready), func(p CrewPod) bool { return slices.Contains(c.Journal.Known, p.UID) })
}

func (c Crew) unsettled(newer []CrewPod) string {
	if !c.complete() {
		return fmt.Sprintf("%d of %d pods are ready", len(c.Ready), c.Want)
	}
	if c.Unheard {
		return "not every pod has answered its own probes lately"
	}
	for _, p := range newer {
		if p.For < RecycleSettles {
			return fmt.Sprintf("pod %s has been ready for %s, and %s is waited for", p.Name, p.For.Round(time.Second), RecycleSettles)
		}
	}
	return ""
}

// trigger says what the new pods have come by, of that which the app asked for, and from which hosts pods are away then.
func (c Crew) trigger(newer []CrewPod) (found Trigger, away []string) {
	away = slices.Clone(c.Journal.Away)
	came := map[Trigger]bool{ScaleOut: len(c.Ready) > c.Journal.Size}
	for _, uid := range c.Journal.Known {
		host, released := c.Released[uid]
		if !released || slices.ContainsFunc(c.Ready, func(p CrewPod) bool { return p.UID == uid }) {
			continue
		}
		came[Failover] = true
		if !slices.Contains(away, host) {
			away = append(away, host)
		}
	}
	for _, p := range newer {
		if i := slices.Index(away, p.Host); i >= 0 {
			came[HostReturn] = true
			away = slices.Delete(away, i, i+1)
		}
	}
	if len(newer) == 0 {
		return "", away
	}
	for _, t := range []Trigger{Failover, HostReturn, ScaleOut} {
		if came[t] && slices.Contains(c.After, t) {
			return t, away
		}
	}
	return "", away
}

// now is the journal of the pods that are ready.
func (c Crew) now(away []string) *CrewJournal {
	j := &CrewJournal{Kept: true, Size: len(c.Ready), Away: away[max(0, len(away)-mostAway):]}
	if !c.Sure {
		j.Size = max(j.Size, c.Journal.Size)
	}
	for _, p := range c.Ready {
		j.Known = append(j.Known, p.UID)
	}
	slices.Sort(j.Known)
	return j
}

func (j *CrewJournal) same(o CrewJournal) bool {
	return o.Kept && j.Size == o.Size && slices.Equal(j.Known, o.Known) && slices.Equal(j.Away, o.Away)
}

// String is for people: "Failover, because of db-1".
func (r Recycling) String() string {
	var names []string
	for _, p := range r.Newer {
		names = append(names, p.Name)
	}
	return fmt.Sprintf("%s, because of %s", r.Begin, strings.Join(names, ", "))
}
