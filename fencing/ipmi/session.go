// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dev/holdfast/fencing"
)

// session is one authenticated, encrypted conversation with a BMC. It is not for concurrent use.
type session struct {
	line   *line
	random io.Reader
	keys   keys
	// console and device are the session numbers of either side; guid is the BMC's from the handshake.
	console, device uint32
	guid            []byte
	// sequence numbers packets, commands number requests. No number is used twice in a session, so that no answer can be replayed
	// for another question.
	sequence uint32
	commands byte
}

// openSession opens a session with operator privilege. Errors are those of the contract; no command has been given.
func openSession(ctx context.Context, l *line, a access, random io.Reader) (*session, error) {
	h := handshake{line: l, random: random, access: a}
	k, err := h.open(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{line: l, random: random, keys: k, console: h.console, device: h.device, guid: h.guid}
	if _, err := s.call(ctx, setPrivilege, privilege); err != nil {
		s.close()
		return nil, beforeCommand(setPrivilege.name, err)
	}
	return s, nil
}

// close tells the BMC that the session is over and does not wait for its answer: if the datagram is lost, the BMC forgets the
// session after a minute. It works also when the context of the session has ended.
func (s *session) close() {
	number := []byte{byte(s.device), byte(s.device >> 8), byte(s.device >> 16), byte(s.device >> 24)}
	s.commands++
	if packet, err := s.seal(request(closeSession, s.commands, number...)); err == nil {
		_ = s.line.send(packet)
	}
}

// call gives a command and returns the body of its answer. Errors are completionError, or those of line.ask.
func (s *session) call(ctx context.Context, c command, body ...byte) ([]byte, error) {
	if s.commands++; s.commands > 63 {
		return nil, fmt.Errorf("%w: no request number left in this session", errNotSent)
	}
	message := request(c, s.commands, body...)
	var answer []byte
	take := func(datagram []byte) error {
		opened, err := s.keys.open(datagram, s.console)
		if err != nil {
			return err
		}
		code, body, err := response(opened, c, s.commands)
		if err != nil {
			return err
		}
		if code != 0 {
			return completionError{c.name, code}
		}
		answer = body
		return nil
	}
	err := s.line.ask(ctx, func() ([]byte, error) { return s.seal(message) }, take)
	return answer, err
}

func (s *session) seal(message []byte) ([]byte, error) {
	s.sequence++
	return s.keys.seal(s.random, s.device, s.sequence, message)
}

// identity is the system's UUID as the BMC gives it, or empty when it has none.
func (s *session) identity(ctx context.Context) (string, error) {
	raw, err := s.call(ctx, getSystemGUID)
	var completion completionError
	switch {
	case errors.As(err, &completion) && completion.code == codeInvalidCommand && !bytes.Equal(s.guid, make([]byte, 16)):
		// The same GUID stands in RAKP 2 (IPMI 2.0 §13.21), under a code that the password made.
		raw = s.guid
	case errors.As(err, &completion):
		return "", nil
	case err != nil:
		return "", beforeCommand(getSystemGUID.name, err)
	case len(raw) != 16:
		return "", fmt.Errorf("%w: %s: %d bytes instead of 16", fencing.ErrUnreachable, getSystemGUID.name, len(raw))
	}
	return uuid(raw), nil
}

// uuid writes the 16 bytes of a GUID as a UUID, reading them in SMBIOS order (DSP0134 §7.2.1): the first three fields
// little-endian. IPMI 2.0 §20.8 asks for all bytes reversed, and some BMCs send them as they are written; fencing.SameMachine
// knows all three.
func uuid(g []byte) string {
	return fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%x-%x", g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8:10], g[10:16])
}

// chassis is what Get Chassis Status said.
type chassis struct {
	power fencing.Power
	words string
}

// Bits of the first byte of Get Chassis Status (IPMI 2.0 table 28-3).
const (
	bitPowerOn      = 1 << 0
	bitOverload     = 1 << 1
	bitInterlock    = 1 << 2
	bitFault        = 1 << 3
	bitControlFault = 1 << 4
)

// chassis reads the power state. Only the power bit decides; the faults are for people.
func (s *session) chassis(ctx context.Context) (chassis, error) {
	body, err := s.call(ctx, getChassisStatus)
	if err != nil {
		return chassis{power: fencing.PowerUnreadable}, beforeCommand(getChassisStatus.name, err)
	}
	return chassisOf(body)
}

// chassisOf reads the body of an answer to Get Chassis Status.
func chassisOf(body []byte) (chassis, error) {
	if len(body) < 3 {
		return chassis{power: fencing.PowerUnreadable}, fmt.Errorf("%w: %s: %d bytes instead of 3 or 4", fencing.ErrUnreachable, getChassisStatus.name, len(body))
	}
	c := chassis{power: fencing.PowerOff, words: "chassis power is off"}
	if body[0]&bitPowerOn != 0 {
		c = chassis{power: fencing.PowerOn, words: "chassis power is on"}
	}
	for _, fault := range []struct {
		bit   byte
		words string
	}{
		{bitOverload, "power overload"}, {bitInterlock, "interlock open"}, {bitFault, "power fault"},
		{bitControlFault, "the last power command did not reach its end"},
	} {
		if body[0]&fault.bit != 0 {
			c.words += ", " + fault.words
		}
	}
	return c, nil
}

// Actions of Chassis Control (IPMI 2.0 table 28-4). Cycle and reset exist and are never used.
const (
	powerDown = 0x00
	powerUp   = 0x01
)

// control gives a power command. Some BMCs answer Down while the power is off, or Up while it is on, with "not in this state":
// that is taken for an acceptance if before, read in this session, is that state.
func (s *session) control(ctx context.Context, action byte, before fencing.Power) (words string, err error) {
	_, err = s.call(ctx, chassisControl, action)
	wanted := map[byte]fencing.Power{powerDown: fencing.PowerOff, powerUp: fencing.PowerOn}[action]
	return settle(err, before == wanted)
}

// settle puts the outcome of a power command into words, or onto the contract's errors; already says that the power had the
// state commanded just before.
func settle(err error, already bool) (words string, mapped error) {
	var completion completionError
	switch {
	case err == nil:
		return "accepted", nil
	case errors.As(err, &completion) && completion.code == codeNotInThisState && already:
		return fmt.Sprintf("accepted: the power has that state already (completion code %02Xh)", completion.code), nil
	default:
		return "", ofCommand(chassisControl.name, err)
	}
}
