// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"

	"github.com/holdfast-dev/holdfast/test/lab/bmc"
)

// BMC is the host's management controller. It runs whether or not the host has power.
func (h *Host) BMC() *bmc.BMC {
	return &bmc.BMC{
		Host:      h.entry.Name,
		MachineID: h.entry.MachineID,
		Address:   bmcEndpoint(h.entry.Number),
		NetNS:     h.lab.NetNS(bmcNS),
		Dir:       h.bmcDir(),
		Control:   []string{h.lab.program("lab"), "bmc-control", "--lab", h.lab.state.Name, h.entry.Name},
		Log:       h.lab.logPath("bmc-" + h.entry.Name),
		Spawn: func(ctx context.Context, name, netns string, argv []string, log string) (int, error) {
			id, err := h.lab.Spawn(ctx, Process{
				Name: name, NetNS: netns, Cgroup: h.lab.cgroupName("control"), Args: argv, Log: log,
			})
			return id.PID, err
		},
	}
}

func (h *Host) bmcDir() string { return h.lab.path("bmc", h.entry.Name) }

// BMCControl carries out what the host's BMC was asked for, see bmc.Control.
func (h *Host) BMCControl() bmc.Control {
	return bmc.Control{Host: h.entry.Name, Dir: h.bmcDir(), Power: power{h}}
}

// power is the host's switch as its BMC sees it.
type power struct{ host *Host }

func (p power) On(context.Context) (bool, error) { return p.host.Powered(), nil }

func (p power) Set(ctx context.Context, on bool) error {
	if on {
		return p.host.PowerOn(ctx)
	}
	return p.host.PowerOff(ctx)
}
