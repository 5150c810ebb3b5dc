// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

const machineID = "0ad224ffd3fe4f1f983593710c2f34fb"

// TestMain is also the chassis_control command of the BMC under test: with the
// environment variable set it carries out one request and ends.
func TestMain(m *testing.M) {
	dir := os.Getenv("HOLDFAST_TEST_BMC_CONTROL")
	if dir == "" {
		os.Exit(m.Run())
	}
	control := Control{Host: "host-1", Dir: dir, Power: powerFile(filepath.Join(dir, "host-power"))}
	if err := control.Run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// powerFile is a host whose power is the word on or off in a file.
type powerFile string

func (p powerFile) On(context.Context) (bool, error) {
	raw, err := os.ReadFile(string(p))
	return string(raw) == "on", err
}

func (p powerFile) Set(_ context.Context, on bool) error {
	return os.WriteFile(string(p), []byte(onOff(on)), 0o600)
}

// bench is one BMC in a network namespace of its own.
type bench struct {
	*testing.T
	*BMC
	power powerFile
}

func newBench(t *testing.T) bench {
	if os.Getuid() != 0 {
		t.Fatal("the BMC's tests make network namespaces: run them as root")
	}
	dir, err := os.MkdirTemp("/tmp", "bmc") // the test's own directory may hold characters that ipmi_sim cannot take
	if err != nil {
		t.Fatal(err)
	}
	ns := netns.Path("bmctest-" + filepath.Base(dir))
	if err := netns.Make(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(netns.Remove(ns), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := netns.Do(ns, loopbackUp); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := bench{T: t, power: powerFile(filepath.Join(dir, "host-power")), BMC: &BMC{
		Host: "host-1", MachineID: machineID, NetNS: ns, Dir: dir, Log: filepath.Join(dir, "log"),
		Address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), Port),
		Control: []string{"env", "HOLDFAST_TEST_BMC_CONTROL=" + dir, self}, Spawn: spawner(t),
	}}
	b.do(b.power.Set(t.Context(), true))
	b.do(b.Start(t.Context()))
	return b
}

func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	loopback.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, loopback)
}

// spawner starts processes that end with the test.
func spawner(t *testing.T) Spawn {
	return func(_ context.Context, _, ns string, argv []string, log string) (int, error) {
		out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return 0, err
		}
		defer out.Close()
		cmd := exec.Command("nsenter", append([]string{"--net=" + ns, "--"}, argv...)...)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		id, err := process.Find(cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() {
			if err := id.Signal(unix.SIGKILL); err != nil {
				t.Error(err)
			}
			<-ended
		})
		return cmd.Process.Pid, nil
	}
}

func (b bench) do(err error) {
	b.Helper()
	if err != nil {
		log, _ := os.ReadFile(b.Log)
		b.Fatalf("%v\nlog: %s", err, log)
	}
}

func (b bench) mode(mode Mode) {
	b.Helper()
	b.do(b.SetMode(b.Context(), mode))
}

