// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package reset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tcpListen is the state of a socket that listens (net/tcp_states.h).
const tcpListen = 10

// sockets are the connected TCP sockets of this network namespace, by what they are connected to.
func sockets() (map[connection]*netlink.Socket, error) {
	all := map[connection]*netlink.Socket{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := netlink.SocketDiagTCP(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what is missing now is seen in the next round
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range found {
			if s.State != tcpListen {
				all[connection{client: port(s.ID.Source, s.ID.SourcePort), server: port(s.ID.Destination, s.ID.DestinationPort)}] = s
			}
		}
	}
	return all, nil
}

// destroy is SOCK_DESTROY of one socket, by its cookie: by its addresses alone the kernel would take a listening socket where the connected one is gone in
// the meantime.
type destroy struct{ *netlink.Socket }

// Len is the size of struct inet_diag_req_v2 (linux/inet_diag.h).
func (d destroy) Len() int { return 56 }

// Serialize writes that struct.
func (d destroy) Serialize() []byte {
	b := make([]byte, d.Len())
	b[0], b[1] = d.Family, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(b[8:], d.ID.SourcePort)
	binary.BigEndian.PutUint16(b[10:], d.ID.DestinationPort)
	copy(b[12:28], d.address(d.ID.Source))
	copy(b[28:44], d.address(d.ID.Destination))
	binary.NativeEndian.PutUint32(b[44:], d.ID.Interface)
	binary.NativeEndian.PutUint32(b[48:], d.ID.Cookie[0])
	binary.NativeEndian.PutUint32(b[52:], d.ID.Cookie[1])
	return b
}

// address is an address as the socket's family writes it.
func (d destroy) address(ip []byte) []byte {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); d.Family == unix.AF_INET || !a.Is4() {
		return a.AsSlice()
	}
	mapped := a.As16()
	return mapped[:]
}

// do carries it out. A socket that is gone already is no error.
func (d destroy) do() error {
	request := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	request.AddData(d)
	if _, err := request.Execute(unix.NETLINK_INET_DIAG, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end a socket: %w", err)
	}
	return nil
}
