// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/events"
)

const manager = "system:serviceaccount:" + stage.HoldfastNamespace + ":holdfast-manager"

func lost(kind figures.Kind, namespace, name, app string) played {
	return played{Case: figures.Case{Kind: kind}, host: "host-3", volume: app,
		pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "old", Labels: map[string]string{"app": app}}}}
}

func TestRequestsBecomeMarks(t *testing.T) {
	guarded := lost(figures.Guarded, "shop", "ledger-0", "ledger")
	human := lost(figures.Human, "stock", "b2-1-0", "b2-1")
	deployment := lost(figures.Deployment, "stock", "b1-1-5d-x", "b1-1")
	raw := func(text string) json.RawMessage { return json.RawMessage(text) }
	for name, c := range map[string]struct {
		of   played
		r    events.Request
		want figures.Mark // none is empty
	}{
		"Holdfast takes the endpoint out": {guarded, events.Request{User: manager, Verb: "patch", Resource: "pods", Subresource: "status", Namespace: "shop", Name: "ledger-0",
			Sent: raw(`{"status":{"conditions":[{"reason":"HoldfastStopsServing"}]}}`)}, figures.Suspected},
		"it opens an incident": {guarded, events.Request{User: manager, Verb: "create", Resource: "hostincidents", Sent: raw(`{"spec":{"nodeName":"host-3"}}`)}, figures.Opened},
		"for another host":     {guarded, events.Request{User: manager, Verb: "create", Resource: "hostincidents", Sent: raw(`{"spec":{"nodeName":"host-2"}}`)}, ""},
		"it journals":          {guarded, events.Request{User: manager, Verb: "update", Resource: "hostincidents", Subresource: "status", Returned: raw(`{"spec":{"nodeName":"host-3"},"status":{}}`)}, ""},
		"it journals the proof": {guarded, events.Request{User: manager, Verb: "update", Resource: "hostincidents", Subresource: "status",
			Returned: raw(`{"spec":{"nodeName":"host-3"},"status":{"proof":{"method":"ipmi"}}}`)}, figures.Proven},
		"it deletes the pod": {guarded, events.Request{User: manager, Verb: "delete", Resource: "pods", Namespace: "shop", Name: "ledger-0", Returned: raw(`{"metadata":{"uid":"old"}}`)}, figures.Deleted},
		"it takes the finalizer off": {guarded, events.Request{User: manager, Verb: "patch", Resource: "pods", Namespace: "shop", Name: "ledger-0",
			Returned: raw(`{"metadata":{"uid":"old","deletionTimestamp":"2026-05-04T12:00:00Z"}}`)}, figures.Deleted},
		"it puts the hold on": {guarded, events.Request{User: manager, Verb: "patch", Resource: "pods", Namespace: "shop", Name: "ledger-0", Returned: raw(`{"metadata":{"uid":"old"}}`)}, ""},
		"somebody deletes the successor": {guarded, events.Request{Verb: "delete", Resource: "pods", Namespace: "shop", Name: "ledger-0",
			Returned: raw(`{"metadata":{"uid":"new"}}`)}, ""},
		"the scheduler binds":        {guarded, events.Request{Verb: "create", Resource: "pods", Subresource: "binding", Namespace: "shop", Name: "ledger-0"}, figures.Bound},
		"a Deployment's replacement": {deployment, events.Request{Verb: "create", Resource: "pods", Subresource: "binding", Namespace: "stock", Name: "b1-1-5d-y"}, figures.Bound},
		"another app's":              {deployment, events.Request{Verb: "create", Resource: "pods", Subresource: "binding", Namespace: "stock", Name: "b1-10-5d-y"}, ""},
		"the Node is Unknown": {human, events.Request{Verb: "update", Resource: "nodes", Subresource: "status", Name: "host-3",
			Returned: raw(`{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`)}, figures.Suspected},
		"the Node is well": {human, events.Request{Verb: "patch", Resource: "nodes", Subresource: "status", Name: "host-3",
			Returned: raw(`{"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"DiskPressure","status":"Unknown"}]}}`)}, ""},
		"the human says so": {human, events.Request{Verb: "patch", Resource: "nodes", Name: "host-3", Sent: raw(`{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service"}]}}`)}, figures.Proven},
		"nobody says so":    {deployment, events.Request{Verb: "patch", Resource: "nodes", Name: "host-3", Sent: raw(`{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service"}]}}`)}, ""},
	} {
		if got, ok := meaning(c.of, c.r); ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%s: mark %q, %v; want %q", name, got, ok, c.want)
		}
	}
}

func TestTheLogIsFollowedWhileItGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "writes.jsonl")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(file, text); err != nil {
			t.Fatal(err)
		}
	}
	line := func(at int, volume, host string) string {
		return fmt.Sprintf(`{"mono":%d,"volume":"%s","host":"%s","result":"ok"}`+"\n", at, volume, host)
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	lines := &tail{from: bufio.NewReaderSize(reader, 32), cut: true}
	elsewhere := func(w write) bool { return w.Host != "host-3" }
	want := func(found bool) {
		t.Helper()
		if got, err := lines.find("v", elsewhere); got != found || err != nil {
			t.Errorf("found %v, %v; want %v", got, err, found)
		}
	}
	say(`"v","host":"host-1"}` + "\n" + line(1, "v", "host-3") + line(2, "w", "host-1"))
	want(false) // the end of a line, the lost host, another volume
	next := line(3, "v", "host-1")
	say(next[:20])
	want(false) // half a line
	say(next[20:])
	want(true)
}

