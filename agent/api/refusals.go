// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"maps"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// Refusal is a kind of thing that the server did not do.
type Refusal string

// Values of Refusal.
const (
	// Handshake: no certificate, one that is not of the authorities or not good any more, or no TLS 1.3 at all.
	Handshake Refusal = "Handshake"
	// Crowd: more connections than one address, or all of them, may have.
	Crowd Refusal = "Crowd"
	// Stranger: a certificate that has become invalid while the connection was open, or whose name is neither the manager's nor an agent's.
	Stranger Refusal = "Stranger"
	// Forbidden: the caller's name may not do this.
	Forbidden Refusal = "Forbidden"
	// NoSuchPath and NoSuchMethod: there is nothing of that name here.
	NoSuchPath   Refusal = "NoSuchPath"
	NoSuchMethod Refusal = "NoSuchMethod"
	// Malformed: a parameter or a body that is not understood, or asks for what is not asked from here.
	Malformed Refusal = "Malformed"
	// TooLarge: a body beyond the limit.
	TooLarge Refusal = "TooLarge"
	// Flood: more requests at a time than are answered.
	Flood Refusal = "Flood"
	// Unequipped: this agent is not set up for it.
	Unequipped Refusal = "Unequipped"
	// Unfit: this host is not as the request takes for granted. It is in another boot, the address lives here, or the kubelet was restarted a moment ago.
	Unfit Refusal = "Unfit"
	// Failed: it was tried, and did not work.
	Failed Refusal = "Failed"
	// Unread: the server's own certificate, key or authorities could not be read again; what they were before is still used.
	Unread Refusal = "Unread"
)

// refusals counts, and logs the first of each kind in a minute.
type refusals struct {
	log logr.Logger
	now func() time.Time

	mu     sync.Mutex
	counts map[Refusal]uint64
	logged map[Refusal]time.Time
}

const (
	logEvery = time.Minute
	// whyBytes is how much of what a caller sent is said again.
	whyBytes = 400
)

func (r *refusals) note(kind Refusal, from, why string) {
	r.mu.Lock()
	r.counts[kind]++
	count, now := r.counts[kind], r.now()
	last, before := r.logged[kind]
	loud := !before || now.Sub(last) >= logEvery
	if loud {
		r.logged[kind] = now
	}
	r.mu.Unlock()
	if loud {
		r.log.Info("refused", "kind", kind, "from", from, "why", why, "countOfThisKind", count)
	}
}

// Counts returns how often each kind of refusal came since the server was made.
func (s *Server) Counts() map[Refusal]uint64 {
	s.refusals.mu.Lock()
	defer s.refusals.mu.Unlock()
	return maps.Clone(s.refusals.counts)
}
