// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// blockedFor is how long an incident may wait for a person until the demo gives up: nobody comes.
const blockedFor = 10 * time.Second

// powerIsLost is the second scene: the ledger has to move, and only after proof.
func (d *demo) powerIsLost(ctx context.Context) error {
	d.title("Scene 2", "the host loses its power")
	if err := d.ledgerLine(ctx); err != nil {
		return err
	}
	if d.o.bmcDead {
		if _, err := d.do(ctx, "bmc", "fault", d.host, "--mode", "dead"); err != nil {
			return err
		}
	}
	var err error
	if d.lost, err = d.do(ctx, "host", "power-off", d.host); err != nil {
		return err
	}
	d.heading("What Kubernetes alone would do now")
	d.say("  at  50 s  the Node is NotReady; until then clients are sent to a dead host")
	d.say("  at 350 s  the pod is deleted, stays Terminating forever, and a StatefulSet starts no other:")
	d.say("            the ledger is down until somebody who knows that the host is off says so")
	d.heading("What Holdfast does")
	d.say("Silence is no proof, and neither is a device that happens to read Off. Holdfast writes down that it will command Off, commands it, taints the Node, " +
		"and reads Off again from a device with the right machine's identity. That is proof, for this boot; only then is the pod released.")
	incident, err := d.awaitResolved(ctx)
	if err != nil {
		return err
	}
	if err := d.status(ctx); err != nil {
		return err
	}
	d.line("", "")
	for _, p := range incident.Status.Phases {
		if p.DurationMillis >= 0 {
			d.line("", fmt.Sprintf("  phase %-11s %5d ms", p.Name, p.DurationMillis))
		}
	}
	if err := d.ledgerLine(ctx); err != nil {
		return err
	}
	if err := d.secondPromise(ctx); err != nil {
		return err
	}
	d.heading("The host comes back")
	if _, err := d.do(ctx, "host", "power-on", d.host); err != nil {
		return err
	}
	return d.awaitReturn(ctx, incident.Name)
}

// awaitResolved follows the incident and tells each change, until the ledger serves elsewhere.
func (d *demo) awaitResolved(ctx context.Context) (*v1alpha1.HostIncident, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stuck := time.AfterFunc(time.Hour, cancel)
	stuck.Stop()
	defer stuck.Stop()
	var last *v1alpha1.HostIncident
	var told []string
	found, err := d.s.AwaitIncident(ctx, d.host, "the ledger to serve elsewhere", func(h *v1alpha1.HostIncident) bool {
		if h.Status.Step == v1alpha1.StepClosed || h.Status.Step == "" {
			return false // the first scene's, or only just made
		}
		if blocked := stage.Is(h.Status.Conditions, v1alpha1.ConditionBlocked); !blocked {
			stuck.Stop()
		} else if last == nil || !stage.Is(last.Status.Conditions, v1alpha1.ConditionBlocked) {
			stuck.Reset(blockedFor)
		}
		last = h
		for _, line := range progress(h) {
			if !slices.Contains(told, line) {
				told = append(told, line)
				d.at(since(d.lost), line)
			}
		}
		return h.Status.Step == v1alpha1.StepResolved
	})
	if err == nil || last == nil {
		return found, err
	}
	why := fmt.Sprintf("the ledger was not migrated within %.0f s", since(d.lost).Seconds())
	if c := meta.FindStatusCondition(last.Status.Conditions, v1alpha1.ConditionBlocked); c != nil && c.Status == "True" {
		why += fmt.Sprintf(": incident %s is blocked: %s", last.Name, c.Message)
	}
	return nil, errors.Join(errors.New(why), d.status(context.WithoutCancel(ctx)))
}

// progress puts an incident into lines that do not change once they are true.
func progress(h *v1alpha1.HostIncident) []string {
	var lines []string
	if len(h.Status.Findings) > 0 && (h.Status.Verdict == "Silent" || h.Status.Verdict == "Lost") {
		lines = append(lines, fmt.Sprintf("verdict %s by rule %s", h.Status.Verdict, h.Status.Findings[0].Rule))
	}
	for _, a := range h.Status.Attempts {
		line := fmt.Sprintf("Off by %s, attempt %s: %s", a.Method, a.ID, a.State)
		if a.State == v1alpha1.AttemptIntended {
			line += fmt.Sprintf(" (device read %s before)", a.PowerBefore)
		}
		lines = append(lines, line)
	}
	if p := h.Status.Proof; p != nil {
		lines = append(lines, fmt.Sprintf("proof %s: commanded, tainted, read Off again, machine %.8s, boot %.8s", p.Strength, p.Identity, p.BootID))
	}
	for _, p := range h.Status.Pods {
		if p.ReleasedAt != nil {
			lines = append(lines, fmt.Sprintf("pod %s/%s released", p.Namespace, p.Name))
		}
	}
	if c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionBlocked); c != nil && c.Status == "True" {
		lines = append(lines, "blocked: "+c.Message)
	}
	return append(lines, "step "+string(h.Status.Step))
}

