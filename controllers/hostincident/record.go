// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/report"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// statusEvery bounds how often an unchanged status is written again, only to show that somebody still looks.
const statusEvery = 30 * time.Second

// record writes the journal and says when to look again. A conflict means that somebody else has written: look at once.
func (r *Reconciler) record(ctx context.Context, w *world, found verdict.Found, todo plan.Plan, acted error) (ctrl.Result, error) {
	swept := r.sweep(ctx, w)
	err := r.journal(ctx, w, found, todo)
	told := r.tellNode(ctx, w, found)
	result := r.again(w, todo)
	switch all := errors.Join(acted, swept, err, told); {
	case all == nil:
	case errors.Is(all, errSofter), apierrors.IsConflict(all), apierrors.IsAlreadyExists(all):
		logf.FromContext(ctx).Info("Looking again", "because", all.Error())
	case apierrors.IsForbidden(all), apierrors.IsInvalid(all):
		return ctrl.Result{}, all // a mistake of ours or of the installation: back off, and say so
	default:
		// Trouble on the way to the API or the device is what this controller lives with; it must not slow down the next look.
		logf.FromContext(ctx).Error(all, "A step failed; looking again")
	}
	return result, nil
}

// journal writes the incident's status under its optimistic lock, if anything that matters changed.
func (r *Reconciler) journal(ctx context.Context, w *world, found verdict.Found, todo plan.Plan) error {
	h := w.incident
	if h == nil {
		return nil
	}
	before := h.Status.DeepCopy()
	if h.Status.Step == "" {
		r.advance(w, v1alpha1.StepSuspected)
	}
	r.notePods(w)
	r.noteResets(w)
	report.Incident(&h.Status, w.seen, found, todo, r.Clock.Wall)
	r.tellTurns(w, before.Conditions)
	h.Status.ObservedBy, h.Status.JournalVersion = r.Self, v1alpha1.JournalVersion
	h.Status.Attempts = compact(h.Status.Attempts, h.Status.Proof, w.counting)
	if w.settings != nil {
		h.Status.Settings = w.settings
	}
	written, known := r.phases.wrote(h.Name)
	if known && alike(written, &h.Status) && r.Clock.Since(h.Status.LastObserved.Time) < statusEvery {
		h.Status = *before
		return nil
	}
	h.Status.LastObserved = &metav1.Time{Time: r.Clock.Now()}
	if err := r.Client.Status().Update(ctx, h); err != nil {
		return err
	}
	r.phases.write(h.Name, h.Status.DeepCopy())
	return nil
}

// tellTurns sends an event when the incident has come to wait for a human, for a new reason, or has been at its step for too long.
func (r *Reconciler) tellTurns(w *world, before []metav1.Condition) {
	for _, kind := range []string{v1alpha1.ConditionBlocked, v1alpha1.ConditionStalled} {
		now, was := meta.FindStatusCondition(w.incident.Status.Conditions, kind), meta.FindStatusCondition(before, kind)
		if now.Status == metav1.ConditionTrue && (was == nil || was.Status != now.Status || was.Reason != now.Reason) {
			r.event(w, "Warning", kind, "host %s: %s: %s", w.seen.Host.Node, now.Reason, now.Message)
		}
	}
}

// notePods keeps the journal's list of the pods that were on the host, with their addresses: those of a pod whose object is gone nobody else knows.
func (r *Reconciler) notePods(w *world) {
	pods := &w.incident.Status.Pods
	for _, wr := range w.seen.Writers {
		if !w.seen.SameBoot() {
			continue
		}
		if i := slices.IndexFunc(*pods, func(p v1alpha1.IncidentPod) bool { return p.UID == wr.UID }); i >= 0 {
			if len((*pods)[i].Addresses) == 0 {
				(*pods)[i].Addresses = wr.Addresses
			}
			continue
		}
		_, app, _ := strings.Cut(wr.App, "/")
		*pods = append(*pods, v1alpha1.IncidentPod{Namespace: wr.Namespace, Name: wr.Name, UID: wr.UID, App: app, Addresses: wr.Addresses})
	}
}

// noteResets says how far it is with the addresses to which connections are reset.
func (r *Reconciler) noteResets(w *world) {
	for i := range w.incident.Status.Resets {
		c := &w.incident.Status.Resets[i]
		if now, known := r.Resets.Of(c.Address); known && c.EndedAt == nil {
			// Another leader may have come further before this one began.
			c.Hosts, c.Done, c.Connections = max(c.Hosts, small(now.Hosts)), max(c.Done, small(now.Done)), max(c.Connections, small(now.Connections))
		}
	}
}

