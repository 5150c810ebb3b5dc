// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/fencing"
)

var kinds = []error{fencing.ErrUnreachable, fencing.ErrDenied, fencing.ErrUnsupported, fencing.ErrUnclear, fencing.ErrInvalidTarget}

// wantKind fails unless err is exactly that one of the contract's errors.
func wantKind(t *testing.T, says string, err, want error) {
	t.Helper()
	for _, kind := range kinds {
		if errors.Is(err, kind) != errors.Is(kind, want) {
			t.Errorf("%s: error %v, want %v and no other", says, err, want)
		}
	}
}

func TestFailuresBeforeTheCommand(t *testing.T) {
	for says, c := range map[string]struct{ err, want error }{
		"silence":                              {context.DeadlineExceeded, fencing.ErrUnreachable},
		"not sent":                             {errNotSent, fencing.ErrUnreachable},
		"too many sessions":                    {statusError{status: 0x01}, fencing.ErrUnreachable},
		"a cipher suite that the device lacks": {statusError{status: 0x11}, fencing.ErrInvalidTarget},
		"an authentication that the device lacks":    {statusError{status: 0x04}, fencing.ErrInvalidTarget},
		"an unknown account":                         {statusError{status: 0x0D}, fencing.ErrDenied},
		"an unknown account, asked twice":            {statusError{status: 0x0D, resent: true}, fencing.ErrUnreachable},
		"an account without the privilege":           {statusError{status: 0x0A}, fencing.ErrDenied},
		"a proof that is not accepted":               {statusError{status: 0x0F}, fencing.ErrDenied},
		"a proof that is not accepted, asked twice":  {statusError{status: 0x0F, resent: true}, fencing.ErrUnreachable},
		"a status that nobody knows":                 {statusError{status: 0x77}, fencing.ErrUnreachable},
		"a command that the device lacks":            {completionError{getChassisStatus.name, 0xC1}, fencing.ErrUnsupported},
		"a privilege that the command needs":         {completionError{getChassisStatus.name, 0xD4}, fencing.ErrDenied},
		"a privilege that the account may not have":  {completionError{setPrivilege.name, 0x80}, fencing.ErrDenied},
		"a privilege that the channel does not have": {completionError{setPrivilege.name, 0x81}, fencing.ErrDenied},
		"code 81h of another command":                {completionError{getChassisStatus.name, 0x81}, fencing.ErrUnreachable},
		"a busy device":                              {completionError{getChassisStatus.name, 0xC0}, fencing.ErrUnreachable},
	} {
		wantKind(t, says, beforeCommand("step", fmt.Errorf("wrapped: %w", c.err)), c.want)
	}
}

func TestFailuresOfTheCommand(t *testing.T) {
	const already, changes = true, false
	for says, c := range map[string]struct {
		err     error
		already bool
		want    error
	}{
		"silence":                         {context.DeadlineExceeded, changes, fencing.ErrUnclear},
		"a broken line":                   {errors.New("connection refused"), changes, fencing.ErrUnclear},
		"not sent":                        {errNotSent, changes, fencing.ErrUnreachable},
		"no power control":                {completionError{chassisControl.name, 0xC1}, changes, fencing.ErrUnsupported},
		"too little privilege":            {completionError{chassisControl.name, 0xD4}, changes, fencing.ErrDenied},
		"a busy device":                   {completionError{chassisControl.name, 0xC0}, changes, fencing.ErrUnclear},
		"a time-out inside the device":    {completionError{chassisControl.name, 0xC3}, changes, fencing.ErrUnclear},
		"not in this state, from another": {completionError{chassisControl.name, 0xD5}, changes, fencing.ErrUnclear},
		"busy, with that state already":   {completionError{chassisControl.name, 0xC0}, already, fencing.ErrUnclear},
	} {
		words, err := settle(c.err, c.already)
		wantKind(t, says, err, c.want)
		if words != "" {
			t.Errorf("%s: %q with an error", says, words)
		}
	}
	if words, err := settle(nil, changes); err != nil || words != "accepted" {
		t.Errorf("an acceptance is %q (%v)", words, err)
	}
	words, err := settle(completionError{chassisControl.name, 0xD5}, already)
	if err != nil || !strings.Contains(words, "D5h") {
		t.Errorf("not in this state, and in that state already: %q (%v), want an acceptance that shows the code", words, err)
	}
}

func TestTargetsThatCannotBeUsed(t *testing.T) {
	good := fencing.Target{Address: "192.0.2.1", Credentials: fencing.Credentials{Username: "fencer", Password: "opensesame"}}
	for says, c := range map[string]struct {
		change func(*fencing.Target)
		words  string
	}{
		"no address":               {func(t *fencing.Target) { t.Address = "" }, "address"},
		"a negative port":          {func(t *fencing.Target) { t.Port = -1 }, "port -1"},
		"a port too high":          {func(t *fencing.Target) { t.Port = 65536 }, "port 65536"},
		"an unknown option":        {func(t *fencing.Target) { t.Options = map[string]string{"cipher": "3"} }, `option "cipher"`},
		"a suite without secrecy":  {func(t *fencing.Target) { t.Options = map[string]string{OptionCipherSuite: "0"} }, OptionCipherSuite},
		"an empty user name":       {func(t *fencing.Target) { t.Credentials.Username = "" }, "key username"},
		"a user name too long":     {func(t *fencing.Target) { t.Credentials.Username = strings.Repeat("u", 17) }, "17 bytes"},
		"an empty password":        {func(t *fencing.Target) { t.Credentials.Password = "" }, "key password"},
		"a password too long":      {func(t *fencing.Target) { t.Credentials.Password = strings.Repeat("p", 21) }, "21 bytes"},
		"too long, and not shown ": {func(t *fencing.Target) { t.Credentials.Password += "-and-too-long" }, "password has 23 bytes"},
	} {
		target := good
		c.change(&target)
		_, err := accessOf(target)
		wantKind(t, says, err, fencing.ErrInvalidTarget)
		if err != nil && (!strings.Contains(err.Error(), c.words) || strings.Contains(err.Error(), "opensesame")) {
			t.Errorf("%s: error %q, want it with %q and without the password", says, err, c.words)
		}
	}
	for says, c := range map[string]struct {
		change  func(*fencing.Target)
		address string
	}{
		"the default port": {func(*fencing.Target) {}, "192.0.2.1:623"},
		"another port":     {func(t *fencing.Target) { t.Port = 6230 }, "192.0.2.1:6230"},
		"IPv6":             {func(t *fencing.Target) { t.Address = "2001:db8::1" }, "[2001:db8::1]:623"},
		"suite 17":         {func(t *fencing.Target) { t.Options = map[string]string{OptionCipherSuite: "17"} }, "192.0.2.1:623"},
	} {
		target := good
		c.change(&target)
		if a, err := accessOf(target); err != nil || a.address != c.address {
			t.Errorf("%s: address %q (%v), want %q", says, a.address, err, c.address)
		}
	}
}
