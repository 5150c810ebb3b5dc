// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package conformance tests a fencing driver against its contract. The tests hold a truth switch: they see and set what is
// really so on the other side of the driver, and compare it with what the driver says and does.
package conformance

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/fencing"
)

// Rig is a driver between a test and at least two hosts.
type Rig struct {
	Driver fencing.Driver
	Hosts  []Host
	// Patience is how long the suite waits for a device that is dead, slow or unanswering. Zero means 500 ms.
	Patience time.Duration
}

// Host is one host with its device.
type Host struct {
	// Target reaches the device; its credentials are right, and its password is long enough not to occur in a message by chance.
	Target fencing.Target
	Truth  Truth
}

// Truth is what is really so. Its methods end the test when they fail.
type Truth interface {
	// On is the power the host really has.
	On(t testing.TB) bool
	// SetOn switches the host without any device.
	SetOn(t testing.TB, on bool)
	// Identity is what an honest device says: what Observe must return, by fencing.SameMachine.
	Identity(t testing.TB) string
	// SetFault puts the device into this fault, in place of any other; FaultNone ends it.
	SetFault(t testing.TB, f Fault)
	// Commands counts what the device has taken since it was made.
	Commands(t testing.TB) Commands
}

// Provider is a Truth whose driver can know that a machine exists no more. A driver over any other Truth must never say PowerGone.
// SetOn of a machine that was removed makes the same machine again.
type Provider interface {
	Truth
	// Remove takes the machine away for good; the provider still knows that it was.
	Remove(t testing.TB)
	// Stranger is a target that the provider never had a machine for, with good credentials.
	Stranger(t testing.TB) fencing.Target
}

// Commands counts the power commands that a device took, whether it carried them out or not.
type Commands struct {
	Off, On int
	// Other are cycles, resets and soft shutdowns.
	Other int
}

// Fault is what can be wrong with a device.
type Fault string

// The faults; those that the lab has as well have the same names there.
const (
	FaultNone Fault = "clear"
	// FaultDead: the device answers nothing.
	FaultDead Fault = "dead"
	// FaultSlow: every answer comes later than the rig's patience.
	FaultSlow Fault = "slow"
	// FaultWrongPassword: the device has another password than the target.
	FaultWrongPassword Fault = "wrong-password"
	// FaultIgnore: the device accepts Off and does nothing.
	FaultIgnore Fault = "ignore"
	// FaultLieOff: the device says Off whatever is so, and does nothing.
	FaultLieOff Fault = "lie-off"
	// FaultWrongIdentity: the device says that it belongs to another machine.
	FaultWrongIdentity Fault = "wrong-identity"
	// FaultUnanswered: the device takes power commands and carries them out, but no answer to them arrives.
	FaultUnanswered Fault = "unanswered"
	// FaultUnreadable: the device answers, and says neither that the host is on nor that it is off.
	FaultUnreadable Fault = "unreadable"
	// FaultGarbage: what the device answers about the power makes no sense.
	FaultGarbage Fault = "garbage"
)

// faults are all of them.
var faults = []Fault{FaultNone, FaultDead, FaultSlow, FaultWrongPassword, FaultIgnore, FaultLieOff, FaultWrongIdentity, FaultUnanswered,
	FaultUnreadable, FaultGarbage}

// bench is one host in one test.
type bench struct {
	testing.TB
	driver   fencing.Driver
	host     Host
	patience time.Duration
	fault    Fault
	began    Commands
}

// leisure is how many times the patience an honest device gets, so that a busy machine fails no test.
const leisure = 20

// bench puts the host into order: no fault, on, counters remembered; and again afterwards.
func (r Rig) bench(t *testing.T, host int) *bench {
	t.Helper()
	b := &bench{TB: t, driver: r.Driver, host: r.Hosts[host], patience: r.Patience}
	if b.patience == 0 {
		b.patience = 500 * time.Millisecond
	}
	order := func() {
		b.host.Truth.SetFault(t, FaultNone)
		b.host.Truth.SetOn(t, true)
	}
	order()
	t.Cleanup(order)
	b.began = b.host.Truth.Commands(t)
	return b
}

func (b *bench) setFault(f Fault) {
	b.Helper()
	b.fault = f
	b.host.Truth.SetFault(b, f)
}

// context ends after the rig's patience if waiting for its end is what the fault is about: garbage may be nothing that a driver takes for an answer.
func (b *bench) context() context.Context {
	wait := b.patience
	switch b.fault {
	case FaultDead, FaultSlow, FaultGarbage:
	default:
		wait *= leisure
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	b.Cleanup(cancel)
	return ctx
}

// taken are the commands since the test began.
func (b *bench) taken() Commands {
	now := b.host.Truth.Commands(b)
	return Commands{Off: now.Off - b.began.Off, On: now.On - b.began.On, Other: now.Other - b.began.Other}
}

// wantOff fails unless the device took Off that many times or more, and nothing else. More is right: a driver may have to send a
// command again when its line is bad. With zero, it must have taken nothing.
func (b *bench) wantOff(times int) {
	b.Helper()
	got := b.taken()
	if got.On != 0 || got.Other != 0 || got.Off < times || (times == 0 && got.Off != 0) {
		b.Errorf("the device took %+v, want Off %d times", got, times)
	}
}

func (b *bench) wantOn(want bool) {
	b.Helper()
	if got := b.host.Truth.On(b); got != want {
		b.Errorf("the host is really on: %v, want %v", got, want)
	}
}

func (b *bench) observe() (fencing.Reading, error) {
	r, err := b.driver.Observe(b.context(), b.host.Target)
	b.silent(err, r)
	b.knows(r.Power)
	return r, err
}

func (b *bench) isolate(permit func(string) error) (fencing.Receipt, error) {
	r, err := b.driver.Isolate(b.context(), b.host.Target, permit)
	b.silent(err, r)
	b.knows(r.Before)
	return r, err
}

func (b *bench) release() (fencing.Receipt, error) {
	r, err := b.driver.Release(b.context(), b.host.Target)
	b.silent(err, r)
	b.knows(r.Before)
	return r, err
}

// knows fails if the driver says Gone and nothing told it.
func (b *bench) knows(p fencing.Power) {
	b.Helper()
	if _, can := b.host.Truth.(Provider); p == fencing.PowerGone && !can {
		b.Error("the driver says Gone, and nothing can have told it: it must say Unreadable")
	}
}

// ofProvider is a clause about a driver that can know Gone. Of any other there is nothing to test but that it never says so, which every clause does.
func ofProvider(clause func(*bench, Provider)) func(*bench) {
	return func(b *bench) {
		if p, ok := b.host.Truth.(Provider); ok {
			clause(b, p)
		}
	}
}

// sameMachine is the permit that the controllers give.
func (b *bench) sameMachine(identity string) error {
	return fencing.SameMachine(identity, b.host.Truth.Identity(b))
}
