// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	clocktesting "k8s.io/utils/clock/testing"
)

// desk is a Lease in an API server, as the replica "me" sees it.
type desk struct {
	resourcelock.Interface
	holder string
	// written is the record as it was written last.
	written resourcelock.LeaderElectionRecord
	away    error
	// before is called while a request is under way.
	before func()
}

func (d *desk) Identity() string { return "me" }

func (d *desk) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record := d.written
	record.HolderIdentity = d.holder
	raw, err := json.Marshal(record) // as client-go's lock does
	return &record, raw, errors.Join(err, d.away)
}

func (d *desk) Update(_ context.Context, r resourcelock.LeaderElectionRecord) error {
	if d.before != nil {
		d.before()
	}
	if d.away == nil {
		d.holder, d.written = r.HolderIdentity, r
	}
	return d.away
}

func (d *desk) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return d.Update(ctx, r)
}

type office struct {
	*testing.T
	*desk
	term  *term
	clock *clocktesting.FakeClock
	ends  []string
}

func newOffice(t *testing.T) *office {
	o := &office{T: t, desk: &desk{}, clock: clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))}
	o.term = &term{Interface: o.desk, clock: o.clock, end: func(why string) { o.ends = append(o.ends, why) }}
	return o
}

// renew asks for a renewal; an empty name gives the lease back.
func (o *office) renew(name string) error {
	return o.term.Update(o.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: name})
}

func (o *office) ended(times int) {
	o.Helper()
	if len(o.ends) != times {
		o.Fatalf("the process ended %d times: %q", len(o.ends), o.ends)
	}
}

func (o *office) must(err error) {
	o.Helper()
	if err != nil {
		o.Fatal(err)
	}
}

func TestALeaderThatCannotRenewEndsBeforeAnotherCanLead(t *testing.T) {
	o := newOffice(t)
	o.must(o.term.Create(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: "me"}))
	for range 100 {
		o.clock.Step(retryPeriod)
		o.must(o.renew("me"))
	}
	o.ended(0)
	o.away = errors.New("the API is away")
	// The renewal that comes through is asked for now, and is heard of 2 s later: its lease counts from now.
	o.before = func() { o.clock.Step(2 * time.Second); o.away = nil }
	o.must(o.renew("me"))
	o.before, o.away = nil, errors.New("the API is away")
	o.clock.Step(endAfter - 2*time.Second - time.Millisecond)
	if err := o.renew("me"); err == nil {
		t.Error("a renewal that failed is said to have come through")
	}
	o.ended(0)
	o.clock.Step(time.Millisecond)
	o.ended(1)
}

// TestEveryRenewalIsSeenByACandidate: also the second in one second, and one that client-go tries again with the time of its first try.
func TestEveryRenewalIsSeenByACandidate(t *testing.T) {
	o := newOffice(t)
	candidate := &term{Interface: o.desk, clock: o.clock, end: func(why string) { t.Error(why) }}
	sees := func() string {
		_, raw, err := candidate.Get(t.Context())
		o.must(err)
		return string(raw)
	}
	first := metav1.Time{Time: o.clock.Now()}
	seen := map[string]int{}
	for n := range 12 {
		o.must(o.term.Update(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: "me", RenewTime: first}))
		raw := sees()
		if before, again := seen[raw]; again || raw != sees() {
			t.Errorf("renewal %d looks like renewal %d: %s", n, before, raw)
		}
		seen[raw] = n
		o.clock.Step(retryPeriod)
	}
}

func TestALeaseIsGivenBackInGoodOrderOnly(t *testing.T) {
	o := newOffice(t)
	if err := o.renew(""); !errors.Is(err, errKept) {
		t.Errorf("somebody else's lease was given back: %v", err)
	}
	o.must(o.renew("me"))
	o.clock.Step(renewDeadline)
	if err := o.renew(""); !errors.Is(err, errKept) || o.holder != "me" {
		t.Errorf("what could not be renewed was given back: %v, %q holds it", err, o.holder)
	}
	o.must(o.renew("me"))
	o.clock.Step(renewDeadline - time.Millisecond)
	o.must(o.renew(""))
	if o.holder != "" || o.term.Led() != 0 {
		t.Errorf("%q holds it still, for %s", o.holder, o.term.Led())
	}
	o.clock.Step(time.Hour)
	o.ended(0)
}

func TestWhoseLeaseWasTakenEndsAtOnce(t *testing.T) {
	o := newOffice(t)
	o.holder = "another"
	look := func() {
		_, _, err := o.term.Get(t.Context())
		o.must(err)
	}
	look()
	o.ended(0) // a standby sees nothing else all day
	o.must(o.renew("me"))
	look()
	o.ended(0)
	o.holder = "another"
	look()
	o.ended(1)
}

func TestForHowLongItLeads(t *testing.T) {
	o := newOffice(t)
	if o.term.Led() != 0 {
		t.Error("it leads before it does")
	}
	o.must(o.renew("me"))
	if o.term.Led() == 0 {
		t.Error("it does not lead when it does")
	}
	o.clock.Step(time.Second)
	o.must(o.renew("me"))
	o.clock.Step(time.Second)
	if o.term.Led() != 2*time.Second {
		t.Errorf("it leads for %s", o.term.Led())
	}
}

// The arithmetic of docs/adr/0014-a-hand-over-within-five-seconds.md.
func TestTheTimingsKeepTheirPromises(t *testing.T) {
	const (
		jitter   = 22 * retryPeriod / 10       // client-go waits for a period and up to 1.2 of them more
		requests = 250 * time.Millisecond      // a look, and the taking
		stall    = 2 * time.Second             // of the API server
		attempt  = retryPeriod + renewDeadline // from the last renewal to when client-go gives up
	)
	if worst := leaseDuration + 2*jitter + requests; worst > 5*time.Second {
		t.Errorf("a hand-over takes up to %s", worst)
	}
	if leaseDuration%time.Second != 0 {
		t.Error("a Lease has whole seconds")
	}
	if leaseDuration-endAfter < time.Second {
		t.Errorf("a process that is late to end by more than %s acts beside another", leaseDuration-endAfter)
	}
	if attempt < stall+retryPeriod+requests || attempt > endAfter {
		t.Errorf("client-go gives up after %s", attempt)
	}
}

// The requests of the lease are given up soon; those of everything else, watches above all, are not.
func TestTheLeaseHasAConfigurationOfItsOwn(t *testing.T) {
	config := &rest.Config{Host: "https://127.0.0.1:6443", UserAgent: "manager"}
	if _, err := newTerm(config, "holdfast-system"); err != nil {
		t.Fatal(err)
	}
	if config.Timeout != 0 || config.UserAgent != "manager" {
		t.Errorf("everybody's requests are given up after %s, and come from %q", config.Timeout, config.UserAgent)
	}
}
