// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fencing is the contract between Holdfast and the things that can isolate a host:
// observe, isolate, release. It decides nothing and imports nothing of ours.
//
// A driver is given one Target at a time and keeps nothing that a restart would lose. Its calls end when
// their context does; it never retries by itself, never waits for an effect, and never cycles power.
// What it is told to do is journalled by the caller before the call (invariant I2), and what it answers is
// not believed in the round that made it: the effect is seen by a later Observe.
package fencing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Power is what a device says of its host. The zero value is illegal.
type Power uint8

const (
	// PowerUnreadable: no answer, or an answer that is neither on, off nor gone (saved, suspended, powering off, …).
	PowerUnreadable Power = iota + 1
	// PowerOn: the host is on.
	PowerOn
	// PowerOff: the host is off.
	PowerOff
	// PowerGone: the machine no longer exists at its provider.
	PowerGone
)

// String returns the word used in status and logs.
func (p Power) String() string {
	switch p {
	case PowerUnreadable:
		return "Unreadable"
	case PowerOn:
		return "On"
	case PowerOff:
		return "Off"
	case PowerGone:
		return "Gone"
	default:
		return "Invalid"
	}
}

// Strength orders what an isolation proves, weakest first. The zero value is illegal.
type Strength uint8

const (
	// StrengthPowerOff: the power supply of the host was commanded off and read back off.
	StrengthPowerOff Strength = iota + 1
)

// String returns the word used in status.
func (s Strength) String() string {
	if s == StrengthPowerOff {
		return "PowerOff"
	}
	return "Invalid"
}

// Coverage says what an isolated host cannot write any more.
type Coverage struct {
	// Host is true when everything that runs on the host stops.
	Host bool
	// Drivers are the CSI drivers whose volumes are cut, for methods that leave the host running.
	Drivers []string
}

// Covers reports whether a volume of the CSI driver named is covered.
func (c Coverage) Covers(driver string) bool {
	if c.Host {
		return true
	}
	for _, d := range c.Drivers {
		if d == driver {
			return true
		}
	}
	return false
}

// Target is one host as one device knows it.
type Target struct {
	// Node is the name of the Node; it is for messages only.
	Node string
	// Address of the device, without port.
	Address string
	// Port of the device; zero means the driver's default.
	Port int
	// Options are the driver's own, from the FencingProfile, without secrets.
	Options map[string]string
	// Credentials are read just before the call and never logged.
	Credentials Credentials
}

// Credentials of a device. Its formatted value never shows them.
type Credentials struct {
	Username string
	Password string
}

// String hides the credentials.
func (Credentials) String() string { return "[hidden]" }

// GoString hides the credentials.
func (Credentials) GoString() string { return "[hidden]" }

// Format hides the credentials from every verb.
func (Credentials) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[hidden]")) }

// MarshalJSON hides the credentials.
func (Credentials) MarshalJSON() ([]byte, error) { return []byte(`"[hidden]"`), nil }

// Reading is what one Observe saw.
type Reading struct {
	Power Power
	// Identity is the device's own idea of which machine it belongs to (system UUID or serial), as it gave it; empty when it has none.
	// Compare with SameMachine.
	Identity string
	// Took is how long the device needed.
	Took time.Duration
	// Detail is what the device said in words, for people; never a secret. Where Power is PowerUnreadable without an error, it names
	// the device by its address.
	Detail string
}

// Receipt is a device's answer to a command. It says that the command was taken, not that it worked.
type Receipt struct {
	// Before is the power state read by the same session just before the command, PowerUnreadable if it was not read.
	Before Power
	// Identity as in Reading, read by the same session before the command.
	Identity string
	Took     time.Duration
	Detail   string
}

// Driver isolates hosts by one technique. Implementations are safe for concurrent use with different targets.
type Driver interface {
	// Describe says what an isolation by this driver proves and covers.
	Describe() Description
	// Observe reads power state and identity, in one session, and changes nothing. An error means that nothing is known, and names
	// the device by its address; the reading says PowerUnreadable then. PowerGone is said only by a driver whose provider
	// answers, with the machine's identity, that the machine exists no more; "not found" is an error.
	Observe(ctx context.Context, t Target) (Reading, error)
	// Isolate commands the host off, at once and hard, and returns when the device has taken the command. It is idempotent: it
	// gives the command also when the device reads Off already. In the same session, before the command, it reads the
	// identity and calls permit with it, once; if permit refuses, it returns that error and has commanded nothing. Every
	// error but ErrUnclear means that the command was not taken. On a machine that is gone it asks permit all the same and then
	// answers without error; the receipt says PowerGone.
	Isolate(ctx context.Context, t Target, permit func(identity string) error) (Receipt, error)
	// Release lets the host run again: it commands power on. It is idempotent. It never makes a machine again that is gone.
	Release(ctx context.Context, t Target) (Receipt, error)
}

// Description is what a driver is.
type Description struct {
	// Name as in FencingProfile, for example "ipmi".
	Name     string
	Strength Strength
	Coverage Coverage
}

// Errors of drivers. Test with errors.Is; the caller's duty stands with each.
var (
	// ErrUnreachable: no connection, or no answer that can be used; the command was not given. The attempt has failed.
	ErrUnreachable = errors.New("device unreachable")
	// ErrDenied: the device refused the credentials; the command was not given. The attempt has failed, and
	// FencingReady is False until a reading succeeds: the Secret or the account has to be corrected.
	ErrDenied = errors.New("device refused the credentials")
	// ErrUnsupported: the device cannot do this. The method must not be tried again for this host.
	ErrUnsupported = errors.New("device does not support this")
	// ErrUnclear: the command may or may not have been taken (a time-out after sending, or an answer that leaves it open). The attempt
	// stays unsettled until an Observe settles it.
	ErrUnclear = errors.New("command may or may not have been taken")
	// ErrInvalidTarget: the target cannot be used as configured; the message names the field.
	ErrInvalidTarget = errors.New("invalid target")
)

// Registry holds the drivers by name. Only composition roots fill it.
type Registry map[string]Driver

// Add registers a driver; a name twice is a programming error and panics.
func (r Registry) Add(d Driver) {
	name := d.Describe().Name
	if _, twice := r[name]; twice {
		panic("fencing: driver registered twice: " + name)
	}
	r[name] = d
}

// Get returns the driver with that name, or an error that names those there are.
func (r Registry) Get(name string) (Driver, error) {
	if d, ok := r[name]; ok {
		return d, nil
	}
	return nil, fmt.Errorf("%w: no fencing driver %q in this build (there are %v)", ErrUnsupported, name, slices.Sorted(maps.Keys(r)))
}
