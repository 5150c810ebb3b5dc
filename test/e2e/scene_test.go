// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// patience bounds what a scene waits for: with the timings of Kubernetes, a taint that evicts after 350 s. Scenes measure; only where a time is promised
// do they judge it.
func patience() time.Duration { return pick(90*time.Second, 8*time.Minute) }

// scene is one play on the theatre. All waiting ends with ctx.
type scene struct {
	*testing.T
	*stage.Stage
	ctx context.Context //nolint:containedctx // as testing.T holds its own
	// host carries the ledger, pod is the ledger as the scene begins.
	host *lab.Host
	boot string
	pod  *corev1.Pod
	// parts are the actors on that host, the ledger first.
	parts []part
	// since is when the fault began, CLOCK_MONOTONIC in nanoseconds.
	since int64
	times map[string]time.Duration
}

// part is an actor of a scene, and its pod as the scene begins.
type part struct {
	*stage.Actor
	pod *corev1.Pod
	// quarrels is how often two wrote to its volume at once, in earlier scenes.
	quarrels int
}

// Columns of the table of times, each counted from the fault. A gap is for how long a guarded Service led nowhere, held for how long nothing was let go.
var columns = []string{"detected", "proven", "released", "recovered", "leader", "endpoint out", "gap", "held"}

type row struct {
	scene string
	times map[string]time.Duration
}

var rows []row

// tellTimes prints what the scenes measured, as a table of Markdown, and keeps it in out/stage/times.md: a run that passes has its output hidden.
func tellTimes() error {
	if len(rows) == 0 {
		return nil
	}
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\n| scene\t| %s\t|\n", strings.Join(columns, "\t| "))
	fmt.Fprintf(w, "|---%s\t|\n", strings.Repeat("\t|---", len(columns)))
	for _, r := range rows {
		fmt.Fprintf(w, "| %s", r.scene)
		for _, c := range columns {
			text := ""
			if d, ok := r.times[c]; ok {
				text = fmt.Sprintf("%.2f s", d.Seconds())
			}
			fmt.Fprintf(w, "\t| %s", text)
		}
		fmt.Fprintln(w, "\t|")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Print(out.String())
	return os.WriteFile(filepath.Join(theatre.Lab.Root(), "out", "stage", "times.md"), out.Bytes(), 0o644)
}

// play begins a scene: everything is well, and the ledger runs on the host that choose names, with an actor for each role beside it. After it, everything
// is mended, well or not.
func play(t *testing.T, choose func(scene) string, roles ...stage.Role) *scene {
	t.Helper()
	s := &scene{T: t, Stage: raise(t), ctx: t.Context(), times: map[string]time.Duration{}}
	t.Cleanup(func() {
		rows = append(rows, row{t.Name(), s.times})
		if t.Failed() {
			t.Log(s.Diagnose(context.Background()))
		}
		s.mend()
	})
	s.well()
	actors := append([]*stage.Actor{s.Actor}, s.engage(roles)...)
	name := choose(*s)
	var err error
	s.host, err = s.Lab.Host(name)
	s.must(err)
	placed, err := s.Place(s.soon(), name, actors...)
	s.must(err)
	s.pod = placed[0]
	for i, a := range actors {
		if !a.Unguarded {
			s.must(a.AwaitReady(s.soon()))
		}
		before, err := a.Judge(s.ctx)
		s.must(err)
		s.parts = append(s.parts, part{Actor: a, pod: placed[i], quarrels: len(before.Interleavings)})
	}
	s.boot, err = s.host.BootID()
	s.must(err)
	return s
}

// engage brings on who is wanted and is not there, and sends off who is there from another scene and not wanted.
func (s *scene) engage(roles []stage.Role) []*stage.Actor {
	s.Helper()
	theatre.actors = slices.DeleteFunc(theatre.actors, func(a *stage.Actor) bool {
		wanted := slices.Contains(roles, a.Role)
		if !wanted {
			s.must(a.Exit(s.soon()))
		}
		return !wanted
	})
	var cast []*stage.Actor
	for _, r := range roles {
		i := slices.IndexFunc(theatre.actors, func(a *stage.Actor) bool { return a.Role == r })
		if i < 0 {
			a, err := s.Enter(s.soon(), r)
			s.must(err)
			theatre.actors = append(theatre.actors, a)
			i = len(theatre.actors) - 1
		}
		s.must(theatre.actors[i].AwaitServed(s.soon()))
		cast = append(cast, theatre.actors[i])
	}
	return cast
}

// guarded are the parts that Holdfast guards.
func (s *scene) guarded() []part {
	return slices.DeleteFunc(slices.Clone(s.parts), func(p part) bool { return p.Unguarded })
}

// free is a host without any part of Holdfast, besideTheLeader the leader's.
func free(s scene) string {
	s.Helper()
	name, err := s.FreeHost(s.soon())
	s.must(err)
	return name
}

func besideTheLeader(s scene) string {
	s.Helper()
	p, err := s.Leader(s.soon())
	s.must(err)
	return p.Spec.NodeName
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// soon is a deadline for one wait.
func (s *scene) soon() context.Context { return s.within(patience()) }

func (s *scene) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, d)
	s.Cleanup(cancel)
	return ctx
}

// begin marks the fault's beginning.
func (s *scene) begin() {
	s.phase()
	s.since = mono.Nanoseconds()
}

