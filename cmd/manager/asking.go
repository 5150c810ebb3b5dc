// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/certificate"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// asking builds what asks the agents. It rests while the GuardConfig asks for none.
func asking(mgr ctrl.Manager, o options, authority *certificate.Authority, board *sight.Board, w *sight.Witnesses) (*sight.Witnesses, error) {
	from := mgr.GetClient()
	own := &badge{keep: authority.Keep, clock: clock.RealClock{}, begun: make(chan struct{}), wanted: func(ctx context.Context) (bool, error) {
		settings, err := agents(ctx, from)
		return settings.Enabled, err
	}}
	w.Reach = func(node string) sight.Agent { return call.New(node, own) }
	w.Roll = func(ctx context.Context) (sight.Roll, error) {
		own.looked(ctx) // a question without a certificate would be put again a second later
		return roll(ctx, from)
	}
	w.Targets, w.OwnHost, w.Log = board.Targets, o.host, ctrl.Log.WithName("witnesses")
	return w, errors.Join(mgr.Add(own), mgr.Add(w))
}

const (
	// badgeEvery is how often it is looked whether the authority is still the same, and badgeSoon while there is no certificate.
	badgeEvery = 30 * time.Second
	badgeSoon  = 2 * time.Second
	// badgeFor bounds one look.
	badgeFor = 10 * time.Second
)

// errNoBadge is until there is a certificate.
var errNoBadge = errors.New("the authority of the witnesses has not been read yet")

// badge is the manager's own certificate towards the agents. It is made by the leader that uses it, of a key that never leaves its memory. It implements
// call.Identity and manager.Runnable.
type badge struct {
	// keep reads the authority, and wanted says whether there are agents to ask.
	keep   func(context.Context) (*authority.Authority, error)
	wanted func(context.Context) (bool, error)
	clock  clock.WithTicker
	// begun is closed after the first look.
	begun chan struct{}

	mu    sync.Mutex
	own   *identity.Identity
	by    []byte // the authority's certificate
	renew time.Time
	err   error
}

// NeedLeaderElection keeps standbys from reading the authority.
func (b *badge) NeedLeaderElection() bool { return true }

// Start renews until the context ends.
func (b *badge) Start(ctx context.Context) error {
	b.look(ctx)
	close(b.begun)
	for {
		again := badgeEvery
		if own, _ := b.Identity(); own == nil {
			again = badgeSoon
		}
		timer := b.clock.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C():
		}
		b.look(ctx)
	}
}

// looked waits for the first look, whatever came of it.
func (b *badge) looked(ctx context.Context) {
	select {
	case <-b.begun:
	case <-ctx.Done():
	}
}

// look makes another certificate when there is none, half of its life is over, or the authority is another one. What cannot be read changes nothing.
func (b *badge) look(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, badgeFor)
	defer done()
	wanted, err := b.wanted(ctx)
	if err == nil && wanted {
		err = b.make(ctx)
	}
	b.mu.Lock()
	said := b.err
	b.err = err
	b.mu.Unlock()
	if err != nil && (said == nil || said.Error() != err.Error()) && ctx.Err() == nil {
		logf.FromContext(ctx).Error(err, "there is no new certificate to ask the witness agents with")
	}
}

func (b *badge) make(ctx context.Context) error {
	a, err := b.keep(ctx)
	if err != nil {
		return err
	}
	ca, _, err := a.PEM()
	if err != nil {
		return err
	}
	now := b.clock.Now()
	b.mu.Lock()
	good := b.own != nil && bytes.Equal(ca, b.by) && now.Before(b.renew)
	b.mu.Unlock()
	if good {
		return nil
	}
	certificate, key, err := a.Pair(wire.ManagerName, now)
	if err != nil {
		return err
	}
	own, err := identity.Parse(certificate, key, ca)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own, b.by, b.renew = own, ca, now.Add(authority.Life/2)
	return nil
}

// Identity is the certificate now, and whom to believe.
func (b *badge) Identity() (*identity.Identity, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.own == nil {
		return nil, errors.Join(errNoBadge, b.err)
	}
	return b.own, nil
}

// agents are the settings of the agents.
func agents(ctx context.Context, from client.Reader) (v1alpha1.Witness, error) {
	var config v1alpha1.GuardConfig
	if err := from.Get(ctx, types.NamespacedName{Name: v1alpha1.GuardConfigName}, &config); err != nil {
		return v1alpha1.Witness{}, fmt.Errorf("read GuardConfig %s: %w", v1alpha1.GuardConfigName, err)
	}
	return config.Spec.Witness, nil
}

// roll reads which hosts there are, and whether and where agents are asked there.
func roll(ctx context.Context, from client.Reader) (sight.Roll, error) {
	settings, err := agents(ctx, from)
	out := sight.Roll{On: settings.Enabled, Port: settings.Port}
	if err != nil || !out.On {
		return out, err
	}
	if out.Port == 0 {
		out.Port = wire.Port
	}
	var nodes corev1.NodeList
	if err := from.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return sight.Roll{}, fmt.Errorf("list Nodes: %w", err)
	}
	for i := range nodes.Items {
		out.Hosts = append(out.Hosts, hostOf(&nodes.Items[i]))
	}
	return out, nil
}

func hostOf(n *corev1.Node) sight.Host {
	h := sight.Host{Node: n.Name, Zone: n.Labels[corev1.LabelTopologyZone], NoAgent: n.Labels[corev1.LabelOSStable] != "linux"}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && h.Address == "" {
			h.Address = a.Address
		}
	}
	for _, c := range n.Status.Conditions {
		h.Ready = h.Ready || c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}
	return h
}
