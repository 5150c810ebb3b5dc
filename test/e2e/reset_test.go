// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/events"
)

// maxReset from proof to the end of a client's connection is promised (P6).
const maxReset = 2 * time.Second

// connectionsReset: the host loses its power while clients on the others have connections to the ledger, some of which only wait. Each is reset once the loss is
// proven, and the ledger's successor is let alone.
func connectionsReset(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	var open []*stage.Connection
	for _, h := range s.Lab.Hosts() {
		if h.Name() == s.host.Name() {
			continue
		}
		for _, seat := range stage.Seats(h.Name()) {
			c, err := s.Connect(s.soon(), seat)
			s.must(err)
			t.Cleanup(func() { _ = c.Close() }) // it is over by then, or the scene has failed
			open = append(open, c)
		}
	}
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.migrated(1)
	proven, slowest := s.provenAt(), time.Duration(0)
	for _, c := range open {
		at, how, err := c.End(s.soon())
		s.must(err)
		after, want := time.Duration(at.Mono-proven), syscall.ECONNABORTED
		if c.InPod {
			want = syscall.ECONNRESET
		}
		if !errors.Is(how, want) || after > maxReset {
			t.Errorf("the connection of the client in a %s ended %s after proof by %v, want %v within %s", c.Seat, after, how, want, maxReset)
		}
		slowest = max(slowest, after)
	}
	t.Logf("the slowest of %d clients learned of it %s after proof", len(open), slowest)
	hi := s.incident("every agent's answer", func(h *v1alpha1.HostIncident) bool {
		r := h.Status.Resets
		return len(r) == 1 && int(r[0].Done) == len(s.Lab.Hosts())-1
	})
	if r := hi.Status.Resets[0]; r.Address != s.pod.Status.PodIP || r.Hosts != r.Done || int(r.Connections) < len(open) || r.EndedAt != nil {
		t.Errorf("the journal says %+v, and %d connections to %s were open", r, len(open), s.pod.Status.PodIP)
	}
	next, err := s.Connect(s.soon(), open[0].Seat)
	s.must(err)
	t.Cleanup(func() { _ = next.Close() })
	s.returned()
	if hi := s.incident("an end", func(h *v1alpha1.HostIncident) bool { return len(h.Status.Resets) == 1 }); hi.Status.Resets[0].EndedAt == nil {
		t.Errorf("the host is back, and the journal says %+v", hi.Status.Resets)
	}
	select {
	case <-next.Ended():
		t.Error("the connection to the successor was ended too")
	default:
	}
}

// provenAt is when the API server was told of the proof.
func (s *scene) provenAt() int64 {
	s.Helper()
	return s.asked("the proof", events.Query{Verbs: []string{"update", "patch"}, Resource: "hostincidents", Subresource: "status", Match: func(r events.Request) bool {
		var h v1alpha1.HostIncident
		return r.Code == 200 && json.Unmarshal(r.Sent, &h) == nil && h.Spec.NodeName == s.host.Name() && h.Status.Proof != nil
	}}).Received
}
