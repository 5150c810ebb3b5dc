// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipmi isolates hosts by the power control of their baseboard management controller, over IPMI 2.0 on the LAN (RMCP+).
//
// It speaks the protocol itself, and only the part that fencing needs, because what it reads is proof: no byte of an answer
// is looked at before the session's integrity code over it is found good (docs/adr/0003-ipmi-over-lan.md). Every call is a session
// of its own: open, read the identity, read the power, perhaps command, close.
package ipmi

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/holdfast-dev/holdfast/fencing"
)

const (
	// Name is the driver's name.
	Name = "ipmi"
	// OptionCipherSuite is the option for the cipher suite: "3" (the default) or "17".
	OptionCipherSuite = "cipherSuite"
	// DefaultPort is where BMCs listen, UDP.
	DefaultPort = 623

	defaultCipherSuite = "3"
	// The limits of IPMI 2.0, in bytes.
	usernameMax = 16
	passwordMax = 20
)

// Driver implements fencing.Driver. It has no state; the zero value works.
type Driver struct {
	// random replaces crypto/rand in tests.
	random io.Reader
}

var _ fencing.Driver = Driver{}

// New returns the driver.
func New() Driver { return Driver{random: rand.Reader} }

// Describe implements fencing.Driver.
func (Driver) Describe() fencing.Description {
	return fencing.Description{Name: Name, Strength: fencing.StrengthPowerOff, Coverage: fencing.Coverage{Host: true}}
}

// Observe implements fencing.Driver.
func (d Driver) Observe(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
	begun := time.Now()
	reading := fencing.Reading{Power: fencing.PowerUnreadable}
	err := d.within(ctx, t, func(s *session) (err error) {
		if reading.Identity, err = s.identity(ctx); err != nil {
			return err
		}
		now, err := s.chassis(ctx)
		reading.Power, reading.Detail = now.power, now.words
		return err
	})
	reading.Took = time.Since(begun)
	return reading, err
}

// Isolate implements fencing.Driver. The command is Chassis Control "power down", which asks no operating system.
func (d Driver) Isolate(ctx context.Context, t fencing.Target, permit func(identity string) error) (fencing.Receipt, error) {
	return d.command(ctx, t, powerDown, permit)
}

// Release implements fencing.Driver. The command is Chassis Control "power up".
func (d Driver) Release(ctx context.Context, t fencing.Target) (fencing.Receipt, error) {
	return d.command(ctx, t, powerUp, func(string) error { return nil })
}

// command gives a power command in a session of its own, after permit has agreed to the identity read in it.
func (d Driver) command(ctx context.Context, t fencing.Target, action byte, permit func(identity string) error) (fencing.Receipt, error) {
	begun := time.Now()
	receipt := fencing.Receipt{Before: fencing.PowerUnreadable}
	err := d.within(ctx, t, func(s *session) (err error) {
		if receipt.Identity, err = s.identity(ctx); err != nil {
			return err
		}
		// A BMC that cannot read its power may still switch it: the command is given all the same.
		before, _ := s.chassis(ctx)
		receipt.Before = before.power
		if err := permit(receipt.Identity); err != nil {
			return err
		}
		receipt.Detail, err = s.control(ctx, action, before.power)
		return err
	})
	receipt.Took = time.Since(begun)
	return receipt, err
}

// within calls do in a session with the target and ends the session. Its errors name the device.
func (d Driver) within(ctx context.Context, t fencing.Target, do func(*session) error) error {
	a, err := accessOf(t)
	if err != nil {
		return err
	}
	random := d.random
	if random == nil {
		random = rand.Reader
	}
	named := func(err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", a.address, err)
		}
		return nil
	}
	l, hangUp, err := dial(ctx, a.address)
	if err != nil {
		return named(fmt.Errorf("%w: %w", fencing.ErrUnreachable, err))
	}
	defer hangUp()
	s, err := openSession(ctx, l, a, random)
	if err != nil {
		return named(err)
	}
	defer s.close()
	return named(do(s))
}

// access is a target, checked.
type access struct {
	// address is host:port.
	address  string
	suite    suite
	username string
	// key is the password, padded with zeros to 20 bytes (IPMI 2.0 §13.31).
	key []byte
}

// accessOf checks the target. Its errors wrap fencing.ErrInvalidTarget, name the field and never show credentials.
func accessOf(t fencing.Target) (access, error) {
	invalid := func(format string, args ...any) (access, error) {
		return access{}, fmt.Errorf("%w: %s", fencing.ErrInvalidTarget, fmt.Sprintf(format, args...))
	}
	port, id := t.Port, defaultCipherSuite
	if port == 0 {
		port = DefaultPort
	}
	for option, value := range t.Options {
		if option != OptionCipherSuite {
			return invalid("option %q is not known: driver %s has %s", option, Name, OptionCipherSuite)
		}
		id = value
	}
	s, known := suites[id]
	c := t.Credentials
	switch {
	case t.Address == "":
		return invalid("address is empty")
	case port < 1 || port > 65535:
		return invalid("port %d is not between 1 and 65535", port)
	case !known:
		return invalid("option %s is %q: set 3 or 17", OptionCipherSuite, id)
	case len(c.Username) == 0 || len(c.Username) > usernameMax:
		return invalid("credentials: the user name has %d bytes, IPMI 2.0 takes 1 to %d: correct the key username of the Secret", len(c.Username), usernameMax)
	case len(c.Password) == 0 || len(c.Password) > passwordMax:
		return invalid("credentials: the password has %d bytes, IPMI 2.0 takes 1 to %d: correct the key password of the Secret", len(c.Password), passwordMax)
	}
	key := make([]byte, passwordMax)
	copy(key, c.Password)
	return access{
		address:  net.JoinHostPort(t.Address, strconv.Itoa(port)),
		suite:    s,
		username: c.Username,
		key:      key,
	}, nil
}
