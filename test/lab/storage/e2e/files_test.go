// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
)

// permissiveHosts mount the volume p.
func permissiveHosts(t *testing.T, names ...string) (*arrayProcess, []*host) {
	t.Helper()
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	a.volume(t, "p", array.Permissive)
	var hosts []*host
	for _, name := range names {
		h := startHost(t, a, host{name: name, boot: "boot-of-" + name, class: array.Permissive, kubeletDir: shortDir(t)})
		must(t, h.publish(t.Context(), "p"))
		hosts = append(hosts, h)
	}
	return a, hosts
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	all := []string{}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestAMountedVolumeIsAFileSystem(t *testing.T) {
	_, hosts := permissiveHosts(t, "host-1", "host-2")
	here, there := hosts[0], hosts[1]

	big := bytes.Repeat([]byte("0123456789abcdef"), 20_000) // several requests
	must(t, os.MkdirAll(here.path("p", "a/b"), 0o750))
	must(t, os.WriteFile(here.path("p", "a/b/big"), big, 0o640))
	if b, err := os.ReadFile(there.path("p", "a/b/big")); err != nil || !bytes.Equal(b, big) {
		t.Errorf("the other host reads %d bytes, %v; want %d", len(b), err, len(big))
	}
	must(t, os.Truncate(here.path("p", "a/b/big"), 5))
	st, err := os.Stat(there.path("p", "a/b/big"))
	must(t, err)
	if st.Size() != 5 || st.Mode().Perm() != 0o640 {
		t.Errorf("size %d, mode %v; want 5, 0640", st.Size(), st.Mode())
	}
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	must(t, os.Chtimes(here.path("p", "a/b/big"), when, when))
	must(t, os.Rename(here.path("p", "a/b/big"), here.path("p", "small")))
	if st, err = os.Stat(there.path("p", "small")); err != nil || !st.ModTime().Equal(when) {
		t.Errorf("after rename: %v, %v", st, err)
	}
	if err := os.Remove(here.path("p", "a")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("rmdir of a directory with content: %v", err)
	}
	must(t, os.Remove(here.path("p", "a/b")))
	must(t, os.Remove(here.path("p", "a")))
	if got := names(t, there.path("p", "")); !reflect.DeepEqual(got, []string{"small"}) {
		t.Errorf("listing: %v", got)
	}
	if _, err := os.OpenFile(here.path("p", ".array/session"), os.O_WRONLY, 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("writing the session record: %v", err)
	}

	f, err := os.Create(here.path("p", "unlinked"))
	must(t, err)
	defer func() { _ = f.Close() }()
	must(t, os.Remove(here.path("p", "unlinked")))
	_, err = f.WriteString("still there")
	must(t, err)
	b := make([]byte, 11)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "still there" {
		t.Errorf("reading an unlinked file: %q, %v", b, err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 2<<20), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing more than the volume holds: %v, want ENOSPC", err)
	}
}

func TestAppendsOfTwoHostsDoNotOverwriteEachOther(t *testing.T) {
	a, hosts := permissiveHosts(t, "host-1", "host-2")
	const lines = 100
	var together sync.WaitGroup
	for _, h := range hosts {
		f, err := os.OpenFile(h.path("p", "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		must(t, err)
		defer func() { _ = f.Close() }()
		together.Go(func() {
			for range lines {
				if _, err := f.WriteString(h.name + "\n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	together.Wait()
	b, err := os.ReadFile(filepath.Join(a.dir, "volumes", "p", "data", "log"))
	must(t, err)
	for _, h := range hosts {
		if got := strings.Count(string(b), h.name+"\n"); got != lines {
			t.Errorf("%d lines of %s, want %d", got, h.name, lines)
		}
	}
}

func TestOtherUsersOwnWhatTheyMakeAndCannotTouchTheRest(t *testing.T) {
	_, hosts := permissiveHosts(t, "host-1")
	h := hosts[0]
	must(t, os.Chmod(h.kubeletDir, 0o711)) // made by a test, for root alone
	must(t, os.WriteFile(h.path("p", "roots"), []byte("x"), 0o600))
	as := func(script string) error {
		cmd := exec.Command("nsenter", h.mountNamespace(), "--setuid", "1234", "--setgid", "1234", "--",
			"sh", "-c", "cd "+h.target("p")+" && "+script)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return errors.New(string(out))
		}
		return nil
	}
	must(t, as("mkdir mine && echo x > mine/file"))
	st, err := os.Stat(h.path("p", "mine/file"))
	must(t, err)
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Uid != 1234 || sys.Gid != 1234 {
		t.Errorf("owner %+v, want 1234:1234", st.Sys())
	}
	if err := as("cat roots"); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("reading root's file: %v", err)
	}
}

func TestTheLedgerAnswersEveryKindOfProbe(t *testing.T) {
	a, hosts := permissiveHosts(t, "host-1")
	l := startLedger(t, hosts[0], "p")
	l.waitReady(t)
	_, after, _ := strings.Cut(l.output(), "grpc on ")
	address, _, _ := strings.Cut(after, "\n")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer func() { _ = conn.Close() }()
	serving := func() healthpb.HealthCheckResponse_ServingStatus {
		r, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		must(t, err)
		return r.GetStatus()
	}
	if got := serving(); got != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("gRPC health of a ready ledger: %v", got)
	}
	must(t, a.cmd.Process.Signal(syscall.SIGSTOP))
	eventually(t, "gRPC health says what /readyz says", func() bool { return serving() == healthpb.HealthCheckResponse_NOT_SERVING })
	must(t, a.cmd.Process.Signal(syscall.SIGCONT))
	l.waitReady(t) // by itself, over the same file
	l.stop(syscall.SIGTERM)
	must(t, a.control.Flush(t.Context()))
	report, code := runCheck(t, "--array-dir", a.dir, "--volume", "p")
	if code != 0 || len(report.Writers) != 1 || report.MalformedLines+report.DuplicateLines != 0 {
		t.Errorf("ledger-check exits %d: %+v", code, report)
	}
	if report.Writers[0].MaxGapMillis < 1000 {
		t.Errorf("the pause is not seen: greatest gap %.0f ms", report.Writers[0].MaxGapMillis)
	}
}
