// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// settle is how long everything has been well before programs are called at rest.
const settle = 30 * time.Second

// sample is what a process had used at a moment.
type sample struct {
	process.ID
	at  int64 // CLOCK_MONOTONIC
	cpu time.Duration
}

// meter knows what the programs of Holdfast had used before the first fault.
type meter struct {
	b *bench
	// begun is by pod, for managers, or by host, for agents; rest is what the same used at rest, and rested for how long.
	begun  map[string]sample
	rest   map[string]time.Duration
	rested time.Duration
}

// rest looks on for a while with nothing the matter.
func (b *bench) rest(ctx context.Context) (*meter, error) {
	if err := b.well(ctx); err != nil {
		return nil, err
	}
	if err := wait(ctx, settle); err != nil {
		return nil, err
	}
	m := &meter{b: b, rest: map[string]time.Duration{}, rested: b.o.quiet}
	before, err := m.samples(ctx)
	if err != nil {
		return nil, err
	}
	campaign.Tell("%d programs at rest, for %s", len(before), b.o.quiet)
	if err := wait(ctx, b.o.quiet); err != nil {
		return nil, err
	}
	if m.begun, err = m.samples(ctx); err != nil {
		return nil, err
	}
	for key, s := range m.begun {
		if first, ok := before[key]; ok && first.ID == s.ID {
			m.rest[key] = s.cpu - first.cpu
		}
	}
	return m, nil
}

// pods are Holdfast's, by what their programs are called in a meter; those on hosts without power are left out.
func (m *meter) pods(ctx context.Context) (map[string]*corev1.Pod, error) {
	var all corev1.PodList
	if err := m.b.s.Client.List(ctx, &all); err != nil {
		return nil, err
	}
	found := map[string]*corev1.Pod{}
	for i := range all.Items {
		p := &all.Items[i]
		switch {
		case p.Status.Phase != corev1.PodRunning || slices.Contains(m.b.dark, p.Spec.NodeName):
		case p.Namespace == stage.HoldfastNamespace:
			found[p.Name] = p
		case p.Namespace == manifest.Namespace:
			found[p.Spec.NodeName] = p
		}
	}
	return found, nil
}

func command(p *corev1.Pod) string {
	if p.Namespace == manifest.Namespace {
		return "witness"
	}
	return "manager"
}

func (m *meter) samples(ctx context.Context) (map[string]sample, error) {
	pods, err := m.pods(ctx)
	if err != nil {
		return nil, err
	}
	samples := map[string]sample{}
	for key, p := range pods {
		id, err := m.b.s.ProcessOf(p, command(p))
		if err != nil {
			return nil, err
		}
		cpu, err := cpuOf(id)
		if err != nil {
			return nil, err
		}
		samples[key] = sample{id, mono.Nanoseconds(), cpu}
	}
	return samples, nil
}

// keep appends a row for each program that runs now.
func (m *meter) keep(ctx context.Context) error {
	if err := m.b.well(ctx); err != nil {
		return err
	}
	pods, err := m.pods(ctx)
	if err != nil {
		return err
	}
	leader, err := m.b.s.Leader(ctx)
	if err != nil {
		return err
	}
	now, err := m.samples(ctx)
	if err != nil {
		return err
	}
	var keys []string
	for key := range now {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		u, err := m.usage(key, now[key])
		if err != nil {
			return err
		}
		u.Host, u.Program = pods[key].Spec.NodeName, programOf(pods[key], leader)
		campaign.Tell("%s on %s: %d KiB resident, %d of them its own", u.Program, u.Host, u.RSS, u.Anon)
		if err := figures.AppendUsage(m.b.o.usages(), u); err != nil {
			return err
		}
	}
	return nil
}

func programOf(p, leader *corev1.Pod) figures.Program {
	switch {
	case p.Namespace == manifest.Namespace:
		return figures.Agent
	case client.ObjectKeyFromObject(p) == client.ObjectKeyFromObject(leader):
		return figures.Leader
	default:
		return figures.Standby
	}
}

// usage is what one process used: since the first fault, or since its own beginning if that was later.
func (m *meter) usage(key string, now sample) (figures.Usage, error) {
	u := figures.Usage{Commit: m.b.commit, Seed: m.b.o.seed}
	if used, ok := m.rest[key]; ok {
		u.Rest, u.RestCPU = m.rested, used
	}
	from, ok := m.begun[key]
	if !ok || from.ID != now.ID {
		from = sample{at: monoOfTicks(now.Start)}
	}
	u.Span, u.CPU = time.Duration(now.at-from.at), now.cpu-from.cpu
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", now.PID))
	if err != nil {
		return u, err
	}
	for name, to := range map[string]*int{"VmRSS": &u.RSS, "RssAnon": &u.Anon, "RssFile": &u.File} {
		if *to, err = kib(string(text), name); err != nil {
			return u, fmt.Errorf("process %d: %w", now.PID, err)
		}
	}
	return u, nil
}

// kib reads a line of /proc/PID/status such as "VmRSS:     2048 kB".
func kib(status, name string) (int, error) {
	for line := range strings.Lines(status) {
		if rest, found := strings.CutPrefix(line, name+":"); found {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, fmt.Errorf("its status has no line %s", name)
}

// cpuOf is the processor's time that a process has taken, for itself and in the kernel, to a hundredth of a second.
func cpuOf(id process.ID) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id.PID))
	if err != nil {
		return 0, err
	}
	return cpuIn(string(text))
}

// cpuIn reads fields 14 and 15 of "pid (command) state …"; the command may hold spaces and parentheses.
func cpuIn(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // fields[0] is field 3
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat line %q has too few fields", stat)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat line %q: %w", stat, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
