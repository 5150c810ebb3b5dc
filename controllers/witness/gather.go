// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"context"
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/keyring"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
)

// sighting is what there is, and what came of keeping it.
type sighting struct {
	config v1alpha1.GuardConfig
	// place says that the agents' namespace is there.
	place bool
	nodes []corev1.Node

	// agents is the DaemonSet, nil if there is none.
	agents *appsv1.DaemonSet
	// turning says how far the keys' turn is, if there is one.
	turning string
	err     error
}

// gather reads what there is, or nothing where there is no GuardConfig: then nobody says whether there are to be agents, and those that run stay.
func (r *Reconciler) gather(ctx context.Context) (*sighting, error) {
	s := &sighting{}
	if err := r.Direct.Get(ctx, types.NamespacedName{Name: v1alpha1.GuardConfigName}, &s.config); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	var namespace corev1.Namespace
	err := r.Client.Get(ctx, types.NamespacedName{Name: manifest.Namespace}, &namespace)
	if client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	s.place = !apierrors.IsNotFound(err)
	var nodes corev1.NodeList
	if err := r.Client.List(ctx, &nodes); err != nil {
		return nil, err
	}
	s.nodes = slices.DeleteFunc(nodes.Items, func(n corev1.Node) bool { return n.Labels[corev1.LabelOSStable] != "linux" })
	return s, nil
}

// hosts are those that read the keys.
func (s *sighting) hosts() []keyring.Host {
	var out []keyring.Host
	for _, n := range s.nodes {
		h := keyring.Host{Name: n.Name, Made: n.CreationTimestamp.Time, Since: n.CreationTimestamp.Time}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				h.Ready, h.Since = c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
			}
		}
		out = append(out, h)
	}
	return out
}

// maxSeeds is how many addresses agents are given to begin with. One that answers is enough.
const maxSeeds = 16

// seeds are addresses of some hosts, spread over zones, one a line. The choice goes by names alone, so that a host's coming and going seldom changes the
// file, which each change sends to every host.
func seeds(nodes []corev1.Node) string {
	type candidate struct{ order, address string }
	zones := map[string][]candidate{}
	for _, n := range nodes {
		if address := internal(n); address != "" {
			sum := sha256.Sum256([]byte(n.Name))
			zone := n.Labels[corev1.LabelTopologyZone]
			zones[zone] = append(zones[zone], candidate{string(sum[:]), address})
		}
	}
	var chosen []string
	for len(zones) > 0 && len(chosen) < maxSeeds {
		for _, zone := range slices.Sorted(maps.Keys(zones)) { // one of each, and again
			of := zones[zone]
			first := slices.MinFunc(of, func(a, b candidate) int { return strings.Compare(a.order, b.order) })
			zones[zone] = slices.DeleteFunc(of, func(c candidate) bool { return c == first })
			if len(zones[zone]) == 0 {
				delete(zones, zone)
			}
			if len(chosen) < maxSeeds {
				chosen = append(chosen, first.address)
			}
		}
	}
	slices.Sort(chosen)
	return strings.Join(chosen, "\n") + "\n"
}

// internal is the address by which a host's agent is reached: the first that the host has inside the cluster.
func internal(n corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil {
			return ip.String()
		}
	}
	return ""
}
