// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/conformance"
)

const (
	machineA = "00112233445546678899aabbccddeeff"
	machineB = "6f1f3a52d7c24c0e9d1bb0a1c2d3e4f5"
	// patience is how long a dead BMC is waited for.
	patience = 900 * time.Millisecond
)

func TestConformance(t *testing.T) {
	a, b := newSim(t, machineA), newSim(t, machineB)
	conformance.Run(t, conformance.Rig{
		Driver:   New(),
		Hosts:    []conformance.Host{{Target: a.target(), Truth: a}, {Target: b.target(), Truth: b}},
		Patience: patience,
	})
}

// within is a context for an honest BMC on a busy machine.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestIdentityInEveryByteOrderThatFirmwareSends(t *testing.T) {
	s := newSim(t, machineA)
	for order, guid := range map[string]string{
		"SMBIOS, as nearly all do":     "33221100554467468899aabbccddeeff",
		"as written, RFC 4122":         "00112233445546678899aabbccddeeff",
		"all reversed, IPMI 2.0 §20.8": "ffeeddccbbaa99886746554433221100",
	} {
		want := s.honest()
		want.guid = guid
		s.restart(t, want)
		r, err := New().Observe(within(t), s.target())
		if err != nil {
			t.Fatal(err)
		}
		if err := fencing.SameMachine(r.Identity, machineA); err != nil {
			t.Errorf("%s: %v", order, err)
		}
	}
	s.restart(t, s.honest())
	r, err := New().Observe(within(t), s.target())
	if want := "00112233-4455-4667-8899-aabbccddeeff"; err != nil || r.Identity != want {
		t.Errorf("identity in SMBIOS order is %q (%v), want it as people write it, %q", r.Identity, err, want)
	}
}

func TestAnAccountThatTheDeviceDoesNotKnowIsDenied(t *testing.T) {
	s := newSim(t, machineA)
	target := s.target()
	target.Credentials.Username = "stranger"
	if _, err := New().Observe(within(t), target); !errors.Is(err, fencing.ErrDenied) {
		t.Errorf("error %v, want %v", err, fencing.ErrDenied)
	}
}

func TestACipherSuiteThatTheDeviceLacksIsNamed(t *testing.T) {
	s := newSim(t, machineA)
	target := s.target()
	target.Options = map[string]string{OptionCipherSuite: "17"}
	_, err := New().Observe(within(t), target)
	if !errors.Is(err, fencing.ErrInvalidTarget) || !strings.Contains(err.Error(), OptionCipherSuite) {
		t.Errorf("error %v, want %v with the word %s", err, fencing.ErrInvalidTarget, OptionCipherSuite)
	}
}

func TestSessionsAreClosed(t *testing.T) {
	s := newSim(t, machineA)
	const more = 40 // than the 10 that the account may have open
	for i := range more {
		if _, err := New().Observe(within(t), s.target()); err != nil {
			t.Fatalf("call %d: %v", i+1, err)
		}
	}
	s.wire.back(drop)
	for range more {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, _ = New().Observe(ctx, s.target())
		cancel()
	}
	s.wire.back(nil)
	for i := range more {
		refused := errors.New("no")
		if _, err := New().Isolate(within(t), s.target(), func(string) error { return refused }); !errors.Is(err, refused) {
			t.Fatalf("call %d: %v", i+1, err)
		}
	}
}

func TestALostAnswerIsAskedForAgain(t *testing.T) {
	s := newSim(t, machineA)
	var lostRAKP2, lostSealed atomic.Bool
	s.wire.back(func(answer []byte) [][]byte {
		first := map[byte]*atomic.Bool{payloadRAKP2: &lostRAKP2, sealed | payloadMessage: &lostSealed}[answer[5]]
		if first != nil && !first.Swap(true) {
			return nil
		}
		return [][]byte{answer}
	})
	r, err := New().Observe(within(t), s.target())
	if err != nil || r.Power != fencing.PowerOn {
		t.Errorf("power %v (%v), want On", r.Power, err)
	}
	if !lostRAKP2.Load() || !lostSealed.Load() {
		t.Errorf("lost RAKP 2: %v, lost an answer inside the session: %v; want both", lostRAKP2.Load(), lostSealed.Load())
	}
}