func small(n int) int32 { return int32(min(n, 1<<30)) } //nolint:gosec // it fits

const (
	// attemptsAtMost is how long the list of attempts may get before those are left out that nothing rests on any more.
	attemptsAtMost = 24
	// inRow and inVain are how many of the latest attempts by a method the plan looks at: failures in a row, and commands without effect.
	inRow, inVain = 2, 3
)

// compact leaves out the oldest attempts that neither the budget (which counts from the time given), nor proof, nor the plan rests on.
func compact(attempts []v1alpha1.Attempt, proof *v1alpha1.Proof, counting time.Time) []v1alpha1.Attempt {
	excess := len(attempts) - attemptsAtMost
	var out []v1alpha1.Attempt
	for i, a := range attempts {
		if excess > 0 && (proof == nil || proof.AttemptID != a.ID) && idle(a, attempts[i+1:], counting) {
			excess--
			continue
		}
		out = append(out, a)
	}
	return out
}

// idle reports whether nothing rests on an attempt, given those after it.
func idle(a v1alpha1.Attempt, later []v1alpha1.Attempt, counting time.Time) bool {
	same, spent := 0, 0
	for _, l := range later {
		if l.Method == a.Method {
			same++
			if l.State == v1alpha1.AttemptSuperseded {
				spent++
			}
		}
	}
	switch a.State {
	case v1alpha1.AttemptFailed:
		return same >= inRow
	case v1alpha1.AttemptSuperseded:
		counts := a.PowerBefore != evidence.PowerOff.String() && a.IntendedAt.After(counting)
		return same >= inRow && spent >= inVain && !counts
	default:
		return false
	}
}

// repairsAtMost is how many restarts of the kubelet a journal keeps; ten minutes pass between two that were done.
const repairsAtMost = 8

// recent leaves out the restarts that were withdrawn, and those beyond the latest, so that there is room for one more.
func recent(repairs []v1alpha1.Repair) []v1alpha1.Repair {
	out := slices.DeleteFunc(slices.Clone(repairs), func(p v1alpha1.Repair) bool { return p.State == v1alpha1.RepairWithdrawn })
	return out[max(0, len(out)+1-repairsAtMost):]
}

// nextRepair is an ID that no restart in the journal has.
func nextRepair(repairs []v1alpha1.Repair) string {
	last := 0
	for _, p := range repairs {
		if n, err := strconv.Atoi(strings.TrimPrefix(p.ID, "restart-")); err == nil {
			last = max(last, n)
		}
	}
	return fmt.Sprintf("restart-%d", last+1)
}

// nextID is one that no attempt of the incident ever had.
func nextID(attempts []v1alpha1.Attempt) string {
	last := 0
	for _, a := range attempts {
		if n, err := strconv.Atoi(strings.TrimPrefix(a.ID, "off-")); err == nil {
			last = max(last, n)
		}
	}
	return fmt.Sprintf("off-%d", last+1)
}

// tellNode says on the Node what is held of its host. Kubelets and the node lifecycle controller leave conditions of others alone, and we look at no
// condition of the Node but Ready: nobody answers this patch with another.
func (r *Reconciler) tellNode(ctx context.Context, w *world, found verdict.Found) error {
	if w.node == nil || (w.incident == nil && !toldOf(w.node)) {
		return nil
	}
	now := metav1.Time{Time: r.Clock.Now()}
	c := corev1.NodeCondition{Type: v1alpha1.NodeConditionVerdict, Status: corev1.ConditionFalse, Reason: "NoIncident", Message: "no incident is open",
		LastHeartbeatTime: now, LastTransitionTime: now}
	if w.incident != nil && !w.incident.Status.Step.Over() {
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, found.Class.String(), fmt.Sprintf("see kubectl describe hi %s", w.incident.Name)
	}
	base := w.node.DeepCopy()
	if !setNodeCondition(w.node, c) {
		return nil
	}
	return client.IgnoreNotFound(r.Client.Status().Patch(ctx, w.node, client.StrategicMergeFrom(base)))
}

// setNodeCondition reports whether that changed anything.
func setNodeCondition(n *corev1.Node, c corev1.NodeCondition) bool {
	for i := range n.Status.Conditions {
		old := &n.Status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return false
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return true
	}
	n.Status.Conditions = append(n.Status.Conditions, c)
	return true
}