func TestMostHostsStayLit(t *testing.T) {
	for name, o := range map[string]options{"all": {stock: 2, outage: time.Hour}, "without P7": {stock: 1}, "with agents alone": {witnessed: 30}} {
		if 2*o.silent() >= o.hosts() {
			t.Errorf("%s: %d of %d hosts may be silent at a time: that is not less than half", name, o.silent(), o.hosts())
		}
	}
}

func TestOnlyWhatIsMissingIsWanted(t *testing.T) {
	o := options{seed: 7, witnessed: 2, stock: 1, outage: time.Hour, Options: campaign.Options{Out: t.TempDir()}}
	want := func(when string, cases int, outage, usage bool) {
		t.Helper()
		w, err := o.wanted()
		if err != nil || len(w.cases[figures.Witnessed]) != cases || w.outage != outage || w.usage != usage {
			t.Errorf("%s: wanted %+v, %v; want %d cases, P7 %v, usage %v", when, w, err, cases, outage, usage)
		}
	}
	want("at first", 2, true, true)
	if err := figures.Append(o.rows(), figures.Row{Case: figures.Case{Seed: 7, Kind: figures.Witnessed, Number: 2}, Outcome: figures.Recovered}); err != nil {
		t.Fatal(err)
	}
	want("with a row", 1, true, true)
	for _, seed := range []uint64{8, 7} {
		if err := errors.Join(figures.AppendOutage(o.outages(), figures.Outage{Seed: seed}), figures.AppendUsage(o.usages(), figures.Usage{Seed: seed})); err != nil {
			t.Fatal(err)
		}
		want(fmt.Sprintf("with the others of seed %d", seed), 1, seed == 8, seed == 8)
	}
}

func TestStockCasesArePutTogether(t *testing.T) {
	got := pairs(figures.Cases(figures.StatefulSet, 2, 7), figures.Cases(figures.Deployment, 1, 7))
	if len(got) != 2 || len(got[0]) != 2 || len(got[1]) != 1 || got[1][0].Kind != figures.StatefulSet || got[1][0].Number != 2 {
		t.Errorf("two of B0 and one of B1 make the pairs %+v", got)
	}
}

func TestWhatAProcessUsedIsRead(t *testing.T) {
	got, err := cpuIn("71 (a (b) c) S 1 71 71 0 -1 4194560 900 0 0 0 150 50 7 8 20 0 9 0 12345 1000 200")
	if err != nil || got != 2*time.Second {
		t.Errorf("150 and 50 hundredths are %v, %v; want 2 s", got, err)
	}
	if _, err := cpuIn("71 (a) S 1"); err == nil {
		t.Error("a line without the fields says something")
	}
	if n, err := kib("Name:\tx\nVmRSS:\t   2048 kB\nRssAnon:\t 1024 kB\n", "VmRSS"); err != nil || n != 2048 {
		t.Errorf("VmRSS is %d KiB, %v; want 2048", n, err)
	}
	if _, err := kib("Name:\tx\n", "VmRSS"); err == nil {
		t.Error("a status without VmRSS says something")
	}
}

func TestWhatTheAPISaysOfALostProcessIsOld(t *testing.T) {
	pod := func(ago time.Duration) *corev1.Pod {
		return &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{
			Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(time.Now().Add(-ago).Truncate(time.Second))}}}}}}
	}
	if !ofProcess(pod(10*time.Second), 10*time.Second) {
		t.Error("a container is not that of a process as old")
	}
	if ofProcess(pod(60*time.Second), 10*time.Second) || ofProcess(&corev1.Pod{}, 10*time.Second) {
		t.Error("a container of before, or none, is that of a new process")
	}
}

func TestEveryClientHasAMarkOfItsOwn(t *testing.T) {
	marks := map[figures.Mark]bool{}
	for _, s := range stage.Seats("host-1") {
		marks[endOf(s)] = true
	}
	for _, m := range figures.Ends {
		if !marks[m] {
			t.Errorf("no client has the mark %s", m)
		}
	}
	if len(marks) != len(figures.Ends) {
		t.Errorf("clients have the marks %v, columns are %v", marks, figures.Ends)
	}
}

func TestTheSceneIsKept(t *testing.T) {
	o := options{seed: 7, Options: campaign.Options{Out: t.TempDir()}}
	if err := figures.Append(o.rows(), figures.Row{Commit: "abc", Case: figures.Case{Seed: 7, Kind: figures.Guarded, Number: 1}, Outcome: figures.Recovered}); err != nil {
		t.Fatal(err)
	}
	for _, scene := range []string{"a quiet room", ""} {
		if err := o.summarise(scene); err != nil {
			t.Fatal(err)
		}
		if got := sceneOf(filepath.Join(o.Out, "README.md")); got != "a quiet room" {
			t.Errorf("the summary names the scene %q", got)
		}
	}
}
