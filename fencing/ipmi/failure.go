// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"errors"
	"fmt"

	"github.com/holdfast-dev/holdfast/fencing"
)

// statusError is a BMC's refusal during the handshake. It is not authenticated: the keys do not exist yet.
type statusError struct {
	step   string
	status byte
	// resent: the question was asked more than once, so that the refusal may be about the repetition.
	resent bool
}

// statuses are the words of IPMI 2.0 table 13-15.
var statuses = map[byte]string{
	0x01: "too many sessions are open on the device",
	0x02: "invalid session number",
	0x04: "the device does not offer this authentication algorithm",
	0x05: "the device does not offer this integrity algorithm",
	0x08: "the session is not active any more",
	0x09: "invalid role",
	0x0A: "the account may not have operator privilege",
	0x0B: "too many sessions are open on the device for this privilege",
	0x0C: "invalid length of the user name",
	0x0D: "the device does not know this user name, or the account is disabled",
	0x0F: "the device does not accept the proof of the password",
	0x10: "the device does not offer this encryption algorithm",
	0x11: "the device does not offer this cipher suite",
}

func (e statusError) Error() string {
	words, known := statuses[e.status]
	if !known {
		words = "refused"
	}
	return fmt.Sprintf("%s (status %02Xh of %s)", words, e.status, e.step)
}

// kind is the contract's error for the refusal. One that a repetition may have caused is never held against the credentials:
// somebody would go and look for a fault in them.
func (e statusError) kind() error {
	switch e.status {
	case 0x04, 0x05, 0x10, 0x11:
		return fmt.Errorf("%w: option %s", fencing.ErrInvalidTarget, OptionCipherSuite)
	case 0x09, 0x0A, 0x0C, 0x0D, 0x0F:
		if !e.resent {
			return fencing.ErrDenied
		}
	}
	return fencing.ErrUnreachable
}

// completionError is a completion code other than 00h, from inside a session: the BMC itself said it.
type completionError struct {
	command string
	code    byte
}

const (
	codeInvalidCommand   = 0xC1
	codePrivilege        = 0xD4
	codeNotInThisState   = 0xD5
	codePrivilegeNotUser = 0x80 // of Set Session Privilege Level: not available for this user
	codePrivilegeLimit   = 0x81 // of Set Session Privilege Level: exceeds the limit of user or channel
)

func (e completionError) Error() string {
	return fmt.Sprintf("the device answers %s with completion code %02Xh", e.command, e.code)
}

// kind is the contract's error if the answer settles the matter, else otherwise.
func (e completionError) kind(otherwise error) error {
	switch {
	case e.code == codeInvalidCommand:
		return fencing.ErrUnsupported
	case e.code == codePrivilege,
		e.command == setPrivilege.name && (e.code == codePrivilegeNotUser || e.code == codePrivilegeLimit):
		return fmt.Errorf("%w: the account needs operator privilege", fencing.ErrDenied)
	default:
		return otherwise
	}
}

// beforeCommand maps the failure of a step that changes nothing onto the contract.
func beforeCommand(step string, err error) error {
	var status statusError
	var completion completionError
	switch {
	case errors.As(err, &status):
		return fmt.Errorf("%w: %w", status.kind(), err)
	case errors.As(err, &completion):
		return fmt.Errorf("%w: %w", completion.kind(fencing.ErrUnreachable), err)
	default:
		return fmt.Errorf("%w: %s: %w", fencing.ErrUnreachable, step, err)
	}
}

// ofCommand maps the failure of a power command onto the contract: what has left this machine may have been taken, unless the
// device itself says that it was not.
func ofCommand(step string, err error) error {
	var completion completionError
	switch {
	case errors.As(err, &completion):
		return fmt.Errorf("%w: %w", completion.kind(fencing.ErrUnclear), err)
	case errors.Is(err, errNotSent):
		return fmt.Errorf("%w: %s: %w", fencing.ErrUnreachable, step, err)
	default:
		return fmt.Errorf("%w: %s: %w", fencing.ErrUnclear, step, err)
	}
}
