// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// TestCase5AllKubeletsCut: every kubelet loses the API at once. We are the impaired ones: nothing is fenced, evicted or taken out of traffic, and all is quiet
// again afterwards.
func TestCase5AllKubeletsCut(t *testing.T) {
	playCase(t, 5,
		variant{"the managers keep the API", true, func(t *testing.T) { allCut(t, fault.HostAPI) }},
		variant{"the managers lose it too", false, func(t *testing.T) { allCut(t, fault.API) }},
	)
}

// outage is how long the cut lasts. The fast one is past NotReady and eviction by its timings.
func outage() time.Duration { return pick(45*time.Second, 3*time.Minute) }

func allCut(t *testing.T, plane fault.Plane) {
	s := play(t, free, company...)
	inside := s.insiders()
	s.begin()
	for _, h := range s.Lab.Hosts() {
		s.must(h.Cut(s.ctx, plane, fault.Both))
	}
	for _, h := range s.Lab.Hosts() {
		_, err := s.AwaitNode(s.soon(), h.Name(), "NotReady", func(n *corev1.Node) bool { return !stage.NodeReady(n) })
		s.must(err)
	}
	s.mark("detected")
	var pods []*corev1.Pod
	for _, p := range s.guarded() {
		pods = append(pods, p.pod)
	}
	if gone, err := s.AwaitAnyGone(s.within(outage()-time.Duration(mono.Nanoseconds()-s.since)), pods...); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%s was let go: %v", gone, err)
	}
	s.mark("held")
	for _, h := range s.Lab.Hosts() {
		s.must(h.Heal(s.ctx, plane, fault.Both))
	}
	s.hostsWell()
	s.allClosed()
	for _, p := range s.guarded() {
		_, err := p.AwaitPod(s.soon(), p.Name+" to be Ready", stage.PodReady)
		s.must(err)
		s.must(inside[p.Name].AwaitServed(s.soon()))
	}
	s.mark("recovered")
	s.sameContainers()
	until := mono.Nanoseconds()
	s.neverStopped(until)
	s.nothingFenced()
	s.nothingEvicted()
	s.servedThroughout(inside, until)
	s.judged()
}

// allClosed waits until no incident is open.
func (s *scene) allClosed() {
	s.Helper()
	s.must(s.AwaitNoOpenIncident(s.soon()))
}

// nothingFenced: no device of any host was commanded, and no Node tainted by us.
func (s *scene) nothingFenced() {
	s.Helper()
	for _, h := range s.Lab.Hosts() {
		calls, err := s.Calls(h.Name(), s.since)
		s.must(err)
		if offs := stage.Offs(calls); len(offs) > 0 {
			s.Errorf("%s was commanded off: %+v", h.Name(), offs)
		}
		tainted, err := s.Asked(s.since, events.Query{Verbs: []string{"patch", "update"}, Resource: "nodes", Name: h.Name(), Match: func(r events.Request) bool {
			return r.Code == 200 && stage.ByHoldfast(r) && strings.Contains(string(r.Sent), v1alpha1.TaintFenced)
		}})
		s.must(err)
		if len(tainted) > 0 {
			s.Errorf("%s was tainted: %s", h.Name(), tainted[0])
		}
	}
}

// nothingEvicted: nobody deleted or evicted a guarded pod with success.
func (s *scene) nothingEvicted() {
	s.Helper()
	for _, p := range s.guarded() {
		q := events.ToPod(stage.Namespace, p.pod.Name)
		found, err := s.Asked(s.since, q)
		s.must(err)
		for _, r := range found {
			if r.Code/100 == 2 && (r.Verb == "delete" || r.Subresource == "eviction") {
				s.Errorf("%s was taken away: %s", p.Name, r)
			}
		}
	}
}

// servedThroughout: a client on a host is served all the time, through cut and return. In the API's own lists no Service leads nowhere either, beyond what
// a manager that has the API needs to put an endpoint back.
func (s *scene) servedThroughout(insiders map[string]*stage.Insider, until int64) {
	s.Helper()
	s.gaps(until)
	for _, p := range s.guarded() {
		pause, err := insiders[p.Name].LongestPause(s.since, until)
		s.must(err)
		s.times["gap"] = max(s.times["gap"], pause)
		if pause > maxEndpointGap {
			s.Errorf("a client of %s on a host was not served for %v, want at most %v", p.Name, pause, maxEndpointGap)
		}
		s.Logf("%s: a client on a host was served with pauses of at most %v; in the API's lists its Service led nowhere for %v", p.Name, pause,
			p.Endpoints.Gap(s.since, until))
	}
}

// insiders are a client of every guarded part, on another host.
func (s *scene) insiders() map[string]*stage.Insider {
	s.Helper()
	clients := map[string]*stage.Insider{}
	for _, p := range s.guarded() {
		c, err := p.Within(s.ctx, s.another())
		s.must(err)
		s.Cleanup(func() {
			if err := c.Leave(context.Background()); err != nil {
				s.Error(err)
			}
		})
		clients[p.Name] = c
	}
	return clients
}
