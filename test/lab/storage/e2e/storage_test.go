// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger"
	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger/check"
	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

func enforcingHosts(t *testing.T, a *arrayProcess) (*host, *host) {
	t.Helper()
	return startHost(t, a, host{name: "host-1", boot: "boot-1", class: array.Enforcing, kubeletDir: shortDir(t)}),
		startHost(t, a, host{name: "host-2", boot: "boot-2", class: array.Enforcing, kubeletDir: shortDir(t)})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (a *arrayProcess) attach(t *testing.T, volume, host string) {
	t.Helper()
	eventually(t, host+" is known to the array", func() bool {
		_, err := a.control.Attach(t.Context(), volume, host)
		var refusal *array.Refusal
		if errors.As(err, &refusal) && refusal.Kind == array.KindNotFound {
			return false
		}
		must(t, err)
		return true
	})
}

func (a *arrayProcess) detach(t *testing.T, volume, host string) {
	t.Helper()
	_, err := a.control.Detach(t.Context(), volume, host)
	must(t, err)
}

// writes returns the journal of a volume as it stands now.
func (a *arrayProcess) writes(t *testing.T, volume string) []array.Write {
	t.Helper()
	must(t, a.control.Flush(t.Context()))
	f, err := os.Open(filepath.Join(a.dir, "writes.jsonl"))
	must(t, err)
	defer func() { _ = f.Close() }()
	all, err := check.ReadWrites(f, volume)
	must(t, err)
	return all
}

func session(t *testing.T, h *host, volume string) wire.SessionRecord {
	t.Helper()
	b, err := os.ReadFile(h.path(volume, ".array/session"))
	must(t, err)
	var r wire.SessionRecord
	must(t, json.Unmarshal(b, &r))
	return r
}

func TestADetachedHostGetsEIOAndTheNextOneHasAllThatWasAccepted(t *testing.T) {
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	a.volume(t, "v", array.Enforcing)
	one, two := enforcingHosts(t, a)

	if err := one.publish(t.Context(), "v"); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "not attached") {
		t.Fatalf("mounting before attaching: %v", err)
	}
	a.attach(t, "v", "host-1")
	if _, err := a.control.Attach(t.Context(), "v", "host-2"); err == nil || !strings.Contains(err.Error(), `attached to host "host-1"`) {
		t.Fatalf("attaching to a second host: %v", err)
	}
	must(t, one.publish(t.Context(), "v"))
	must(t, one.publish(t.Context(), "v")) // again, as the kubelet may
	if got, want := session(t, one, "v"), (wire.SessionRecord{Volume: "v", Class: "enforcing", Host: "host-1", Boot: "boot-1", Epoch: 1}); got != want {
		t.Errorf("session %+v, want %+v", got, want)
	}
	f, err := os.Create(one.path("v", "file"))
	must(t, err)
	defer func() { _ = f.Close() }()
	_, err = f.WriteString("accepted")
	must(t, err)
	must(t, f.Sync())

	a.detach(t, "v", "host-1")
	if _, err := f.WriteString("refused"); !errors.Is(err, syscall.EIO) {
		t.Errorf("write after detach: %v, want EIO", err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync after detach: %v, want EIO", err)
	}
	if _, err := os.ReadDir(one.path("v", "")); !errors.Is(err, syscall.EIO) {
		t.Errorf("readdir after detach: %v, want EIO", err)
	}

	a.attach(t, "v", "host-2")
	must(t, two.publish(t.Context(), "v"))
	if b, err := os.ReadFile(two.path("v", "file")); err != nil || string(b) != "accepted" {
		t.Errorf("the next host reads %q, %v", b, err)
	}
	must(t, os.WriteFile(two.path("v", "file2"), []byte("x"), 0o644))
	must(t, one.unpublish(t.Context(), "v")) // works though the array refuses everything
	if _, err := os.Lstat(one.target("v")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target path is left: %v", err)
	}

	r := check.Judge(check.Evidence{Writes: a.writes(t, "v")})
	if len(r.Writers) != 2 || r.RefusedWrites != 2 || r.Guilty() {
		t.Errorf("report %+v: want two writers, two refused attempts, innocent", r)
	}
	if r.Writers[0].WriterID != (check.WriterID{Host: "host-1", Boot: "boot-1", Epoch: 1}) ||
		r.Writers[1].WriterID != (check.WriterID{Host: "host-2", Boot: "boot-2", Epoch: 2}) {
		t.Errorf("writers %+v", r.Writers)
	}
}

func TestAMountFromBeforeADetachmentStaysDeadWhenTheSameHostIsAttachedAgain(t *testing.T) {
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	a.volume(t, "v", array.Enforcing)
	one := startHost(t, a, host{name: "host-1", boot: "boot-1", class: array.Enforcing, kubeletDir: shortDir(t)})
	a.attach(t, "v", "host-1")
	must(t, one.publish(t.Context(), "v"))
	a.detach(t, "v", "host-1")
	a.attach(t, "v", "host-1")
	if err := os.WriteFile(one.path("v", "file"), nil, 0o644); !errors.Is(err, syscall.EIO) {
		t.Errorf("write over the old mount: %v, want EIO", err)
	}
	must(t, one.unpublish(t.Context(), "v"))
	must(t, one.publish(t.Context(), "v"))
	must(t, os.WriteFile(one.path("v", "file"), []byte("new"), 0o644))
	if got := session(t, one, "v").Epoch; got != 2 {
		t.Errorf("epoch %d, want 2", got)
	}
}

func TestTwoHostsWriteToAPermissiveVolumeAndTheCheckerConvictsThem(t *testing.T) {
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	a.volume(t, "p", array.Permissive)
	one := startHost(t, a, host{name: "host-1", boot: "boot-1", class: array.Permissive, kubeletDir: shortDir(t)})
	two := startHost(t, a, host{name: "host-2", boot: "boot-2", class: array.Permissive, kubeletDir: shortDir(t)})
	must(t, one.publish(t.Context(), "p"))
	first := startLedger(t, one, "p")
	first.waitReady(t)
	must(t, two.publish(t.Context(), "p"))
	second := startLedger(t, two, "p")
	second.waitReady(t)
	seen := first.status(t).Seq
	eventually(t, "the first writer goes on", func() bool { return first.status(t).Seq > seen })
	first.stop(syscall.SIGTERM)
	second.stop(syscall.SIGTERM)

	must(t, a.control.Flush(t.Context()))
	report, code := runCheck(t, "--array-dir", a.dir, "--volume", "p")
	if code != 1 {
		t.Errorf("ledger-check exits %d, want 1", code)
	}
	older, newer := check.WriterID{Host: "host-1", Boot: "boot-1", Epoch: 1}, check.WriterID{Host: "host-2", Boot: "boot-2", Epoch: 2}
	convicted := map[string]bool{}
	for _, i := range report.Interleavings {
		if i.Older == older && i.Newer == newer {
			convicted[i.Witness] = true
		}
	}
	if !convicted["array"] || !convicted["ledger"] {
		t.Errorf("both witnesses must convict: %+v", report.Interleavings)
	}
}

// ledgerProcess is a ledger on a host.
type ledgerProcess struct {
	*process
	web string
}

func startLedger(t *testing.T, h *host, volume string) *ledgerProcess {
	t.Helper()
	cmd := h.inside("ledger", "--data", filepath.Join(h.target(volume), "ledger"), "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "NODE_NAME="+h.name)
	l := &ledgerProcess{process: start(t, cmd)}
	eventually(t, "the ledger says where it serves", func() bool {
		_, after, found := strings.Cut(l.output(), "ledger: http on ")
		l.web, _, _ = strings.Cut(after, ",")
		return found
	})
	return l
}

func (l *ledgerProcess) status(t *testing.T) ledger.Status {
	t.Helper()
	resp, err := http.Get("http://" + l.web + "/status")
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	var s ledger.Status
	must(t, json.NewDecoder(resp.Body).Decode(&s))
	return s
}

func (l *ledgerProcess) readyz(t *testing.T) int {
	t.Helper()
	resp, err := http.Get("http://" + l.web + "/readyz")
	must(t, err)
	_ = resp.Body.Close()
	return resp.StatusCode
}

func (l *ledgerProcess) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, "the ledger is ready", func() bool { return l.readyz(t) == http.StatusOK })
}

