// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/conformance"
	"github.com/holdfast-dev/holdfast/fencing/fake"
)

const identity = "4c4c4544-0042-3510-8053-b4c04f4d3232"

var credentials = fencing.Credentials{Username: "fencer-account", Password: "correct horse"}

// truth is the truth switch over one host of a world.
type truth struct {
	world   *fake.World
	host    *fake.Host
	address string
	// identity is what the device says without fault.
	identity string
}

func (tr truth) On(testing.TB) bool { return tr.host.Power() == fencing.PowerOn }

func (tr truth) SetOn(_ testing.TB, on bool) {
	power := fencing.PowerOff
	if on {
		power = fencing.PowerOn
	}
	tr.host.SetPower(power)
}

func (tr truth) Remove(testing.TB) { tr.host.SetPower(fencing.PowerGone) }

func (truth) Stranger(testing.TB) fencing.Target {
	return fencing.Target{Node: "node", Address: "192.0.2.250", Credentials: credentials}
}

func (tr truth) Identity(testing.TB) string { return tr.identity }

func (tr truth) SetFault(_ testing.TB, f conformance.Fault) { tr.host.SetFault(fake.Fault(f)) }

func (tr truth) Commands(testing.TB) conformance.Commands {
	var c conformance.Commands
	for _, call := range tr.world.Calls() {
		switch {
		case call.Address != tr.address:
		case call.Operation == fake.Off:
			c.Off++
		case call.Operation == fake.On:
			c.On++
		}
	}
	return c
}

func TestConformance(t *testing.T) {
	world := fake.NewWorld()
	rig := conformance.Rig{Driver: world.Driver()}
	for i := range 3 {
		address := fmt.Sprintf("192.0.2.%d", i)
		own := fmt.Sprintf("4c4c4544-0042-3510-8053-b4c04f4d323%d", i)
		rig.Hosts = append(rig.Hosts, conformance.Host{
			Target: fencing.Target{Node: "node", Address: address, Credentials: credentials},
			Truth:  truth{world, world.Add(address, own, credentials), address, own},
		})
	}
	conformance.Run(t, rig)
}

var _ conformance.Provider = truth{}

func one(t *testing.T) (*fake.World, *fake.Host, fencing.Target) {
	t.Helper()
	world := fake.NewWorld()
	return world, world.Add("192.0.2.1", identity, credentials), fencing.Target{Address: "192.0.2.1", Credentials: credentials}
}

func anyone(string) error { return nil }

func TestAnOffThatSettlesReadsOnUntilThen(t *testing.T) {
	world, host, target := one(t)
	host.SetSettle(3)
	if _, err := world.Driver().Isolate(t.Context(), target, anyone); err != nil {
		t.Fatal(err)
	}
	for i, want := range []fencing.Power{fencing.PowerOn, fencing.PowerOn, fencing.PowerOff, fencing.PowerOff} {
		r, err := world.Driver().Observe(t.Context(), target)
		if err != nil || r.Power != want {
			t.Errorf("reading %d says %v (%v), want %v", i+1, r.Power, err, want)
		}
	}
}

func TestLatencyIsReportedAndNotSlept(t *testing.T) {
	world, host, target := one(t)
	host.SetLatency(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	if _, err := world.Driver().Observe(ctx, target); !errors.Is(err, fencing.ErrUnreachable) {
		t.Errorf("with a minute for a device that takes an hour: %v, want %v", err, fencing.ErrUnreachable)
	}
	r, err := world.Driver().Observe(t.Context(), target)
	if err != nil || r.Took != time.Hour {
		t.Errorf("without deadline it took %v (%v), want 1h", r.Took, err)
	}
	if slept := time.Since(begun); slept > 10*time.Second {
		t.Errorf("the test took %v", slept)
	}
}

func TestWhatADeviceSaysUnderFault(t *testing.T) {
	world, host, target := one(t)
	host.SetFault(fake.FaultUnreadable)
	if r, err := world.Driver().Observe(t.Context(), target); err != nil || r.Power != fencing.PowerUnreadable {
		t.Errorf("unreadable: %v (%v)", r.Power, err)
	}
	if _, err := world.Driver().Isolate(t.Context(), target, anyone); err != nil || host.Power() != fencing.PowerOff {
		t.Errorf("unreadable: isolate left the host %v (%v), want Off", host.Power(), err)
	}
	host.SetPower(fencing.PowerOn)
	host.SetFault(fake.FaultUnsupported)
	if _, err := world.Driver().Isolate(t.Context(), target, anyone); !errors.Is(err, fencing.ErrUnsupported) || host.Power() != fencing.PowerOn {
		t.Errorf("unsupported: %v, host %v", err, host.Power())
	}
	host.SetFault(fake.FaultNone)
	host.SetPower(fencing.PowerGone)
	if _, err := world.Driver().Release(t.Context(), target); err != nil || host.Power() != fencing.PowerGone {
		t.Errorf("a machine that is gone became %v (%v)", host.Power(), err)
	}
}

func TestACrashAfterTheCommandLeavesItsEffectAndNoReceipt(t *testing.T) {
	world, host, target := one(t)
	world.Tap(func(c fake.Call) {
		if c.Operation == fake.Off {
			panic("crash")
		}
	})
	func() {
		defer func() {
			if recover() != "crash" {
				t.Error("the tap was not reached")
			}
		}()
		_, _ = world.Driver().Isolate(t.Context(), target, anyone)
	}()
	world.Tap(nil)
	if host.Power() != fencing.PowerOff {
		t.Errorf("the host is %v, want Off", host.Power())
	}
	want := []fake.Call{{Number: 1, Address: target.Address, Operation: fake.Off}}
	if got := world.Calls(); len(got) != 1 || got[0] != want[0] {
		t.Errorf("calls are %v, want %v", got, want)
	}
}