// A BMC's neighbour can send datagrams in its name. None of these may turn a reading of On into Off, or end the process.
func TestForgedAnswersAreNotBelieved(t *testing.T) {
	s := newSim(t, machineA)
	// powerOff answers request number of Get Chassis Status with a power bit of 0.
	powerOff := func(number byte) []byte {
		m := []byte{addressConsole, 0x01 << 2}
		m = append(m, checksum(m), addressBMC, number<<2, getChassisStatus.num, 0x00, 0x00, 0x00, 0x00)
		return append(m, checksum(m[3:]))
	}
	var everyPlain [][]byte
	for number := range byte(8) {
		message := powerOff(number)
		v15 := append([]byte{6, 0, 0xFF, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(message))}, message...)
		everyPlain = append(everyPlain, v15)
	}
	for name, forge := range map[string]func(answer []byte) [][]byte{
		"clear text of IPMI 1.5": func([]byte) [][]byte { return everyPlain },
		"clear text under the session's number": func(answer []byte) (forged [][]byte) {
			for number := range byte(8) {
				message := powerOff(number)
				h := append(append([]byte(nil), answer[:14]...), byte(len(message)), 0)
				h[5] = payloadMessage
				forged = append(forged, append(h, message...))
			}
			return forged
		},
		"a broken code":    func(answer []byte) [][]byte { return [][]byte{flip(answer, len(answer)-1)} },
		"a broken payload": func(answer []byte) [][]byte { return [][]byte{flip(answer, payloadAt+20)} },
		"cut short": func(answer []byte) (forged [][]byte) {
			for n := range answer {
				forged = append(forged, answer[:n])
			}
			return forged
		},
	} {
		s.wire.back(func(answer []byte) [][]byte {
			if answer[5] == sealed|payloadMessage {
				return forge(answer)
			}
			return [][]byte{answer}
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience/3)
		r, err := New().Observe(ctx, s.target())
		cancel()
		if !errors.Is(err, fencing.ErrUnreachable) || r.Power != fencing.PowerUnreadable {
			t.Errorf("%s: power %v (%v), want Unreadable and %v", name, r.Power, err, fencing.ErrUnreachable)
		}
		// The same before the honest answer.
		s.wire.back(func(answer []byte) [][]byte {
			if answer[5] == sealed|payloadMessage {
				return append(forge(answer), answer)
			}
			return [][]byte{answer}
		})
		if r, err := New().Observe(within(t), s.target()); err != nil || r.Power != fencing.PowerOn {
			t.Errorf("%s, then the honest answer: power %v (%v), want On", name, r.Power, err)
		}
	}
}

// Whoever answers the handshake must know the password, and must keep to what was proposed.
func TestAForgedHandshakeIsRefused(t *testing.T) {
	s := newSim(t, machineA)
	for says, c := range map[string]struct {
		kind  byte
		at    int // in the payload
		want  error
		words string
	}{
		"no authentication, weaker than proposed": {payloadOpenResponse, 16, fencing.ErrInvalidTarget, OptionCipherSuite},
		"no integrity, weaker than proposed":      {payloadOpenResponse, 24, fencing.ErrInvalidTarget, OptionCipherSuite},
		"no encryption, weaker than proposed":     {payloadOpenResponse, 32, fencing.ErrInvalidTarget, OptionCipherSuite},
		"a code of RAKP 2 by another password":    {payloadRAKP2, 40, fencing.ErrDenied, "does not know this password"},
		"a GUID in RAKP 2 that is not covered":    {payloadRAKP2, 24, fencing.ErrDenied, "does not know this password"},
		"a code of RAKP 4 by another key":         {payloadRAKP4, 8, fencing.ErrDenied, "other session keys"},
	} {
		s.wire.back(func(answer []byte) [][]byte {
			if answer[5] == c.kind {
				answer = flip(answer, payloadAt+c.at)
			}
			return [][]byte{answer}
		})
		_, err := New().Observe(within(t), s.target())
		wantKind(t, says, err, c.want)
		if err != nil && !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: error %q, want it with %q", says, err, c.words)
		}
	}
}

func flip(b []byte, at int) []byte {
	b = append([]byte(nil), b...)
	b[at] ^= 0x01
	return b
}

func TestAnAnswerIsNotTakenForAnotherQuestion(t *testing.T) {
	s := newSim(t, machineA)
	ctx, cancel := context.WithCancel(within(t))
	var answers int // in the session: privilege, GUID, status, and those of the command, in place of which the status comes again
	var status []byte
	s.wire.back(func(answer []byte) [][]byte {
		if answer[5] != sealed|payloadMessage {
			return [][]byte{answer}
		}
		switch answers++; {
		case answers == 3:
			status = answer
		case answers == 5: // the command was repeated: its first answer was not taken
			cancel()
			return nil
		case answers > 3:
			return [][]byte{status}
		}
		return [][]byte{answer}
	})
	_, err := New().Isolate(ctx, s.target(), func(string) error { return nil })
	if !errors.Is(err, fencing.ErrUnclear) || !errors.Is(err, context.Canceled) {
		t.Errorf("with a replayed answer: error %v, want %v because the wait was cancelled", err, fencing.ErrUnclear)
	}
}

func TestThePermitComesRightBeforeTheCommand(t *testing.T) {
	s := newSim(t, machineA)
	ctx, cancel := context.WithCancel(within(t))
	_, err := New().Isolate(ctx, s.target(), func(string) error { cancel(); return nil })
	if !errors.Is(err, fencing.ErrUnreachable) {
		t.Errorf("context ended in permit: error %v, want %v, for nothing was sent", err, fencing.ErrUnreachable)
	}
	if got := s.Commands(t); got != (conformance.Commands{}) {
		t.Errorf("the device took %+v, want nothing", got)
	}
}

// A BMC does not know whether its machine exists at a provider: no answer that it can give says Gone, and Off is said by one bit only.
func TestNoChassisStatusSaysGone(t *testing.T) {
	for length := range 6 {
		for first := range 256 {
			body := bytes.Repeat([]byte{byte(first)}, length)
			want := fencing.PowerUnreadable
			switch {
			case length >= 3 && first&1 == 1:
				want = fencing.PowerOn
			case length >= 3:
				want = fencing.PowerOff
			}
			got, err := chassisOf(body)
			if got.power != want || (err != nil) != (want == fencing.PowerUnreadable) {
				t.Errorf("the answer %x says %v (%v), want %v", body, got.power, err, want)
			}
		}
	}
}
