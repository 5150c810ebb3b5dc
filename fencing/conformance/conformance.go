// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/fencing"
)

// grace is how much later than its context a call may return.
const grace = 2 * time.Second

// Run tests the driver of the rig against every line of the contract (docs/spec/fencing.md).
func Run(t *testing.T, rig Rig) {
	if len(rig.Hosts) < 2 {
		t.Fatalf("a rig needs two hosts or more, this one has %d", len(rig.Hosts))
	}
	for _, c := range clauses {
		t.Run(c.says, func(t *testing.T) { c.test(rig.bench(t, 0)) })
	}
	t.Run("calls for different targets at the same time do not mix", func(t *testing.T) { concurrent(t, rig) })
}

// clauses are the contract, one sentence each.
var clauses = []struct {
	says string
	test func(*bench)
}{
	{"a description names the driver, its strength and what it covers", describes},
	{"observe reads power and identity and changes nothing", observes},
	{"observe says what is so now, not what was", observesAnew},
	{"isolate commands off at once and never on", isolates},
	{"isolate commands off also when the device reads off", isolatesAgain},
	{"isolate commands nothing when permit refuses", permitRefuses},
	{"isolate asks permit about the device it then commands", wrongIdentity},
	{"accepted is not done: a device that ignores off still reads on", ignores},
	{"a device that lies is commanded all the same", liesOff},
	{"release commands on, and may be repeated", releases},
	{"a wrong password is denied and nothing is commanded", wrongPassword},
	{"a dead device is unreachable and nothing is commanded", dead},
	{"a slow device is unreachable, or unclear once it was commanded", slow},
	{"a command without answer is unclear", unanswered},
	{"a call whose context has ended does nothing", ended},
	{"a call returns when its context is cancelled", cancelled},
	{"a target without address is invalid", invalid},
	{"a power that is neither on nor off is unreadable, and the words name the device", unreadable},
	{"an answer that makes no sense is unreadable, and the words name the device", garbage},
	{"a device that cannot say its power is commanded all the same", unreadableIsolated},
	{"gone is said by a driver that can know it, and by no other", goneOrNever},
	{"a machine that exists no more reads gone, with its identity, until it is made again", ofProvider(gone)},
	{"what could not be found, or could not be asked, is not gone", ofProvider(notFound)},
	{"gone is said of the machine that the device names, and of no other", ofProvider(goneOfAnother)},
	{"isolate of a machine that is gone asks permit and is answered", ofProvider(isolatesGone)},
	{"release makes no machine again that is gone", ofProvider(releasesGone)},
}

func describes(b *bench) {
	d := b.driver.Describe()
	if d.Name == "" || d.Strength.String() == "Invalid" || (!d.Coverage.Host && len(d.Coverage.Drivers) == 0) {
		b.Errorf("%+v leaves out the name, the strength or the coverage", d)
	}
}

func observes(b *bench) {
	r, err := b.observe()
	if err != nil {
		b.Fatal(err)
	}
	if r.Power != fencing.PowerOn {
		b.Errorf("power is %v, want On", r.Power)
	}
	if err := b.sameMachine(r.Identity); err != nil {
		b.Error(err)
	}
	b.wantOff(0)
	b.wantOn(true)
}

func observesAnew(b *bench) {
	for _, on := range []bool{true, false, true} {
		b.host.Truth.SetOn(b, on)
		want := fencing.PowerOff
		if on {
			want = fencing.PowerOn
		}
		if r, err := b.observe(); err != nil || r.Power != want {
			b.Errorf("with the host really on: %v, observe says %v (%v)", on, r.Power, err)
		}
	}
	honest, _ := b.observe()
	b.setFault(FaultWrongIdentity)
	other, err := b.observe()
	if err != nil || fencing.SameMachine(other.Identity, honest.Identity) == nil {
		b.Errorf("the device changed its identity, observe says %q and then %q (%v)", honest.Identity, other.Identity, err)
	}
	b.wantOff(0)
}

func isolates(b *bench) {
	r, err := b.isolate(b.sameMachine)
	if err != nil {
		b.Fatal(err)
	}
	if r.Before != fencing.PowerOn && r.Before != fencing.PowerUnreadable {
		b.Errorf("before the command the power was %v, want On, or Unreadable if the driver does not read it", r.Before)
	}
	if err := b.sameMachine(r.Identity); err != nil {
		b.Error(err)
	}
	b.wantOff(1)
	b.wantOn(false)
	if now, err := b.observe(); err != nil || now.Power != fencing.PowerOff {
		b.Errorf("afterwards the device reads %v (%v), want Off", now.Power, err)
	}
}

