// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package reset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// established is the state of a tracked connection with both sides known to each other (nf_conntrack_tcp.h, TCP_CONNTRACK_ESTABLISHED).
const established = 3

// flow is a connection as the host tracks it.
type flow struct {
	// client opened it, towards what it asked for, which may be a Service; server is the pod behind that, and seen who the pod takes its client to be.
	client, asked, server, seen netip.AddrPort
}

// eachFlow calls do for the established connections that end at the addresses, whatever they were begun with. Of what changes meanwhile some may be missing.
//
// A host may track some hundred thousand connections, and it is after a loss that all hosts ask: the table is read once for each family that the addresses are of, and
// never held. While do runs, it is still being read.
func eachFlow(addresses []netip.Addr, do func(flow)) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return a.Is4() == (family == unix.AF_INET) }) {
			continue
		}
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		err := request.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(message []byte) bool {
			if f, ok := parse(message); ok && slices.Contains(addresses, f.server.Addr()) {
				do(f)
			}
			return true
		})
		if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			return fmt.Errorf("list tracked connections (it needs CAP_NET_ADMIN): %w", err)
		}
	}
	return nil
}

// parse reads an entry of the table, and keeps none of its bytes. Anything but an established TCP connection is not ok.
func parse(message []byte) (f flow, ok bool) {
	if len(message) < nl.SizeofNfgenmsg {
		return flow{}, false
	}
	family, entry := message[0], message[nl.SizeofNfgenmsg:]
	state := attribute(entry, nl.CTA_PROTOINFO, nl.CTA_PROTOINFO_TCP, nl.CTA_PROTOINFO_TCP_STATE)
	if len(state) != 1 || state[0] != established {
		return flow{}, false
	}
	f.client, f.asked = ends(attribute(entry, nl.CTA_TUPLE_ORIG), family)
	f.server, f.seen = ends(attribute(entry, nl.CTA_TUPLE_REPLY), family)
	return f, f.client.IsValid() && f.asked.IsValid() && f.server.IsValid() && f.seen.IsValid()
}

// ends are the source and the destination of one direction. What is not told is not valid.
func ends(tuple []byte, family uint8) (source, destination netip.AddrPort) {
	from, to := uint16(nl.CTA_IP_V4_SRC), uint16(nl.CTA_IP_V4_DST)
	if family == unix.AF_INET6 {
		from, to = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	end := func(address, number uint16) netip.AddrPort {
		digits := attribute(tuple, nl.CTA_TUPLE_PROTO, number)
		if len(digits) != 2 {
			return netip.AddrPort{}
		}
		return port(attribute(tuple, nl.CTA_TUPLE_IP, address), binary.BigEndian.Uint16(digits))
	}
	return end(from, nl.CTA_PROTO_SRC_PORT), end(to, nl.CTA_PROTO_DST_PORT)
}

// attribute is the value of a netlink attribute, by its type and before that the types of those which it is nested in; nil if there is none.
func attribute(in []byte, path ...uint16) []byte {
	for _, wanted := range path {
		if in = attributeOf(in, wanted); in == nil {
			return nil
		}
	}
	return in
}

func attributeOf(in []byte, wanted uint16) []byte {
	const flags, alignment = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER, unix.NLA_ALIGNTO
	for len(in) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(in))
		if length < unix.SizeofNlAttr || length > len(in) {
			return nil
		}
		if binary.NativeEndian.Uint16(in[2:])&^flags == wanted {
			return in[unix.SizeofNlAttr:length]
		}
		in = in[min(len(in), (length+alignment-1)/alignment*alignment):]
	}
	return nil
}