func runCheck(t *testing.T, args ...string) (check.Report, int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(filepath.Join(programs, "ledger-check"), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var r check.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("ledger-check says %q, %q: %v", out.String(), errs.String(), err)
	}
	return r, cmd.ProcessState.ExitCode()
}

func TestAMigrationLosesNoAcknowledgedLine(t *testing.T) {
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	a.volume(t, "v", array.Enforcing)
	one, two := enforcingHosts(t, a)
	a.attach(t, "v", "host-1")
	must(t, one.publish(t.Context(), "v"))
	first := startLedger(t, one, "v")

	endpoints, acks := filepath.Join(t.TempDir(), "endpoints"), filepath.Join(t.TempDir(), "acks.jsonl")
	must(t, os.WriteFile(endpoints, []byte(first.web+"\n"), 0o644))
	user := start(t, exec.Command(filepath.Join(programs, "ledger-client"), "--endpoints-file", endpoints, "--out", acks, "--interval", "5ms"))
	acked := func() int {
		b, err := os.ReadFile(acks)
		if !errors.Is(err, fs.ErrNotExist) {
			must(t, err)
		}
		return bytes.Count(b, []byte("\n"))
	}
	eventually(t, "the client has acknowledgements", func() bool { return acked() >= 20 })

	a.detach(t, "v", "host-1")
	eventually(t, "the detached ledger is not ready", func() bool { return first.readyz(t) == http.StatusServiceUnavailable })
	a.attach(t, "v", "host-2")
	must(t, two.publish(t.Context(), "v"))
	second := startLedger(t, two, "v")
	second.waitReady(t)
	before := acked()
	must(t, os.WriteFile(endpoints, []byte(second.web+"\n"), 0o644))
	eventually(t, "the client has acknowledgements of the second ledger", func() bool { return acked() >= before+20 })
	user.stop(syscall.SIGTERM)
	second.stop(syscall.SIGTERM)
	first.stop(syscall.SIGTERM)

	must(t, a.control.Flush(t.Context()))
	report, code := runCheck(t, "--array-dir", a.dir, "--volume", "v", "--acks", acks)
	if code != 0 || report.Acked < 40 || len(report.Writers) != 2 || report.RefusedWrites == 0 || report.MalformedLines != 0 || report.DuplicateLines != 0 {
		t.Errorf("ledger-check exits %d: %+v", code, report)
	}
	// A line that is taken away afterwards is missed.
	path := filepath.Join(a.dir, "volumes", "v", "data", "ledger")
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, b[:len(b)/2], 0o644))
	report, code = runCheck(t, "--array-dir", a.dir, "--volume", "v", "--acks", acks)
	if code != 1 || len(report.LostAcks) == 0 {
		t.Errorf("after half the ledger was cut off, ledger-check exits %d with lost acks %v", code, report.LostAcks)
	}
}

