// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package reset tries agent/reset on real network namespaces: a pod with clients, a host that forwards for it, and the pods behind another host.
package reset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

// within bounds what should take milliseconds.
const within = 20 * time.Second

// world is three namespaces: pod - host - there. On there two addresses serve, lost and other; a Service of the host's leads to lost.
type world struct {
	pod, host, there string
	lost, other      netip.Addr
	service          netip.AddrPort
	table            *reset.Table
}

// family is what differs between IPv4 and IPv6.
type family struct {
	name, nft            string
	pod, gateway         string
	lost, other, further string
	service              string
	bits                 int
	forwarding           string
}

var families = []family{
	{"IPv4", "ip", "10.1.0.2", "10.1.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.1", "10.96.0.1", 24, "/proc/sys/net/ipv4/ip_forward"},
	{"IPv6", "ip6", "fd01::2", "fd01::1", "fd02::2", "fd02::3", "fd02::1", "fd96::1", 64, "/proc/sys/net/ipv6/conf/all/forwarding"},
}

const port = 8080

// each plays a scene with IPv4 and with IPv6.
func each(t *testing.T, scene func(*testing.T, *world)) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { scene(t, build(t, f)) })
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func build(t testing.TB, f family) *world {
	t.Helper()
	w := &world{lost: netip.MustParseAddr(f.lost), other: netip.MustParseAddr(f.other), service: netip.AddrPortFrom(netip.MustParseAddr(f.service), 80)}
	for name, path := range map[string]*string{"pod": &w.pod, "host": &w.host, "there": &w.there} {
		*path = netns.Path(fmt.Sprintf("holdfast-reset-%d-%s", os.Getpid(), name))
		must(t, netns.Make(*path))
		t.Cleanup(func() {
			if err := netns.Remove(*path); err != nil {
				t.Error(err)
			}
		})
	}
	w.link(t, "pod0", w.pod, []string{f.pod}, "host0", []string{f.gateway}, f)
	w.link(t, "there0", w.there, []string{f.lost, f.other}, "host1", []string{f.further}, f)
	must(t, netns.Do(w.host, func() error { // a host has a way to a Service's address before that is translated
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.ParseIP(f.service), Mask: net.CIDRMask(8*len(w.lost.AsSlice()), 8*len(w.lost.AsSlice()))}, Gw: net.ParseIP(f.lost)})
	}))
	must(t, netns.Do(w.host, func() error { return os.WriteFile(f.forwarding, []byte("1"), 0o644) }))
	w.nft(t, fmt.Sprintf("table %s nat {\n", f.nft)+
		fmt.Sprintf("chain pre { type nat hook prerouting priority -100\n %[1]s daddr %[2]s tcp dport 80 dnat to %[3]s\n}\n", f.nft, f.service, netip.AddrPortFrom(w.lost, port))+
		fmt.Sprintf("chain out { type nat hook output priority -100\n %[1]s daddr %[2]s tcp dport 80 dnat to %[3]s\n}\n}\n", f.nft, f.service, netip.AddrPortFrom(w.lost, port)))
	for _, a := range []netip.Addr{w.lost, w.other} {
		w.serve(t, a)
	}
	w.inHost(t, func() error {
		var err error
		w.table, err = reset.Open()
		return err
	})
	return w
}

// link joins a namespace to the host, with a default route through it.
func (w *world) link(t testing.TB, name, path string, own []string, hosts string, gateway []string, f family) {
	t.Helper()
	must(t, netns.Do(w.host, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hosts}, PeerName: name}); err != nil {
			return err
		}
		peer, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := netlink.LinkSetNsFd(peer, int(file.Fd())); err != nil {
			return err
		}
		return address(hosts, gateway, f, "")
	}))
	must(t, netns.Do(path, func() error { return address(name, own, f, gateway[0]) }))
}

// address gives a link its addresses and sets it up; gateway is the default route's, if any.
func address(name string, addresses []string, f family, gateway string) error {
	for _, up := range []string{"lo", name} {
		link, err := netlink.LinkByName(up)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		parsed, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", a, f.bits))
		if err != nil {
			return err
		}
		parsed.Flags = syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(link, parsed); err != nil {
			return err
		}
	}
	if gateway == "" {
		return nil
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)})
}

func (w *world) inHost(t testing.TB, f func() error) {
	t.Helper()
	must(t, netns.Do(w.host, f))
}

func (w *world) nft(t testing.TB, script string, args ...string) string {
	t.Helper()
	var out []byte
	w.inHost(t, func() error {
		command := exec.CommandContext(t.Context(), "nft", append(args, "-f", "-")...)
		command.Stdin = strings.NewReader(script)
		var err error
		out, err = command.CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
	return string(out)
}

// serve echoes on an address until the test ends.
func (w *world) serve(t testing.TB, a netip.Addr) {
	t.Helper()
	l, err := netns.Listen(w.there, "tcp", netip.AddrPortFrom(a, port).String())
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until either side ends it
			}()
		}
	}()
}

// unplug takes the cable out behind which lost and other are.
func (w *world) unplug(t testing.TB) { w.plug(t, false) }

func (w *world) plug(t testing.TB, up bool) {
	t.Helper()
	must(t, netns.Do(w.there, func() error {
		link, err := netlink.LinkByName("there0")
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	}))
}

// dial connects from a namespace, and has an echo, so that both sides know the connection.
func dial(t testing.TB, from string, to netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	c, err := netns.Dialer(from)(ctx, "tcp", to.String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	echo(t, c)
	return c
}

func echo(t testing.TB, c net.Conn) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(within)))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatalf("%s to %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%s to %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
}