// ipmi runs ipmitool as a client would, for at most the given time.
func (b bench) ipmi(limit time.Duration, words string) (string, error) {
	ctx, cancel := context.WithTimeout(b.Context(), limit)
	defer cancel()
	args := append([]string{"--net=" + b.NetNS, "--", "ipmitool", "-I", "lanplus", "-C", "3", "-H", "127.0.0.1",
		"-U", User, "-P", Password("host-1"), "-N", "1", "-R", "2"}, strings.Fields(words)...)
	out, err := exec.CommandContext(ctx, "nsenter", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (b bench) wantAnswer(words, want string) {
	b.Helper()
	got, err := b.ipmi(5*time.Second, words)
	if err != nil || !strings.Contains(got, want) {
		b.Errorf("ipmitool %s: %q, %v; want %q", words, got, err, want)
	}
}

func (b bench) wantPower(want bool) {
	b.Helper()
	got, err := b.power.On(b.Context())
	if err != nil || got != want {
		b.Errorf("the host's real power is on: %v, %v; want %v", got, err, want)
	}
}

func (b bench) calls() []Call {
	b.Helper()
	var calls []Call
	b.do(jsonl.Scan(CallsFile(b.Dir), func(line []byte) error {
		var call Call
		err := json.Unmarshal(line, &call)
		calls = append(calls, call)
		return err
	}))
	return calls
}

func (b bench) wantLastCall(want Call) {
	b.Helper()
	calls := b.calls()
	if len(calls) == 0 {
		b.Fatal("no call is journalled")
	}
	got := calls[len(calls)-1]
	if got.Mono == 0 || got.Wall.IsZero() || got.Took <= 0 {
		b.Errorf("last call carries no time: %+v", got)
	}
	want.Stamp, want.Took, want.Host = got.Stamp, got.Took, "host-1"
	if got != want {
		b.Errorf("last call: %+v, want %+v", got, want)
	}
}

func TestPowerAndIdentity(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wantAnswer("mc guid", "0ad224ff-d3fe-4f1f-9835-93710c2f34fb")
	b.wantAnswer("chassis power status", "Chassis Power is on")
	b.wantLastCall(Call{Op: "get", Value: "on", Actual: "on", Fault: Clear})
	b.wantAnswer("chassis power off", "Down/Off")
	b.wantPower(false)
	b.wantLastCall(Call{Op: "set", Value: "off", Fault: Clear})
	b.wantAnswer("chassis power status", "Chassis Power is off")
	if got, err := b.ipmi(5*time.Second, "chassis power reset"); err == nil {
		t.Errorf("reset of a host that is off is accepted: %q", got)
	}
	b.wantPower(false)
	b.wantAnswer("chassis power on", "Up/On")
	b.wantPower(true)
	b.wantAnswer("chassis power reset", "Reset")
	b.wantPower(true)
	b.wantLastCall(Call{Op: "reset", Fault: Clear})

	before, _ := b.Process()
	b.do(b.Start(t.Context()))
	b.mode(Clear)
	if after, ok := b.Process(); !ok || after != before {
		t.Errorf("Start and clear of a healthy BMC replaced its process: %v by %v", before, after)
	}
	b.do(before.Kill(t.Context()))
	b.do(b.Start(t.Context()))
	b.wantAnswer("chassis power status", "Chassis Power is on")
}

func TestLiesAboutThePower(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for range 2 { // idempotent
		b.mode(Ignore)
	}
	b.wantAnswer("chassis power off", "Down/Off")
	b.wantPower(true)
	b.wantLastCall(Call{Op: "set", Value: "off", Fault: Ignore})
	b.wantAnswer("chassis power reset", "Reset")
	b.wantPower(true)
	b.wantAnswer("chassis power status", "Chassis Power is on")

	b.mode(LieOff)
	b.wantAnswer("chassis power status", "Chassis Power is off")
	b.wantLastCall(Call{Op: "get", Value: "off", Actual: "on", Fault: LieOff})
	b.wantAnswer("chassis power off", "Down/Off")
	b.wantPower(true)

	b.mode(Clear)
	b.wantAnswer("chassis power status", "Chassis Power is on")
	b.wantAnswer("chassis power off", "Down/Off")
	b.wantPower(false)
}

func TestLiesAboutIdentityAndPassword(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mode(WrongIdentity)
	got, err := b.ipmi(5*time.Second, "mc guid")
	if err != nil || !strings.Contains(got, "System GUID") || strings.Contains(got, "0ad224ff") {
		t.Errorf("wrong-identity: %q, %v; want another GUID", got, err)
	}
	b.wantAnswer("chassis power status", "Chassis Power is on")

	before := len(b.calls())
	b.mode(WrongPassword)
	if got, err := b.ipmi(15*time.Second, "chassis power status"); err == nil || !strings.Contains(got, "Unable to establish IPMI v2") {
		t.Errorf("wrong-password: %q, %v; want the session refused", got, err)
	}
	if calls := b.calls(); before == 0 || len(calls) != before {
		t.Errorf("%d calls, then %d with the wrong password; want some and no more", before, len(calls))
	}

	b.mode(Clear)
	b.wantAnswer("mc guid", "0ad224ff-d3fe-4f1f-9835-93710c2f34fb")
}

func TestDeadAnswersNothingAndForgetsWhatItWasSent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for range 2 {
		b.mode(Dead)
	}
	if id, ok := b.Process(); !ok || !id.Stopped() {
		t.Errorf("process of a dead BMC: running %v, stopped %v; want a stopped one", ok, id.Stopped())
	}
	b.do(b.Start(t.Context())) // starting the lab again does not heal it
	if got, err := b.ipmi(15*time.Second, "chassis power off"); err == nil {
		t.Errorf("a dead BMC answers %q", got)
	}
	for range 2 {
		b.mode(Clear)
	}
	b.wantAnswer("chassis power status", "Chassis Power is on")
	b.wantPower(true)
	calls := b.calls()
	if len(calls) == 0 || slices.ContainsFunc(calls, func(c Call) bool { return c.Op != "get" }) {
		t.Errorf("calls %+v, want only the reading after the fault", calls)
	}
}

func TestSlowCarriesOutAnOffThatItsCallerGaveUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mode(Slow)
	if got, err := b.ipmi(3*time.Second, "chassis power off"); err == nil {
		t.Errorf("a slow BMC answers within 3 s: %q", got)
	}
	b.wantPower(true)
	got, err := b.ipmi(2*SlowDelay+5*time.Second, "-N 1 -R 20 chassis power status")
	if err != nil || !strings.Contains(got, "Chassis Power is off") {
		t.Errorf("reading after the Off that nobody waited for: %q, %v; want Off", got, err)
	}
	b.wantPower(false)
	calls := b.calls()
	if len(calls) != 2 || calls[0].Op != "set" || calls[1].Op != "get" {
		t.Errorf("calls %+v, want one Off and one reading: a retransmission is no request", calls)
	}
	for _, call := range calls {
		if call.Fault != Slow || call.Took < SlowDelay.Nanoseconds() {
			t.Errorf("call %+v took less than %v", call, SlowDelay)
		}
	}
}