func TestAnArrayThatIsKilledAndStartedAgainGoesOn(t *testing.T) {
	dir := shortDir(t)
	a := startArray(t, dir, "127.0.0.1:0")
	a.volume(t, "v", array.Enforcing)
	one := startHost(t, a, host{name: "host-1", boot: "boot-1", class: array.Enforcing, kubeletDir: shortDir(t)})
	a.attach(t, "v", "host-1")
	must(t, one.publish(t.Context(), "v"))
	f, err := os.OpenFile(one.path("v", "file"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(t, err)
	defer func() { _ = f.Close() }()
	_, err = f.WriteString("before ")
	must(t, err)
	a.stop(syscall.SIGKILL)
	again := startArray(t, dir, a.address)
	_, err = f.WriteString("after") // over the same open file; waits until the array is back
	must(t, err)
	if b, err := os.ReadFile(one.path("v", "file")); err != nil || string(b) != "before after" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	r, err := again.control.Volume(t.Context(), "v")
	must(t, err)
	if r.Epoch != 1 || r.Holder == nil || *r.Holder != (array.Holder{Host: "host-1", Boot: "boot-1"}) {
		t.Errorf("the attachment after the restart: %+v", r)
	}
}

func TestANodePluginThatIsKilledAndStartedAgainMountsAgain(t *testing.T) {
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	a.volume(t, "p", array.Permissive)
	// The kubelet's mount namespace outlives the plugin; here that of a sleeper.
	kubeletDir := shortDir(t)
	sleeper := exec.Command("sleep", "infinity")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	kubelet := &host{process: start(t, sleeper), name: "host-1", boot: "boot-1", class: array.Permissive, kubeletDir: kubeletDir}
	plugin := startHost(t, a, *kubelet)
	must(t, plugin.publish(t.Context(), "p"))
	must(t, os.WriteFile(kubelet.path("p", "file"), []byte("kept"), 0o644))
	plugin.stop(syscall.SIGKILL)
	if _, err := os.ReadFile(kubelet.path("p", "file")); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("reading over a dead mount: %v, want ENOTCONN", err)
	}
	startHost(t, a, *kubelet)
	eventually(t, "the volume is mounted again", func() bool {
		b, err := os.ReadFile(kubelet.path("p", "file"))
		return err == nil && string(b) == "kept"
	})
	if got := session(t, kubelet, "p").Epoch; got != 1 {
		t.Errorf("epoch %d after a restart in the same boot, want 1", got)
	}
}

func TestAKilledProcessDoesNotWaitForAnArrayThatIsGone(t *testing.T) {
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	a.volume(t, "p", array.Permissive)
	one := startHost(t, a, host{name: "host-1", boot: "boot-1", class: array.Permissive, kubeletDir: shortDir(t)})
	must(t, one.publish(t.Context(), "p"))
	l := startLedger(t, one, "p")
	l.waitReady(t)
	must(t, a.cmd.Process.Signal(syscall.SIGSTOP)) // it accepts connections and answers nothing
	defer func() { _ = a.cmd.Process.Signal(syscall.SIGCONT) }()
	eventually(t, "the ledger is not ready", func() bool { return l.readyz(t) == http.StatusServiceUnavailable })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // less than the time after which I/O fails
	defer cancel()
	must(t, l.cmd.Process.Kill())
	select {
	case <-l.done:
	case <-ctx.Done():
		t.Error("the killed ledger still waits for the array")
	}
}
