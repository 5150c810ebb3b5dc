// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// played is a case whose host is lost, or is about to be.
type played struct {
	figures.Case
	// actor is the application if it is guarded, and clients have connections to it.
	actor   *stage.Actor
	clients []*stage.Connection
	// confirmAfter is what its guard asks for.
	confirmAfter time.Duration
	pod          *corev1.Pod // the application as it was
	volume       string
	host         string
	t0           mono.Stamp
	// leaseAge is how old the host's lease was at t0.
	leaseAge time.Duration
	// journal is how long the array's log of writes was at t0.
	journal int64
	// interleavings is how many the volume had before.
	interleavings int
}

// write is as much of a line of the array's log as is needed.
type write struct {
	Mono   int64  `json:"mono"`
	Volume string `json:"volume"`
	Host   string `json:"host"`
	Result string `json:"result"`
	Op     string `json:"op"`
}

func (b *bench) journalPath() string {
	return filepath.Join(b.s.Lab.StateDir(), "array", "writes.jsonl")
}

func (b *bench) journalSize() (int64, error) {
	stat, err := os.Stat(b.journalPath())
	if err != nil {
		return 0, err
	}
	return stat.Size(), nil
}

// measure waits for the first write of the application elsewhere, or gives up, and appends the row.
func (b *bench) measure(ctx context.Context, p played, within time.Duration) error {
	row := figures.Row{Commit: b.commit, Case: p.Case, Timings: string(b.s.Lab.Timings()), T0: p.t0.Wall, LeaseAge: p.leaseAge, Host: p.host,
		Outcome: figures.Recovered, ConfirmAfter: p.confirmAfter, Clients: len(p.clients), Marks: map[figures.Mark]time.Duration{}}
	limit, cancel := context.WithTimeout(ctx, within-time.Duration(mono.Nanoseconds()-p.t0.Mono))
	defer cancel()
	first, err := b.firstWrite(limit, p)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		row.Outcome, row.CensoredAt = figures.Censored, within
	case err != nil:
		return err
	default:
		row.NewHost = first.Host
		row.Marks[figures.FirstWrite] = time.Duration(first.Mono - p.t0.Mono)
		b.markStart(ctx, p, row)
	}
	p.markClients(ctx, row)
	if err := b.markPath(p, row); err != nil {
		return err
	}
	found, err := b.s.JudgeVolume(ctx, p.volume)
	if err != nil {
		return err
	}
	row.Interleavings = len(found.Interleavings) - p.interleavings
	return b.keep(row, p.volume, len(found.Interleavings))
}

// keep appends the row to the file, and tells it. The volume has been judged as far as this.
func (b *bench) keep(row figures.Row, volume string, quarrels int) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.quarrels[volume] = quarrels
	var way []string
	for _, m := range slices.Concat(figures.Marks, []figures.Mark{figures.EndpointOut}, figures.Ends) {
		if d, ok := row.Marks[m]; ok {
			way = append(way, fmt.Sprintf("%s %.2f", m, d.Seconds()))
		}
	}
	campaign.Tell("%s case %d: %s; %s", row.Kind, row.Number, row.Outcome, strings.Join(way, ", "))
	return figures.Append(b.o.rows(), row)
}

// firstWrite follows the array's log until another host than the lost one has written to the volume.
func (b *bench) firstWrite(ctx context.Context, p played) (write, error) {
	file, err := os.Open(b.journalPath())
	if err != nil {
		return write{}, err
	}
	defer file.Close()
	from := max(0, p.journal-64<<10) // a line may have been written by half; lines before t0 do not count
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return write{}, err
	}
	lines := &tail{from: bufio.NewReaderSize(file, 64<<10), cut: from > 0}
	var first write
	err = await.Every(ctx, 200*time.Millisecond, "a write to "+p.volume+" on another host than "+p.host, func() (bool, error) {
		return lines.find(p.volume, func(w write) bool {
			first = w
			return w.Mono > p.t0.Mono && w.Host != p.host && w.Result == "ok" && w.Op == ""
		})
	})
	return first, err
}

// tail reads a growing file by lines.
type tail struct {
	from *bufio.Reader
	rest []byte
	cut  bool // the first line has lost its beginning
}

// find looks through the writes to the volume that are there, up to the first that is wanted.
func (t *tail) find(volume string, wanted func(write) bool) (bool, error) {
	mark := []byte(`"volume":"` + volume + `"`)
	for {
		part, err := t.from.ReadSlice('\n')
		t.rest = append(t.rest, part...)
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return false, err
		}
		line, whole := t.rest, !t.cut
		t.rest, t.cut = t.rest[:0], false
		if !whole || !bytes.Contains(line, mark) {
			continue
		}
		var w write
		if err := json.Unmarshal(line, &w); err != nil {
			return false, fmt.Errorf("%w: %s", err, line)
		}
		if wanted(w) {
			return true, nil
		}
	}
}

// markStart marks when the process of the successor started, by its own record in /proc. One that is gone again has no mark.
func (b *bench) markStart(ctx context.Context, p played, row figures.Row) {
	var pods corev1.PodList
	if err := b.s.Client.List(ctx, &pods, client.InNamespace(p.pod.Namespace)); err != nil {
		return
	}
	for i := range pods.Items {
		next := &pods.Items[i]
		if next.UID == p.pod.UID || next.Labels["app"] != p.pod.Labels["app"] || next.Spec.NodeName != row.NewHost {
			continue
		}
		process, err := b.s.ProcessOf(next, "ledger")
		if err != nil {
			continue
		}
		row.Marks[figures.Started] = time.Duration(monoOfTicks(process.Start) - p.t0.Mono)
	}
}

