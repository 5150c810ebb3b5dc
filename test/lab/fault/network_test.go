// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

func (w world) cut(plane Plane, d Direction) {
	w.Helper()
	w.do(w.network.Cut(w.Context(), plane, d))
}

func (w world) heal(plane Plane, d Direction) {
	w.Helper()
	w.do(w.network.Heal(w.Context(), plane, d))
}

func (w world) wantCuts(want map[Plane]Direction) {
	w.Helper()
	got, err := w.network.Cuts(w.Context())
	if err != nil || !maps.Equal(got, want) {
		w.Errorf("cuts %v, %v; want %v", got, err, want)
	}
}

func TestEachPlaneIsCutAloneAndForPodsToo(t *testing.T) {
	for plane, silent := range map[Plane][]string{
		API: {"api", "api2"}, Peers: {"peers", "peer's pod"}, Storage: {"storage"}, BMC: {"bmc"},
		All: slices.Collect(maps.Keys(farAddresses)),
	} {
		t.Run(string(plane), func(t *testing.T) {
			w := newWorld(t)
			w.cut(plane, Both)
			w.wantCut(silent...)
			w.wantReach(w.host, podAddress, "the host to its own pod")
			w.heal(plane, Both)
			w.wantCut()
		})
	}
}

func TestTheHostsOwnWayToTheAPIIsCutWithoutItsPods(t *testing.T) {
	w := newWorld(t)
	w.cut(HostAPI, Both)
	for _, name := range []string{"api", "api2"} {
		w.wantSilence(w.host, farAddresses[name], "the host to "+name)
		w.wantReach(w.pod, farAddresses[name], "its pod to "+name)
	}
	w.wantReach(w.host, farAddresses["storage"], "the host to the array")
	w.heal(HostAPI, Both)
	w.wantCut()
}

func TestCutsAddUpAndHealOneByOne(t *testing.T) {
	w := newWorld(t)
	w.heal(API, Both) // nothing is cut: nothing to do
	w.cut(API, Both)
	w.cut(API, Both)
	w.cut(Storage, Out)
	w.cut(Storage, In)
	w.wantCuts(map[Plane]Direction{API: Both, Storage: Both})
	w.wantCut("api", "api2", "storage")
	w.heal(API, Both)
	w.heal(API, Both)
	w.wantCut("storage")
	w.heal(Storage, In)
	w.wantCuts(map[Plane]Direction{Storage: Out})
	w.cut(Peers, Both)
	w.heal(All, Both)
	w.wantCuts(map[Plane]Direction{})
	w.wantCut()
	if out, err := w.network.nft(t.Context(), "", "list", "tables"); err != nil || len(out) != 0 {
		t.Errorf("after the last heal: tables %q, %v; want none", out, err)
	}
}

func TestConcurrentCutsAreAllKept(t *testing.T) {
	w := newWorld(t)
	var cuts sync.WaitGroup
	for _, plane := range Planes {
		for _, d := range []Direction{In, Out} {
			cuts.Go(func() {
				if err := w.network.Cut(t.Context(), plane, d); err != nil {
					t.Error(err)
				}
			})
		}
	}
	cuts.Wait()
	w.wantCuts(map[Plane]Direction{API: Both, HostAPI: Both, Peers: Both, Storage: Both, BMC: Both, All: Both})
}

func TestEstablishedConnectionsStallAndGoOn(t *testing.T) {
	w := newWorld(t)
	for from, ns := range map[string]string{"host": w.host, "pod": w.pod} {
		conn, err := w.dial(ns, farAddresses["api"], answered)
		w.do(err)
		w.cut(API, Both)
		if err := exchange(conn, unanswered); !isTimeout(err) {
			t.Errorf("%s: established connection under a cut: %v, want a timeout", from, err)
		}
		w.heal(API, Both)
		if err := exchange(conn, answered); err != nil {
			t.Errorf("%s: established connection after the heal: %v, want it to go on", from, err)
		}
	}
}

// TestOneWay sends datagrams, which need no answer, each way.
func TestOneWay(t *testing.T) {
	w := newWorld(t)
	arrives := func(fromNS, toNS, to string) bool {
		t.Helper()
		var receiver net.PacketConn
		w.do(netns.Do(toNS, func() (err error) {
			receiver, err = net.ListenPacket("udp4", net.JoinHostPort(to, "0")) // a process that others fork may hold a port a moment longer
			return err
		}))
		defer receiver.Close()
		sender, err := netns.Dialer(fromNS)(t.Context(), "udp4", receiver.LocalAddr().String())
		w.do(err)
		defer sender.Close()
		if _, err := sender.Write([]byte("x")); err != nil {
			t.Errorf("sending into a cut fails with %v; a real cut is not told to the sender", err)
		}
		w.do(receiver.SetReadDeadline(time.Now().Add(unanswered)))
		_, _, err = receiver.ReadFrom(make([]byte, 1))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return err == nil
	}
	for _, c := range []struct {
		cut     Direction
		out, in bool
	}{{0, true, true}, {Out, false, true}, {In, true, false}, {Both, false, false}} {
		w.heal(Storage, Both)
		w.cut(Storage, c.cut)
		far := farAddresses["storage"]
		if got := arrives(w.host, w.far, far); got != c.out {
			t.Errorf("cut %v: host to storage arrives %v, want %v", c.cut, got, c.out)
		}
		if got := arrives(w.pod, w.far, far); got != c.out {
			t.Errorf("cut %v: pod to storage arrives %v, want %v", c.cut, got, c.out)
		}
		// From the far side the kernel chooses the first address, an API server's: bind to storage's.
		if got := w.answersFrom(far, podAddress); got != (c.cut == 0) {
			t.Errorf("cut %v: storage reaches a pod and back: %v, want %v", c.cut, got, c.cut == 0)
		}
	}
	for _, d := range []Direction{In, Out} {
		w.heal(All, Both)
		w.cut(API, d)
		w.wantCut("api", "api2")
	}
}

