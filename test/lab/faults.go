// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
)

// Names of faults in events/faults.jsonl, next to those of fault.Record's Args.
const (
	faultPower      = "power-off"
	faultKubelet    = "kill-kubelet"
	faultHang       = "hang"    // Args: kind
	faultCut        = "net-cut" // Args: plane, direction
	faultConnection = "hang-connection"
	faultBMC        = "bmc"      // Args: mode
	faultAPI        = "api-stop" // Target: the API server, for example kube-apiserver-1
)

func (l *Lab) faults() fault.Journal { return fault.JournalOf(l.dir) }

// Events returns the lab's timeline.
func (l *Lab) Events(filter events.Filter) ([]events.Event, error) { return events.Read(l.dir, filter) }

// Requests returns requests to the lab's API servers from their audit logs.
func (l *Lab) Requests(query events.Query) ([]events.Request, error) {
	return events.Requests(l.dir, query)
}

func (h *Host) record(name string) fault.Record { return fault.Record{Fault: name, Target: h.Name()} }

// recordedPowerOff is powerOff in the timeline, if it changes anything.
func (h *Host) recordedPowerOff(ctx context.Context) error {
	off := func() error { return h.powerOff(ctx) }
	if !h.Powered() {
		return off()
	}
	return h.lab.faults().Apply(h.record(faultPower), off)
}

// recordedPowerOn is powerOn in the timeline, if it undoes a loss of power.
func (h *Host) recordedPowerOn(ctx context.Context) error {
	on := func() error { return h.powerOn(ctx) }
	if _, err := h.BootID(); err != nil || h.Powered() {
		return on() // it never ran before, or runs
	}
	return h.lab.faults().Undo(h.record(faultPower), on)
}

// Network is the host's network, for reading what is cut; Cut and Heal change it.
func (h *Host) Network() fault.Network { return fault.Network{NetNS: h.NetNS(), Uplink: hostLink} }

// Cut drops what the host exchanges with a plane, pods on it included, in addition to what is cut already.
// It outlives a power cycle. Undo: Heal.
func (h *Host) Cut(ctx context.Context, plane fault.Plane, direction fault.Direction) error {
	return h.lab.faults().Apply(h.cutRecord(plane, direction), func() error {
		return h.Network().Cut(ctx, plane, direction)
	})
}

// Heal undoes Cut of one plane; fault.All heals every plane.
func (h *Host) Heal(ctx context.Context, plane fault.Plane, direction fault.Direction) error {
	return h.lab.faults().Undo(h.cutRecord(plane, direction), func() error {
		return h.Network().Heal(ctx, plane, direction)
	})
}

func (h *Host) cutRecord(plane fault.Plane, direction fault.Direction) fault.Record {
	return fault.Record{Fault: faultCut, Target: h.Name(), Args: map[string]string{
		"plane": string(plane), "direction": direction.String(),
	}}
}

// HangKind is how much of a host hangs.
type HangKind string

const (
	// HangUserspace: no process runs; the kernel still answers pings and completes TCP connects.
	HangUserspace HangKind = "userspace"
	// HangDead: the kernel is silent too.
	HangDead HangKind = "dead"
)

// Hang freezes everything that runs on the host and returns once it stands still. Hanging a host that hangs
// changes the kind. Undo: EndHang, or PowerOff.
func (h *Host) Hang(ctx context.Context, kind HangKind) error {
	if kind != HangUserspace && kind != HangDead {
		return fmt.Errorf("hang kind %q is neither %s nor %s", kind, HangUserspace, HangDead)
	}
	record := fault.Record{Fault: faultHang, Target: h.Name(), Args: map[string]string{"kind": string(kind)}}
	return h.locked(ctx, func(ctx context.Context) error {
		if !h.Powered() {
			return h.isOff()
		}
		return h.lab.faults().Apply(record, func() error { return h.hang(ctx, kind) })
	})
}

func (h *Host) hang(ctx context.Context, kind HangKind) error {
	freezer, err := fault.NewFreezer(h.CgroupPaths())
	if err != nil {
		return err
	}
	// The link first: nothing of the hang is to be seen from outside, not even its beginning.
	if err := h.SetLink(kind != HangDead); err != nil {
		return err
	}
	return freezer.Freeze(ctx)
}

