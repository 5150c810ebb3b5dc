// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fake is a fencing driver over a World of hosts in memory. It is deterministic: it never sleeps, waits or asks a clock;
// how long a device takes is a number. It passes the conformance suite, so that scenarios and crash tests may stand on it.
package fake

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/fencing"
)

// Name is the driver's name.
const Name = "fake"

// Fault is what is wrong with a device. The words are those of the lab and of the conformance suite.
type Fault string

// The faults.
const (
	FaultNone          Fault = "clear"
	FaultDead          Fault = "dead"           // answers nothing
	FaultSlow          Fault = "slow"           // answers after the caller has given up
	FaultWrongPassword Fault = "wrong-password" // has another password
	FaultIgnore        Fault = "ignore"         // accepts Off, does nothing
	FaultLieOff        Fault = "lie-off"        // says Off whatever is so, does nothing
	FaultWrongIdentity Fault = "wrong-identity" // says it belongs to another machine
	FaultUnanswered    Fault = "unanswered"     // carries commands out, its answers get lost
	FaultUnreadable    Fault = "unreadable"     // answers, but cannot say the power; takes commands
	FaultGarbage       Fault = "garbage"        // what it answers makes no sense; takes nothing
	FaultUnsupported   Fault = "unsupported"    // reads, but has no power control
)

// Operation is what a driver did at a device.
type Operation string

// The operations.
const (
	Observe Operation = "observe"
	Off     Operation = "off"
	On      Operation = "on"
)

// Call is one operation that a device took.
type Call struct {
	// Number counts the calls of the World, from 1.
	Number    int
	Address   string
	Operation Operation
}

// World holds hosts by the address of their device. It is safe for concurrent use. NewWorld makes one.
type World struct {
	mu    sync.Mutex
	hosts map[string]*Host
	calls []Call
	tap   func(Call)
}

// NewWorld returns an empty world.
func NewWorld() *World { return &World{hosts: map[string]*Host{}} }

// Host is one host with its device. Its methods are safe for concurrent use.
type Host struct {
	world       *World
	power       fencing.Power
	identity    string
	credentials fencing.Credentials
	fault       Fault
	latency     time.Duration
	settle      int
	pending     int // readings until a pending Off takes effect; 0 means none is pending
}

// otherIdentity is what a device says under FaultWrongIdentity.
const otherIdentity = "0badc0de-0000-4000-8000-00000badc0de"

// Add puts a host that is on into the world. The device knows its identity and takes these credentials. An address twice is a
// programming error and panics.
func (w *World) Add(address, identity string, c fencing.Credentials) *Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, twice := w.hosts[address]; twice {
		panic("fake: device added twice: " + address)
	}
	h := &Host{world: w, power: fencing.PowerOn, identity: identity, credentials: c, fault: FaultNone}
	w.hosts[address] = h
	return h
}

// Calls returns what all devices took, in order.
func (w *World) Calls() []Call {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Call(nil), w.calls...)
}

// Tap has f called after each call took effect and before its answer is given: the place where a crash leaves a command without
// receipt. f may panic or use the world. Nil ends it.
func (w *World) Tap(f func(Call)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tap = f
}

// Power is the real power.
func (h *Host) Power() fencing.Power { return get(h, func() fencing.Power { return h.power }) }

// SetPower sets the real power, as a failing supply or a person would; PowerGone removes the machine. A pending Off is forgotten.
func (h *Host) SetPower(p fencing.Power) { h.set(func() { h.power, h.pending = p, 0 }) }

// SetFault sets what is wrong with the device.
func (h *Host) SetFault(f Fault) { h.set(func() { h.fault = f }) }

// SetIdentity sets what the device says.
func (h *Host) SetIdentity(identity string) { h.set(func() { h.identity = identity }) }

// SetCredentials sets what the device takes.
func (h *Host) SetCredentials(c fencing.Credentials) { h.set(func() { h.credentials = c }) }

// SetLatency sets how long the device takes for each call. Nothing sleeps: a call that cannot be answered before the deadline of its
// context fails at once, as it would have then.
func (h *Host) SetLatency(d time.Duration) { h.set(func() { h.latency = d }) }

// SetSettle lets an accepted Off take effect only with the n-th reading after it.
func (h *Host) SetSettle(n int) { h.set(func() { h.settle = n }) }

func (h *Host) set(change func()) {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	change()
}

func get[T any](h *Host, read func() T) T {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	return read()
}

// Driver implements fencing.Driver over the world.
type Driver struct{ world *World }

var _ fencing.Driver = Driver{}

// Driver returns the driver of the world.
func (w *World) Driver() Driver { return Driver{w} }

// Describe implements fencing.Driver.
func (Driver) Describe() fencing.Description {
	return fencing.Description{Name: Name, Strength: fencing.StrengthPowerOff, Coverage: fencing.Coverage{Host: true}}
}

