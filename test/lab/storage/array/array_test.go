// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package array

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

func open(t *testing.T, dir string) *Array {
	t.Helper()
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func withVolume(t *testing.T, class Class) *Array {
	t.Helper()
	a := open(t, t.TempDir())
	if _, err := a.CreateVolume(Record{Name: "v", Class: class, SizeBytes: 1000}); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"host-1", "host-2"} {
		if err := a.RegisterHost(host, ""); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// mounted is what lab-csi gets over the network.
func mounted(t *testing.T, a *Array, host, boot string) session {
	t.Helper()
	v, m, err := a.welcome(wire.Hello{Host: host, Boot: boot, Volume: "v", Mount: uuid.NewString()})
	if err != nil {
		t.Fatal(err)
	}
	return session{volume: v, mount: m}
}

var requestIDs uint64

func (s session) ask(q wire.Request) syscall.Errno {
	requestIDs++
	q.ID = requestIDs
	return syscall.Errno(s.answer(&q).Errno)
}

func (s session) createFile(t *testing.T) {
	t.Helper()
	if errno := s.ask(wire.Request{Op: wire.OpCreate, Path: "f", Handle: 1, Mode: 0o644}); errno != 0 {
		t.Fatalf("create: %v", errno)
	}
}

func (s session) appendText(text string) syscall.Errno {
	return s.ask(wire.Request{Op: wire.OpWrite, Path: "f", Handle: 1, Append: true, Data: []byte(text)})
}

func journalOf[T any](t *testing.T, a *Array, name string) []T {
	t.Helper()
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(a.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	var all []T
	for line := range bytes.Lines(b) {
		var one T
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatalf("%s: %q: %v", name, line, err)
		}
		all = append(all, one)
	}
	return all
}

func TestEpochCountsAttachmentsOfAnEnforcingVolume(t *testing.T) {
	a := withVolume(t, Enforcing)
	epoch := func(want uint64) {
		t.Helper()
		if r, err := a.Volume("v"); err != nil || r.Epoch != want {
			t.Errorf("epoch %d, want %d (%v)", r.Epoch, want, err)
		}
	}
	attach := func(host string) {
		t.Helper()
		if _, err := a.Attach("v", host); err != nil {
			t.Fatal(err)
		}
	}
	detach := func(host string) {
		t.Helper()
		if _, err := a.Detach("v", host); err != nil {
			t.Fatal(err)
		}
	}
	epoch(0)
	attach("host-1")
	attach("host-1") // again
	epoch(1)
	first := mounted(t, a, "host-1", "b1")
	mounted(t, a, "host-1", "b1") // a second pod
	epoch(1)
	rebooted := mounted(t, a, "host-1", "b2") // attached all the time
	epoch(2)
	if errno := first.appendText("x"); errno != syscall.EIO {
		t.Errorf("a write of the boot before: %v, want EIO", errno)
	}
	rebooted.createFile(t)
	detach("host-2") // not the holder: nothing happens
	rebooted.createFile(t)
	detach("host-1")
	attach("host-1") // the same boot, but another attachment
	epoch(3)
	if errno := rebooted.appendText("x"); errno != syscall.EIO {
		t.Errorf("a write over a mount from before the detachment: %v, want EIO", errno)
	}
	detach("")
	attach("host-2")
	epoch(4)
}

func TestEpochCountsMountsOfAPermissiveVolume(t *testing.T) {
	a := withVolume(t, Permissive)
	var got []uint64
	for _, by := range []Holder{{"host-1", "b1"}, {"host-1", "b1"}, {"host-2", "b2"}, {"host-1", "b1"}, {"host-1", "b7"}} {
		s := mounted(t, a, by.Host, by.Boot)
		s.createFile(t)
		got = append(got, s.mount.epoch)
	}
	if want := []uint64{1, 1, 2, 3, 4}; !reflect.DeepEqual(got, want) {
		t.Errorf("epochs %v, want %v", got, want)
	}
	if _, err := a.Attach("v", "host-1"); err == nil || !strings.Contains(err.Error(), "without being attached") {
		t.Errorf("attach: %v", err)
	}
	if _, err := a.Detach("v", "host-1"); err == nil || !strings.Contains(err.Error(), "only isolating the host") {
		t.Errorf("detach: %v", err)
	}
}

func TestNothingIsAcceptedAfterDetachHasReturned(t *testing.T) {
	a := withVolume(t, Enforcing)
	if _, err := a.Attach("v", "host-1"); err != nil {
		t.Fatal(err)
	}
	s := mounted(t, a, "host-1", "b1")
	s.createFile(t)
	running, written := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(written)
		for n, refused := 0, 0; refused < 100; n++ {
			q := wire.Request{ID: uint64(1e6 + n), Op: wire.OpWrite, Path: "f", Handle: 1, Data: []byte("x")}
			if s.answer(&q).Errno != 0 {
				refused++
			}
			if n == 50 {
				close(running)
			}
		}
	}()
	<-running
	if _, err := a.Detach("v", "host-1"); err != nil {
		t.Fatal(err)
	}
	accepted := func() (n int) {
		for _, w := range journalOf[Write](t, a, "writes.jsonl") {
			if w.Result == ResultOK {
				n++
			}
		}
		return n
	}
	atDetach := accepted()
	<-written
	if after := accepted(); after != atDetach {
		t.Errorf("%d writes were accepted after the detachment", after-atDetach)
	}
	all := journalOf[Write](t, a, "writes.jsonl")
	for i := 1; i < len(all); i++ {
		if all[i].Mono < all[i-1].Mono {
			t.Fatalf("line %d goes back in time", i+1)
		}
	}
}

func TestEveryAttemptIsALineOfTheJournal(t *testing.T) {
	a := withVolume(t, Enforcing)
	if _, err := a.Attach("v", "host-1"); err != nil {
		t.Fatal(err)
	}
	s := mounted(t, a, "host-1", "b1")
	s.createFile(t)
	tooMuch := []byte(strings.Repeat("x", 2000)) // the volume holds 1000
	for _, c := range []struct {
		q    wire.Request
		want syscall.Errno
	}{
		{q: wire.Request{Op: wire.OpWrite, Path: "f", Handle: 1, Append: true, Data: []byte("abc")}},
		{q: wire.Request{Op: wire.OpWrite, Path: "f", Handle: 1, Append: true, Data: []byte("de")}},
		{q: wire.Request{Op: wire.OpFsync, Path: "f", Handle: 1}},
		{q: wire.Request{Op: wire.OpRead, Path: "f", Handle: 1, Size: 10}},
		{q: wire.Request{Op: wire.OpWrite, Path: "f", Handle: 1, Append: true, Data: tooMuch}, want: syscall.ENOSPC},
		{q: wire.Request{Op: wire.OpSetattr, Path: "f", Valid: wire.SetSize, Size: 1}},
		{q: wire.Request{Op: wire.OpRename, Path: "f", NewPath: "g"}},
		{q: wire.Request{Op: wire.OpUnlink, Path: "g"}},
	} {
		if errno := s.ask(c.q); errno != c.want {
			t.Errorf("operation %d: %v, want %v", c.q.Op, errno, c.want)
		}
	}
	if _, err := a.Detach("v", ""); err != nil {
		t.Fatal(err)
	}
	if errno := s.appendText("f"); errno != syscall.EIO {
		t.Errorf("after detach: %v, want EIO", errno)
	}
	var got []Write
	for _, w := range journalOf[Write](t, a, "writes.jsonl") {
		if w.Volume != "v" || w.Host != "host-1" || w.Boot != "b1" || w.Epoch != 1 || w.Mono == 0 || w.Wall == "" {
			t.Errorf("line %+v", w)
		}
		got = append(got, Write{File: w.File, Offset: w.Offset, Length: w.Length, Fsync: w.Fsync, Result: w.Result, Op: w.Op})
	}
	want := []Write{
		{File: "f", Result: ResultOK, Op: "create"},
		{File: "f", Length: 3, Result: ResultOK},
		{File: "f", Offset: 3, Length: 2, Result: ResultOK},
		{File: "f", Fsync: true, Result: ResultOK},
		{File: "f", Offset: 5, Length: 2000, Result: ResultError},
		{File: "f", Offset: 1, Result: ResultOK, Op: "truncate"},
		{File: "f", Result: ResultOK, Op: "rename"},
		{File: "g", Result: ResultOK, Op: "unlink"},
		{File: "f", Length: 1, Result: ResultDetached},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("journal:\n got %+v\nwant %+v", got, want)
	}
	var events []string
	for _, e := range journalOf[Event](t, a, "events.jsonl") {
		events = append(events, e.Event)
	}
	if want := []string{"create", "attach", "mount", "detach"}; !reflect.DeepEqual(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
}

func TestAFullVolumeTakesAgainWhatWasFreed(t *testing.T) {
	a := withVolume(t, Permissive)
	s := mounted(t, a, "host-1", "b1")
	s.createFile(t)
	if errno := s.appendText(strings.Repeat("x", 900)); errno != 0 {
		t.Fatal(errno)
	}
	if errno := s.appendText(strings.Repeat("x", 200)); errno != syscall.ENOSPC {
		t.Errorf("beyond the size: %v, want ENOSPC", errno)
	}
	if errno := s.ask(wire.Request{Op: wire.OpSetattr, Path: "f", Valid: wire.SetSize, Size: 0}); errno != 0 {
		t.Fatal(errno)
	}
	if errno := s.appendText(strings.Repeat("x", 900)); errno != 0 {
		t.Errorf("after truncation: %v", errno)
	}
}

func TestARepeatedRequestIsNotDoneTwice(t *testing.T) {
	a := withVolume(t, Permissive)
	s := mounted(t, a, "host-1", "b1")
	s.createFile(t)
	var together sync.WaitGroup
	for range 10 {
		together.Go(func() {
			if r := s.answer(&wire.Request{ID: 1 << 40, Op: wire.OpWrite, Path: "f", Handle: 1, Append: true, Data: []byte("x")}); r.Errno != 0 || r.Size != 1 {
				t.Errorf("answer %+v", r)
			}
		})
	}
	together.Wait()
	if b, err := os.ReadFile(filepath.Join(a.dir, "volumes", "v", "data", "f")); err != nil || string(b) != "x" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

func TestAttachmentsOutliveTheArray(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	if _, err := a.CreateVolume(Record{Name: "v", Class: Enforcing, SizeBytes: 1000}); err != nil {
		t.Fatal(err)
	}
	if err := a.RegisterHost("host-1", "b1"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attach("v", "host-1"); err != nil {
		t.Fatal(err)
	}
	mounted(t, a, "host-1", "b1").createFile(t)
	want, err := a.Volume("v")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if got, err := again.Volume("v"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got := again.Hosts(); !reflect.DeepEqual(got, map[string]string{"host-1": "b1"}) {
		t.Errorf("hosts %v", got)
	}
	mounted(t, again, "host-1", "b1").createFile(t) // still attached, same epoch
	if r, err := again.Volume("v"); err != nil || r.Epoch != 1 {
		t.Errorf("epoch %d, %v; want 1", r.Epoch, err)
	}
}

func TestPathsDoNotLeaveTheVolume(t *testing.T) {
	a := withVolume(t, Permissive)
	s := mounted(t, a, "host-1", "b1")
	for _, q := range []wire.Request{
		{Op: wire.OpLookup, Path: "../volume.json"}, {Op: wire.OpOpen, Path: "../volume.json", Handle: 1},
		{Op: wire.OpCreate, Path: "../x", Handle: 1}, {Op: wire.OpUnlink, Path: "../volume.json"},
	} {
		if errno := s.ask(q); errno == 0 {
			t.Errorf("%+v succeeded", q)
		}
	}
	if _, err := os.Stat(filepath.Join(a.dir, "volumes", "v", "volume.json")); err != nil {
		t.Error(err)
	}
}

func TestControlAPI(t *testing.T) {
	server := httptest.NewServer(open(t, t.TempDir()).Control())
	t.Cleanup(server.Close)
	for _, c := range []struct {
		call, body string
		want       int
		say        string
	}{
		{"GET /healthz", "", 200, "instance"},
		{"POST /volumes", `{"name":"v","class":"enforcing","sizeBytes":10}`, 200, `{"name":"v","class":"enforcing","sizeBytes":10,"epoch":0}`},
		{"POST /volumes", `{"name":"v","class":"enforcing","sizeBytes":10}`, 200, `"epoch":0`},
		{"POST /volumes", `{"name":"v","class":"permissive","sizeBytes":10}`, 409, "delete it or choose another name"},
		{"POST /volumes", `{"name":"../v","class":"permissive","sizeBytes":10}`, 400, "name"},
		{"POST /volumes", `{"name":"w","class":"fast","sizeBytes":10}`, 400, `class \"fast\"`},
		{"POST /volumes", `{"name":"w","class":"enforcing"}`, 400, "sizeBytes 0"},
		{"POST /volumes", `{"nam":"w"}`, 400, "nam"},
		{"POST /volumes/v/attach", `{"host":"host-1"}`, 404, "start its CSI node plugin"},
		{"PUT /hosts/host-1", `{"boot":"b1"}`, 200, ""},
		{"GET /hosts", "", 200, `{"host-1":"b1"}`},
		{"POST /volumes/v/attach", `{"host":"host-1"}`, 200, `"holder":{"host":"host-1","boot":""}`},
		{"GET /attachments", "", 200, `[{"volume":"v","class":"enforcing","host":"host-1","boot":"","epoch":1}]`},
		{"DELETE /volumes/v", "", 409, "detach it before deleting it"},
		{"POST /volumes/v/detach", `{"host":"host-1"}`, 200, `"epoch":1`},
		{"GET /volumes", "", 200, `"name":"v"`},
		{"DELETE /volumes/v", "", 200, ""},
		{"DELETE /volumes/v", "", 200, ""},
		{"GET /volumes/v", "", 404, "does not exist"},
		{"POST /volumes/v/detach", `{}`, 404, "does not exist"},
		{"POST /flush", "", 200, ""},
	} {
		method, path, _ := strings.Cut(c.call, " ")
		q, err := http.NewRequest(method, server.URL+path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		var body bytes.Buffer
		if _, err := body.ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.want || !strings.Contains(body.String(), c.say) {
			t.Errorf("%s %s: %s %s; want %d with %q", c.call, c.body, resp.Status, body.String(), c.want, c.say)
		}
	}
}

func TestEveryErrorHasAnErrno(t *testing.T) {
	for err, want := range map[error]syscall.Errno{
		nil: 0, os.ErrNotExist: syscall.EIO, &os.PathError{Err: syscall.ENOENT}: syscall.ENOENT,
		refuse(KindDetached, ""): syscall.EACCES, refuse(KindNotFound, ""): syscall.ENOENT,
		refuse(KindConflict, ""): syscall.EBUSY, refuse(KindInvalid, ""): syscall.EINVAL, errors.New("x"): syscall.EIO,
	} {
		if got := errnoOf(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
