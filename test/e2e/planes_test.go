// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// What happens to one plane of a host where agents watch: variants of case 8.
var planes = []variant{
	{"an agent stops on a host that is well", false, agentStops},
	{"the agents stop everywhere and the host loses its power", false, allAgentsStop},
	{"the host is cut off from its peers", false, func(t *testing.T) { cutFromPeers(t, fault.Both, "Isolated") }},
	{"the host hears its peers and they do not hear it", false, func(t *testing.T) { cutFromPeers(t, fault.Out, "Isolated") }},
	{"the host's peers hear it and it does not hear them", false, func(t *testing.T) { cutFromPeers(t, fault.In, "Isolated") }},
	{"the kubelet dies on a host that is cut off from its peers", false, kubeletDiesCutOff},
	{"the leader is cut off from its peers and another host loses its power", false, leaderInTheMinority},
	{"the API stops for ten minutes", false, apiStops},
	{"the API stops for ten minutes and the host loses its power meanwhile", false, lostWhileAPIStops},
	{"the gossip's key is turned over and the host loses its power meanwhile", false, lostWhileKeyTurns},
}

// passes lets a time go by in which nothing is to happen; it is what the scene is about.
func (s *scene) passes(d time.Duration) {
	s.Helper()
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-over.C:
	case <-s.ctx.Done():
		s.Fatal(s.ctx.Err())
	}
}

// agentOf stops the agent on a host for the scene, or until the function that it returns is called.
func (s *scene) agentOf(host string) (goOn func()) {
	s.Helper()
	agent, err := s.Witness(s.ctx, host)
	s.must(err)
	id, err := s.ProcessOf(agent, "witness")
	s.must(err)
	return s.stopped(id)
}

// undisturbed: the application was served and wrote all the time, in the same containers, and no device was commanded.
func (s *scene) undisturbed() {
	s.Helper()
	s.allClosed()
	s.mark("recovered")
	s.nothingFenced()
	s.nothingEvicted()
	s.sameContainers()
	until := mono.Nanoseconds()
	s.neverStopped(until)
	s.gaps(until)
	s.judged()
}

// agentStops: everybody's gossip gives the host up, and everything else of it answers.
func agentStops(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	s.begin()
	goOn := s.agentOf(s.host.Name())
	s.passes(pick(20*time.Second, time.Minute)) // several times what gossip, suspicion and proof take
	s.mark("held")
	s.untouched("a while without the agent")
	goOn()
	s.must(s.AwaitWitnesses(s.soon()))
	s.undisturbed()
}

// allAgentsStop: it goes on as without agents. Nobody expects an answer of theirs after two minutes.
func allAgentsStop(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	for _, h := range s.Lab.Hosts() {
		s.agentOf(h.Name())
	}
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.migrated(1)
	s.returned()
}

// cutFromPeers: the host reaches the API and its storage, and no other host. It lives and says so, whatever way the cut goes.
func cutFromPeers(t *testing.T, direction fault.Direction, want string) {
	s := play(t, free)
	s.witnessed()
	s.begin()
	s.must(s.host.Cut(s.ctx, fault.Peers, direction))
	s.incident(want, verdict(want))
	s.mark("detected")
	s.passes(pick(20*time.Second, 90*time.Second)) // several times confirmAfter
	s.mark("held")
	s.incident("still "+want, verdict(want))
	s.untouched("a while without peers")
	s.must(s.host.Heal(s.ctx, fault.Peers, fault.Both))
	s.allClosed()
	s.mark("recovered")
	s.nothingFenced()
	s.nothingEvicted()
	s.sameContainers()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}

// kubeletDiesCutOff: nothing but the agent's own Lease says that the host lives.
func kubeletDiesCutOff(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	s.begin()
	s.must(s.host.KillKubelet(s.ctx))
	s.must(s.host.Cut(s.ctx, fault.Peers, fault.Both))
	s.incident("Isolated", verdict("Isolated"))
	s.mark("detected")
	s.passes(pick(30*time.Second, 2*time.Minute)) // the lease has run out, and silence would long be confirmed
	s.mark("held")
	s.incident("still Isolated", verdict("Isolated"))
	s.untouched("a while of nothing but the agent's word")
	s.must(s.host.Heal(s.ctx, fault.Peers, fault.Both))
	s.must(s.host.StartKubelet(s.ctx))
	s.allClosed()
	s.mark("recovered")
	s.nothingFenced()
	s.sameContainers()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}

