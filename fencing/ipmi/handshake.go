// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/holdfast-dev/holdfast/fencing"
)

const (
	// privilege is Operator: the least that may switch power. Every session asks for it, so that a reading also shows that the
	// account could isolate.
	privilege = 0x03
	// byNameOnly asks the BMC to find the account by its name and not by name and privilege.
	byNameOnly = 0x10
	role       = byNameOnly | privilege
)

// handshake is the state of RMCP+ session activation (IPMI 2.0 §13.15 to §13.24).
type handshake struct {
	line   *line
	random io.Reader
	access access

	// console is our session number, device the BMC's.
	console, device uint32
	// ours and theirs are the random numbers of either side.
	ours, theirs []byte
	// guid is what the BMC says in RAKP 2, under the code of RAKP 2.
	guid []byte
}

// open activates a session. Both sides prove that they know the password: the BMC in RAKP 2, we in RAKP 3; RAKP 4 confirms the keys.
// Errors are those of the contract; no command has been given.
func (h *handshake) open(ctx context.Context) (keys, error) {
	fresh := make([]byte, 4+16)
	if _, err := io.ReadFull(h.random, fresh); err != nil {
		return keys{}, fmt.Errorf("%w: no random numbers: %w", fencing.ErrUnreachable, err)
	}
	h.console, h.ours = binary.LittleEndian.Uint32(fresh)|1, fresh[4:]
	if err := h.openSession(ctx); err != nil {
		return keys{}, err
	}
	if err := h.rakp12(ctx); err != nil {
		return keys{}, err
	}
	s := h.access.suite
	session := s.mac(h.access.key, h.ours, h.theirs, h.named())
	if err := h.rakp34(ctx, session); err != nil {
		return keys{}, err
	}
	return keys{
		suite:      s,
		integrity:  s.mac(session, bytes.Repeat([]byte{1}, 20)),
		encryption: s.mac(session, bytes.Repeat([]byte{2}, 20))[:16],
	}, nil
}

// openSession proposes the cipher suite; an answer with another one is not taken.
func (h *handshake) openSession(ctx context.Context) error {
	const tag = 1
	s := h.access.suite
	proposal := []byte{
		0, 0, 0, 8, s.auth, 0, 0, 0,
		1, 0, 0, 8, s.integrity, 0, 0, 0,
		2, 0, 0, 8, s.confidentiality, 0, 0, 0,
	}
	body := append(binary.LittleEndian.AppendUint32([]byte{tag, 0, 0, 0}, h.console), proposal...)
	answer, err := h.ask(ctx, step{"Open Session", payloadOpenRequest, payloadOpenResponse, tag, 36}, body)
	if err != nil {
		return err
	}
	if answer[16] != s.auth || answer[24] != s.integrity || answer[32] != s.confidentiality {
		return fmt.Errorf("%w: the device answers with other algorithms than those of option %s", fencing.ErrInvalidTarget, OptionCipherSuite)
	}
	h.device = binary.LittleEndian.Uint32(answer[8:])
	return nil
}

func (h *handshake) rakp12(ctx context.Context) error {
	const tag = 2
	s := h.access.suite
	body := binary.LittleEndian.AppendUint32([]byte{tag, 0, 0, 0}, h.device)
	body = append(append(body, h.ours...), role, 0, 0, byte(len(h.access.username)))
	body = append(body, h.access.username...)
	answer, err := h.ask(ctx, step{"RAKP 1", payloadRAKP1, payloadRAKP2, tag, 40 + s.keyCode}, body)
	if err != nil {
		return err
	}
	h.theirs, h.guid = bytes.Clone(answer[8:24]), bytes.Clone(answer[24:40])
	numbers := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, h.console), h.device)
	if !hmac.Equal(answer[40:40+s.keyCode], s.mac(h.access.key, numbers, h.ours, h.theirs, h.guid, h.named())) {
		h.refuse()
		return fmt.Errorf("%w: the device does not know this password: correct the Secret", fencing.ErrDenied)
	}
	return nil
}

// refuse tells the BMC that its RAKP 2 was not believed (RAKP 3 with status 0Fh), so that it frees the session at once.
func (h *handshake) refuse() {
	body := binary.LittleEndian.AppendUint32([]byte{3, 0x0F, 0, 0}, h.device)
	_ = h.line.send(setup(payloadRAKP3, body))
}

func (h *handshake) rakp34(ctx context.Context, session []byte) error {
	const tag = 3
	s := h.access.suite
	body := binary.LittleEndian.AppendUint32([]byte{tag, 0, 0, 0}, h.device)
	number := binary.LittleEndian.AppendUint32(nil, h.console)
	body = append(body, s.mac(h.access.key, h.theirs, number, h.named())...)
	answer, err := h.ask(ctx, step{"RAKP 3", payloadRAKP3, payloadRAKP4, tag, 8 + s.sealCode}, body)
	if err != nil {
		return err
	}
	device := binary.LittleEndian.AppendUint32(nil, h.device)
	if !hmac.Equal(answer[8:8+s.sealCode], s.mac(session, h.ours, device, h.guid)[:s.sealCode]) {
		return fmt.Errorf("%w: the device derives other session keys; a BMC key (Kg) is not supported: remove it from the device", fencing.ErrDenied)
	}
	return nil
}

// named is role and user name as every code covers them.
func (h *handshake) named() []byte {
	return append([]byte{role, byte(len(h.access.username))}, h.access.username...)
}

// step is one question of the handshake: its name, the payload types of question and answer, the tag that ties them, and the answer's least length.
type step struct {
	name             string
	question, answer byte
	tag              byte
	length           int
}

// ask returns the first answer to the step that carries its tag and our session number, with status 0 and of full length; or the
// refusal that carries the tag.
func (h *handshake) ask(ctx context.Context, s step, body []byte) ([]byte, error) {
	var answer []byte
	send := func() ([]byte, error) { return setup(s.question, body), nil }
	take := func(datagram []byte) error {
		got, _, err := payloadOf(datagram, s.answer, 0)
		switch {
		case err != nil || len(got) < 2 || got[0] != s.tag:
			return errNotOurs
		case got[1] != 0: // Some BMCs do not repeat our session number in a refusal.
			return statusError{s.name, got[1], h.line.resent}
		case len(got) < s.length || binary.LittleEndian.Uint32(got[4:]) != h.console:
			return errNotOurs
		}
		answer = bytes.Clone(got)
		return nil
	}
	if err := h.line.ask(ctx, send, take); err != nil {
		return nil, beforeCommand(s.name, err)
	}
	return answer, nil
}