// answersFrom says whether a connection from that far address is answered.
func (w world) answersFrom(from, to string) bool {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: unanswered}
	var conn net.Conn
	err := netns.Do(w.far, func() (err error) {
		conn, err = dialer.DialContext(w.Context(), "tcp4", net.JoinHostPort(to, echoPort))
		return err
	})
	if err != nil {
		return false
	}
	defer conn.Close()
	return exchange(conn, unanswered) == nil
}

func TestHungConnectionsAreOnlyThoseOfTheProcess(t *testing.T) {
	w := newWorld(t)
	server := netip.AddrPortFrom(netip.MustParseAddr(farAddresses["api"]), 7007)
	dial := func(name string) net.Conn {
		conn, err := w.dial(w.host, farAddresses[name], answered)
		w.do(err)
		return conn
	}
	kubelet, storage, bystander := dial("api"), dial("storage"), dial("api")
	pid := w.holder(kubelet, storage)
	local := kubelet.LocalAddr().(*net.TCPAddr).AddrPort()
	want := []Connection{{Local: local, Remote: server}}
	found, err := Established(pid, []netip.AddrPort{server, netip.MustParseAddrPort("10.90.0.3:7007")})
	if err != nil || !slices.Equal(found, want) {
		t.Fatalf("established by the process to the API servers: %v, %v; want %v", found, err, want)
	}
	for range 2 {
		w.do(w.network.HangConnections(t.Context(), want))
	}
	if err := exchange(kubelet, unanswered); !isTimeout(err) {
		t.Errorf("hung connection: %v, want a timeout", err)
	}
	if err := exchange(storage, answered); err != nil {
		t.Errorf("another connection of the same process: %v, want it untouched", err)
	}
	if err := exchange(bystander, answered); err != nil {
		t.Errorf("another process's connection to the same server: %v, want it untouched", err)
	}
	w.wantReach(w.host, farAddresses["api"], "a new connection to the same server")
	w.cut(Storage, Both)
	if got, err := w.network.HungConnections(t.Context()); err != nil || !slices.Equal(got, want) {
		t.Errorf("hung connections after another fault: %v, %v; want %v", got, err, want)
	}
	for range 2 {
		w.do(w.network.ResumeConnections(t.Context()))
	}
	w.wantCuts(map[Plane]Direction{Storage: Both})
	if err := exchange(kubelet, answered); err != nil {
		t.Errorf("resumed connection: %v, want it to go on", err)
	}
}

// holder starts a process in the host's namespace that holds the connections
// open, as a kubelet does, and returns its PID.
func (w world) holder(connections ...net.Conn) int {
	w.Helper()
	cmd := exec.Command("sleep", "600")
	for _, conn := range connections {
		file, err := conn.(*net.TCPConn).File()
		w.do(err)
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	w.do(netns.Do(w.host, cmd.Start))
	for _, conn := range connections { // handing a socket over made it blocking, for this process too
		raw, err := conn.(*net.TCPConn).SyscallConn()
		w.do(err)
		var nonblock error
		w.do(raw.Control(func(fd uintptr) { nonblock = unix.SetNonblock(int(fd), true) }))
		w.do(nonblock)
	}
	w.Cleanup(func() {
		w.do(cmd.Process.Kill())
		_ = cmd.Wait() // the exit status of a killed process is an error
	})
	return cmd.Process.Pid
}

func TestEstablishedOfNobody(t *testing.T) {
	if _, err := Established(1<<30, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("connections of a process that is not there: %v, want not exist", err)
	}
}

func TestUnknownNamesAreRefused(t *testing.T) {
	if _, err := ParsePlane("lan"); err == nil || !strings.Contains(err.Error(), "storage") {
		t.Errorf("ParsePlane: %v, want the list of planes", err)
	}
	if _, err := ParseDirection("up"); err == nil || !strings.Contains(err.Error(), "both") {
		t.Errorf("ParseDirection: %v, want the list of directions", err)
	}
	nowhere := Network{NetNS: "/run/netns/holdfast-absent", Uplink: "eth0"}
	if err := nowhere.Cut(t.Context(), API, Both); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cut of a host that is not there: %v, want not exist", err)
	}
	if err := nowhere.Cut(t.Context(), "lan", Both); err == nil || !strings.Contains(err.Error(), `"lan"`) {
		t.Errorf("cut of an unknown plane: %v, want it named", err)
	}
}