// Observe implements fencing.Driver.
func (d Driver) Observe(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
	s, err := d.world.open(ctx, t)
	if err != nil {
		return fencing.Reading{Power: fencing.PowerUnreadable, Took: s.took}, err
	}
	d.world.perform(s.host, t.Address, Observe)
	reading := fencing.Reading{Identity: s.identity, Took: s.took}
	reading.Power = get(s.host, func() fencing.Power { return s.host.reads() })
	reading.Detail = "fake power of " + t.Address + " is " + reading.Power.String()
	return reading, nil
}

// Isolate implements fencing.Driver.
func (d Driver) Isolate(ctx context.Context, t fencing.Target, permit func(identity string) error) (fencing.Receipt, error) {
	return d.command(ctx, t, Off, permit)
}

// Release implements fencing.Driver.
func (d Driver) Release(ctx context.Context, t fencing.Target) (fencing.Receipt, error) {
	return d.command(ctx, t, On, func(string) error { return nil })
}

func (d Driver) command(ctx context.Context, t fencing.Target, op Operation, permit func(string) error) (fencing.Receipt, error) {
	s, err := d.world.open(ctx, t)
	receipt := fencing.Receipt{Before: fencing.PowerUnreadable, Took: s.took}
	if err != nil {
		return receipt, err
	}
	receipt.Identity = s.identity
	receipt.Before = get(s.host, func() fencing.Power { return s.host.says() })
	if err := permit(s.identity); err != nil {
		return receipt, err
	}
	if err := ctx.Err(); err != nil {
		return receipt, fmt.Errorf("%w: %s: %w", fencing.ErrUnreachable, t.Address, err)
	}
	if s.fault == FaultUnsupported {
		return receipt, fmt.Errorf("%w: %s has no power control", fencing.ErrUnsupported, t.Address)
	}
	d.world.perform(s.host, t.Address, op)
	if s.fault == FaultUnanswered {
		return receipt, fmt.Errorf("%w: %s took %s and does not answer", fencing.ErrUnclear, t.Address, op)
	}
	receipt.Detail = "accepted"
	return receipt, nil
}

// session is what a call finds when it opens one.
type session struct {
	host     *Host
	fault    Fault
	identity string
	took     time.Duration
}

// open finds the device, unless the fault in force or the context lets it not answer.
func (w *World) open(ctx context.Context, t fencing.Target) (session, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.Address == "" {
		return session{}, fmt.Errorf("%w: address is empty", fencing.ErrInvalidTarget)
	}
	unreachable := func(why string) (session, error) {
		return session{}, fmt.Errorf("%w: %s: %s", fencing.ErrUnreachable, t.Address, why)
	}
	h, known := w.hosts[t.Address]
	switch {
	case ctx.Err() != nil:
		return unreachable(ctx.Err().Error())
	case !known || h.fault == FaultDead || h.fault == FaultSlow:
		return unreachable("no answer")
	case h.fault == FaultGarbage:
		return unreachable("it answers what makes no sense")
	case h.fault == FaultWrongPassword || h.credentials != t.Credentials:
		return session{}, fmt.Errorf("%w: %s", fencing.ErrDenied, t.Address)
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < h.latency {
		return unreachable(fmt.Sprintf("no answer: it takes %v", h.latency))
	}
	s := session{host: h, fault: h.fault, identity: h.identity, took: h.latency}
	if h.fault == FaultWrongIdentity {
		s.identity = otherIdentity
	}
	return s, nil
}

// perform journals the operation, lets it take effect, and taps.
func (w *World) perform(h *Host, address string, op Operation) {
	w.mu.Lock()
	call := Call{Number: len(w.calls) + 1, Address: address, Operation: op}
	w.calls = append(w.calls, call)
	h.undergo(op)
	tap := w.tap
	w.mu.Unlock()
	if tap != nil {
		tap(call)
	}
}

// undergo is what an operation does to the host.
func (h *Host) undergo(op Operation) {
	refuses := h.fault == FaultIgnore || h.fault == FaultLieOff || h.power == fencing.PowerGone
	switch {
	case op == On && h.power != fencing.PowerGone:
		h.power, h.pending = fencing.PowerOn, 0
	case op == Off && !refuses && h.settle > 0 && h.power == fencing.PowerOn:
		h.pending = h.settle
	case op == Off && !refuses:
		h.power, h.pending = fencing.PowerOff, 0
	}
}

// reads is one reading: it brings a pending Off closer.
func (h *Host) reads() fencing.Power {
	if h.pending > 0 {
		if h.pending--; h.pending == 0 {
			h.power = fencing.PowerOff
		}
	}
	return h.says()
}

// says is the power as the device tells it.
func (h *Host) says() fencing.Power {
	switch h.fault {
	case FaultLieOff:
		return fencing.PowerOff
	case FaultUnreadable:
		return fencing.PowerUnreadable
	default:
		return h.power
	}
}
