// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Plane is a part of the network as one host sees it.
type Plane string

const (
	// API is the API servers.
	API Plane = "api"
	// HostAPI is the API servers as the host itself reaches them: its kubelet and its proxy, but not its pods.
	HostAPI Plane = "host-api"
	// Peers is the other hosts and their pods.
	Peers Plane = "peers"
	// Storage is the array.
	Storage Plane = "storage"
	// BMC is the management controllers.
	BMC Plane = "bmc"
	// All is everything, clients outside the hosts included.
	All Plane = "all"
)

// Planes lists them.
var Planes = []Plane{API, HostAPI, Peers, Storage, BMC, All}

// addresses of the planes but All, see docs/spec/lab.md. A host's own address
// and pods are among its peers': packets to or from those never pass its
// uplink the other way round.
var addresses = map[Plane]string{
	API:     "10.90.0.2, 10.90.0.3",
	HostAPI: "10.90.0.2, 10.90.0.3",
	Peers:   "10.90.0.101-10.90.0.199, 10.91.0.0/16",
	Storage: "10.90.0.10",
	BMC:     "10.90.0.200-10.90.0.254",
}

// ParsePlane reads a plane as a user writes it.
func ParsePlane(s string) (Plane, error) {
	if plane := Plane(s); slices.Contains(Planes, plane) {
		return plane, nil
	}
	return "", fmt.Errorf("plane %q is none of %v", s, Planes)
}

// hosts are the hosts' own addresses.
const hosts = "10.90.0.101-10.90.0.199"

// Direction is which packets a cut drops, as the host sees them. A set of two bits.
type Direction uint8

const (
	// In is what the plane sends to the host.
	In Direction = 1 << iota
	// Out is what the host sends to the plane.
	Out
	// Both is every packet.
	Both = In | Out
)

// ParseDirection reads in, out or both.
func ParseDirection(s string) (Direction, error) {
	for _, d := range []Direction{In, Out, Both} {
		if d.String() == s {
			return d, nil
		}
	}
	return 0, fmt.Errorf("direction %q is none of in, out, both", s)
}

func (d Direction) String() string {
	return map[Direction]string{0: "none", In: "in", Out: "out", Both: "both"}[d]
}

// Network is a host's network. Its faults are rules of the table holdfast_lab
// of the family netdev, on the host's uplink: there every packet passes with
// the addresses it has on the wire, the host's own and its pods', before and
// after any translation and whether or not its connection is established. A
// dropped packet vanishes without an error to the sender. ARP always passes.
type Network struct {
	// NetNS is the path of the host's network namespace.
	NetNS string
	// Uplink is the host's one interface that leads out, for example eth0.
	Uplink string
}

// Cut drops the plane's packets in that direction, in addition to what is cut
// already. Undo: Heal.
func (n Network) Cut(ctx context.Context, plane Plane, direction Direction) error {
	if _, err := ParsePlane(string(plane)); err != nil {
		return err
	}
	return n.change(ctx, func(r *rules) { r.cuts[plane] |= direction })
}

// Heal undoes Cut of that plane in that direction; what other planes' cuts
// drop stays dropped. Heal of All heals every plane.
func (n Network) Heal(ctx context.Context, plane Plane, direction Direction) error {
	if _, err := ParsePlane(string(plane)); err != nil {
		return err
	}
	return n.change(ctx, func(r *rules) {
		for cut := range r.cuts {
			if plane == cut || plane == All {
				r.cuts[cut] &^= direction
			}
		}
	})
}

// Cuts tells what is cut now.
func (n Network) Cuts(ctx context.Context) (map[Plane]Direction, error) {
	r, err := n.read(ctx)
	return r.cuts, err
}

// HangConnections drops every packet of exactly these connections, in addition
// to those that hang already, as a load balancer does that forgot them. Undo:
// ResumeConnections.
func (n Network) HangConnections(ctx context.Context, connections []Connection) error {
	return n.change(ctx, func(r *rules) {
		for _, c := range connections {
			r.connections[c] = true
		}
	})
}

// ResumeConnections undoes HangConnections for all connections of the host.
func (n Network) ResumeConnections(ctx context.Context) error {
	return n.change(ctx, func(r *rules) { clear(r.connections) })
}

// HungConnections tells which connections hang now.
func (n Network) HungConnections(ctx context.Context) ([]Connection, error) {
	r, err := n.read(ctx)
	return r.sortedConnections(), err
}

// change reads the rules, lets edit change them, and puts them in place in one
// transaction. Processes that change the same host's rules take turns.
func (n Network) change(ctx context.Context, edit func(*rules)) error {
	lock, err := os.Open(n.NetNS)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer lock.Close() // releases the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", n.NetNS, err)
	}
	r, err := n.read(ctx)
	if err != nil {
		return err
	}
	edit(&r)
	_, err = n.nft(ctx, r.script(n.Uplink), "-f", "-")
	return err
}

// rules is the content of the table: what is cut and which connections hang.
type rules struct {
	cuts        map[Plane]Direction
	connections map[Connection]bool
}

func (r rules) sortedConnections() []Connection {
	var sorted []Connection
	for c := range r.connections {
		sorted = append(sorted, c)
	}
	slices.SortFunc(sorted, func(a, b Connection) int { return strings.Compare(a.String(), b.String()) })
	return sorted
}

// match selects packets of a plane, whose address is there, while the host's is here.
func (p Plane) match(there, here string) string {
	switch p {
	case All:
		return "meta protocol { ip, ip6 }"
	case HostAPI:
		return fmt.Sprintf("ip %s { %s } ip %s { %s }", there, addresses[p], here, hosts)
	default:
		return fmt.Sprintf("ip %s { %s }", there, addresses[p])
	}
}

// script is the nft script that replaces the table by these rules. The comment
// of each rule is what read understands.
func (r rules) script(uplink string) string {
	var in, out strings.Builder
	for _, plane := range Planes {
		if r.cuts[plane]&In != 0 {
			fmt.Fprintf(&in, "    %s counter drop comment \"%s%s\"\n", plane.match("saddr", "daddr"), cutMark, plane)
		}
		if r.cuts[plane]&Out != 0 {
			fmt.Fprintf(&out, "    %s counter drop comment \"%s%s\"\n", plane.match("daddr", "saddr"), cutMark, plane)
		}
	}
	for _, c := range r.sortedConnections() {
		fmt.Fprintf(&in, "    ip saddr %s ip daddr %s tcp sport %d tcp dport %d counter drop comment \"%s%s\"\n",
			c.Remote.Addr(), c.Local.Addr(), c.Remote.Port(), c.Local.Port(), connectionMark, c)
		fmt.Fprintf(&out, "    ip saddr %s ip daddr %s tcp sport %d tcp dport %d counter drop comment \"%s%s\"\n",
			c.Local.Addr(), c.Remote.Addr(), c.Local.Port(), c.Remote.Port(), connectionMark, c)
	}
	remove := fmt.Sprintf("table netdev %s\ndelete table netdev %s\n", table, table)
	if in.Len()+out.Len() == 0 {
		return remove
	}
	return fmt.Sprintf(`%stable netdev %s {
  chain in {
    type filter hook ingress device "%s" priority 0; policy accept;
%s  }
  chain out {
    type filter hook egress device "%s" priority 0; policy accept;
%s  }
}
`, remove, table, uplink, in.String(), uplink, out.String())
}