// secondPromise judges by the logs of the BMC, the API server and the array: proof first, then release, then the new writer.
func (d *demo) secondPromise(ctx context.Context) error {
	d.heading("Did it hold?")
	if err := d.s.AwaitServed(ctx); err != nil {
		return err
	}
	calls, err := d.s.Calls(d.host, d.lost)
	if err != nil {
		return err
	}
	offs := stage.Offs(calls)
	if len(offs) == 0 {
		return fmt.Errorf("the BMC of %s was never commanded Off", d.host)
	}
	read := int64(0)
	for _, c := range calls {
		if c.Op == "get" && c.Value == "off" && c.Mono > offs[0].Mono {
			read = c.Mono
			break
		}
	}
	released, err := d.s.Asked(d.lost, events.Query{Verbs: []string{"delete"}, Resource: "pods", Namespace: stage.Namespace, Name: stage.Pod, Match: stage.ByHoldfast})
	if err != nil {
		return err
	}
	writers, err := d.s.Writers(ctx, d.lost, mono.Nanoseconds())
	if err != nil {
		return err
	}
	writers = slices.DeleteFunc(writers, func(w stage.Writer) bool { return w.Host == d.host })
	if len(released) == 0 || len(writers) != 1 {
		return fmt.Errorf("%d deletes by Holdfast in the audit log and %d new writers in the array's; both must be one", len(released), len(writers))
	}
	order := []int64{offs[0].Mono, read, released[0].Received, writers[0].First}
	if read == 0 || !slices.IsSorted(order) {
		return fmt.Errorf("the order was not Off, read Off, release, new writer: %v", order)
	}
	d.kept(fmt.Sprintf("BMC, audit and array logs: Off commanded at %+.1fs, read Off at %+.1fs, pod released at %+.1fs, first write on %s at %+.1fs",
		d.after(order[0]), d.after(order[1]), d.after(order[2]), writers[0].Host, d.after(order[3])))
	pause, err := d.outage()
	if err != nil {
		return err
	}
	d.kept(fmt.Sprintf("the client waited %.1f s for its next acknowledgement", pause.Seconds()))
	return d.judged(ctx)
}

// after is when an instant was, in seconds since the loss of power.
func (d *demo) after(instant int64) float64 { return time.Duration(instant - d.lost).Seconds() }

// outage is the client's longest pause since just before the loss of power.
func (d *demo) outage() (time.Duration, error) {
	acks, err := d.s.Acks(d.lost - int64(time.Second))
	longest := int64(0)
	for i := 1; i < len(acks); i++ {
		longest = max(longest, acks[i].Mono-acks[i-1].Mono)
	}
	return time.Duration(longest), err
}

// awaitReturn waits for the return gate: a new boot, nothing left of the old one, and no taint of ours.
func (d *demo) awaitReturn(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	on := mono.Nanoseconds()
	_, err := d.s.AwaitIncident(ctx, d.host, "its end", func(h *v1alpha1.HostIncident) bool { return h.Name == name && h.Status.Step == v1alpha1.StepClosed })
	if err != nil {
		return fmt.Errorf("the return gate did not open: %w", err)
	}
	_, err = d.s.AwaitNode(ctx, d.host, "a Node without our taints", func(n *corev1.Node) bool {
		return stage.NodeReady(n) && !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == v1alpha1.TaintFenced || t.Key == v1alpha1.TaintOutOfService
		})
	})
	if err != nil {
		return err
	}
	d.at(since(on), "after power-on: a new boot, nothing left of the old one; the taints are off, incident "+name+" is closed")
	if err := d.status(ctx); err != nil {
		return err
	}
	return d.show(ctx, "get", "nodes")
}
