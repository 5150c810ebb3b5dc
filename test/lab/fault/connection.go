// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Connection is one TCP connection over IPv4, as the host sees it.
type Connection struct {
	Local, Remote netip.AddrPort
}

// String is LOCAL>REMOTE, which parseConnection reads.
func (c Connection) String() string { return c.Local.String() + ">" + c.Remote.String() }

func parseConnection(s string) (Connection, error) {
	local, remote, ok := strings.Cut(s, ">")
	if !ok {
		return Connection{}, fmt.Errorf("connection %q is not LOCAL>REMOTE", s)
	}
	l, err := netip.ParseAddrPort(local)
	if err != nil {
		return Connection{}, fmt.Errorf("connection %q: %w", s, err)
	}
	r, err := netip.ParseAddrPort(remote)
	if err != nil {
		return Connection{}, fmt.Errorf("connection %q: %w", s, err)
	}
	return Connection{Local: l, Remote: r}, nil
}

// Established lists the connections that the process has established to one of
// the servers, in its own network namespace.
func Established(pid int, servers []netip.AddrPort) ([]Connection, error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	own, err := socketInodes(filepath.Join(proc, "fd"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(proc, "net/tcp"))
	if err != nil {
		return nil, err
	}
	var found []Connection
	for line := range strings.Lines(string(text)) {
		// sl local remote state queues timer retransmits uid timeout inode
		const established = "01"
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != established || !own[fields[9]] {
			continue
		}
		local, errLocal := hexAddress(fields[1])
		remote, errRemote := hexAddress(fields[2])
		if err := errors.Join(errLocal, errRemote); err != nil {
			return nil, fmt.Errorf("%s/net/tcp: %w", proc, err)
		}
		if slices.Contains(servers, remote) {
			found = append(found, Connection{Local: local, Remote: remote})
		}
	}
	return found, nil
}

// socketInodes is the set of socket inodes behind the file descriptors in a directory of /proc.
func socketInodes(directory string) (map[string]bool, error) {
	descriptors, err := os.ReadDir(directory)
	if err != nil {
		return nil, err
	}
	inodes := map[string]bool{}
	for _, d := range descriptors {
		target, err := os.Readlink(filepath.Join(directory, d.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes, nil
}

// hexAddress reads an address of /proc/net/tcp: the IPv4 address as a number
// in the machine's byte order, and the port, both in hexadecimal.
func hexAddress(s string) (netip.AddrPort, error) {
	address, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(address)
	number, errPort := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || errPort != nil || len(raw) != 4 {
		return netip.AddrPort{}, fmt.Errorf("address %q is not 8 hexadecimal digits, a colon and a port", s)
	}
	var ip [4]byte
	binary.NativeEndian.PutUint32(ip[:], binary.BigEndian.Uint32(raw))
	return netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(number)), nil
}
