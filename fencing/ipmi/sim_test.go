// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/conformance"
)

const (
	simUser     = "fencer"
	simPassword = "opensesame-4711"
)

// sim is one host behind a real BMC (ipmi_sim of OpenIPMI) whose power switch is a script over files, and behind a wire that can
// be cut and tampered with. It implements conformance.Truth.
type sim struct {
	// dir has the files on (0 or 1), fault and commands (a line each), and the configuration.
	dir  string
	port int
	wire *wire
	// machine is the UUID of the host, 32 digits.
	machine string

	running setting
	process *exec.Cmd
	stdin   io.Closer
}

// setting is what ipmi_sim reads only when it starts.
type setting struct{ password, guid string }

// newSim starts a BMC on a loopback port; the process ends with the test, and also when the test binary is killed.
func newSim(t testing.TB, machine string) *sim {
	t.Helper()
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		t.Fatalf("these tests need ipmi_sim of the Debian package openipmi: run hack/debian-packages (%v)", err)
	}
	s := &sim{dir: t.TempDir(), port: freePort(t), machine: machine}
	s.write(t, "on", "1")
	s.write(t, "fault", string(conformance.FaultNone))
	s.write(t, "commands", "")
	s.write(t, "power", strings.ReplaceAll(powerScript, "DIR", s.dir))
	if err := os.Chmod(filepath.Join(s.dir, "power"), 0o700); err != nil { //nolint:gosec // a script
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(t) })
	s.start(t, s.honest())
	s.wire = newWire(t, s.address())
	return s
}

const powerScript = `#!/bin/sh
cd 'DIR' || exit 1
read -r fault < fault
case "$1 $2" in
"get power")
	read -r on < on
	[ "$fault" = lie-off ] && on=0
	[ "$fault" = unreadable ] && on=neither
	echo "power:$on" ;;
"set power")
	echo "$2 $3" >> commands
	case "$fault $3" in
	"ignore 0" | "lie-off 0") ;;
	*) echo "$3" > on ;;
	esac ;;
*)
	echo "$2 $3" >> commands ;;
esac
`

// honest is the setting of a BMC without fault. The GUID stands in SMBIOS order, as nearly all firmware sends it.
func (s *sim) honest() setting {
	m := s.machine
	return setting{
		password: simPassword,
		guid:     m[6:8] + m[4:6] + m[2:4] + m[0:2] + m[10:12] + m[8:10] + m[14:16] + m[12:14] + m[16:],
	}
}

func (s *sim) address() *net.UDPAddr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.port} }

// target reaches the BMC through the wire.
func (s *sim) target() fencing.Target {
	return fencing.Target{
		Node: "node", Address: "127.0.0.1", Port: s.wire.port,
		Credentials: fencing.Credentials{Username: simUser, Password: simPassword},
	}
}

// restart makes the setting the running one.
func (s *sim) restart(t testing.TB, want setting) {
	t.Helper()
	if s.running == want {
		return
	}
	s.stop(t)
	s.start(t, want)
}

func (s *sim) start(t testing.TB, want setting) {
	t.Helper()
	s.write(t, "lan.conf", fmt.Sprintf(`name "sim"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 %d
  priv_limit operator
  allowed_auths_user md5
  allowed_auths_operator md5
  allowed_auths_admin md5
  guid %s
endlan
chassis_control "%s"
user 1 false "" "" user 10 md5
user 2 true "%s" "%s" operator 10 md5
`, s.port, want.guid, filepath.Join(s.dir, "power"), simUser, want.password))
	s.write(t, "setup", `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x20 1 0 0x80 0x0000 0x0000
mc_set_guid 0x20 `+want.guid+`
mc_enable 0x20
`)
	// What ipmi_sim keeps of an earlier run would override its configuration.
	state := t.TempDir()
	cmd := exec.Command("ipmi_sim", "-c", filepath.Join(s.dir, "lan.conf"), "-f", filepath.Join(s.dir, "setup"), "-s", state)
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// ipmi_sim ends when its standard input does.
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.process, s.stdin, s.running = cmd, stdin, want
	s.awaitPong(t)
}

func (s *sim) stop(t testing.TB) {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Kill()
	_ = s.process.Wait() // reports the kill
	_ = s.stdin.Close()
	s.process = nil
}

// awaitPong pings the BMC (RMCP presence ping) until it answers.
func (s *sim) awaitPong(t testing.TB) {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, s.address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ping := []byte{0x06, 0x00, 0xFF, 0x06, 0x00, 0x00, 0x11, 0xBE, 0x80, 0x00, 0x00, 0x00}
	buffer := make([]byte, 64)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-tick.C {
		_, _ = conn.Write(ping) // refused while nothing listens
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := conn.Read(buffer); err == nil && n > 8 && buffer[8] == 0x40 {
			return
		}
	}
	log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	t.Fatalf("ipmi_sim does not answer on %s; it says:\n%s", s.address(), log)
}

