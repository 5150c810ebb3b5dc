// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/engine/plan"
)

func pod(uid, host string) plan.CrewPod {
	return plan.CrewPod{UID: uid, Name: "db-" + uid[:1], Host: host, For: time.Hour}
}

// three is an app of three pods that asked for everything, with nothing new.
func three() plan.Crew {
	return plan.Crew{After: []plan.Trigger{plan.Failover, plan.ScaleOut, plan.HostReturn}, Equipped: true, Enforced: true, Want: 3, Sure: true,
		Ready: []plan.CrewPod{pod("0a", "h0"), pod("1a", "h1"), pod("2a", "h2")}, Released: map[string]string{},
		Journal: plan.CrewJournal{Kept: true, Known: []string{"0a", "1a", "2a"}, Size: 3}}
}

// failedOver is the same after host h1 was lost: a successor has come on h3.
func failedOver(c *plan.Crew) {
	c.Ready[1] = pod("1b", "h3")
	c.Released["1a"] = "h1"
}

func TestWhenConnectionsAreRecycled(t *testing.T) {
	older := func(uids ...string) []string { return uids }
	for name, test := range map[string]struct {
		change func(c *plan.Crew)
		begin  plan.Trigger
		older  []string
		waits  string
	}{
		"nothing is new":                 {change: func(*plan.Crew) {}},
		"a successor is ready elsewhere": {change: failedOver, begin: plan.Failover, older: older("0a", "2a")},
		"a pod came on a host that was lost": {change: func(c *plan.Crew) {
			c.Ready[1], c.Journal.Away = pod("1c", "h1"), []string{"h9", "h1"}
		}, begin: plan.HostReturn, older: older("0a", "2a")},
		"a fourth pod is ready": {change: func(c *plan.Crew) {
			c.Ready, c.Want = append(c.Ready, pod("3a", "h3")), 4
		}, begin: plan.ScaleOut, older: older("0a", "1a", "2a")},
		"a fourth and a fifth one are one event": {change: func(c *plan.Crew) {
			c.Ready, c.Want = append(c.Ready, pod("3a", "h3")), 5
		}, waits: "4 of 5"},
		"a pod was restarted":           {change: func(c *plan.Crew) { c.Ready[1] = pod("1b", "h1") }},
		"all were restarted":            {change: func(c *plan.Crew) { c.Ready = []plan.CrewPod{pod("0b", "h0"), pod("1b", "h1"), pod("2b", "h2")} }},
		"a pod restarts, selected pods": {change: func(c *plan.Crew) { c.Ready[1], c.Sure, c.Want = pod("1b", "h1"), false, 1 }},
		"it was not asked for after that": {change: func(c *plan.Crew) {
			failedOver(c)
			c.After = []plan.Trigger{plan.ScaleOut}
		}},
		"an incident long ago released a pod that is not known any more": {change: func(c *plan.Crew) {
			c.Ready[1] = pod("1b", "h1")
			c.Released["1z"] = "h1"
		}},
		"all pods are new": {change: func(c *plan.Crew) {
			failedOver(c)
			c.Ready = []plan.CrewPod{pod("1b", "h3")}
			c.Want = 1
		}},
		"it has been ready for a moment": {change: func(c *plan.Crew) {
			failedOver(c)
			c.Ready[1].For = plan.RecycleSettles - 1
		}, waits: "db-1"},
		"an incident is open":        {change: func(c *plan.Crew) { failedOver(c); c.Incident = "h1-x" }, waits: "h1-x is open"},
		"we may be blind":            {change: func(c *plan.Crew) { failedOver(c); c.Blind = "h2-y" }, waits: "h2-y"},
		"the app is paused":          {change: func(c *plan.Crew) { failedOver(c); c.Enforced = false }, waits: "paused"},
		"agents are not to do it":    {change: func(c *plan.Crew) { failedOver(c); c.Equipped = false }, waits: "agents"},
		"it is too much for agents":  {change: func(c *plan.Crew) { failedOver(c); c.Beyond = "600 addresses" }, waits: "600"},
		"a pod does not answer":      {change: func(c *plan.Crew) { failedOver(c); c.Failing = true }, waits: "probes"},
		"a pod has not answered yet": {change: func(c *plan.Crew) { failedOver(c); c.Unheard = true }, waits: "lately"},
		"the app does not ask":       {change: func(c *plan.Crew) { failedOver(c); c.After = nil }},
		"there is no journal yet":    {change: func(c *plan.Crew) { failedOver(c); c.Journal = plan.CrewJournal{} }},
		"there is a round already":   {change: func(c *plan.Crew) { c.Ready, c.Journal.Open, c.Ours = append(c.Ready, pod("3a", "h3")), true, true }},
	} {
		t.Run(name, func(t *testing.T) {
			c := three()
			test.change(&c)
			got := plan.RecycleFor(c)
			var of []string
			for _, p := range got.Older {
				of = append(of, p.UID)
			}
			if got.Begin != test.begin || !slices.Equal(of, test.older) || got.End != "" {
				t.Errorf("%+v", got)
			}
			if (test.waits == "") != (got.Waits == "") || !strings.Contains(got.Waits, test.waits) {
				t.Errorf("it waits for %q, want %q", got.Waits, test.waits)
			}
			if got.Begin != "" && got.Note == nil {
				t.Error("the round begins, and the journal does not learn that its pods are not new any more")
			}
			if got.Waits != "" && got.Note != nil {
				t.Error("it waits, and the journal forgets for what")
			}
		})
	}
}

