// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/facts"
	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/agent/unit"
)

// connections are those of this host and its pods.
type connections struct {
	*reset.Table
	runtime string
}

// Here implements api.Connections.
func (c connections) Here(ctx context.Context) ([]netip.Addr, error) {
	own, err := reset.Own()
	if err != nil {
		return nil, err
	}
	pods, err := facts.Pods(ctx, c.runtime)
	return append(own, pods...), err
}

// hands are what the agent is set up to do. What it made for that is removed by let.
func (o options) hands() (h api.Hands, let func() error, err error) {
	let = func() error { return nil }
	if h.Kubelet, err = o.restarter(); err != nil {
		return api.Hands{}, nil, fmt.Errorf("--kubelet-restart: %w", err)
	}
	if o.resets {
		table, err := reset.Open()
		if err != nil {
			return api.Hands{}, nil, fmt.Errorf("--reset-connections: %w", err)
		}
		ours := connections{table, o.runtime}
		h.Connections, h.Recycling, let = ours, ours, table.Close
	}
	return h, let, nil
}

// restarter reads "systemd" or "systemd:UNIT"; nothing is nobody.
func (o options) restarter() (api.Kubelet, error) {
	if o.restart == "" {
		return nil, nil
	}
	by, name, named := strings.Cut(o.restart, ":")
	if by != "systemd" {
		return nil, fmt.Errorf("%q is not known; give systemd, or systemd:UNIT as systemd:kubelet.service", o.restart)
	}
	if !named {
		name = "kubelet.service"
	}
	u, err := unit.New(name, o.bus)
	if err != nil {
		return nil, err
	}
	return u, nil
}
