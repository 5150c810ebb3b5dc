// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// ears are what memberlist calls. It holds locks while it does, so none of them calls it back, but for answering a question.
type ears struct{ m *Member }

// NodeMeta is packed by Tell, which refused what does not fit.
func (e ears) NodeMeta(int) []byte {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	return e.m.meta
}

// NotifyMsg takes what another agent says to this one alone.
func (e ears) NotifyMsg(raw []byte) { e.m.take(raw) }

// GetBroadcasts has nothing: facts are metadata.
func (e ears) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState and MergeRemoteState: nothing is said but what memberlist says.
func (e ears) LocalState(bool) []byte        { return nil }
func (e ears) MergeRemoteState([]byte, bool) {}

// NotifyJoin: gossip takes the host for alive, for the first time or again.
func (e ears) NotifyJoin(node *memberlist.Node) { e.m.hosts.joined(e.facts(node), node.Address()) }

// NotifyUpdate: other facts of a host that is alive.
func (e ears) NotifyUpdate(node *memberlist.Node) { e.m.hosts.joined(e.facts(node), node.Address()) }

// NotifyLeave: dead, or gone.
func (e ears) NotifyLeave(node *memberlist.Node) { e.m.hosts.left(node.Name) }

// facts of a host, none but its name if they cannot be read: what was known before may be true no more.
func (e ears) facts(node *memberlist.Node) wire.Facts {
	facts, err := unpack(node.Name, node.Meta)
	if err == nil {
		return facts
	}
	kind := kindGarbled
	if errors.Is(err, errTooBig) {
		kind = kindOversize
	}
	e.m.journal.note(kind, err.Error(), "host", node.Name)
	return wire.Facts{Node: node.Name}
}

// NotifyConflict: a second host says it is one that is alive. memberlist keeps the first.
func (e ears) NotifyConflict(first, second *memberlist.Node) {
	e.m.journal.note(kindClaim, "Another host claims a name", "host", first.Name, "address", first.Address(), "claimant", second.Address())
}

// AckPayload makes an answer one of a boot.
func (e ears) AckPayload() []byte { return []byte(e.m.config.Facts.BootID) }

// NotifyPingComplete is called for direct answers only: those by way of others come without a payload, and not here.
func (e ears) NotifyPingComplete(other *memberlist.Node, rtt time.Duration, payload []byte) {
	e.m.hear(other.Name, string(payload), e.m.config.Clock.Now().Add(-rtt))
}