// toldOf reports whether the Node says that an incident is open.
func toldOf(n *corev1.Node) bool {
	if n == nil {
		return false
	}
	for _, c := range n.Status.Conditions {
		if c.Type == v1alpha1.NodeConditionVerdict {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// alike compares what matters: ages and dates of evidence move all the time.
func alike(a, b *v1alpha1.HostIncidentStatus) bool {
	strip := func(s *v1alpha1.HostIncidentStatus) *v1alpha1.HostIncidentStatus {
		c := s.DeepCopy()
		c.Evidence, c.LastObserved, c.Next, c.Doing = nil, nil, "", ""
		for i := range c.Findings {
			c.Findings[i].Because = ""
		}
		for i := range c.Conditions {
			c.Conditions[i].Message = ""
		}
		return c
	}
	return reflect.DeepEqual(strip(a), strip(b))
}

// phaseTimes measures phases on the monotonic clock, and remembers the status last written. It is lost with the process: a phase that
// was begun by another leader is then told by the stored times.
type phaseTimes struct {
	mu     sync.Mutex
	begun  map[string]evidence.Instant
	status map[string]*v1alpha1.HostIncidentStatus
	stood  map[string]bool
}

// stands reports whether that was called for the incident before.
func (p *phaseTimes) stands(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.stood[name]
	if p.stood == nil {
		p.stood = map[string]bool{}
	}
	p.stood[name] = true
	return before
}

func (p *phaseTimes) wrote(name string) (*v1alpha1.HostIncidentStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.status[name]
	return s, ok
}

func (p *phaseTimes) write(name string, s *v1alpha1.HostIncidentStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == nil {
		p.status = map[string]*v1alpha1.HostIncidentStatus{}
	}
	p.status[name] = s
}

// running is how long the phase that runs has lasted: by this process's own clock where it began the phase, else by the stored time.
func (p *phaseTimes) running(h *v1alpha1.HostIncident, clock *sight.Clock) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range h.Status.Phases {
		ph := &h.Status.Phases[i]
		if ph.DurationMillis >= 0 {
			continue
		}
		if t, ok := p.begun[h.Name+"/"+ph.Name]; ok {
			return clock.Instant().Sub(t)
		}
		return clock.Since(ph.StartedAt.Time)
	}
	return 0
}

// turn ends the running phase and begins the next.
func (p *phaseTimes) turn(h *v1alpha1.HostIncident, to v1alpha1.IncidentStep, clock *sight.Clock) {
	if h.Status.Step == to {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun == nil {
		p.begun = map[string]evidence.Instant{}
	}
	now, wall := clock.Instant(), clock.Now()
	for i := range h.Status.Phases {
		ph := &h.Status.Phases[i]
		if ph.DurationMillis >= 0 {
			continue
		}
		if t, ok := p.begun[h.Name+"/"+ph.Name]; ok {
			ph.DurationMillis = now.Sub(t).Milliseconds()
		} else {
			ph.DurationMillis = max(0, wall.Sub(ph.StartedAt.Time).Milliseconds())
		}
	}
	if to.Over() {
		return
	}
	name := string(to)
	for n := 2; hasPhase(h, name); n++ {
		name = string(to) + "-" + string(rune('0'+n%10))
		if n > 9 {
			return // a host that flaps tells its first phases
		}
	}
	p.begun[h.Name+"/"+name] = now
	h.Status.Phases = append(h.Status.Phases, v1alpha1.Phase{Name: name, StartedAt: metav1.Time{Time: wall}, DurationMillis: -1})
}

func hasPhase(h *v1alpha1.HostIncident, name string) bool {
	for _, p := range h.Status.Phases {
		if p.Name == name {
			return true
		}
	}
	return false
}

// event tells the incident, the node, the apps, their workloads and their pods on the host.
func (r *Reconciler) event(w *world, kind, reason, format string, args ...any) {
	if r.Events == nil {
		return
	}
	tell := func(about, related runtime.Object) {
		r.Events.Eventf(about, related, kind, reason, reason, format, args...)
	}
	tell(w.incident, nil)
	if w.node != nil {
		tell(w.node, w.incident)
	}
	told := map[types.UID]bool{}
	for _, p := range w.pods {
		tell(p, w.incident)
		owner := metav1.GetControllerOf(p)
		if owner == nil || told[owner.UID] {
			continue
		}
		told[owner.UID] = true
		workload := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: owner.APIVersion, Kind: owner.Kind},
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: owner.Name, UID: owner.UID}}
		tell(workload, w.incident)
	}
	for i := range w.apps {
		tell(&w.apps[i].GuardedStatefulApp, w.incident)
	}
}
