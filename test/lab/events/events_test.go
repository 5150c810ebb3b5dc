// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// started is the wall time at which the tests' monotonic clock reads zero.
var started = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func at(ms int64) mono.Stamp {
	return mono.Stamp{Mono: ms * 1e6, Wall: started.Add(time.Duration(ms) * time.Millisecond)}
}

// lab is a state directory.
type lab struct {
	*testing.T
	dir string
}

func newLab(t *testing.T) lab { return lab{t, t.TempDir()} }

func (l lab) append(path string, records ...any) {
	l.Helper()
	path = filepath.Join(l.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		l.Fatal(err)
	}
	defer file.Close()
	for _, r := range records {
		text, isText := r.(string)
		if !isText {
			line, err := json.Marshal(r)
			if err != nil {
				l.Fatal(err)
			}
			text = string(line) + "\n"
		}
		if _, err := file.WriteString(text); err != nil {
			l.Fatal(err)
		}
	}
}

func (l lab) read(f Filter) []Event {
	l.Helper()
	events, err := Read(l.dir, f)
	if err != nil {
		l.Fatal(err)
	}
	return events
}

// wantTimeline compares each event's time in ms, source and text.
func (l lab) wantTimeline(f Filter, want ...string) {
	l.Helper()
	var got []string
	for _, e := range l.read(f) {
		got = append(got, fmt.Sprintf("%d %s %s", e.Mono/1e6, e.Source, e.what()))
	}
	if !slices.Equal(got, want) {
		l.Errorf("timeline of %+v:\n  %s\nwant:\n  %s", f, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func writeAt(ms int64, host string, epoch uint64, result string) write {
	return write{Stamp: at(ms), Length: 10, Offset: ms,
		Writer: Writer{Volume: "v", File: "ledger", Host: host, Boot: "0123456789", Epoch: epoch, Result: result}}
}

// audited is a complete request, in the form that kube-apiserver writes.
func audited(ms int64, user, verb, object string, rest string) string {
	stamp := func(ms int64) string { return at(ms).Wall.Format("2006-01-02T15:04:05.000000Z07:00") }
	return fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"a%d",`+
		`"stage":"ResponseComplete","requestURI":"/u","verb":%q,"user":{"username":%q,"groups":["g"]},"sourceIPs":["10.90.0.2"],`+
		`"userAgent":"agent","objectRef":%s,"requestReceivedTimestamp":%q,"stageTimestamp":%q%s}`+"\n",
		ms, verb, user, object, stamp(ms-5), stamp(ms), rest)
}

const (
	pod      = `{"resource":"pods","namespace":"ns","name":"db-0","apiVersion":"v1"}`
	podEvict = `{"resource":"pods","namespace":"ns","name":"db-0","subresource":"eviction","apiVersion":"v1"}`
	ok       = `,"responseStatus":{"metadata":{},"code":200}`
	denied   = `,"responseStatus":{"metadata":{},"status":"Failure","message":"held by inc-1","reason":"Forbidden","code":403}`
)

func filled(t *testing.T) lab {
	l := newLab(t)
	cut := fault.Record{Fault: "net-cut", Target: "host-1", Args: map[string]string{"plane": "api", "direction": "both"}}
	for ms, state := range map[int64]fault.State{1000: fault.Begin, 1010: fault.Applied, 5000: fault.Undone} {
		cut.Stamp, cut.State = at(ms), state
		l.append("events/faults.jsonl", cut)
	}
	l.append("audit/policy.yaml", "kind: Policy\n")
	l.append("audit/kube-apiserver-1.log",
		audited(900, "kubelet", "update", `{"resource":"leases","name":"host-1","apiGroup":"coordination.k8s.io"}`, ok),
		audited(2000, "admin", "delete", pod, denied),
		audited(2500, "admin", "get", pod, ok))
	l.append("audit/kube-apiserver-2.log", audited(1500, "drainer", "create", podEvict, denied))
	l.append("audit/kube-apiserver-1-2026-05-04T12-00-00.500.log", audited(500, "controller", "create",
		`{"resource":"pods","namespace":"ns","apiVersion":"v1"}`, ok+`,"responseObject":{"kind":"Pod","metadata":{"name":"db-0"}}`))
	l.append("bmc/host-1/calls.jsonl", bmc.Call{Stamp: at(3000), Host: "host-1", Op: "set", Value: "off", Fault: bmc.Clear, Took: 2e6})
	l.append("bmc/host-2/calls.jsonl", bmc.Call{Stamp: at(2900), Host: "host-2", Op: "get", Value: "off", Actual: "on", Fault: bmc.LieOff, Took: 3e6})
	l.append("array/events.jsonl", VolumeChange{Stamp: at(600), Event: "attach", Volume: "v", Host: "host-1", Epoch: 1})
	for ms := int64(700); ms <= 1700; ms += 10 {
		l.append("array/writes.jsonl", writeAt(ms, "host-1", 1, "ok"))
	}
	synced := writeAt(1705, "host-1", 1, "ok")
	synced.Length, synced.Fsync = 0, true
	l.append("array/writes.jsonl", synced)
	l.append("array/writes.jsonl", writeAt(3500, "host-2", 2, "ok"), writeAt(3510, "host-1", 1, "detached"), writeAt(3520, "host-2", 2, "ok"))
	return l
}

func TestOneTimelineOfAllSources(t *testing.T) {
	l := filled(t)
	l.wantTimeline(Filter{},
		"500 audit controller create pods ns/db-0 200",
		"600 volume v attach host-1 epoch 1",
		"700 write v ledger by host-1 (boot 01234567, epoch 1): 102 writes, 1010 bytes in 1.005s: ok",
		"1000 fault host-1 net-cut begin direction=both plane=api",
		"1010 fault host-1 net-cut applied direction=both plane=api",
		"1500 audit drainer create pods/eviction ns/db-0 403 held by inc-1",
		"2000 audit admin delete pods ns/db-0 403 held by inc-1",
		"2900 bmc host-2 get off (in truth on) in 3ms fault=lie-off",
		"3000 bmc host-1 set off in 2ms",
		"3500 write v ledger by host-2 (boot 01234567, epoch 2): 1 writes, 10 bytes: ok",
		"3510 write v ledger by host-1 (boot 01234567, epoch 1): 1 writes, 10 bytes: detached",
		"3520 write v ledger by host-2 (boot 01234567, epoch 2): 1 writes, 10 bytes: ok",
		"5000 fault host-1 net-cut undone direction=both plane=api",
	)
	l.wantTimeline(Filter{Sources: []Source{Audit}, Since: 900e6, Until: 2500e6, Reads: true},
		"900 audit kubelet update leases host-1 200",
		"1500 audit drainer create pods/eviction ns/db-0 403 held by inc-1",
		"2000 audit admin delete pods ns/db-0 403 held by inc-1",
		"2500 audit admin get pods ns/db-0 200",
	)
	l.wantTimeline(Filter{Sources: []Source{BMC, Faults}, Since: 3000e6},
		"3000 bmc host-1 set off in 2ms",
		"5000 fault host-1 net-cut undone direction=both plane=api",
	)
	if got := len(l.read(Filter{Sources: []Source{Writes}, RawWrites: true})); got != 105 {
		t.Errorf("raw writes: %d events, want each of the 105", got)
	}
	// A bound cuts a run rather than dropping it.
	runs := l.read(Filter{Sources: []Source{Writes}, Since: 1500e6, Until: 1600e6})
	if len(runs) != 1 || runs[0].Run.Count != 11 || runs[0].Run.First != 1500e6 || runs[0].Run.Last != 1600e6 || runs[0].Run.Offset != 1500 {
		t.Errorf("run within bounds: %+v", runs)
	}
	fsyncs := l.read(Filter{Sources: []Source{Writes}})[0].Run
	if fsyncs.Fsyncs != 1 {
		t.Errorf("fsyncs of the first run: %d, want 1", fsyncs.Fsyncs)
	}
	line := l.read(Filter{Sources: []Source{Faults}})[0].String()
	if want := "12:00:01.000       1.000000 fault  host-1 net-cut begin direction=both plane=api"; line != want {
		t.Errorf("line %q, want %q", line, want)
	}
}

func TestAPauseEndsARun(t *testing.T) {
	l := newLab(t)
	l.append("array/writes.jsonl", writeAt(0, "h", 1, "ok"), writeAt(1000, "h", 1, "ok"), writeAt(2001, "h", 1, "ok"))
	counts := func(f Filter) (counts []int) {
		for _, e := range l.read(f) {
			counts = append(counts, e.Run.Count)
		}
		return counts
	}
	if got := counts(Filter{}); !slices.Equal(got, []int{2, 1}) {
		t.Errorf("runs of %v writes, want 2 and 1: a pause of more than a second", got)
	}
	if got := counts(Filter{MaxGap: 500 * time.Millisecond}); !slices.Equal(got, []int{1, 1, 1}) {
		t.Errorf("runs of %v writes with pauses of at most 500 ms, want 3 of one", got)
	}
}

func TestFilesThatAreAbsentUnfinishedOrDamaged(t *testing.T) {
	l := newLab(t)
	l.wantTimeline(Filter{})
	whole := VolumeChange{Stamp: at(100), Event: "mount", Volume: "v", Epoch: 3}
	l.append("array/events.jsonl", whole, `{"mono":200,"ev`)
	l.wantTimeline(Filter{}, "100 volume v mount epoch 3")
	l.append("array/events.jsonl", "\n", VolumeChange{Stamp: at(300), Event: "unmount", Volume: "v", Epoch: 3})
	got := l.read(Filter{})
	if len(got) != 3 || got[1].Mono != 100e6 || !strings.Contains(got[1].Damaged, "events.jsonl: record 2") || got[2].Volume.Event != "unmount" {
		t.Errorf("with a torn line in the middle: %+v; want it told, between its neighbours", got)
	}
	if line := got[1].String(); !strings.Contains(line, "DAMAGED") {
		t.Errorf("text of a damaged line: %q", line)
	}
}

func TestRequestsToAPod(t *testing.T) {
	l := filled(t)
	requests, err := Requests(l.dir, ToPod("ns", "db-0"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range requests {
		got = append(got, fmt.Sprintf("%s on %s", r, r.Server))
	}
	want := []string{
		"controller create pods ns/db-0 200 on kube-apiserver-1",
		"drainer create pods/eviction ns/db-0 403 held by inc-1 on kube-apiserver-2",
		"admin delete pods ns/db-0 403 held by inc-1 on kube-apiserver-1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("requests to the pod:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	if len(requests) == 3 {
		if r := requests[0]; !strings.Contains(string(r.Returned), `"kind":"Pod"`) || r.Received != 495e6 || r.Mono != 500e6 {
			t.Errorf("the create: returned %s, received %d, answered %d", r.Returned, r.Received, r.Mono)
		}
	}
	for name, c := range map[string]struct {
		query Query
		want  int
	}{
		"all":            {Query{}, 5},
		"by verb":        {Query{Verbs: []string{"get", "delete"}}, 2},
		"by user":        {Query{User: "admin"}, 2},
		"by subresource": {Query{Resource: "pods", Subresource: "eviction"}, 1},
		"by time":        {Query{Since: 1500e6, Until: 2000e6}, 2},
		"by code":        {Query{Match: func(r Request) bool { return r.Code == 403 && r.Reason == "Forbidden" }}, 2},
		"nothing":        {Query{Namespace: "other"}, 0},
	} {
		if got, err := Requests(l.dir, c.query); err != nil || len(got) != c.want {
			t.Errorf("%s: %d requests, %v; want %d", name, len(got), err, c.want)
		}
	}
	l.append("audit/kube-apiserver-1.log", "{torn\n")
	if got, err := Requests(l.dir, Query{Namespace: "other"}); err == nil || !strings.Contains(err.Error(), "kube-apiserver-1.log: record 4") {
		t.Errorf("a damaged audit log: %d requests, %v; want an error that names the line", len(got), err)
	}
}

func TestRequestsSkipStagesAndFollowImpersonation(t *testing.T) {
	l := newLab(t)
	l.append("events/faults.jsonl", fault.Record{Stamp: at(0)})
	begun := strings.Replace(audited(100, "w", "watch", pod, ok), "ResponseComplete", "ResponseStarted", 1)
	panicked := strings.Replace(audited(200, "p", "patch", pod, `,"responseStatus":{"code":500}`), "ResponseComplete", "Panic", 1)
	l.append("audit/kube-apiserver-1.log", begun, panicked,
		audited(300, "admin", "patch", pod, ok+`,"impersonatedUser":{"username":"kubelet"},"annotations":{"k":"v"}`))
	got, err := Requests(l.dir, Query{})
	if err != nil || len(got) != 2 || got[0].User != "p" || got[0].Code != 500 || got[1].User != "kubelet" || got[1].Annotations["k"] != "v" {
		t.Errorf("requests %+v, %v; want the panic and the impersonated patch", got, err)
	}
}

func TestWallClockIsConvertedByTheLastFaultBefore(t *testing.T) {
	l := newLab(t)
	before := fault.Record{Stamp: at(1000)}
	after := fault.Record{Stamp: at(3000)} // between the two somebody put the wall clock forward by an hour
	after.Wall = after.Wall.Add(time.Hour)
	l.append("events/faults.jsonl", before, after)
	c, err := clockOf(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	for wall, want := range map[time.Duration]int64{
		500 * time.Millisecond:            500e6,
		1000 * time.Millisecond:           1000e6,
		2000 * time.Millisecond:           2000e6,
		time.Hour + 3000*time.Millisecond: 3000e6,
		time.Hour + 4000*time.Millisecond: 4000e6,
	} {
		if got := c.mono(started.Add(wall)); got != want {
			t.Errorf("%v after the start: mono %d, want %d", wall, got, want)
		}
	}
	now := mono.Now()
	empty, err := clockOf(t.TempDir())
	if got := empty.mono(now.Wall); err != nil || max(got-now.Mono, now.Mono-got) > 1e6 {
		t.Errorf("now without records: mono %d, %v; want %d within a millisecond", got, err, now.Mono)
	}
}

func TestParseSource(t *testing.T) {
	if s, err := ParseSource("bmc"); s != BMC || err != nil {
		t.Errorf("ParseSource(bmc) = %q, %v", s, err)
	}
	if _, err := ParseSource("log"); err == nil || !strings.Contains(err.Error(), "audit") {
		t.Errorf("ParseSource of an unknown source: %v, want the list", err)
	}
}