// monoOfTicks converts /proc's start time, in hundredths of a second since boot, to CLOCK_MONOTONIC. They differ by the time the machine slept.
func monoOfTicks(ticks uint64) int64 {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		panic("CLOCK_BOOTTIME cannot be read: " + err.Error()) // every Linux kernel has it
	}
	return int64(ticks)*int64(10*time.Millisecond) - (boot.Nano() - mono.Nanoseconds())
}

// markPath marks what the API's audit log, the BMC and the array recorded on the way.
func (b *bench) markPath(p played, row figures.Row) error {
	mark := func(m figures.Mark, at int64) {
		if _, there := row.Marks[m]; !there && at >= p.t0.Mono {
			row.Marks[m] = time.Duration(at - p.t0.Mono)
		}
	}
	if p.Kind.ByHoldfast() {
		calls, err := b.s.Calls(p.host, p.t0.Mono)
		if err != nil {
			return err
		}
		if offs := stage.Offs(calls); len(offs) > 0 {
			mark(figures.Commanded, offs[0].Mono)
		}
	}
	volumes, err := b.s.Lab.Events(events.Filter{Since: p.t0.Mono, Sources: []events.Source{events.Volumes}})
	if err != nil {
		return err
	}
	for _, e := range volumes {
		switch v := e.Volume; {
		case v == nil || v.Volume != p.volume:
		case v.Event == "detach" && v.Host == p.host:
			mark(figures.Detached, e.Mono)
		case v.Event == "mount" && v.Host == row.NewHost:
			mark(figures.Mounted, e.Mono)
		}
	}
	asked, err := b.s.Asked(p.t0.Mono, events.Query{Match: func(r events.Request) bool { return r.Mutating() && r.Code < 300 }})
	for _, r := range asked {
		switch m, ok := meaning(p, r); {
		case !ok:
		case m == figures.Deleted:
			row.Marks[m] = time.Duration(r.Mono - p.t0.Mono) // a pod with a finalizer is gone with the last request
		case m == figures.Opened:
			mark(figures.Suspected, r.Received) // at the latest: traffic and incident are tried in any order
			mark(m, r.Mono)
		case m == figures.Suspected:
			mark(m, r.Received)
		default:
			mark(m, r.Mono)
		}
	}
	return err
}

// meaning says which mark a request that succeeded is, if any.
func meaning(p played, r events.Request) (figures.Mark, bool) {
	name, stock := p.pod.Labels["app"], !p.Kind.ByHoldfast()
	switch {
	case r.Resource == "pods" && r.Subresource == "binding" && r.Namespace == p.pod.Namespace && (r.Name == p.pod.Name || strings.HasPrefix(r.Name, name+"-")):
		return figures.Bound, true
	case r.Resource == "pods" && r.Namespace == p.pod.Namespace && r.Name == p.pod.Name && r.Subresource == "" && of(r).UID == string(p.pod.UID):
		return figures.Deleted, r.Verb == "delete" || r.Verb == "patch" && !stock && of(r).DeletionTimestamp != nil
	case stock && r.Resource == "nodes" && r.Name == p.host && of(r).ready() == corev1.ConditionUnknown && r.Subresource == "status":
		return figures.Suspected, true
	case p.Kind == figures.Human && r.Resource == "nodes" && r.Name == p.host && bytes.Contains(r.Sent, []byte(v1alpha1.TaintOutOfService)):
		return figures.Proven, true
	case stock || !stage.ByHoldfast(r):
		return "", false
	case r.Resource == "pods" && r.Subresource == "status" && r.Name == p.pod.Name && bytes.Contains(r.Sent, []byte("HoldfastStopsServing")):
		return figures.Suspected, true
	case r.Resource == "hostincidents" && r.Verb == "create" && bytes.Contains(r.Sent, []byte(`"`+p.host+`"`)):
		return figures.Opened, true
	case r.Resource == "hostincidents" && r.Subresource == "status" && of(r).proves(p.host):
		return figures.Proven, true
	}
	return "", false
}

// object is as much of any object as marks need.
type object struct {
	UID               string
	DeletionTimestamp *time.Time
	node              string
	proof             bool
	conditions        []corev1.NodeCondition
}

// of reads the object that a request returned; what cannot be read is an empty one.
func of(r events.Request) object {
	var o struct {
		Metadata struct {
			UID               string     `json:"uid"`
			DeletionTimestamp *time.Time `json:"deletionTimestamp"`
		} `json:"metadata"`
		Spec struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
		Status struct {
			Proof      *json.RawMessage       `json:"proof"`
			Conditions []corev1.NodeCondition `json:"conditions"`
		} `json:"status"`
	}
	_ = json.Unmarshal(r.Returned, &o) // a Status, or nothing: no mark
	return object{o.Metadata.UID, o.Metadata.DeletionTimestamp, o.Spec.NodeName, o.Status.Proof != nil, o.Status.Conditions}
}

func (o object) ready() corev1.ConditionStatus {
	i := slices.IndexFunc(o.conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if i < 0 {
		return ""
	}
	return o.conditions[i].Status
}

func (o object) proves(host string) bool { return o.proof && o.node == host }
