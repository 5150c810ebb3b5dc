// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fencingprofile

import (
	"context"
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/fencing"
)

// atOnce is how many devices are read side by side.
const atOnce = 16

// act reads every host's devices; it changes nothing.
func (r *Reconciler) act(ctx context.Context, s *sighting) {
	s.readiness = make([]v1alpha1.HostReadiness, len(s.nodes))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range s.nodes {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			s.readiness[i] = r.host(ctx, s, &s.nodes[i])
		}()
	}
	wg.Wait()
}

// host tries the methods in order; the first that can be used is enough, and the first failure is what is told otherwise.
func (r *Reconciler) host(ctx context.Context, s *sighting, n *corev1.Node) v1alpha1.HostReadiness {
	if rival := s.rivals[n.Name]; rival != "" {
		return v1alpha1.HostReadiness{NodeName: n.Name, Ready: "False", Reason: v1alpha1.ReasonOverlap,
			Message: overlap(n.Name, rival)}
	}
	var first *v1alpha1.HostReadiness
	for _, d := range r.Devices.For(ctx, &s.profile, n.Name, n.Status.NodeInfo.SystemUUID) {
		h := r.read(ctx, n.Name, d)
		if h.Ready == "True" {
			return h
		}
		if first == nil {
			first = &h
		}
	}
	if old := before(&s.profile, n.Name); old != nil {
		first.LastGoodRead = old.LastGoodRead
	}
	return *first
}

func before(p *v1alpha1.FencingProfile, node string) *v1alpha1.HostReadiness {
	for i := range p.Status.Readiness {
		if p.Status.Readiness[i].NodeName == node {
			return &p.Status.Readiness[i]
		}
	}
	return nil
}

func (r *Reconciler) read(ctx context.Context, node string, d guard.Device) v1alpha1.HostReadiness {
	h := v1alpha1.HostReadiness{NodeName: node, Ready: "False", Method: d.Method, Power: "Unreadable", Identity: "Unchecked"}
	err := d.Err
	var reading fencing.Reading
	if err == nil {
		call, done := context.WithTimeout(ctx, min(d.Timeout, r.CallDeadline))
		reading, err = d.Driver.Observe(call, d.Target)
		done()
	}
	if err != nil {
		h.Reason, h.Message = reason(err), err.Error()
		return h
	}
	h.Power = reading.Power.String()
	if err := fencing.SameMachine(reading.Identity, d.SystemUUID); err != nil {
		h.Identity, h.Reason, h.Message = "Differs", v1alpha1.ReasonIdentityMismatch, err.Error()
		return h
	}
	h.Identity = "Matches"
	if reading.Power != fencing.PowerOn && reading.Power != fencing.PowerOff {
		h.Reason, h.Message = v1alpha1.ReasonDeviceUnreadable, "the device answers "+reading.Power.String()+": "+reading.Detail
		return h
	}
	h.Ready, h.Reason, h.LastGoodRead = "True", v1alpha1.ReasonDeviceReady, &metav1.Time{Time: r.Clock.Now()}
	return h
}

func reason(err error) string {
	for _, k := range []struct {
		err    error
		reason string
	}{
		{guard.ErrSecretMissing, v1alpha1.ReasonSecretMissing}, {guard.ErrSecretMalformed, v1alpha1.ReasonSecretMalformed},
		{guard.ErrUnlisted, v1alpha1.ReasonHostUnlisted}, {fencing.ErrIdentity, v1alpha1.ReasonIdentityMismatch},
		{fencing.ErrDenied, v1alpha1.ReasonDeviceDenied},
	} {
		if errors.Is(err, k.err) {
			return k.reason
		}
	}
	return v1alpha1.ReasonDeviceUnreadable
}