func isolatesAgain(b *bench) {
	b.host.Truth.SetOn(b, false)
	for range 2 {
		r, err := b.isolate(b.sameMachine)
		if err != nil {
			b.Fatal(err)
		}
		if r.Before == fencing.PowerOn {
			b.Error("before the command the power was Off, the receipt says On")
		}
	}
	b.wantOff(2)
	b.wantOn(false)
}

func permitRefuses(b *bench) {
	refusal := errors.New("not this one")
	asked := 0
	_, err := b.isolate(func(string) error { asked++; return refusal })
	if !errors.Is(err, refusal) {
		b.Errorf("error %v does not wrap the refusal", err)
	}
	if asked != 1 {
		b.Errorf("permit was asked %d times, want once", asked)
	}
	b.wantOff(0)
	b.wantOn(true)
}

func wrongIdentity(b *bench) {
	b.setFault(FaultWrongIdentity)
	r, err := b.isolate(b.sameMachine)
	if !errors.Is(err, fencing.ErrIdentity) {
		b.Errorf("error %v, want the one of permit, %v", err, fencing.ErrIdentity)
	}
	b.wantOff(0)
	b.wantOn(true)

	var asked string
	if r, err = b.isolate(func(identity string) error { asked = identity; return nil }); err != nil {
		b.Fatal(err)
	}
	if asked != r.Identity || fencing.SameMachine(asked, b.host.Truth.Identity(b)) == nil {
		b.Errorf("permit was asked about %q, the receipt says %q, and the device belongs to another machine than %q", asked, r.Identity, b.host.Truth.Identity(b))
	}
	b.wantOff(1)
}

func ignores(b *bench) {
	b.setFault(FaultIgnore)
	if _, err := b.isolate(b.sameMachine); err != nil {
		b.Fatalf("the device accepted: %v", err)
	}
	b.wantOff(1)
	b.wantOn(true)
	if now, err := b.observe(); err != nil || now.Power != fencing.PowerOn {
		b.Errorf("afterwards the device reads %v (%v), want On", now.Power, err)
	}
}

func liesOff(b *bench) {
	b.setFault(FaultLieOff)
	if now, err := b.observe(); err != nil || now.Power != fencing.PowerOff {
		b.Errorf("observe says %v (%v), want the device's word, Off", now.Power, err)
	}
	if _, err := b.isolate(b.sameMachine); err != nil {
		b.Fatal(err)
	}
	b.wantOff(1)
	b.wantOn(true)
}

func releases(b *bench) {
	b.host.Truth.SetOn(b, false)
	for range 2 {
		if _, err := b.release(); err != nil {
			b.Fatal(err)
		}
		b.wantOn(true)
	}
	if got := b.taken(); got.Off != 0 || got.Other != 0 || got.On == 0 {
		b.Errorf("the device took %+v, want On only", got)
	}
}

func wrongPassword(b *bench) {
	b.setFault(FaultWrongPassword)
	b.everyCall(b.context, func(call string, err error) {
		if !errors.Is(err, fencing.ErrDenied) {
			b.Errorf("%s: error %v, want %v", call, err, fencing.ErrDenied)
		}
	})
	b.wantOff(0)
}

func dead(b *bench) {
	b.setFault(FaultDead)
	b.everyCall(b.context, func(call string, err error) {
		if !errors.Is(err, fencing.ErrUnreachable) {
			b.Errorf("%s: error %v, want %v", call, err, fencing.ErrUnreachable)
		}
	})
	b.wantOff(0)
	b.wantOn(true)
}

func slow(b *bench) {
	b.setFault(FaultSlow)
	if _, err := b.observe(); !errors.Is(err, fencing.ErrUnreachable) {
		b.Errorf("observe: error %v, want %v", err, fencing.ErrUnreachable)
	}
	_, err := b.isolate(b.sameMachine)
	b.setFault(FaultNone)
	switch off := b.taken().Off; {
	case errors.Is(err, fencing.ErrUnclear): // right whatever came of it
	case !errors.Is(err, fencing.ErrUnreachable):
		b.Errorf("isolate: error %v, want %v or %v", err, fencing.ErrUnreachable, fencing.ErrUnclear)
	case off != 0:
		b.Errorf("isolate: error %v says that nothing was commanded, the device took off", err)
	}
}

// unanswered gives the call its patience from when the command was taken, so that a busy machine is not taken for a silent device.
func unanswered(b *bench) {
	b.setFault(FaultUnanswered)
	ctx, cancel := context.WithTimeout(context.Background(), leisure*b.patience)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := b.driver.Isolate(ctx, b.host.Target, func(string) error { return nil })
		answer <- err
	}()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for waiting := false; ; {
		select {
		case <-look.C:
			if !waiting && b.taken().Off > 0 {
				waiting = true
				defer time.AfterFunc(b.patience, cancel).Stop()
			}
		case err := <-answer:
			if !errors.Is(err, fencing.ErrUnclear) {
				b.Errorf("error %v, want %v", err, fencing.ErrUnclear)
			}
			b.silent(err, nil)
			b.wantOn(false)
			b.wantOff(1)
			return
		}
	}
}