func (s *sim) write(t testing.TB, name, text string) {
	t.Helper()
	if !strings.HasSuffix(text, "\n") && text != "" {
		text += "\n"
	}
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *sim) read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (s *sim) On(t testing.TB) bool { return strings.TrimSpace(s.read(t, "on")) == "1" }

func (s *sim) SetOn(t testing.TB, on bool) {
	s.write(t, "on", map[bool]string{true: "1", false: "0"}[on])
}

func (s *sim) Identity(testing.TB) string { return s.machine }

func (s *sim) Commands(t testing.TB) (c conformance.Commands) {
	for line := range strings.Lines(s.read(t, "commands")) {
		switch strings.TrimSpace(line) {
		case "power 0":
			c.Off++
		case "power 1":
			c.On++
		default:
			c.Other++
		}
	}
	return c
}

func (s *sim) SetFault(t testing.TB, f conformance.Fault) {
	t.Helper()
	want := s.honest()
	switch f {
	case conformance.FaultWrongPassword:
		want.password = "another-one"
	case conformance.FaultWrongIdentity:
		want.guid = "0badc0de0badc0de0badc0de0badc0de"
	}
	s.restart(t, want)
	s.write(t, "fault", string(f))
	before := s.Commands(t)
	s.wire.back(map[conformance.Fault]tamper{
		conformance.FaultDead:    drop,
		conformance.FaultGarbage: scramble,
		conformance.FaultUnanswered: func(answer []byte) [][]byte {
			if s.Commands(t) != before {
				return nil
			}
			return [][]byte{answer}
		},
	}[f])
	s.wire.delayBy(map[conformance.Fault]time.Duration{conformance.FaultSlow: 2 * patience}[f])
}

// tamper turns an answer of the BMC into the datagrams that arrive instead.
type tamper func(answer []byte) [][]byte

func drop([]byte) [][]byte { return nil }

// scramble leaves an answer its length and its head, and nothing else.
func scramble(answer []byte) [][]byte {
	for i := payloadAt; i < len(answer); i++ {
		answer[i] ^= 0xA5
	}
	return [][]byte{answer}
}

// wire is a UDP relay in front of a BMC.
type wire struct {
	port  int
	front *net.UDPConn
	bmc   *net.UDPAddr

	mu      sync.Mutex
	tamper  tamper
	delay   time.Duration
	clients map[string]*net.UDPConn
}

func newWire(t testing.TB, bmc *net.UDPAddr) *wire {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{front: front, bmc: bmc, port: front.LocalAddr().(*net.UDPAddr).Port, clients: map[string]*net.UDPConn{}}
	var running sync.WaitGroup
	running.Go(func() { w.forth(&running) })
	t.Cleanup(func() {
		_ = front.Close()
		w.mu.Lock()
		for _, c := range w.clients {
			_ = c.Close()
		}
		w.mu.Unlock()
		running.Wait()
	})
	return w
}

// back sets what becomes of answers; nil lets them through.
func (w *wire) back(f tamper) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tamper = f
}

// delayBy has answers arrive later.
func (w *wire) delayBy(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = d
}

// forth relays from the clients to the BMC until the front is closed.
func (w *wire) forth(running *sync.WaitGroup) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := w.front.ReadFromUDP(buffer)
		if err != nil {
			return
		}
		w.mu.Lock()
		conn := w.clients[from.String()]
		if conn == nil {
			if conn, err = net.DialUDP("udp", nil, w.bmc); err != nil {
				w.mu.Unlock()
				return
			}
			w.clients[from.String()] = conn
			running.Go(func() { w.answers(conn, from) })
		}
		w.mu.Unlock()
		_, _ = conn.Write(buffer[:n]) // refused while the BMC restarts
	}
}

// answers relays from the BMC to one client until the connection is closed.
func (w *wire) answers(conn *net.UDPConn, to *net.UDPAddr) {
	buffer := make([]byte, 2048)
	for {
		n, err := conn.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue // refused while the BMC restarts
		}
		w.mu.Lock()
		f, delay := w.tamper, w.delay
		w.mu.Unlock()
		arriving := [][]byte{bytes.Clone(buffer[:n])}
		if f != nil {
			arriving = f(arriving[0])
		}
		deliver := func() {
			for _, datagram := range arriving {
				_, _ = w.front.WriteToUDP(datagram, to) // closed when the test is over
			}
		}
		if delay == 0 {
			deliver()
		} else {
			time.AfterFunc(delay, deliver)
		}
	}
}

// freePort is a UDP port of the loopback that nobody has just now.
func freePort(t testing.TB) int {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).Port
}
