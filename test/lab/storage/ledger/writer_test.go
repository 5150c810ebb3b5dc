// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const patience = 10 * time.Second

// volumeDir is a directory that looks like a mounted volume.
func volumeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ".array"), 0o755); err != nil {
		t.Fatal(err)
	}
	session := `{"volume":"v","class":"enforcing","host":"host-1","boot":"b1","epoch":3}`
	if err := os.WriteFile(filepath.Join(dir, ".array", "session"), []byte(session), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, config Config) *Writer {
	t.Helper()
	w := NewWriter(config)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

func lines(t *testing.T, path string) []Line {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []Line
	for text := range strings.Lines(string(b)) {
		if l, err := ParseLine(strings.TrimSuffix(text, "\n")); err == nil {
			all = append(all, l)
		}
	}
	return all
}

func TestLineGoesThroughText(t *testing.T) {
	for _, l := range []Line{{Mono: 1, Host: "h", Boot: "b", Epoch: 2, Seq: 3}, {Mono: 1, Host: "h", Boot: "b", Epoch: 2, Seq: 3, ID: "x-1"}} {
		if got, err := ParseLine(l.String()); err != nil || got != l {
			t.Errorf("%q became %+v, %v", l.String(), got, err)
		}
	}
	for _, bad := range []string{"", "1 h b 2", "x h b 2 3", "1 h b x 3", "1 h b 2 x", "1 h b 2 3 id more"} {
		if _, err := ParseLine(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestWriterCountsOnFromTheLastWholeLine(t *testing.T) {
	path := filepath.Join(volumeDir(t), "ledger")
	if err := os.WriteFile(path, []byte("1 host-2 b0 2 41\n2 host-2 b0"), 0o644); err != nil {
		t.Fatal(err)
	}
	w := run(t, Config{Path: path, Interval: time.Millisecond, Host: "host-1"})
	eventually(t, "three lines are written", func() bool { return w.Status().Seq >= 44 })
	got := lines(t, path)
	if got[0].Seq != 41 || got[1].Seq != 42 || got[1].Host != "host-1" || got[1].Boot != "b1" || got[1].Epoch != 3 {
		t.Errorf("first lines: %+v", got[:2])
	}
}

func TestAppendIsInTheFileWhenItReturns(t *testing.T) {
	path := filepath.Join(volumeDir(t), "ledger")
	w := run(t, Config{Path: path, Interval: time.Hour})
	server := httptest.NewServer(w.HTTP())
	t.Cleanup(server.Close)
	resp, err := http.Post(server.URL+"/append", "text/plain", strings.NewReader("my-id\n"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	got := lines(t, path)
	if resp.StatusCode != http.StatusOK || len(got) != 1 || got[0].ID != "my-id" || got[0].Seq != 1 {
		t.Errorf("%s, %+v", resp.Status, got)
	}
	resp, err = http.Post(server.URL+"/append", "text/plain", strings.NewReader("two words"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an id with a space: %s", resp.Status)
	}
}

func TestNotReadyWhereTheArrayIsNotAndReadyOnceItIs(t *testing.T) {
	dir := volumeDir(t)
	session := filepath.Join(dir, ".array", "session")
	if err := os.Rename(session, session+".away"); err != nil {
		t.Fatal(err)
	}
	w := run(t, Config{Path: filepath.Join(dir, "ledger"), Interval: time.Millisecond})
	eventually(t, "the reason is told", func() bool { return strings.Contains(w.Status().Error, "must be a volume of the array") })
	if w.Status().Ready {
		t.Error("ready without a volume")
	}
	if _, err := os.Stat(filepath.Join(dir, "ledger")); !os.IsNotExist(err) {
		t.Errorf("it wrote beside the volume: %v", err)
	}
	if err := os.Rename(session+".away", session); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it becomes ready", func() bool { return w.Status().Ready })
}

func TestAnotherHostsMountIsNotWrittenTo(t *testing.T) {
	w := run(t, Config{Path: filepath.Join(volumeDir(t), "ledger"), Interval: time.Millisecond, Host: "host-2"})
	eventually(t, "the reason is told", func() bool { return strings.Contains(w.Status().Error, `on host "host-2"`) })
}