func ended(b *bench) {
	ended := func() context.Context {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx
	}
	b.everyCall(ended, func(call string, err error) {
		if !errors.Is(err, fencing.ErrUnreachable) {
			b.Errorf("%s: error %v, want %v", call, err, fencing.ErrUnreachable)
		}
	})
	b.wantOff(0)
	b.wantOn(true)
}

func cancelled(b *bench) {
	b.setFault(FaultDead)
	const delay = 50 * time.Millisecond
	soon := func() context.Context {
		ctx, cancel := context.WithCancel(context.Background())
		timer := time.AfterFunc(delay, cancel)
		b.Cleanup(func() { timer.Stop(); cancel() })
		return ctx
	}
	begun := time.Now()
	b.everyCall(soon, func(call string, err error) {
		if took := time.Since(begun); took > delay+grace {
			b.Errorf("%s returned %v after it was called, its context was cancelled after %v", call, took, delay)
		}
		if !errors.Is(err, fencing.ErrUnreachable) {
			b.Errorf("%s: error %v, want %v", call, err, fencing.ErrUnreachable)
		}
		begun = time.Now()
	})
}

func invalid(b *bench) {
	b.host.Target.Address = ""
	b.everyCall(b.context, func(call string, err error) {
		if !errors.Is(err, fencing.ErrInvalidTarget) || !strings.Contains(fmt.Sprint(err), "address") {
			b.Errorf("%s: error %v, want %v with the word address", call, err, fencing.ErrInvalidTarget)
		}
	})
}

func unreadable(b *bench) { unread(b, FaultUnreadable) }

func garbage(b *bench) { unread(b, FaultGarbage) }

// unread wants a reading that knows nothing, whatever is really so, and says of which device.
func unread(b *bench, f Fault) {
	for _, on := range []bool{true, false} {
		b.host.Truth.SetOn(b, on)
		b.setFault(f)
		r, err := b.observe()
		if r.Power != fencing.PowerUnreadable {
			b.Errorf("%s, with the host really on: %v: observe says %v (%v), want Unreadable", f, on, r.Power, err)
		}
		said := r.Detail
		if err != nil {
			said = err.Error()
		}
		if !strings.Contains(said, b.host.Target.Address) {
			b.Errorf("%s: the words %q do not name the device %s", f, said, b.host.Target.Address)
		}
	}
	b.wantOff(0)
}

func unreadableIsolated(b *bench) {
	b.setFault(FaultUnreadable)
	r, err := b.isolate(b.sameMachine)
	if err != nil {
		b.Fatal(err)
	}
	if r.Before != fencing.PowerUnreadable {
		b.Errorf("before the command the power could not be read, the receipt says %v", r.Before)
	}
	b.wantOff(1)
	b.wantOn(false)
}

// goneOrNever looks at the device in every fault, with the host on and off: each call judges whether Gone could be known, and here no
// machine is gone.
func goneOrNever(b *bench) {
	for _, f := range faults {
		b.setFault(f)
		for _, on := range []bool{true, false} {
			b.host.Truth.SetOn(b, on)
			if r, err := b.observe(); r.Power == fencing.PowerGone {
				b.Errorf("%s, with the host really on: %v: observe says Gone (%v) of a machine that exists", f, on, err)
			}
		}
		if r, err := b.isolate(func(string) error { return fencing.ErrIdentity }); r.Before == fencing.PowerGone {
			b.Errorf("%s: the receipt says Gone (%v) of a machine that exists", f, err)
		}
	}
	b.wantOff(0)
}

func gone(b *bench, p Provider) {
	for _, removed := range []bool{true, false} {
		want := fencing.PowerOn
		if removed {
			p.Remove(b)
			want = fencing.PowerGone
		} else {
			p.SetOn(b, true)
		}
		r, err := b.observe()
		if err != nil || r.Power != want {
			b.Errorf("removed: %v, observe says %v (%v), want %v", removed, r.Power, err, want)
		}
		if err := b.sameMachine(r.Identity); err != nil {
			b.Errorf("removed: %v: %v", removed, err)
		}
	}
	b.wantOff(0)
}