// ended waits until somebody ended the connection for its client, which only reads.
func ended(t testing.TB, c net.Conn) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(within)))
	_, err := c.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("%s to %s: %v, want a reset", c.LocalAddr(), c.RemoteAddr(), err)
	}
}

func (w *world) lose(t testing.TB, span time.Duration) (found int) {
	t.Helper()
	w.inHost(t, func() error {
		var err error
		found, err = w.table.Lose(t.Context(), []netip.Addr{w.lost}, span)
		return err
	})
	return found
}

func TestClientsThatOnlyWaitLearnThatTheirServerIsLost(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		direct := netip.AddrPortFrom(w.lost, port)
		clients := []net.Conn{dial(t, w.pod, direct), dial(t, w.pod, w.service), dial(t, w.host, direct), dial(t, w.host, w.service)}
		w.unplug(t)
		if found := w.lose(t, time.Minute); found != len(clients) {
			t.Errorf("it found %d connections, want %d", found, len(clients))
		}
		for _, c := range clients {
			ended(t, c)
		}
	})
}

func TestClientsThatSendAreAnsweredByAReset(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		clients := []net.Conn{dial(t, w.pod, w.service), dial(t, w.host, w.service)}
		w.unplug(t)
		for _, c := range clients {
			_, err := c.Write([]byte("not acknowledged"))
			must(t, err)
		}
		w.lose(t, time.Minute)
		for _, c := range clients {
			ended(t, c)
		}
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		if c, err := netns.Dialer(w.pod)(ctx, "tcp", w.service.String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new connection: %v, %v; want it refused", c, err)
		}
	})
}

func TestConnectionsToOtherAddressesGoOn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		other := netip.AddrPortFrom(w.other, port)
		clients := []net.Conn{dial(t, w.pod, other), dial(t, w.host, other)}
		gone := dial(t, w.pod, w.service)
		// What listens on the host at the port that a client has elsewhere is nobody's connection.
		listener, err := netns.Listen(w.host, "tcp", fmt.Sprintf(":%d", gone.LocalAddr().(*net.TCPAddr).Port))
		must(t, err)
		defer listener.Close()
		if found := w.lose(t, time.Minute); found != 1 {
			t.Errorf("it found %d connections, want 1", found)
		}
		ended(t, gone)
		for _, c := range clients {
			echo(t, c)
		}
		must(t, listener.(*net.TCPListener).SetDeadline(time.Now()))
		if _, err := listener.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the listener on the host: %v", err)
		}
	})
}

// reach waits until a connection to the lost address is made again.
func (w *world) reach(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := netns.Dialer(w.pod)(ctx, "tcp", w.service.String())
		if err == nil {
			must(t, c.Close())
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it stays lost: %v", err)
		}
	}
}

func TestAnAddressIsLostForABoundedTime(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.lose(t, time.Second) // and nobody takes it back: the kernel forgets it
		w.reach(t)
	})
}

func TestAnAddressComesBackBeforeItsTime(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.lose(t, reset.MaxSpan)
		w.lose(t, reset.MaxSpan) // twice is as good as once
		for range 2 {
			w.inHost(t, func() error { return w.table.Back(w.lost) })
		}
		w.reach(t)
	})
}

func TestTheTableIsOursAlone(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.lose(t, reset.MaxSpan)
		w.inHost(t, func() error { // an agent that starts anew
			var err error
			w.table, err = reset.Open()
			return err
		})
		w.reach(t)
		w.inHost(t, w.table.Close)
		if tables := w.nft(t, "list tables\n"); strings.Contains(tables, "holdfast") || !strings.Contains(tables, " nat") {
			t.Errorf("left are:\n%s", tables)
		}
	})
}

func TestWhatIsNoPodsAddressIsRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, text := range []string{"127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "fe80::1", "169.254.1.1", "::ffff:10.2.0.2", "255.255.255.255"} {
			w.inHost(t, func() error {
				if _, err := w.table.Lose(t.Context(), []netip.Addr{netip.MustParseAddr(text)}, time.Minute); err == nil {
					t.Errorf("%s was taken", text)
				}
				return nil
			})
		}
		for _, span := range []time.Duration{0, -time.Second, reset.MaxSpan + 1} {
			w.inHost(t, func() error {
				if _, err := w.table.Lose(t.Context(), []netip.Addr{w.lost}, span); err == nil {
					t.Errorf("a span of %v was taken", span)
				}
				return nil
			})
		}
	})
}

// BenchmarkReset measures from the moment that an address is lost until a client that only reads has learnt of it.
func BenchmarkReset(b *testing.B) {
	for _, f := range families {
		for from, path := range map[string]func(*world) string{"pod": func(w *world) string { return w.pod }, "host": func(w *world) string { return w.host }} {
			b.Run(f.name+"/"+from, func(b *testing.B) {
				w := build(b, f)
				var took []time.Duration
				for b.Loop() {
					c, learnt := dial(b, path(w), w.service), make(chan time.Time, 1)
					began := time.Now()
					go func() {
						_, _ = c.Read(make([]byte, 1)) // the tests say what it returns
						learnt <- time.Now()
					}()
					w.lose(b, time.Minute)
					took = append(took, (<-learnt).Sub(began))
					w.inHost(b, func() error { return w.table.Back(w.lost) })
				}
				slices.Sort(took)
				for name, share := range map[string]float64{"p50-ms": 0.5, "p99-ms": 0.99, "max-ms": 1} {
					at := took[min(len(took)-1, int(share*float64(len(took))))]
					b.ReportMetric(float64(at.Microseconds())/1000, name)
				}
			})
		}
	}
}