// What a decision notes keeps the next one from doing it again, whoever makes that.
func TestOneEventIsOneRound(t *testing.T) {
	c := three()
	failedOver(&c)
	first := plan.RecycleFor(c)
	c.Journal = *first.Note
	if second := plan.RecycleFor(c); !reflect.DeepEqual(second, plan.Recycling{}) {
		t.Errorf("then %+v", second)
	}
	if !slices.Equal(c.Journal.Away, []string{"h1"}) {
		t.Errorf("away from %v", c.Journal.Away)
	}
	c.Ready[0] = pod("0b", "h1") // drained from h0, say
	if got := plan.RecycleFor(c); got.Begin != plan.HostReturn || len(got.Note.Away) != 0 {
		t.Errorf("on the host that is back: %+v", got)
	}
}

func TestAScaleInAndOutAgainIsAnEvent(t *testing.T) {
	c := three()
	c.Ready, c.Want = c.Ready[:2], 2
	in := plan.RecycleFor(c)
	if in.Begin != "" || in.Note == nil || in.Note.Size != 2 {
		t.Fatalf("in: %+v", in)
	}
	c.Journal, c.Want = *in.Note, 3
	c.Ready = append(c.Ready, pod("2b", "h2"))
	if out := plan.RecycleFor(c); out.Begin != plan.ScaleOut {
		t.Errorf("out: %+v", out)
	}
}

func TestWhatIsAskedForForgetsWhenItIsNot(t *testing.T) {
	c := three()
	c.After = nil
	if got := plan.RecycleFor(c); got.Note == nil || got.Note.Kept {
		t.Errorf("%+v", got)
	}
	c.Journal = plan.CrewJournal{}
	if got := plan.RecycleFor(c); !reflect.DeepEqual(got, plan.Recycling{}) {
		t.Errorf("%+v", got)
	}
	c = three()
	c.Journal = plan.CrewJournal{}
	if got := plan.RecycleFor(c); got.Note == nil || got.Note.Size != 3 || got.Begin != "" {
		t.Errorf("asked for anew: %+v", got)
	}
}

func TestWhenARoundEnds(t *testing.T) {
	for name, test := range map[string]struct {
		change func(c *plan.Crew)
		end    string
	}{
		"it goes on":                     {func(*plan.Crew) {}, ""},
		"new pods do not matter to it":   {func(c *plan.Crew) { c.Ready = append(c.Ready, pod("3a", "h3")) }, ""},
		"a pod has a successor":          {failedOver, "ready any more"},
		"a pod is not ready any more":    {func(c *plan.Crew) { c.Ready = c.Ready[1:] }, "ready any more"},
		"it has become too much":         {func(c *plan.Crew) { c.Beyond = "600 addresses" }, "600"},
		"another process began it":       {func(c *plan.Crew) { c.Ours = false }, "another leader"},
		"it is done":                     {func(c *plan.Crew) { c.Over = "all that it was for" }, "all that it was for"},
		"an incident is open":            {func(c *plan.Crew) { c.Incident = "h1-x" }, "h1-x"},
		"we may be blind":                {func(c *plan.Crew) { c.Blind = "h1-x" }, "blind"},
		"it is not asked for any more":   {func(c *plan.Crew) { c.After = nil }, "ask"},
		"the app is paused":              {func(c *plan.Crew) { c.Enforced = false }, "paused"},
		"agents are not to do it":        {func(c *plan.Crew) { c.Equipped = false }, "agents"},
		"a pod does not answer any more": {func(c *plan.Crew) { c.Failing = true }, "probes"},
		"a pod is not heard":             {func(c *plan.Crew) { c.Unheard = true }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := three()
			c.Journal.Open, c.Ours = true, true
			test.change(&c)
			got := plan.RecycleFor(c)
			if (test.end == "") != (got.End == "") || !strings.Contains(got.End, test.end) || got.Begin != "" || got.Note != nil {
				t.Errorf("%+v", got)
			}
		})
	}
}