// mark keeps how long after the fault something was there.
func (s *scene) mark(column string) {
	s.times[column] = time.Duration(mono.Nanoseconds() - s.since)
}

// well waits until nothing is the matter.
func (s *scene) well() {
	s.Helper()
	s.hostsWell()
	s.must(s.Scale(s.soon(), stage.Replicas))
	s.must(s.AwaitReady(s.soon()))
	s.must(s.AwaitServed(s.soon()))
}

// hostsWell waits until every host is Ready and takes work.
func (s *scene) hostsWell() {
	s.Helper()
	for _, h := range s.Lab.Hosts() {
		_, err := s.AwaitNode(s.soon(), h.Name(), h.Name()+" to be Ready and without taints", func(n *corev1.Node) bool {
			return stage.NodeReady(n) && len(n.Spec.Taints) == 0
		})
		s.must(err)
	}
}

// mend undoes every fault that a scene may have left.
func (s *scene) mend() {
	if err := s.Lab.StartAPI(context.Background(), 0); err != nil {
		s.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	for _, h := range s.Lab.Hosts() {
		err := errors.Join(h.SetBMCMode(ctx, bmc.Clear), h.Heal(ctx, fault.All, fault.Both), h.EndHang(ctx))
		if !h.Powered() {
			err = errors.Join(err, h.PowerOn(ctx))
		}
		if err := errors.Join(err, h.StartKubelet(ctx)); err != nil {
			s.Error(err)
		}
		if _, err := s.Kubectl(ctx, "uncordon", h.Name()); err != nil {
			s.Error(err)
		}
	}
}

// incident waits for the host's incident of this boot, one that was opened after the fault, to reach something.
func (s *scene) incident(what string, reached func(*v1alpha1.HostIncident) bool) *v1alpha1.HostIncident {
	s.Helper()
	opened := time.Now().Add(-time.Duration(mono.Nanoseconds() - s.since)).Truncate(time.Second)
	h, err := s.AwaitIncident(s.soon(), s.host.Name(), what, func(h *v1alpha1.HostIncident) bool {
		return h.Spec.BootID == s.boot && !h.CreationTimestamp.Time.Before(opened) && reached(h)
	})
	s.must(err)
	return h
}

func step(want v1alpha1.IncidentStep) func(*v1alpha1.HostIncident) bool {
	return func(h *v1alpha1.HostIncident) bool { return h.Status.Step == want }
}

func verdict(want string) func(*v1alpha1.HostIncident) bool {
	return func(h *v1alpha1.HostIncident) bool { return h.Status.Verdict == want }
}

func condition(kind string) func(*v1alpha1.HostIncident) bool {
	return func(h *v1alpha1.HostIncident) bool { return stage.Is(h.Status.Conditions, kind) }
}

// untouched checks that the guarded pods are those they were, and that nobody wants them gone.
func (s *scene) untouched(after string) {
	s.Helper()
	for _, p := range s.guarded() {
		var now corev1.Pod
		if err := s.Client.Get(s.ctx, client.ObjectKeyFromObject(p.pod), &now); err != nil {
			s.Fatalf("after %s: %v", after, err)
		}
		if now.UID != p.pod.UID || now.DeletionTimestamp != nil || now.Spec.NodeName != p.pod.Spec.NodeName {
			s.Fatalf("after %s %s is pod %s on %s, deleted %v; want %s on %s, not deleted",
				after, p.pod.Name, now.UID, now.Spec.NodeName, now.DeletionTimestamp, p.pod.UID, p.pod.Spec.NodeName)
		}
	}
}

// judged lets ledger-check speak about every guarded part.
func (s *scene) judged() {
	s.Helper()
	for _, p := range s.guarded() {
		j, err := p.Judge(s.ctx)
		s.must(err)
		if err := j.Guilty(); err != nil {
			s.Errorf("%s: %v", p.Name, err)
		}
	}
}

// secondWriter waits until two write to the part's volume at once: for parts that nobody guards, or not well enough.
func (s *scene) secondWriter(p part) {
	s.Helper()
	s.poll("the second writer of "+p.Name, func() (bool, error) {
		j, err := p.Judge(s.ctx)
		return len(j.Interleavings) > p.quarrels, err
	})
}

// says checks that every word is in what was said.
func (s *scene) says(who, said string, words ...string) {
	s.Helper()
	for _, w := range words {
		if !strings.Contains(said, w) {
			s.Errorf("%s: %q is not in: %s", who, w, said)
		}
	}
}

// poll asks for what no watch tells, such as an audit log, four times a second.
func (s *scene) poll(what string, reached func() (bool, error)) {
	s.Helper()
	ctx := s.soon()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := reached()
		s.must(err)
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.Fatalf("waiting for %s: %v", what, ctx.Err())
		}
	}
}

// patchedBy is a patch of a pod's status by Holdfast for the reason given.
func patchedBy(pod, reason string) events.Query {
	return events.Query{Verbs: []string{"patch"}, Resource: "pods", Subresource: "status", Namespace: stage.Namespace, Name: pod,
		Match: func(r events.Request) bool {
			return r.Code == 200 && stage.ByHoldfast(r) && strings.Contains(string(r.Sent), reason)
		}}
}

// asked returns the first such request since the fault.
func (s *scene) asked(what string, q events.Query) events.Request {
	s.Helper()
	found, err := s.Asked(s.since, q)
	s.must(err)
	if len(found) == 0 {
		s.Fatalf("%s is not in the audit log", what)
	}
	return found[0]
}
