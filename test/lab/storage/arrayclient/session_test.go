// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package arrayclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

const patience = 10 * time.Second

// wireTap stands between a session and the array.
type wireTap struct {
	net.Listener
	mu      sync.Mutex
	target  string
	swallow bool // lose the next answer, and with it the connection
	conns   map[net.Conn]struct{}
}

func newWireTap(t *testing.T, target string) *wireTap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wireTap{Listener: l, target: target, conns: map[net.Conn]struct{}{}}
	go w.run()
	t.Cleanup(w.cut)
	return w
}

func (w *wireTap) run() {
	for {
		client, err := w.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		target := w.target
		w.mu.Unlock()
		server, err := net.Dial("tcp", target)
		if err != nil {
			_ = client.Close()
			continue
		}
		w.mu.Lock()
		w.conns[client], w.conns[server] = struct{}{}, struct{}{}
		w.mu.Unlock()
		go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
		go w.answers(client, server)
	}
}

func (w *wireTap) answers(client, server net.Conn) {
	defer func() { _ = client.Close() }()
	defer func() { _ = server.Close() }()
	buf := make([]byte, 1<<16)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		lost := w.swallow
		w.swallow = false
		w.mu.Unlock()
		if lost {
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (w *wireTap) loseNextAnswer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.swallow = true
}

// cut ends everything for good.
func (w *wireTap) cut() {
	_ = w.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close()
	}
}

func serveArray(t *testing.T, dir string) (*array.Array, string) {
	t.Helper()
	a, err := array.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = a.Serve(l) }()
	t.Cleanup(func() { _ = l.Close(); _ = a.Close() })
	return a, l.Addr().String()
}

func mountThrough(t *testing.T, w *wireTap, timeout time.Duration) *Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := Mount(ctx, Config{Address: w.Addr().String(), Host: "host-1", Boot: "b1", Volume: "v", IOTimeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func appendText(s *Session, text string) error {
	_, err := s.Do(&wire.Request{Op: wire.OpWrite, Path: "f", Handle: 1, Append: true, Data: []byte(text)})
	return err
}

func create(t *testing.T, s *Session) {
	t.Helper()
	if _, err := s.Do(&wire.Request{Op: wire.OpCreate, Path: "f", Handle: 1, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
}

func newVolume(t *testing.T, a *array.Array) {
	t.Helper()
	if _, err := a.CreateVolume(array.Record{Name: "v", Class: array.Permissive, SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}

func TestALostAnswerIsAskedForAgainAndNothingIsWrittenTwice(t *testing.T) {
	dir := t.TempDir()
	a, address := serveArray(t, dir)
	newVolume(t, a)
	w := newWireTap(t, address)
	s := mountThrough(t, w, patience)
	create(t, s)
	var want strings.Builder
	for n := range 5 {
		w.loseNextAnswer()
		text := fmt.Sprintf("line %d\n", n)
		want.WriteString(text)
		if err := appendText(s, text); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "volumes", "v", "data", "f")); err != nil || string(b) != want.String() {
		t.Errorf("the file holds %q, %v; want %q", b, err, want.String())
	}
	if r, err := a.Volume("v"); err != nil || r.Epoch != 1 {
		t.Errorf("reconnecting made epoch %d, %v; want 1", r.Epoch, err)
	}
}

func TestAnotherArrayDoesNotKnowWhatWasDoneSoAnAppendUnderWayFails(t *testing.T) {
	dir := t.TempDir()
	a, address := serveArray(t, dir)
	newVolume(t, a)
	w := newWireTap(t, address)
	s := mountThrough(t, w, patience)
	create(t, s)

	next, nextAddress := serveArray(t, t.TempDir())
	newVolume(t, next)
	w.mu.Lock()
	w.target, w.swallow = nextAddress, true
	w.mu.Unlock()
	if err := appendText(s, "once"); !errors.Is(err, syscall.EIO) {
		t.Errorf("an append that may have been done: %v, want EIO", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "volumes", "v", "data", "f")); err != nil || string(b) != "once" {
		t.Errorf("the first array has %q, %v", b, err)
	}
}

func TestIOFailsAfterItsTimeoutWhenTheArrayIsGone(t *testing.T) {
	a, address := serveArray(t, t.TempDir())
	newVolume(t, a)
	w := newWireTap(t, address)
	s := mountThrough(t, w, 200*time.Millisecond)
	create(t, s)
	w.cut()
	began := time.Now()
	if err := appendText(s, "x"); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v, want EIO", err)
	}
	if took := time.Since(began); took < 200*time.Millisecond || took > patience {
		t.Errorf("it took %s", took)
	}
}

func TestAnInterruptedCallCanBeWaitedForAgainOrAbandoned(t *testing.T) {
	a, address := serveArray(t, t.TempDir())
	newVolume(t, a)
	w := newWireTap(t, address)
	s := mountThrough(t, w, patience)
	create(t, s)
	w.cut()
	now := make(chan struct{})
	close(now)
	c := s.Start(&wire.Request{Op: wire.OpGetattr, Path: "f"})
	if _, answered := c.Wait(now); answered {
		t.Error("answered by a dead array")
	}
	c.Abandon()
	if r, answered := c.Wait(nil); !answered || syscall.Errno(r.Errno) != syscall.EINTR {
		t.Errorf("after Abandon: %+v, %v", r, answered)
	}
}

func TestMountErrorsSayWhy(t *testing.T) {
	a, address := serveArray(t, t.TempDir())
	if _, err := a.CreateVolume(array.Record{Name: "e", Class: array.Enforcing, SizeBytes: 1}); err != nil {
		t.Fatal(err)
	}
	for volume, want := range map[string]error{"missing": syscall.ENOENT, "e": syscall.EACCES} {
		_, err := Mount(t.Context(), Config{Address: address, Host: "host-1", Boot: "b1", Volume: volume})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), volume) {
			t.Errorf("%s: %v, want %v", volume, err, want)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Mount(ctx, Config{Address: l.Addr().String(), Host: "host-1", Boot: "b1", Volume: "v"}); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("nobody there: %v", err)
	}
}
