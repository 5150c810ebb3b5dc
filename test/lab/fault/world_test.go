// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

const (
	hostAddress = "10.90.0.101"
	podAddress  = "10.91.1.2"
	echoPort    = "7007"
	// unanswered is how long silence counts as a cut, answered how long an answer may take.
	unanswered = 400 * time.Millisecond
	answered   = 10 * time.Second
)

// farAddresses are one address of each plane, and a client's.
var farAddresses = map[string]string{
	"api": "10.90.0.2", "api2": "10.90.0.3", "storage": "10.90.0.10", "client": "10.90.0.20",
	"peers": "10.90.0.102", "peer's pod": "10.91.2.2", "bmc": "10.90.0.201",
}

// world is a host, a pod routed behind it, and everything else in one
// namespace, with an echo server at every address.
type world struct {
	*testing.T
	host, pod, far string
	network        Network
}

func newWorld(t *testing.T) world {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("these tests make network namespaces: run them as root")
	}
	w := world{T: t}
	for _, ns := range []*string{&w.host, &w.pod, &w.far} {
		*ns = netns.Path("faulttest-" + rand.Text()[:10])
		w.do(netns.Make(*ns))
		t.Cleanup(func() {
			if err := netns.Remove(*ns); err != nil {
				t.Error(err)
			}
		})
	}
	w.network = Network{NetNS: w.host, Uplink: "eth0"}
	w.cable(w.host, "eth0", w.far, "eth0")
	w.cable(w.host, "pod", w.pod, "eth0")
	w.address(w.host, "eth0", hostAddress+"/24")
	w.address(w.host, "pod", "10.91.1.1/24")
	w.address(w.pod, "eth0", podAddress+"/24")
	for _, a := range farAddresses {
		w.address(w.far, "eth0", a+"/24")
	}
	w.route(w.pod, "0.0.0.0/0", "10.91.1.1")
	w.route(w.far, "10.91.1.0/24", hostAddress)
	w.route(w.host, "10.91.2.0/24", farAddresses["peers"])
	w.do(netns.Do(w.host, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	for _, ns := range []string{w.host, w.pod, w.far} {
		w.echo(ns)
	}
	for name, a := range farAddresses { // also fills the neighbour tables
		w.wantReach(w.host, a, "host to "+name)
		w.wantReach(w.pod, a, "pod to "+name)
	}
	return w
}

func (w world) do(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// in runs f with the links of a namespace.
func (w world) in(ns string, f func(*netlink.Handle) error) {
	w.Helper()
	space, err := vnetns.GetFromPath(ns)
	w.do(err)
	handle, err := netlink.NewHandleAt(space)
	w.do(errors.Join(err, space.Close()))
	defer handle.Close()
	w.do(f(handle))
}

func (w world) cable(nsA, a, nsB, b string) {
	w.Helper()
	far, err := vnetns.GetFromPath(nsB)
	w.do(err)
	w.in(nsA, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a}, PeerName: b, PeerNamespace: netlink.NsFd(far)})
	})
	w.do(far.Close())
	for ns, name := range map[string]string{nsA: a, nsB: b} {
		w.in(ns, func(h *netlink.Handle) error {
			link, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			return h.LinkSetUp(link)
		})
	}
}

func (w world) address(ns, name, cidr string) {
	w.Helper()
	w.in(ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		address, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		return h.AddrAdd(link, address)
	})
}

func (w world) route(ns, cidr, via string) {
	w.Helper()
	w.in(ns, func(h *netlink.Handle) error {
		_, to, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(via)})
	})
}

// echo answers on every address of the namespace until the test ends.
func (w world) echo(ns string) {
	w.Helper()
	listener, err := netns.Listen(ns, "tcp4", "0.0.0.0:"+echoPort)
	w.do(err)
	w.Cleanup(func() { _ = listener.Close() }) // ends Accept below
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn) // ends with the client
			}()
		}
	}()
}

// dial connects and proves that bytes come back.
func (w world) dial(ns, to string, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(w.Context(), limit)
	defer cancel()
	conn, err := netns.Dialer(ns)(ctx, "tcp4", net.JoinHostPort(to, echoPort))
	if err != nil {
		return nil, err
	}
	w.Cleanup(func() { _ = conn.Close() })
	return conn, exchange(conn, limit)
}

// exchange sends 16 fresh bytes and waits for them to come back, skipping those that came late.
func exchange(conn net.Conn, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	sent := rand.Text()[:16]
	if _, err := io.WriteString(conn, sent); err != nil {
		return err
	}
	for got := make([]byte, 16); string(got) != sent; {
		if _, err := io.ReadFull(conn, got); err != nil {
			return err
		}
	}
	return nil
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (w world) wantReach(ns, to, what string) {
	w.Helper()
	if _, err := w.dial(ns, to, answered); err != nil {
		w.Errorf("%s: %v, want an answer", what, err)
	}
}

func (w world) wantSilence(ns, to, what string) {
	w.Helper()
	if _, err := w.dial(ns, to, unanswered); !isTimeout(err) {
		w.Errorf("%s: %v, want a timeout", what, err)
	}
}

// wantCut says which of the far addresses are cut off from the host and its
// pod; all others have to be reachable.
func (w world) wantCut(cut ...string) {
	w.Helper()
	want := map[string]bool{}
	for _, name := range cut {
		want[name] = true
	}
	for name, a := range farAddresses {
		for from, ns := range map[string]string{"host": w.host, "pod": w.pod} {
			what := fmt.Sprintf("%s to %s with %v cut", from, name, cut)
			if want[name] {
				w.wantSilence(ns, a, what)
			} else {
				w.wantReach(ns, a, what)
			}
		}
	}
}
