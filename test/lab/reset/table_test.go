// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package reset

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/agent/reset"
)

// crowd is how many connections of others a busy host tracks, from two clients in turn.
const crowd = 100_000

// fill has the host track connections of others to an address and port that is neither lost nor recycled.
func (w *world) fill(t testing.TB, family netlink.InetFamily) {
	t.Helper()
	client := netip.MustParseAddr(map[netlink.InetFamily]string{unix.AF_INET: "192.0.2.1", unix.AF_INET6: "2001:db8::1"}[family])
	w.inHost(t, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		for i := range crowd {
			there := netlink.IPTuple{SrcIP: client.AsSlice(), DstIP: w.other.AsSlice(), SrcPort: uint16(1024 + i/2), DstPort: port, Protocol: unix.IPPROTO_TCP}
			if i%2 != 0 {
				there.SrcIP = client.Next().AsSlice()
			}
			back := netlink.IPTuple{SrcIP: there.DstIP, DstIP: there.SrcIP, SrcPort: there.DstPort, DstPort: there.SrcPort, Protocol: unix.IPPROTO_TCP}
			f := &netlink.ConntrackFlow{FamilyType: uint8(family), Forward: there, Reverse: back, TimeOut: 3600, ProtoInfo: &netlink.ProtoInfoTCP{State: 3}}
			if err := h.ConntrackCreate(netlink.ConntrackTable, family, f); err != nil {
				return fmt.Errorf("connection %d of %d (does net.netfilter.nf_conntrack_max allow so many?): %w", i, crowd, err)
			}
		}
		return nil
	})
}

// size is how many entries the host's table has, and how many bytes they are on their way here.
func (w *world) size(t testing.TB, family netlink.InetFamily) (entries, bytes int) {
	t.Helper()
	w.inHost(t, func() error {
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(family), Version: nl.NFNETLINK_V0})
		return request.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(message []byte) bool {
			entries++
			bytes += len(message)
			return true
		})
	})
	return entries, bytes
}

// The heap's address space never shrinks: what it has at the end is the most that it ever had, and nothing has to be looked at in the right moment. The tests before
// this one need 12 MiB of it at most, and this one no more; held whole, the table takes 95.
func TestALargeTableIsNeverHeldWhole(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		family := netlink.InetFamily(unix.AF_INET)
		if w.lost.Is6() {
			family = unix.AF_INET6
		}
		w.fill(t, family)
		entries, bytes := w.size(t, family)
		if entries < crowd {
			t.Fatalf("the host tracks %d connections, want %d and more", entries, crowd)
		}
		client := dial(t, w.pod, w.service)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		w.inHost(t, func() error {
			found, err := w.table.Look("round", reset.Look{Servers: []netip.AddrPort{netip.AddrPortFrom(w.lost, port)}, Here: []netip.Addr{client.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()}})
			if found != 1 {
				t.Errorf("it looked and found %d connections, want 1", found)
			}
			return err
		})
		if found := w.lose(t, time.Minute); found != 1 {
			t.Errorf("it found %d connections to the lost address, want 1", found)
		}
		runtime.ReadMemStats(&after)
		ended(t, client)
		grown := int(after.HeapSys) - int(before.HeapInuse)
		t.Logf("%d entries of %d KiB; the heap had %d KiB in use, and space for %d, and got space for %d", entries, bytes>>10, before.HeapInuse>>10, before.HeapSys>>10, after.HeapSys>>10)
		if grown > bytes {
			t.Errorf("up to %d KiB more heap were in use for a table of %d KiB; want less than that, whatever tests before this one needed", grown>>10, bytes>>10)
		}
	})
}
