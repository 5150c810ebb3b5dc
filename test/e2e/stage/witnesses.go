// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
)

// placeWitnesses has an agent run on every host, of the image that the hosts have now.
func (s *Stage) placeWitnesses(ctx context.Context) error {
	if err := s.Witnesses(ctx, true); err != nil || !s.used || !s.freshWitness {
		return err
	}
	for _, verb := range []string{"restart", "status"} {
		if _, err := s.Kubectl(ctx, "rollout", verb, "-n", manifest.Namespace, "daemonset/"+manifest.Name); err != nil {
			return err
		}
	}
	return nil
}

// Witnesses asks for agents, and waits until there is one on every host but the dark ones; or ends them, and waits until they are gone from there.
func (s *Stage) Witnesses(ctx context.Context, on bool, dark ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	patch := fmt.Sprintf(`{"spec":{"witness":{"enabled":%t}}}`, on)
	if err := s.Client.Patch(ctx, config, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		return err
	}
	if s.options.Witnesses = on; on {
		return s.AwaitWitnesses(ctx, dark...)
	}
	return follow(ctx, s.Client, &corev1.PodList{}, []client.ListOption{client.InNamespace(manifest.Namespace)}, func(now map[string]*corev1.Pod) bool {
		for _, p := range now {
			if !slices.Contains(dark, p.Spec.NodeName) {
				return false
			}
		}
		return true
	})
}

// AwaitWitnesses waits until an agent is ready on every host but the dark ones; without agents not at all.
func (s *Stage) AwaitWitnesses(ctx context.Context, dark ...string) error {
	if !s.options.Witnesses {
		return nil
	}
	if _, err := s.AwaitConfig(ctx, "an agent on every host", func(g *v1alpha1.GuardConfig) bool {
		return len(dark) > 0 || Is(g.Status.Conditions, v1alpha1.ConditionWitnessesReady)
	}); err != nil {
		return err
	}
	hosts := slices.DeleteFunc(s.hostNames(), func(h string) bool { return slices.Contains(dark, h) })
	err := follow(ctx, s.Client, &corev1.PodList{}, []client.ListOption{client.InNamespace(manifest.Namespace)}, func(now map[string]*corev1.Pod) bool {
		ready := map[string]bool{}
		for _, p := range now {
			ready[p.Spec.NodeName] = ready[p.Spec.NodeName] || PodReady(p)
		}
		for _, h := range hosts {
			if !ready[h] {
				return false
			}
		}
		return true
	})
	if err != nil {
		err = fmt.Errorf("not every host has an agent that is ready: %w", err)
	}
	return err
}

// Witness is the agent's pod on a host.
func (s *Stage) Witness(ctx context.Context, host string) (*corev1.Pod, error) {
	var pods corev1.PodList
	if err := s.Client.List(ctx, &pods, client.InNamespace(manifest.Namespace), client.MatchingFields{"spec.nodeName": host}); err != nil {
		return nil, err
	}
	if len(pods.Items) != 1 {
		return nil, fmt.Errorf("%s has %d agents", host, len(pods.Items))
	}
	return &pods.Items[0], nil
}
