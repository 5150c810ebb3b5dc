// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package reset

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// connection is one as its client sees it: where it comes from, and what it is connected to, which may be a Service.
type connection struct{ client, server netip.AddrPort }

// provoke makes the clients of addresses speak, in a few rounds: one packet may get lost. An address that came back meanwhile is left alone. It returns how many
// clients there were.
func (t *Table) provoke(ctx context.Context, addresses []netip.Addr) (int, error) {
	var found int
	for round := range rounds {
		still := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return !t.Lost(a) })
		open, err := connections(still)
		if err != nil {
			return found, err
		}
		if round == 0 {
			found = len(open)
		}
		if len(open) == 0 {
			return found, nil
		}
		if err := end(open); err != nil {
			return found, err
		}
		if round == rounds-1 {
			break
		}
		pause := time.NewTimer(between)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return found, ctx.Err()
		}
	}
	return found, nil
}

// connections are those that connection tracking knows to end at the addresses, whatever they were begun with. What is missing now is seen in the next round.
func connections(addresses []netip.Addr) (open []connection, err error) {
	err = eachFlow(addresses, func(f flow) { open = append(open, connection{client: f.client, server: f.asked}) })
	if err != nil {
		return nil, err
	}
	return open, nil
}

// Own are the addresses of this host, in the network namespace of the calling thread.
func Own() ([]netip.Addr, error) {
	found, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this host: %w", err)
	}
	own := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own = append(own, ip.Unmap())
		}
	}
	return own, nil
}

func port(ip net.IP, number uint16) netip.AddrPort {
	address, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(address.Unmap(), number)
}

// end ends connections: a socket of this network namespace directly, any other by making its client speak.
func end(open []connection) error {
	here, err := sockets()
	if err != nil {
		return err
	}
	for _, c := range open {
		if s, ok := here[c]; ok {
			err = errors.Join(err, destroy{s}.do())
		} else {
			err = errors.Join(err, speak(c))
		}
	}
	return err
}

// speak sends a SYN in the name of the server.
func speak(c connection) error {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: as4(c.client.Addr())})
	if c.client.Addr().Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: c.client.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("raw socket (it needs CAP_NET_RAW): %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing is buffered
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
		return fmt.Errorf("mark a raw socket (it needs CAP_NET_ADMIN): %w", err)
	}
	if err := unix.Sendto(fd, syn(c.server, c.client), 0, to); err != nil {
		return fmt.Errorf("speak to %s: %w", c.client, err)
	}
	return nil
}

func as4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// Lengths of headers without options.
const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
)

// syn is a whole packet with a SYN (RFC 9293, 3.1), in an IPv4 (RFC 791) or an IPv6 (RFC 8200) header. Its sequence number means nothing: what a SYN in an
// established connection says is not looked at.
func syn(from, to netip.AddrPort) []byte {
	tcp := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(tcp[0:], from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	tcp[12] = tcpHeader / 4 << 4
	tcp[13] = 0x02 // SYN
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, tcpHeader)
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	if from.Addr().Is4() {
		ip := make([]byte, ipv4Header)
		ip[0] = 4<<4 | ipv4Header/4
		binary.BigEndian.PutUint16(ip[2:], ipv4Header+tcpHeader)
		ip[8], ip[9] = 64, unix.IPPROTO_TCP
		copy(ip[12:], from.Addr().AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		return append(ip, tcp...) // the kernel writes the checksum of this header
	}
	ip := make([]byte, ipv6Header)
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], tcpHeader)
	ip[6], ip[7] = unix.IPPROTO_TCP, 64
	copy(ip[8:], from.Addr().AsSlice())
	copy(ip[24:], to.Addr().AsSlice())
	return append(ip, tcp...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
