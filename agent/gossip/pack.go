// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// packed is how facts travel: JSON with short keys. The name is memberlist's own and not repeated. An agent leaves out what it does not know and skips
// what it does not understand, so that agents of two versions can speak with each other.
type packed struct {
	BootID     string `json:"b"`
	SystemUUID string `json:"u,omitempty"`
	Kubelet    string `json:"k,omitempty"`
	Runtime    string `json:"r,omitempty"`
	API        string `json:"a,omitempty"`
	Storage    string `json:"s,omitempty"`
	Memory     string `json:"m,omitempty"`
	IO         string `json:"i,omitempty"`
	SelfFence  int64  `json:"w,omitempty"`
	Revision   uint64 `json:"n"`
}

// letters stand for pulses.
var letters = map[wire.Pulse]string{wire.Unread: "", wire.Alive: "A", wire.Dead: "D"}

// maxID is how long a boot ID or a system UUID may be; kernels make 36.
const maxID = 64

var (
	// errTooBig: the facts do not fit.
	errTooBig = fmt.Errorf("the facts take more than the %d bytes that gossip carries", wire.MetaBytes)
	// errGarbled: what came is no facts.
	errGarbled = errors.New("not the facts of a host")
)

// pack is the inverse of unpack. Facts that do not fit are refused, for cut ones would be others.
func pack(f wire.Facts) ([]byte, error) {
	p := packed{BootID: f.BootID, SystemUUID: f.SystemUUID, SelfFence: f.SelfFenceSeconds, Revision: f.Revision}
	for _, pulse := range []struct {
		letter *string
		of     wire.Pulse
	}{{&p.Kubelet, f.Kubelet}, {&p.Runtime, f.Runtime}, {&p.API, f.API},
		{&p.Storage, f.Storage}, {&p.Memory, f.Memory}, {&p.IO, f.IO}} {
		letter, ok := letters[pulse.of]
		if !ok {
			return nil, fmt.Errorf("%w: %q is no pulse", errGarbled, pulse.of)
		}
		*pulse.letter = letter
	}
	raw, err := json.Marshal(p)
	switch {
	case err != nil:
		return nil, err
	case len(raw) > wire.MetaBytes:
		return nil, fmt.Errorf("%w: they take %d; a boot ID of %d bytes and a system UUID of %d are in them, and should have 36",
			errTooBig, len(raw), len(f.BootID), len(f.SystemUUID))
	}
	// Whoever gets them reads them with the same eyes.
	if _, err := unpack(f.Node, raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// unpack reads what a host sent about itself. All of it or nothing: half of a host's facts would be of no host.
func unpack(node string, raw []byte) (wire.Facts, error) {
	if len(raw) > wire.MetaBytes {
		return wire.Facts{}, errTooBig
	}
	var p packed
	if err := json.Unmarshal(raw, &p); err != nil {
		return wire.Facts{}, fmt.Errorf("%w: %w", errGarbled, err)
	}
	if !isID(p.BootID) || p.SystemUUID != "" && !isID(p.SystemUUID) {
		return wire.Facts{}, fmt.Errorf("%w: the boot ID or the system UUID is none", errGarbled)
	}
	if p.SelfFence < 0 || p.SelfFence > wire.MaxSelfFenceSeconds {
		return wire.Facts{}, fmt.Errorf("%w: it fences itself after %d s, which should be 0 to %d", errGarbled, p.SelfFence, wire.MaxSelfFenceSeconds)
	}
	f := wire.Facts{Node: node, BootID: p.BootID, SystemUUID: p.SystemUUID, SelfFenceSeconds: p.SelfFence, Revision: p.Revision}
	for _, pulse := range []struct {
		of     *wire.Pulse
		letter string
	}{{&f.Kubelet, p.Kubelet}, {&f.Runtime, p.Runtime}, {&f.API, p.API},
		{&f.Storage, p.Storage}, {&f.Memory, p.Memory}, {&f.IO, p.IO}} {
		// A letter of a later version is Unread.
		for value, letter := range letters {
			if letter == pulse.letter {
				*pulse.of = value
			}
		}
	}
	return f, nil
}

// isID: short, and nothing that a log line or a page could stumble over.
func isID(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' {
			return false
		}
	}
	return true
}
