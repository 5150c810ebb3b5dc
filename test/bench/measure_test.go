// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

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
	for stock := range 6 {
		o := options{stock: stock}
		if dark := stock + 1; 2*dark >= o.hosts() {
			t.Errorf("%d of %d hosts may be dark at a time: that is not less than half", dark, o.hosts())
		}
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