func notFound(b *bench, p Provider) {
	p.Remove(b)
	for _, f := range []Fault{FaultDead, FaultSlow, FaultWrongPassword, FaultUnreadable, FaultGarbage} {
		b.setFault(f)
		if r, err := b.observe(); r.Power != fencing.PowerUnreadable {
			b.Errorf("%s: observe says %v (%v), want Unreadable: nobody has said that the machine is gone", f, r.Power, err)
		}
	}
	b.setFault(FaultNone)
	b.host.Target = p.Stranger(b)
	if r, err := b.observe(); err == nil || r.Power != fencing.PowerUnreadable {
		b.Errorf("a machine that never was: observe says %v (%v), want Unreadable with an error", r.Power, err)
	}
	b.wantOff(0)
}

func goneOfAnother(b *bench, p Provider) {
	p.Remove(b)
	b.setFault(FaultWrongIdentity)
	if r, err := b.observe(); err != nil || b.sameMachine(r.Identity) == nil {
		b.Errorf("the device belongs to another machine, observe says %v of %q (%v)", r.Power, r.Identity, err)
	}
	if _, err := b.isolate(b.sameMachine); !errors.Is(err, fencing.ErrIdentity) {
		b.Errorf("isolate: error %v, want the one of permit, %v", err, fencing.ErrIdentity)
	}
	b.wantOff(0)
}

func isolatesGone(b *bench, p Provider) {
	p.Remove(b)
	var asked []string
	r, err := b.isolate(func(identity string) error { asked = append(asked, identity); return b.sameMachine(identity) })
	if err != nil || r.Before != fencing.PowerGone || len(asked) != 1 || asked[0] != r.Identity {
		b.Errorf("isolate: error %v, before %v, permit asked about %q; want no error, Gone, and permit asked once about %q", err, r.Before, asked, r.Identity)
	}
	if now, err := b.observe(); err != nil || now.Power != fencing.PowerGone {
		b.Errorf("afterwards the device reads %v (%v), want Gone", now.Power, err)
	}
	b.wantOn(false)
}

func releasesGone(b *bench, p Provider) {
	p.Remove(b)
	_, _ = b.release() // what it answers is its own affair
	if now, err := b.observe(); err != nil || now.Power != fencing.PowerGone {
		b.Errorf("after release the device reads %v (%v), want Gone", now.Power, err)
	}
	b.wantOn(false)
}

// everyCall makes each of the three calls in a context of its own, which must fail, and lets check judge the error. What comes
// with an error claims nothing.
func (b *bench) everyCall(within func() context.Context, check func(call string, err error)) {
	b.Helper()
	reading, err := b.driver.Observe(within(), b.host.Target)
	check("observe", err)
	b.knows(reading.Power)
	if reading.Power != fencing.PowerUnreadable {
		b.Errorf("observe: power %v with an error, want Unreadable", reading.Power)
	}
	b.silent(err, reading)
	permitted := false
	receipt, err := b.driver.Isolate(within(), b.host.Target, func(string) error { permitted = true; return nil })
	check("isolate", err)
	if permitted || receipt.Identity != "" {
		b.Errorf("isolate: permit asked: %v, identity %q, although no device could be asked", permitted, receipt.Identity)
	}
	b.silent(err, receipt)
	receipt, err = b.driver.Release(within(), b.host.Target)
	check("release", err)
	b.silent(err, receipt)
}

// silent looks for the credentials in all that a call gave back, and in the target as it is formatted.
func (b *bench) silent(err error, answer any) {
	b.Helper()
	c := b.host.Target.Credentials
	asJSON, _ := json.Marshal([]any{answer, b.host.Target})
	said := fmt.Sprintf("%v %+v %#v %+v %#v %s", err, answer, answer, b.host.Target, b.host.Target, asJSON)
	if c.Password != "" && strings.Contains(said, c.Password) {
		b.Error("the password stands in an error, an answer or the formatted target")
	}
	if c.Username != "" && strings.Contains(fmt.Sprint(err), c.Username) {
		b.Errorf("the user name stands in the error %v", err)
	}
}

// concurrent isolates every host at once, several times each, and observes the others meanwhile.
func concurrent(t *testing.T, rig Rig) {
	const times = 3
	var all sync.WaitGroup
	benches := make([]*bench, len(rig.Hosts))
	for i := range rig.Hosts {
		benches[i] = rig.bench(t, i)
	}
	for _, b := range benches {
		for range times {
			all.Go(func() {
				if _, err := b.isolate(b.sameMachine); err != nil {
					b.Error(err)
				}
			})
			all.Go(func() {
				if r, err := b.observe(); err != nil || b.sameMachine(r.Identity) != nil {
					b.Errorf("observe says %q (%v), the host is %q", r.Identity, err, b.host.Truth.Identity(b))
				}
			})
		}
	}
	all.Wait()
	for _, b := range benches {
		b.wantOff(times)
		b.wantOn(false)
	}
}
