// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// broken is a lab in which things are broken by the command, as a person does.
type broken struct {
	*testing.T
	*Lab
	pod *corev1.Pod
}

func TestFaults(t *testing.T) {
	l, _ := upLab(t, Options{Name: testName("faults"), Hosts: 2, APIServers: 2, Timings: FastTimings})
	b := broken{T: t, Lab: l, pod: startLedger(t, l)}

	// Kubernetes needs a while to notice this one: it goes on during the others.
	connections := b.once("api", "hang-connection", "host-2")["args"].(map[string]any)["connections"].(string)

	b.cutStorage()
	b.hang(HangUserspace)
	b.hang(HangDead)
	b.stopOneAPIServer()
	b.breakBMC()
	b.forgottenConnection(connections)
	for _, verb := range []string{"kill-kubelet", "start-kubelet", "power-off", "power-on"} {
		b.lab("host", verb, "host-2")
	}
	b.timeline()

	// The lab goes down with faults in force: upLab checks that nothing is left.
	b.apply("host", "hang", "host-1", "--dead")
	b.apply("host", "hang", "host-2")
	b.apply("bmc", "fault", "host-1", "--mode", "dead")
	b.apply("api", "stop")
}

// once runs the lab command and returns what it said under -o json.
func (b broken) once(args ...string) map[string]any {
	b.Helper()
	out, err := runCommand(b.T, append(args, "--lab", b.Name(), "-o", "json")...)
	var said map[string]any
	if err == nil {
		err = json.Unmarshal([]byte(out), &said)
	}
	if err != nil {
		b.Fatalf("lab %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return said
}

// lab runs the lab command twice, because every fault and every undo is idempotent.
func (b broken) lab(args ...string) map[string]any {
	b.Helper()
	b.once(args...)
	return b.once(args...)
}

// apply applies a fault, which has to name its undo.
func (b broken) apply(args ...string) map[string]any {
	b.Helper()
	said := b.lab(args...)
	if undo, _ := said["undo"].(string); !strings.HasPrefix(undo, "bin/lab ") {
		b.Errorf("lab %s names no undo: %v", strings.Join(args, " "), said)
	}
	return said
}

// undo runs the command that a fault named.
func (b broken) undo(said map[string]any) {
	b.Helper()
	words := strings.Fields(said["undo"].(string))[1:]
	b.lab(slices.DeleteFunc(words, func(w string) bool { return w == "--lab" || w == b.Name() })...)
}

// writes counts what the ledger's host wrote with success between two moments.
func (b broken) writes(since, until int64) int {
	b.Helper()
	found, err := b.Events(events.Filter{Sources: []events.Source{events.Writes}, Since: since, Until: until})
	must(b.T, err)
	count := 0
	for _, e := range found {
		if e.Run.Volume == "ledger" && e.Run.Result == "ok" {
			count += e.Run.Count
		}
	}
	return count
}

func (b broken) wantWriting() {
	b.Helper()
	since := mono.Nanoseconds()
	must(b.T, untilAPI(within(b.T, 30*time.Second), "the ledger to write", func() (bool, error) {
		return b.writes(since, 0) > 10, nil
	}))
}

// wantSilent waits a second in which the ledger must not write. What is on
// its way at the beginning of a fault may still arrive.
func (b broken) wantSilent(what string) {
	b.Helper()
	timer := time.NewTimer(1200 * time.Millisecond)
	since := mono.Nanoseconds() + (200 * time.Millisecond).Nanoseconds()
	<-timer.C
	if n := b.writes(since, 0); n != 0 {
		b.Errorf("%s: the ledger wrote %d times", what, n)
	}
}

func (b broken) cutStorage() {
	b.wantWriting()
	said := b.apply("net", "cut", "host-1", "--plane", "storage")
	b.apply("net", "cut", "host-1", "--plane", "bmc", "--direction", "out")
	b.wantSilent("storage plane cut")
	if shown := fmt.Sprint(b.lab("net", "show", "host-1")["cuts"]); shown != "map[bmc:out storage:both]" {
		b.Errorf("net show tells of %s", shown)
	}
	b.undo(said)
	if shown := fmt.Sprint(b.lab("net", "show", "host-1")["cuts"]); shown != "map[bmc:out]" {
		b.Errorf("after the heal of storage net show tells of %s", shown)
	}
	b.lab("net", "heal", "host-1", "--plane", "all")
	b.wantWriting()
}

func (b broken) hang(kind HangKind) {
	b.wantWriting()
	said := b.apply("host", "hang", "host-1", "--"+string(kind))
	b.wantSilent("hang " + string(kind))
	h, err := b.Host("host-1")
	must(b.T, err)
	ctx, cancel := context.WithTimeout(b.Context(), time.Second)
	defer cancel()
	conn, err := b.Dialer(clientNS)(ctx, "tcp", net.JoinHostPort(h.Address(), "10250"))
	switch {
	case kind == HangUserspace && err != nil:
		b.Errorf("the kernel of a host whose userspace hangs refuses a connection: %v", err)
	case kind == HangDead && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err):
		b.Errorf("a dead host answers a connection: %v", err)
	}
	if err == nil {
		must(b.T, conn.Close())
	}
	b.undo(said)
	b.wantWriting()
	client, err := b.Client()
	must(b.T, err)
	now := awaitPod(b.T, client, podReady)
	if now.UID != b.pod.UID || now.Status.ContainerStatuses[0].RestartCount != 0 {
		b.Errorf("after the hang the pod is %s with %d restarts, want the same without restart", now.UID, now.Status.ContainerStatuses[0].RestartCount)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (b broken) stopOneAPIServer() {
	answers := func(server int, limit time.Duration) error {
		kubeconfig, err := b.KubeconfigOf(server)
		must(b.T, err)
		client, err := clientFrom(kubeconfig)
		must(b.T, err)
		ctx, cancel := context.WithTimeout(b.Context(), limit)
		defer cancel()
		_, err = client.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
		return err
	}
	said := b.apply("api", "stop", "--server", "2")
	if err := answers(1, 10*time.Second); err != nil {
		b.Errorf("API server 1 with server 2 stopped: %v", err)
	}
	if err := answers(2, time.Second); err == nil {
		b.Error("an API server that is stopped answers")
	}
	b.undo(said)
	if err := answers(2, 10*time.Second); err != nil {
		b.Errorf("API server 2 after its start: %v", err)
	}
	if out, err := runCommand(b.T, "api", "stop", "--server", "3", "--lab", b.Name()); err == nil || !strings.Contains(out, "it has 1 to 2") {
		b.Errorf("stop of API server 3: %v, %q", err, out)
	}
}

func (b broken) breakBMC() {
	h, err := b.Host("host-1")
	must(b.T, err)
	said := b.apply("bmc", "fault", "host-1", "--mode", "dead")
	id, running := h.BMC().Process()
	if !running || !id.Stopped() {
		b.Errorf("process of a dead BMC: running %v, stopped %v", running, id.Stopped())
	}
	b.undo(said)
	mode, err := bmc.ReadMode(h.BMC().Dir)
	if id, running := h.BMC().Process(); err != nil || mode != bmc.Clear || !running || id.Stopped() {
		b.Errorf("after clear: mode %v, %v, running %v, stopped %v", mode, err, running, id.Stopped())
	}
}

// forgottenConnection: the kubelet waited in vain for answers on the hung
// connection, far longer than between two heartbeats, and then made another.
func (b broken) forgottenConnection(connections string) {
	if !strings.Contains(connections, "10.90.0.102:") || !strings.Contains(connections, ">10.90.0.2:6443") {
		b.Errorf("hung connections %q, want the kubelet's to API server 1", connections)
	}
	hung, err := b.Events(events.Filter{Sources: []events.Source{events.Faults}})
	must(b.T, err)
	first := slices.IndexFunc(hung, func(e events.Event) bool {
		return e.Fault.Fault == faultConnection && e.Fault.State == fault.Applied
	})
	since := hung[first].Mono + (100 * time.Millisecond).Nanoseconds() // a request may have been on its way
	fromKubelet := events.Query{User: "system:node:host-2", Match: func(r events.Request) bool { return r.Received > since }}
	var silence time.Duration
	must(b.T, untilAPI(within(b.T, time.Minute), "host-2's kubelet to make another connection", func() (bool, error) {
		later, err := b.Requests(fromKubelet)
		for i, r := range later {
			if gap := time.Duration(r.Received - since); i == 0 || gap < silence {
				silence = gap
			}
		}
		return len(later) > 0, err
	}))
	if silence < 4*time.Second {
		b.Errorf("the kubelet was heard %v after its connection was hung up", silence)
	}
	b.lab("api", "resume-connection", "host-2")
	if shown := fmt.Sprint(b.lab("net", "show", "host-2")["hungConnections"]); shown != "[]" {
		b.Errorf("after resume-connection %s hang", shown)
	}
}

// timeline: all that was done is told, in order, by the command and in Go.
func (b broken) timeline() {
	out, err := runCommand(b.T, "events", "--lab", b.Name(), "-o", "json", "--max-gap", "500ms")
	must(b.T, err)
	var last int64
	seen, sources := map[string]int{}, map[events.Source]bool{}
	for line := range strings.Lines(out) {
		var e events.Event
		must(b.T, json.Unmarshal([]byte(line), &e))
		if e.Mono < last || e.Damaged != "" {
			b.Errorf("event after %d is out of order or damaged: %s", last, e)
		}
		last = e.Mono
		sources[e.Source] = true
		if e.Fault != nil {
			seen[e.Fault.Fault+" "+string(e.Fault.State)]++
		}
	}
	for _, name := range []string{faultCut, faultHang, faultAPI, faultBMC, faultConnection, faultKubelet, faultPower} {
		for _, state := range []fault.State{fault.Begin, fault.Applied, fault.Undone} {
			if seen[name+" "+string(state)] == 0 {
				b.Errorf("the timeline does not tell of %s %s", name, state)
			}
		}
	}
	if seen["power-off begin"] != 1 || seen["power-off undone"] != 1 {
		b.Errorf("one power cycle, whose commands were repeated, is told as %v", seen)
	}
	for _, source := range []events.Source{events.Faults, events.Audit, events.Volumes, events.Writes} {
		if !sources[source] {
			b.Errorf("the timeline has no event from %s", source)
		}
	}
	requests, err := b.Requests(events.ToPod("default", "ledger"))
	must(b.T, err)
	var told []string
	for _, r := range requests {
		told = append(told, r.String())
	}
	for _, want := range []string{"create pods default/ledger 201", "system:node:host-1 patch pods/status default/ledger 200"} {
		if !slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, want) }) {
			b.Errorf("the requests to the pod do not tell of %q:\n  %s", want, strings.Join(told, "\n  "))
		}
	}
	now := mono.Nanoseconds()
	if n := len(requests); n == 0 || requests[n-1].Mono > now || requests[n-1].Mono < now-(10*time.Minute).Nanoseconds() {
		b.Errorf("the last of %d requests to the pod is not of this test's time: now %d", n, now)
	}
}
