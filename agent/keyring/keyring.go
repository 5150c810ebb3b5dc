// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package keyring turns the keys of the gossip over so that at no moment two agents do not understand each other: docs/spec/witness.md, "Keys". It knows
// no Kubernetes; whoever calls it keeps the files.
package keyring

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"time"
)

// Names of the files. Agents send with the primary key, and understand all.
const (
	Primary  = "primary"
	Next     = "next"
	Previous = "previous"
)

const (
	// Period is how long a key is sent with.
	Period = 30 * 24 * time.Hour
	// Settle is how long after a change of the files, or after its kubelet came back, a host may go without having read them. Kubelets bring a Secret
	// up to date within two minutes and agents read it at once; what is over is for managers whose clocks differ.
	Settle = 5 * time.Minute
	// Patience is how long a host without a kubelet, which reads nothing, is waited for, and how long any that comes and goes.
	Patience = 24 * time.Hour
	// size is that of a key: AES-256.
	size = 32
)

// Phase is how far a turn is.
type Phase string

// A turn goes from one resting state to the next.
const (
	// Resting: there is the one key.
	Resting Phase = "Resting"
	// Announced: the next key is understood where it has been read, and nobody sends with it.
	Announced Phase = "Announced"
	// Switched: the next key has become the primary one, and what others still send with the previous one is understood.
	Switched Phase = "Switched"
)

// Ring is the files, and since when they are so.
type Ring struct {
	Files map[string][]byte
	Since time.Time
}

// Host is one that has to read the files.
type Host struct {
	Name string
	// Made is since when it is one of the hosts: an agent that came after the files were changed began with them.
	Made time.Time
	// Ready says that its kubelet is well, and Since, since when it is so, or is not.
	Ready bool
	Since time.Time
}

// New makes a ring with a key of its own.
func New(now time.Time) (Ring, error) {
	key, err := newKey()
	if err != nil {
		return Ring{}, err
	}
	return Ring{Files: map[string][]byte{Primary: key}, Since: now}, nil
}

func newKey() ([]byte, error) {
	raw := make([]byte, size)
	if _, err := rand.Read(raw); err != nil {
		return nil, err
	}
	return []byte(base64.StdEncoding.EncodeToString(raw) + "\n"), nil
}

// Phase says how far the turn is, or what is wrong with the files.
func (r Ring) Phase() (Phase, error) {
	for name, file := range r.Files {
		if raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(file))); err != nil || len(raw) != size {
			return "", fmt.Errorf("%s is no key: it should hold %d random bytes in base64", name, size)
		}
	}
	_, primary := r.Files[Primary]
	_, next := r.Files[Next]
	_, previous := r.Files[Previous]
	switch {
	case !primary:
		return "", fmt.Errorf("there is no key %q, with which the agents send", Primary)
	case next && previous:
		return "", fmt.Errorf("there are %q and %q: a turn is over before the next begins", Next, Previous)
	case next:
		return Announced, nil
	case previous:
		return Switched, nil
	default:
		return Resting, nil
	}
}

// Turn takes the next step when it is time for it: the ring as it is to be then, which is the same one if it is not. A turn begins when the period is over,
// or at once if it is wanted; each step waits until every host has had the time to read the one before. Files of other names stay.
func (r Ring) Turn(now time.Time, wanted bool, hosts []Host) (turned Ring, changed bool, err error) {
	phase, err := r.Phase()
	if err != nil {
		return r, false, err
	}
	if phase == Resting && !wanted && now.Sub(r.Since) < Period {
		return r, false, nil
	}
	if waits, _ := r.Waits(now, hosts); waits {
		return r, false, nil
	}
	files := maps.Clone(r.Files)
	switch phase {
	case Resting:
		if files[Next], err = newKey(); err != nil {
			return r, false, err
		}
	case Announced:
		files[Previous], files[Primary] = files[Primary], files[Next]
		delete(files, Next)
	case Switched:
		delete(files, Previous)
	}
	return Ring{Files: files, Since: now}, true, nil
}

// Waits reports whether a host may still go by older files, and names one if it is for a single host.
func (r Ring) Waits(now time.Time, hosts []Host) (waits bool, host string) {
	if now.Sub(r.Since) < Settle {
		return true, ""
	}
	if now.Sub(r.Since) >= Patience { // in a large cluster there is always a host that has just come, or come back
		return false, ""
	}
	for _, h := range hosts {
		if h.Made.After(r.Since) {
			continue
		}
		if h.Ready && now.Sub(h.Since) < Settle || !h.Ready && now.Sub(h.Since) < Patience {
			return true, h.Name
		}
	}
	return false, ""
}
