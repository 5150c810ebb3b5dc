// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"sync"
)

// fewestHosts: of fewer that are known, none are a majority. Two that lose each other would both be half of them, and one that knows nobody all of them.
const fewestHosts = 3

// Majority asks the agents of all hosts that are known, the dead too, until more than half of the hosts, with this one, have answered: then it is true; or until ctx
// ends or all have been asked in vain.
func (m *Member) Majority(ctx context.Context) bool {
	ctx, done := context.WithCancel(ctx)
	others := m.hosts.others()
	all := len(others) + 1
	if all < fewestHosts {
		done()
		return false
	}
	answers := make(chan bool, len(others))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer done()
	for node, address := range others {
		asking.Go(func() {
			_, err := m.Ping(ctx, node, address)
			answers <- err == nil
		})
	}
	heard := 1
	for range others {
		if <-answers {
			heard++
		}
		if 2*heard > all {
			return true
		}
	}
	return false
}

// others are the addresses of all hosts that are known, but of this one.
func (h *hosts) others() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]string, len(h.known))
	for node, known := range h.known {
		if node != h.own {
			out[node] = known.address
		}
	}
	return out
}