// EndHang lets a host that hangs go on where it stood, as if no time had passed. A host that does not hang
// stays as it is.
func (h *Host) EndHang(ctx context.Context) error {
	return h.locked(ctx, func(ctx context.Context) error {
		return h.lab.faults().Undo(h.record(faultHang), func() error { return h.endHang(ctx) })
	})
}

func (h *Host) endHang(ctx context.Context) error {
	if !h.Powered() {
		return nil // its link stays down until it boots
	}
	freezer, err := fault.NewFreezer(h.CgroupPaths())
	if err != nil {
		return err
	}
	if err := h.SetLink(true); err != nil {
		return err
	}
	return freezer.Thaw(ctx)
}

// SetBMCMode makes the host's BMC misbehave, or with bmc.Clear behave.
func (h *Host) SetBMCMode(ctx context.Context, mode bmc.Mode) error {
	record := fault.Record{Fault: faultBMC, Target: h.Name(), Args: map[string]string{"mode": string(mode)}}
	change := func() error { return h.BMC().SetMode(ctx, mode) }
	if mode == bmc.Clear {
		return h.lab.faults().Undo(record, change)
	}
	return h.lab.faults().Apply(record, change)
}

// HangAPIConnections drops every packet of the connections that the host's kubelet has to API servers now;
// those that it makes later work. It returns which. Undo: ResumeAPIConnections.
func (h *Host) HangAPIConnections(ctx context.Context) ([]fault.Connection, error) {
	pid, err := h.ServicePID(ctx, hostinit.Kubelet)
	if err != nil {
		return nil, err
	}
	servers := make([]netip.AddrPort, 0, len(h.lab.state.APIServers))
	for _, s := range h.lab.state.APIServers {
		address, err := netip.ParseAddr(s.Address)
		if err != nil {
			return nil, err
		}
		servers = append(servers, netip.AddrPortFrom(address, apiPort))
	}
	connections, err := fault.Established(pid, servers)
	if err != nil {
		return nil, fmt.Errorf("connections of %s's kubelet: %w", h.Name(), err)
	}
	if len(connections) == 0 {
		return nil, fmt.Errorf("the kubelet of %s has no connection to an API server now; try again when its Node is Ready", h.Name())
	}
	return connections, h.lab.faults().Apply(h.record(faultConnection), func() error {
		return h.Network().HangConnections(ctx, connections)
	})
}

// ResumeAPIConnections undoes HangAPIConnections, however often it was done.
func (h *Host) ResumeAPIConnections(ctx context.Context) error {
	return h.lab.faults().Undo(h.record(faultConnection), func() error { return h.Network().ResumeConnections(ctx) })
}

// StopAPI stops API server number server, or all of them when it is 0, so that it accepts connections and
// never answers. Undo: StartAPI.
func (l *Lab) StopAPI(ctx context.Context, server int) error {
	return l.eachAPI(server, func(n int) error {
		name := apiProcess(n)
		return l.faults().Apply(fault.Record{Fault: faultAPI, Target: name}, func() error {
			id, err := l.Process(name)
			if err != nil {
				return err
			}
			if err := id.Stop(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	})
}

// StartAPI undoes StopAPI.
func (l *Lab) StartAPI(ctx context.Context, server int) error {
	return l.eachAPI(server, func(n int) error {
		name := apiProcess(n)
		return l.faults().Undo(fault.Record{Fault: faultAPI, Target: name}, func() error {
			id, err := l.Process(name)
			if err != nil {
				return err
			}
			if err := id.Continue(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	})
}

func apiProcess(n int) string { return "kube-apiserver-" + strconv.Itoa(n) }

// eachAPI calls do for API server number server, or for all of them when it is 0.
func (l *Lab) eachAPI(server int, do func(n int) error) error {
	count := len(l.state.APIServers)
	if server < 0 || server > count {
		return fmt.Errorf("lab %q has no API server %d; it has 1 to %d", l.state.Name, server, count)
	}
	if server > 0 {
		return do(server)
	}
	var failures []error
	for n := 1; n <= count; n++ {
		failures = append(failures, do(n))
	}
	return errors.Join(failures...)
}