// leaderInTheMinority: the leader reaches the API and nobody else, so that every host and agent is silent to it. It steps down, and the next one finds out who is
// lost. Its own host is left alone.
func leaderInTheMinority(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	leader, err := s.Leader(s.soon())
	s.must(err)
	minority, err := s.Lab.Host(leader.Spec.NodeName)
	s.must(err)
	_, err = s.Kubectl(s.soon(), "cordon", minority.Name()) // a successor there would be held, for it is cut off; mended after the scene
	s.must(err)
	s.begin()
	s.must(minority.Cut(s.ctx, fault.Peers, fault.Both))
	s.must(s.host.PowerOff(s.ctx))
	_, err = s.AwaitLeader(s.within(3*time.Minute), leader.Name) // it may have led for less than the two minutes that it has to
	s.must(err)
	s.mark("leader")
	s.must(s.AwaitNoOpenIncident(s.soon(), s.host.Name())) // to the first leader the successor's host may be Isolated, and its pod held; the next one hears it
	s.migrated(1)
	s.othersUnfenced()
	s.must(minority.Heal(s.ctx, fault.Peers, fault.Both))
	s.returned()
}

// othersUnfenced: no device of another host was commanded.
func (s *scene) othersUnfenced() {
	s.Helper()
	for _, h := range s.Lab.Hosts() {
		if h.Name() == s.host.Name() {
			continue
		}
		calls, err := s.Calls(h.Name(), s.since)
		s.must(err)
		if offs := stage.Offs(calls); len(offs) > 0 {
			s.Errorf("%s lives, and was commanded off: %+v", h.Name(), offs)
		}
	}
}

// tenMinutes is how long the control plane is away (goal R8).
func tenMinutes() time.Duration { return pick(time.Minute, 10*time.Minute) }

// apiStops: every host falls silent to an API that nobody can ask. Nothing is fenced or evicted, and no endpoint is lost, also when it comes back.
func apiStops(t *testing.T) {
	s := play(t, free, company...)
	s.witnessed()
	inside := s.insiders()
	s.begin()
	s.must(s.Lab.StopAPI(s.ctx, 0))
	s.passes(tenMinutes())
	s.mark("held")
	s.must(s.Lab.StartAPI(s.ctx, 0))
	s.hostsWell()
	s.passes(pick(20*time.Second, 90*time.Second)) // what Kubernetes or Holdfast would do late
	for _, p := range s.guarded() {
		s.must(inside[p.Name].AwaitServed(s.soon()))
	}
	s.allClosed()
	s.mark("recovered")
	s.sameContainers()
	until := mono.Nanoseconds()
	s.neverStopped(until)
	s.nothingFenced()
	s.nothingEvicted()
	s.servedThroughout(inside, until)
	s.judged()
}

// lostWhileAPIStops: when the API is back, one host of all that were silent is dead. It is fenced, and no other.
func lostWhileAPIStops(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	s.begin()
	s.must(s.Lab.StopAPI(s.ctx, 0))
	s.passes(tenMinutes() / 2)
	s.must(s.host.PowerOff(s.ctx))
	s.passes(tenMinutes() / 2)
	s.must(s.Lab.StartAPI(s.ctx, 0))
	s.migrated(1)
	s.othersUnfenced()
	s.returned()
}

// lostWhileKeyTurns: a turn has three steps, each when every host has been well for five minutes. The host is lost as all have begun to send with the next key;
// until then nobody is suspected of anything.
func lostWhileKeyTurns(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	keys := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: manifest.Namespace, Name: manifest.Keys}}
	s.must(s.Client.Get(s.ctx, client.ObjectKeyFromObject(keys), keys))
	first := string(keys.Data["primary"])
	s.must(s.Client.Patch(s.ctx, keys, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"guard.holdfast.dev/turn":"now"}}}`))))
	s.switched(keys, first)
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.migrated(1)
	s.returned()
	s.must(s.AwaitWitnesses(s.soon()))
}

// switched waits until all send with another key than the first, which is still understood; no incident is opened meanwhile.
func (s *scene) switched(keys *corev1.Secret, first string) {
	s.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx := s.within(20 * time.Minute); ; {
		s.must(s.Client.Get(ctx, client.ObjectKeyFromObject(keys), keys))
		s.nothingOpen()
		if now := string(keys.Data["primary"]); now != first && len(now) == len(first) && string(keys.Data["previous"]) == first {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.Fatalf("the key is not turned over: the Secret has %d keys", len(keys.Data))
		}
	}
}

// nothingOpen: nobody is suspected of anything.
func (s *scene) nothingOpen() {
	s.Helper()
	open, err := s.OpenIncidents(s.ctx)
	s.must(err)
	for _, h := range open {
		s.Fatalf("incident %s is open: %s of %s", h.Name, h.Status.Verdict, h.Spec.NodeName)
	}
}
