// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fencingprofile

import (
	"context"
	"fmt"
	"sort"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
)

// sighting is one profile with the hosts that it selects.
type sighting struct {
	profile v1alpha1.FencingProfile
	nodes   []corev1.Node
	// rivals are the other profiles that select one of the nodes, by node.
	rivals    map[string]string
	readiness []v1alpha1.HostReadiness
}

func (s *sighting) unready() int {
	n := 0
	for _, h := range s.readiness {
		if h.Ready != "True" {
			n++
		}
	}
	return n
}

func (r *Reconciler) gather(ctx context.Context, req ctrl.Request) (*sighting, error) {
	s := &sighting{rivals: map[string]string{}}
	if err := r.Client.Get(ctx, req.NamespacedName, &s.profile); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	var nodes corev1.NodeList
	if err := r.Client.List(ctx, &nodes); err != nil {
		return nil, err
	}
	var profiles v1alpha1.FencingProfileList
	if err := r.Client.List(ctx, &profiles); err != nil {
		return nil, err
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if !guard.Selects(&s.profile, n) {
			continue
		}
		s.nodes = append(s.nodes, *n)
		for j := range profiles.Items {
			if o := &profiles.Items[j]; o.Name != s.profile.Name && guard.Selects(o, n) {
				s.rivals[n.Name] = o.Name
			}
		}
	}
	sort.Slice(s.nodes, func(i, j int) bool { return s.nodes[i].Name < s.nodes[j].Name })
	return s, nil
}

// conflict names the first host that another profile selects too; it is empty when there is none.
func (s *sighting) conflict() string {
	for _, n := range s.nodes {
		if rival := s.rivals[n.Name]; rival != "" {
			return overlap(n.Name, rival)
		}
	}
	return ""
}

func overlap(node, rival string) string {
	return fmt.Sprintf("FencingProfile %s selects host %s as well, so neither fences it: narrow the nodeSelector of one", rival, node)
}
