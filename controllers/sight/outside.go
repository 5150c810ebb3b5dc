// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import "github.com/holdfast-dev/holdfast/engine/evidence"

// Outside is what the agents on other hosts make of the host that this process runs on.
type Outside struct {
	// On says that agents are to be asked at all.
	On bool
	// Expected are those that should answer this process, Answering those that answered its last question, and Doubting those of the latter whose gossip does not hear the host.
	Expected, Answering, Doubting int
}

// Outside says it now. Without agents it is the zero value.
func (w *Witnesses) Outside() (out Outside) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return out
	}
	out.On = true
	for node, v := range w.vantages {
		if node == w.OwnHost || !v.answeredOnce || !w.expected(v) {
			continue
		}
		out.Expected++
		if v.stop == nil || !v.answered {
			continue
		}
		out.Answering++
		if s := v.seen[w.OwnHost]; s != nil && (s.State == evidence.GossipSuspect || s.State == evidence.GossipDead) {
			out.Doubting++
		}
	}
	return out
}
