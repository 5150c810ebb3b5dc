// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/holdfast-dev/holdfast/test/lab/journal"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

// hostLink is the name of the one link in every namespace; on the fabric's side it has the namespace's name.
const hostLink = "eth0"

// plug is one namespace on the fabric.
type plug struct {
	name      string
	addresses []string
	settings  map[string]string // below /proc/sys/net
	// services says that kube-proxy runs here. The kernel routes a packet before kube-proxy's rules turn it to
	// a pod, so it needs a route to Services, wherever that leads.
	services bool
}

// plugs lists all namespaces but the fabric's.
func (l *Lab) plugs() []plug {
	control := plug{name: controlNS}
	for _, server := range l.state.APIServers {
		control.addresses = append(control.addresses, server.Address)
	}
	bmcs := plug{name: bmcNS}
	hosts := make([]plug, 0, len(l.state.Hosts))
	for _, h := range l.state.Hosts {
		bmcs.addresses = append(bmcs.addresses, bmcAddress(h.Number))
		hosts = append(hosts, plug{name: h.Name, services: true, addresses: []string{hostAddress(h.Number)}, settings: map[string]string{
			"ipv4/ip_forward": "1",
			// Replies to a pod may leave by another link than its packets came in.
			"ipv4/conf/all/rp_filter":     "0",
			"ipv4/conf/default/rp_filter": "0",
		}})
	}
	return append([]plug{
		control, bmcs,
		{name: arrayNS, addresses: []string{arrayAddress}},
		{name: clientNS, addresses: []string{clientAddress}},
	}, hosts...)
}

// makeNetwork makes the namespaces, the fabric's bridge, a link from each namespace to it, and the routes to
// the pods.
func (l *Lab) makeNetwork() error {
	if err := l.makeNamespace(fabricNS); err != nil {
		return err
	}
	if err := setNetwork(l.NetNS(fabricNS), map[string]string{"bridge/bridge-nf-call-iptables": "0"}); err != nil {
		return err
	}
	return l.inFabric(func(fabric *netlink.Handle) error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "fab0"}}
		if err := fabric.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make bridge fab0: %w", err)
		}
		if err := fabric.LinkSetUp(bridge); err != nil {
			return fmt.Errorf("bridge fab0: %w", err)
		}
		for _, p := range l.plugs() {
			if err := l.plugIn(fabric, bridge, p); err != nil {
				return fmt.Errorf("network of %s: %w", p.name, err)
			}
		}
		return nil
	})
}

func (l *Lab) makeNamespace(name string) error {
	path := l.NetNS(name)
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("network namespace %s exists and is not from this lab; choose another --lab, or remove it with `ip netns delete %s`", path, filepath.Base(path))
	}
	if err := journal.Append(l.journalPath(), journal.Record{Kind: journal.NetNS, Name: name, Path: path}); err != nil {
		return err
	}
	return netns.Make(path)
}

func (l *Lab) plugIn(fabric *netlink.Handle, bridge netlink.Link, p plug) error {
	if err := l.makeNamespace(p.name); err != nil {
		return err
	}
	handle, closeHandle, err := openHandle(l.NetNS(p.name))
	if err != nil {
		return err
	}
	defer closeHandle()
	inside, err := vnetns.GetFromPath(l.NetNS(p.name))
	if err != nil {
		return err
	}
	defer inside.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: p.name}, PeerName: hostLink, PeerNamespace: netlink.NsFd(int(inside)),
	}
	if err := fabric.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	if err := fabric.LinkSetMaster(veth, bridge); err != nil {
		return fmt.Errorf("plug into fab0: %w", err)
	}
	if err := fabric.LinkSetUp(veth); err != nil {
		return err
	}
	if err := l.address(handle, p); err != nil {
		return err
	}
	return setNetwork(l.NetNS(p.name), p.settings)
}

// address gives the namespace its addresses and its routes to pods and Services.
func (l *Lab) address(handle *netlink.Handle, p plug) error {
	for _, name := range []string{"lo", hostLink} {
		link, err := handle.LinkByName(name)
		if err != nil {
			return err
		}
		if err := handle.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	link, err := handle.LinkByName(hostLink)
	if err != nil {
		return err
	}
	for _, text := range p.addresses {
		address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(text), Mask: net.CIDRMask(fabricPrefix, 32)}}
		if err := handle.AddrAdd(link, address); err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
	}
	routes := map[string]netlink.Route{}
	for _, h := range l.state.Hosts {
		if h.Name != p.name {
			routes[podSubnet(h.Number)] = netlink.Route{Gw: net.ParseIP(hostAddress(h.Number))}
		}
	}
	if p.services {
		routes[serviceRange] = netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK}
	}
	for text, route := range routes {
		if _, route.Dst, err = net.ParseCIDR(text); err != nil {
			return err
		}
		if err := handle.RouteAdd(&route); err != nil {
			return fmt.Errorf("route to %s: %w", text, err)
		}
	}
	return nil
}

func openHandle(path string) (*netlink.Handle, func(), error) {
	ns, err := vnetns.GetFromPath(path)
	if err != nil {
		return nil, nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	handle, err := netlink.NewHandleAt(ns)
	ns.Close() //nolint:errcheck // only read from
	if err != nil {
		return nil, nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return handle, handle.Close, nil
}

func (l *Lab) inFabric(f func(*netlink.Handle) error) error {
	handle, closeHandle, err := openHandle(l.NetNS(fabricNS))
	if err != nil {
		return err
	}
	defer closeHandle()
	return f(handle)
}

// setNetwork writes settings below /proc/sys/net. One that this kernel does not have stays away.
func setNetwork(path string, settings map[string]string) error {
	return netns.Do(path, func() error {
		for name, value := range settings {
			err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// setLink takes the host's link up or down on the fabric's side: the host keeps its routes and addresses, as
// a host does whose cable is pulled.
func (l *Lab) setLink(host string, up bool) error {
	return l.inFabric(func(fabric *netlink.Handle) error {
		link, err := fabric.LinkByName(host)
		if err != nil {
			return fmt.Errorf("link of %s: %w", host, err)
		}
		if up {
			return fabric.LinkSetUp(link)
		}
		return fabric.LinkSetDown(link)
	})
}

// forgetNetwork removes what a boot leaves in the host's network namespace, which outlives it: the links of
// pods, tracked connections, and kube-proxy's tables. Tables of faults stay: a power cycle mends no cable.
func (l *Lab) forgetNetwork(host string) error {
	handle, closeHandle, err := openHandle(l.NetNS(host))
	if err != nil {
		return err
	}
	defer closeHandle()
	links, err := handle.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		if name := link.Attrs().Name; link.Type() == "veth" && name != hostLink {
			if err := handle.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
				return fmt.Errorf("remove link %s: %w", name, err)
			}
		}
	}
	if err := handle.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("forget tracked connections: %w", err)
	}
	return l.dropProxyTables(host)
}