func TestControlRefusesWhatItDoesNotKnow(t *testing.T) {
	dir := t.TempDir()
	control := Control{Host: "host-1", Dir: dir, Power: powerFile(filepath.Join(dir, "absent"))}
	for _, args := range []string{"", "get", "get boot", "set power", "set power 2", "set shutdown 1", "check power 1"} {
		if err := control.Run(t.Context(), strings.Fields(args), nil); err == nil || !strings.Contains(err.Error(), "chassis control") {
			t.Errorf("chassis control %q: %v, want a refusal", args, err)
		}
	}
	var out strings.Builder
	if err := control.Run(t.Context(), []string{"get", "power"}, &out); err == nil || out.Len() != 0 {
		t.Errorf("power that cannot be read: answer %q, %v; want no answer and an error", out.String(), err)
	}
	var failed Call
	if err := jsonl.Scan(CallsFile(dir), func(line []byte) error { return json.Unmarshal(line, &failed) }); err != nil {
		t.Fatal(err)
	}
	if failed.Op != "get" || !strings.Contains(failed.Error, "no such file") || failed.Value != "" {
		t.Errorf("journalled %+v, want a failed get without a value", failed)
	}
}

func TestConfigurationRefusals(t *testing.T) {
	good := BMC{Host: "host-1", MachineID: machineID, Dir: "/d", Control: []string{"c"}, Address: netip.MustParseAddrPort("10.90.0.201:623")}
	for name, c := range map[string]struct {
		spoil func(*BMC)
		says  string
	}{
		"a host name too long for a password": {func(b *BMC) { b.Host = strings.Repeat("h", 17) }, "1 to 16"},
		"a relative directory":                {func(b *BMC) { b.Dir = "d" }, "HOLDFAST_LAB_HOME"},
		"a directory with a quote":            {func(b *BMC) { b.Dir = `/d"` }, "HOLDFAST_LAB_HOME"},
		"no control command":                  {func(b *BMC) { b.Control = nil }, "control command"},
		"no address":                          {func(b *BMC) { b.Address = netip.AddrPort{} }, "address"},
	} {
		b := good
		c.spoil(&b)
		if err := b.validate(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
		}
	}
	if err := good.validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	for _, id := range []string{"", "0ad224ff", machineID + "00", "zz" + machineID[2:]} {
		if guid, err := WireGUID(id); err == nil {
			t.Errorf("WireGUID(%q) = %s, want an error", id, guid)
		}
	}
	if _, err := ParseMode("off"); err == nil || !strings.Contains(err.Error(), "lie-off") {
		t.Errorf("ParseMode of an unknown mode: %v, want the list of modes", err)
	}
}

func TestWireGUIDIsInSMBIOSOrder(t *testing.T) {
	got, err := WireGUID("00112233445566778899aabbccddeeff")
	if want := "33221100554477668899aabbccddeeff"; err != nil || got != want {
		t.Errorf("WireGUID: %s, %v; want %s", got, err, want)
	}
}
