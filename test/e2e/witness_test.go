// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// TestCase8Witnesses: with an agent on every host.
func TestCase8Witnesses(t *testing.T) {
	playCase(t, 8, append([]variant{
		{"a kubelet that hangs is restarted", false, kubeletRestarted},
		{"kubelet and agent stop, the application answers", false, kubeletAndAgentStop},
		{"connections to a lost pod are reset", false, connectionsReset},
		{"connections are recycled when a member comes", false, connectionsRecycled},
	}, planes...)...)
}

// witnessed has agents on every host for the scene, which may restart kubelets.
func (s *scene) witnessed() {
	s.Helper()
	s.must(s.Stage.Witnesses(s.soon(), true))
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience())
		defer cancel()
		if err := s.Stage.Witnesses(ctx, false); err != nil {
			s.Error(err)
		}
	})
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	s.must(s.Client.Patch(s.ctx, config, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"witness":{"kubeletUnit":"kubelet.service"}}}`))))
	now, err := s.AwaitConfig(s.soon(), "the new settings", func(g *v1alpha1.GuardConfig) bool { return g.Spec.Witness.KubeletUnit != "" })
	s.must(err)
	_, err = s.AwaitConfig(s.soon(), "agents of the new settings", func(g *v1alpha1.GuardConfig) bool {
		for _, c := range g.Status.Conditions {
			if c.Type == v1alpha1.ConditionWitnessesReady && c.ObservedGeneration >= now.Generation {
				return c.Status == metav1.ConditionTrue
			}
		}
		return false
	})
	s.must(err)
}

// stopped stops a process for the scene, or until the function that it returns is called.
func (s *scene) stopped(id process.ID) (goOn func()) {
	s.Helper()
	s.must(id.Stop(s.ctx))
	goOn = func() {
		if id.Alive() {
			if err := id.Continue(context.Background()); err != nil {
				s.Error(err)
			}
		}
	}
	s.Cleanup(goOn)
	return goOn
}

func (s *scene) kubelet() process.ID {
	s.Helper()
	pid, err := s.host.ServicePID(s.ctx, "kubelet")
	s.must(err)
	id, err := process.Find(pid)
	s.must(err)
	return id
}

// kubeletRestarted: the kubelet stands still. Its host's own agent says so, and that runtime and API answer there; once the lease has run out it is restarted,
// by journal, once. Nothing is fenced, and the application notices nothing.
func kubeletRestarted(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	s.must(s.Amend(s.ctx, `{"spec":{"onKubeletFailure":{"repair":"RestartKubelet"}}}`))
	s.Cleanup(func() {
		if err := s.Amend(context.Background(), `{"spec":{"onKubeletFailure":{"repair":"None"}}}`); err != nil {
			s.Error(err)
		}
	})
	s.begin()
	s.stopped(s.kubelet())
	s.incident("KubeletDown", verdict("KubeletDown"))
	s.mark("detected")
	hi := s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	if r := hi.Status.Repairs; len(r) != 1 || r[0].State != v1alpha1.RepairDone {
		t.Errorf("repairs are %+v, want one that was done", r)
	}
	s.nothingFenced()
	s.sameContainers()
	s.neverStopped(mono.Nanoseconds())
	s.judged()
}

// kubeletAndAgentStop: nothing on the host speaks for it but the application, which answers the agents of other hosts.
func kubeletAndAgentStop(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	s.begin()
	on := []func(){s.stopped(s.kubelet()), s.agentOf(s.host.Name())}
	hi := s.incident("KubeletDown", verdict("KubeletDown"))
	s.mark("detected")
	for _, p := range s.guarded() {
		s.armed(p, hi)
	}
	s.holds()
	for _, goOn := range on {
		goOn()
	}
	s.incident("Closed", step(v1alpha1.StepClosed))
	s.mark("recovered")
	s.nothingFenced()
	s.sameContainers()
	until := mono.Nanoseconds()
	s.neverStopped(until)
	s.gaps(until)
	s.judged()
}
