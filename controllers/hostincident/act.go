// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
	"github.com/holdfast-dev/holdfast/fencing"
)

const (
	outOfServiceValue = "nodeshutdown"
	// stopsServing is the reason of a pod's conditions where we took it out of traffic.
	stopsServing = "HoldfastStopsServing"
)

// errSofter: the look before the step no longer asks for it. Nothing was done; the next round decides anew.
var errSofter = errors.New("the plan changed before the step")

// act carries out the plan's reversible steps, and then at most one that cannot be undone: journal, look again, decide again, act.
func (r *Reconciler) act(ctx context.Context, w *world, found verdict.Found, todo plan.Plan) error {
	opens := w.incident == nil
	for _, s := range todo.Steps {
		if s.Kind.Irreversible() {
			break // it comes last
		}
		err := r.reversible(ctx, w, found, s)
		switch {
		case err == nil:
		case s.Kind == plan.KeepServing && apierrors.IsConflict(err): // it is put back beside this look, too
		case s.Kind == plan.KeepServing || s.Kind == plan.StopServing:
			// Traffic is tried again with the next look; it must not keep the hold from being armed.
			logf.FromContext(ctx).Error(err, "Traffic was not changed", "step", s.Kind.String(), "pod", s.Target)
		default:
			return fmt.Errorf("%s %s: %w", s.Kind, s.Target, err)
		}
	}
	if len(todo.Steps) == 0 || !todo.Steps[len(todo.Steps)-1].Kind.Irreversible() {
		return nil
	}
	step := todo.Steps[len(todo.Steps)-1]
	if opens {
		return nil // the journal is read back first
	}
	if step.Kind == plan.Isolate {
		return r.isolate(ctx, w, found, todo, step)
	}
	if step.Kind == plan.RestartKubelet {
		return r.restart(ctx, w, found, todo, step)
	}
	if err := r.journal(ctx, w, found, todo); err != nil {
		return err
	}
	fresh, err := r.lookAgain(ctx, w, step, "")
	if err != nil {
		return err
	}
	if step.Kind == plan.TaintOutOfService {
		return r.taint(ctx, fresh, func(taints []corev1.Taint) []corev1.Taint {
			return withTaint(taints, corev1.Taint{Key: v1alpha1.TaintOutOfService, Value: outOfServiceValue, Effect: corev1.TaintEffectNoExecute})
		})
	}
	return r.deletePod(ctx, w, fresh, step.Target)
}

// stand is all that is done under a journal of a newer version than this code knows: pods are held, traffic follows the evidence, and people are told.
func (r *Reconciler) stand(ctx context.Context, w *world, found verdict.Found, todo plan.Plan) error {
	if name := w.incident.Name; !r.phases.stands(name) {
		logf.FromContext(ctx).Info("The journal is of a newer version; nothing is done that cannot be undone, and nothing is written into it",
			"incident", name, "version", w.incident.Status.JournalVersion, "known", v1alpha1.JournalVersion)
		r.event(w, "Warning", "JournalTooNew", "incident %s was written by a newer Holdfast (journal version %d, known is %d): it is held until that leads again",
			name, w.incident.Status.JournalVersion, v1alpha1.JournalVersion)
	}
	var failed []error
	for _, s := range todo.Steps {
		switch s.Kind {
		case plan.ArmHold, plan.KeepServing, plan.StopServing:
			failed = append(failed, r.reversible(ctx, w, found, s))
		}
	}
	return errors.Join(failed...)
}

// lookAgain gathers with fresh eyes and makes the plan again; a plan that does not end in the same step aborts (invariants I6, I9).
func (r *Reconciler) lookAgain(ctx context.Context, w *world, step plan.Step, but string) (*world, error) {
	fresh := r.gatherBut(ctx, w.seen.Host.Node, live, but)
	if fresh.incident == nil || fresh.incident.Name != w.incident.Name {
		return nil, fmt.Errorf("%w: the incident ended", errSofter)
	}
	if fresh.incident.Status.JournalVersion > v1alpha1.JournalVersion {
		return nil, fmt.Errorf("%w: a newer Holdfast has taken the incident over", errSofter)
	}
	again := plan.Make(r.decide(fresh), fresh.seen, fresh.budget)
	for _, s := range again.Steps {
		if s.Kind == step.Kind && s.Target == step.Target {
			return fresh, nil
		}
	}
	return nil, fmt.Errorf("%w: %s %s", errSofter, step.Kind, step.Target)
}

func (r *Reconciler) reversible(ctx context.Context, w *world, found verdict.Found, s plan.Step) error {
	log := logf.FromContext(ctx).WithValues("step", s.Kind.String(), "target", s.Target)
	if s.Kind != plan.Settle && s.Kind != plan.Advance {
		log.Info("Taking a step", "because", s.Because)
	}
	switch s.Kind {
	case plan.OpenIncident:
		return r.open(ctx, w)
	case plan.ArmHold:
		return r.arm(ctx, w, s.Target)
	case plan.DisarmHold:
		return r.disarm(ctx, w, w.pods[s.Target])
	case plan.KeepServing:
		return r.serve(ctx, w.pods[s.Target], corev1.ConditionTrue, "HoldfastKeepsServing", s.Because)
	case plan.StopServing:
		return r.serve(ctx, w.pods[s.Target], corev1.ConditionFalse, stopsServing, s.Because)
	case plan.Taint:
		return r.taint(ctx, w, func(taints []corev1.Taint) []corev1.Taint {
			return withTaint(taints, corev1.Taint{Key: v1alpha1.TaintFenced, Value: w.incident.Name, Effect: corev1.TaintEffectNoExecute})
		})
	case plan.SwapTaint:
		return r.taint(ctx, w, func(taints []corev1.Taint) []corev1.Taint { return without(taints, v1alpha1.TaintOutOfService) })
	case plan.Untaint:
		return r.taint(ctx, w, func(taints []corev1.Taint) []corev1.Taint {
			return without(without(taints, v1alpha1.TaintOutOfService), v1alpha1.TaintFenced)
		})
	case plan.Advance:
		if s.Target == string(evidence.StepRetired) {
			if err := r.end(ctx, w); err != nil {
				return err
			}
		}
		r.advance(w, v1alpha1.IncidentStep(s.Target))
	case plan.Settle:
		settleAttempt(w.incident, s, r.Clock.Now())
	case plan.Distrust:
		w.incident.Status.Distrusted = append(w.incident.Status.Distrusted, s.Target)
	case plan.RecordProof:
		r.recordProof(w, found)
	case plan.Close:
		if err := r.end(ctx, w); err != nil {
			return err
		}
		r.advance(w, v1alpha1.StepClosed)
	case plan.ResetConnections:
		r.resetConnections(w, s.Target)
	case plan.LetGo:
		r.letGo(w, s.Target, s.Because)
	default:
		return fmt.Errorf("no way to carry out %s", s.Kind)
	}
	return nil
}

// open creates the incident; creating it is the lock. Its name says node and boot, and a number where a boot fails twice. What carries the name of an
// incident that was deleted counts as one.
func (r *Reconciler) open(ctx context.Context, w *world) error {
	var list v1alpha1.HostIncidentList
	if err := r.Live.List(ctx, &list); err != nil {
		return err
	}
	episode := int32(1)
	for _, name := range w.traces() {
		episode = max(episode, episodeOf(name, w.seen.Host)+1)
	}
	for i := range list.Items {
		h := &list.Items[i]
		if h.Spec.NodeName != w.seen.Host.Node {
			continue
		}
		if !h.Status.Step.Over() {
			return fmt.Errorf("%w: incident %s is open already", errSofter, h.Name) // what was decided without its journal is not done
		}
		if h.Spec.BootID == w.seen.Host.BootID {
			episode = max(episode, h.Spec.Episode+1)
		}
	}
	h := &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: incidentName(w.seen.Host, episode)},
		Spec: v1alpha1.HostIncidentSpec{NodeName: w.seen.Host.Node, NodeUID: w.seen.Host.NodeUID, BootID: w.seen.Host.BootID,
			SystemUUID: w.seen.Host.SystemUUID, Episode: episode}}
	if err := r.Client.Create(ctx, h); err != nil {
		return err // also AlreadyExists: somebody else holds the lock, and the next round reads it
	}
	w.incident = h
	r.event(w, "Warning", "IncidentOpened", "incident %s opened for host %s", h.Name, h.Spec.NodeName)
	return nil
}

// traces are the names of incidents that the host and its pods carry.
func (w *world) traces() []string {
	var names []string
	for _, wr := range w.seen.Writers {
		names = append(names, wr.HeldBy)
	}
	if w.node != nil {
		names = append(names, fencedBy(w.node))
	}
	return names
}

// incidentName is the node's name, cut to fit a label value, and a hash of the boot ID.
func incidentName(h evidence.Host, episode int32) string {
	return fmt.Sprintf("%s%d", bootPrefix(h), episode)
}

func bootPrefix(h evidence.Host) string {
	sum := sha256.Sum256([]byte(h.Node + "\n" + h.BootID))
	node := h.Node
	if len(node) > 40 {
		node = strings.TrimRight(node[:40], ".-") // what is put behind it begins with a dash
	}
	return node + "-" + hex.EncodeToString(sum[:4]) + "-"
}

// episodeOf reads the episode out of the name of an incident of this host in this boot; 0 for any other name.
func episodeOf(name string, h evidence.Host) int32 {
	number, ok := strings.CutPrefix(name, bootPrefix(h))
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || err != nil || n < 1 {
		return 0
	}
	return int32(n)
}

// arm puts label and finalizer on a pod and its name into the namespace's list, which the eviction policy reads.
func (r *Reconciler) arm(ctx context.Context, w *world, uid string) error {
	p := w.pods[uid]
	if r.Bolt != nil {
		if err := r.Bolt(ctx); err != nil {
			logf.FromContext(ctx).Error(err, "The hold is armed, and what records it is not bolted yet")
		}
	}
	ours := admission.Hold{Pod: p.Name, Incident: w.incident.Name}
	before := admission.Hold{Pod: p.Name, Incident: p.Labels[v1alpha1.LabelHold]}
	if err := r.list(ctx, p.Namespace, func(holds []admission.Hold) []admission.Hold {
		if slices.Contains(holds, ours) {
			return holds
		}
		holds = slices.DeleteFunc(holds, func(h admission.Hold) bool { return h == before && h.Incident != "" })
		return append(holds, ours)
	}); err != nil {
		return err
	}
	base := p.DeepCopy()
	metav1.SetMetaDataLabel(&p.ObjectMeta, v1alpha1.LabelHold, w.incident.Name)
	if p.DeletionTimestamp == nil { // the API refuses new finalizers on a pod that is terminating
		controllerutil.AddFinalizer(p, v1alpha1.FinalizerHold)
	}
	if err := r.Client.Patch(ctx, p, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return err
	}
	r.event(w, "Warning", "Held", "pod %s/%s is held on host %s", p.Namespace, p.Name, w.seen.Host.Node)
	return nil
}

// disarm takes them away; a pod that is gone needs only its name taken off the list.
func (r *Reconciler) disarm(ctx context.Context, w *world, p *corev1.Pod) error {
	base := p.DeepCopy()
	names := []string{w.incident.Name, p.Labels[v1alpha1.LabelHold]}
	delete(p.Labels, v1alpha1.LabelHold)
	controllerutil.RemoveFinalizer(p, v1alpha1.FinalizerHold)
	if err := r.Client.Patch(ctx, p, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
		return err
	}
	return r.unlist(ctx, p, names...)
}

// unlist takes the pod's entries of these incidents off its namespace's list. A namespace that is gone has none.
func (r *Reconciler) unlist(ctx context.Context, p *corev1.Pod, incidents ...string) error {
	return client.IgnoreNotFound(r.list(ctx, p.Namespace, func(holds []admission.Hold) []admission.Hold {
		return slices.DeleteFunc(holds, func(h admission.Hold) bool {
			return h.Pod == p.Name && h.Incident != "" && slices.Contains(incidents, h.Incident)
		})
	}))
}

// sweep ends what a crash left half done: it tells the journal which of its pods are gone after proof, and takes names off the lists for which no held
// pod is left. Such an entry would hold the successor, which has the same name.
func (r *Reconciler) sweep(ctx context.Context, w *world) error {
	if w.incident == nil || !w.seen.Listed {
		return nil
	}
	namespaces := map[string]bool{}
	for i := range w.incident.Status.Pods {
		p := &w.incident.Status.Pods[i]
		namespaces[p.Namespace] = true
		if _, there := w.pods[p.UID]; !there && w.incident.Status.Proof != nil && p.ReleasedAt == nil {
			p.ReleasedAt = &metav1.Time{Time: r.Clock.Now()}
		}
	}
	for namespace := range namespaces {
		var ns corev1.Namespace
		if err := r.Client.Get(ctx, types.NamespacedName{Name: namespace}, &ns); err != nil {
			if apierrors.IsNotFound(err) {
				continue
			}
			return err
		}
		for _, h := range admission.ParseHeld(ns.Annotations[v1alpha1.AnnotationHeld]) {
			if episodeOf(h.Incident, w.seen.Host) == 0 {
				continue // another host's, another boot's, or somebody else's
			}
			if err := r.sweepEntry(ctx, namespace, h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Reconciler) sweepEntry(ctx context.Context, namespace string, h admission.Hold) error {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: h.Pod}}
	err := r.Live.Get(ctx, client.ObjectKeyFromObject(&p), &p)
	if client.IgnoreNotFound(err) != nil || (err == nil && p.Labels[v1alpha1.LabelHold] == h.Incident) {
		return client.IgnoreNotFound(err)
	}
	return r.unlist(ctx, &p, h.Incident)
}

// end does what has to be done before an incident may be over: nothing of the hold outlives it.
func (r *Reconciler) end(ctx context.Context, w *world) error {
	for _, p := range w.pods {
		if p.Labels[v1alpha1.LabelHold] == "" || p.Spec.NodeName != w.seen.Host.Node {
			continue
		}
		if err := r.disarm(ctx, w, p); err != nil {
			return err
		}
	}
	return r.sweep(ctx, w)
}

// list changes the list of held pods of a namespace, under the namespace's own lock. Entries of others stay.
func (r *Reconciler) list(ctx context.Context, namespace string, change func([]admission.Hold) []admission.Hold) error {
	var ns corev1.Namespace
	if err := r.Live.Get(ctx, types.NamespacedName{Name: namespace}, &ns); err != nil {
		return err
	}
	base := ns.DeepCopy()
	before := admission.ParseHeld(ns.Annotations[v1alpha1.AnnotationHeld])
	holds := change(slices.Clone(before))
	if slices.Equal(holds, before) {
		return nil
	}
	if ns.Annotations == nil {
		ns.Annotations = map[string]string{}
	}
	ns.Annotations[v1alpha1.AnnotationHeld] = admission.FormatHeld(holds)
	if len(holds) == 0 {
		delete(ns.Annotations, v1alpha1.AnnotationHeld)
	}
	return r.Client.Patch(ctx, &ns, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
}

// serve patches what the kubelet cannot say. A kubelet that lives corrects it within its own period.
func (r *Reconciler) serve(ctx context.Context, p *corev1.Pod, status corev1.ConditionStatus, reason, message string) error {
	base := p.DeepCopy()
	now := metav1.Time{Time: r.Clock.Now()}
	for _, kind := range []corev1.PodConditionType{corev1.ContainersReady, corev1.PodReady} {
		setPodCondition(p, corev1.PodCondition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: now})
	}
	// The lock keeps the patch from meeting another pod of the same name.
	return r.Client.Status().Patch(ctx, p, client.StrategicMergeFrom(base, client.MergeFromWithOptimisticLock{}))
}

func setPodCondition(p *corev1.Pod, c corev1.PodCondition) {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == c.Type {
			p.Status.Conditions[i] = c
			return
		}
	}
	p.Status.Conditions = append(p.Status.Conditions, c)
}

// taint changes the Node's taints as they were read in this round; a change in between is a conflict, and the next round looks again.
func (r *Reconciler) taint(ctx context.Context, w *world, change func([]corev1.Taint) []corev1.Taint) error {
	if w.node == nil {
		return errors.New("the Node was not read")
	}
	base := w.node.DeepCopy()
	w.node.Spec.Taints = change(append([]corev1.Taint(nil), w.node.Spec.Taints...))
	return r.Client.Patch(ctx, w.node, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
}

func withTaint(taints []corev1.Taint, t corev1.Taint) []corev1.Taint {
	return append(without(taints, t.Key), t)
}

func without(taints []corev1.Taint, key string) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range taints {
		if t.Key != key {
			out = append(out, t)
		}
	}
	return out
}

// advance moves the journal to a step and closes the clock of the one before.
func (r *Reconciler) advance(w *world, to v1alpha1.IncidentStep) {
	r.phases.turn(w.incident, to, r.Clock)
	w.incident.Status.Step = to
	kind := "Normal"
	if to == v1alpha1.StepFencing || to == v1alpha1.StepConfirmed {
		kind = "Warning"
	}
	r.event(w, kind, string(to), "host %s: incident %s is %s", w.seen.Host.Node, w.incident.Name, to)
}

func settleAttempt(h *v1alpha1.HostIncident, s plan.Step, now time.Time) {
	for i := range h.Status.Attempts {
		if a := &h.Status.Attempts[i]; a.ID == s.Target {
			a.State, a.SettledAt = v1alpha1.AttemptState(s.As), &metav1.Time{Time: now}
			a.Message += "; " + s.Because
		}
	}
}

func (r *Reconciler) recordProof(w *world, found verdict.Found) {
	proof := v1alpha1.Proof{Strength: v1alpha1.ProofStrength(found.Proof.Strength.String()), Method: found.Proof.Methods(), BootID: w.incident.Spec.BootID,
		EstablishedAt: metav1.Time{Time: r.Clock.Now()}}
	for _, part := range found.Proof.Parts {
		p, ok := proofPart(part, w.devices)
		if !ok {
			return // it was read in this round, so it is there
		}
		if noDevice(part) {
			p.Identity = fencing.Normalise(w.seen.Host.SystemUUID)
		}
		proof.Parts = append(proof.Parts, p)
		for _, c := range p.Covers {
			if !slices.Contains(proof.Covers, c) {
				proof.Covers = append(proof.Covers, c)
			}
		}
	}
	if len(proof.Parts) == 0 {
		return
	}
	proof.Identity, proof.AttemptID = proof.Parts[0].Identity, proof.Parts[0].AttemptID
	w.incident.Status.Proof = &proof
	r.event(w, "Warning", "ProofEstablished", "host %s is lost: %s", w.seen.Host.Node, found.Findings[0].Because)
}

// noDevice reports whether a part of a proof is a human's word, or the host's own watchdog.
func noDevice(part verdict.Part) bool { return part.Strength < evidence.StrengthPowerOff }

// proofPart is what one method contributes: a human's word, a watchdog, and a machine that is gone, cover the whole host.
func proofPart(part verdict.Part, devices []guard.Device) (v1alpha1.ProofPart, bool) {
	out := v1alpha1.ProofPart{Method: part.Method, Strength: v1alpha1.ProofStrength(part.Strength.String()), Covers: []string{"Host"}, AttemptID: part.Attempt}
	if noDevice(part) {
		return out, true
	}
	for _, d := range devices {
		if d.Method != part.Method {
			continue
		}
		if c := d.Driver.Describe().Coverage; !c.Host && part.Strength != evidence.StrengthGone {
			out.Covers = c.Drivers
		}
		out.Identity = fencing.Normalise(d.SystemUUID)
		return out, true
	}
	return out, false
}

// isolate gives one Off command: journal it, look again, decide again, command, journal the answer (invariants I2, I6, I9).
func (r *Reconciler) isolate(ctx context.Context, w *world, found verdict.Found, todo plan.Plan, step plan.Step) error {
	r.fencing.Lock()
	defer r.fencing.Unlock()
	a := v1alpha1.Attempt{ID: nextID(w.incident.Status.Attempts), Method: step.Target, Level: int32(step.Level), //nolint:gosec // small
		State: v1alpha1.AttemptIntended, IntendedAt: metav1.Time{Time: r.Clock.Now()}, By: r.Self, PowerBefore: powerOf(w, step.Target),
		Device: guard.Addresses(w.profile, w.seen.Host.Node)[step.Target]}
	w.incident.Status.Attempts = append(w.incident.Status.Attempts, a)
	r.advance(w, v1alpha1.StepFencing)
	if err := r.journal(ctx, w, found, todo); err != nil {
		return err
	}
	fresh, err := r.lookAgain(ctx, w, step, a.ID)
	if err != nil {
		return errors.Join(err, r.answer(ctx, w, a.ID, v1alpha1.AttemptFailed, "withdrawn before the call: "+err.Error()))
	}
	if now := powerOf(fresh, step.Target); now != a.PowerBefore {
		// The budget counts by what was journalled, so that is what must be done.
		return r.answer(ctx, w, a.ID, v1alpha1.AttemptFailed, fmt.Sprintf("withdrawn before the call: %s read %s, and now reads %s", step.Target, a.PowerBefore, now))
	}
	for _, d := range fresh.devices {
		if d.Method == step.Target && d.Address() != a.Device {
			return r.answer(ctx, w, a.ID, v1alpha1.AttemptFailed, "withdrawn before the call: the method has another device now, "+d.Address())
		}
		if d.Method == step.Target && d.Err == nil {
			state, words := r.command(ctx, fresh, d)
			return r.answer(ctx, w, a.ID, state, words)
		}
	}
	return r.answer(ctx, w, a.ID, v1alpha1.AttemptFailed, "withdrawn before the call: the method is not configured any more")
}

func powerOf(w *world, method string) string {
	for _, p := range w.seen.Power {
		if p.Method == method {
			return p.State.String()
		}
	}
	return evidence.PowerUnread.String()
}

// command calls the driver, within the deadline that no other leader can be inside of.
func (r *Reconciler) command(ctx context.Context, w *world, d guard.Device) (v1alpha1.AttemptState, string) {
	call, done := context.WithTimeout(ctx, r.CallDeadline)
	defer done()
	logf.FromContext(ctx).Info("Commanding Off", "method", d.Method, "host", w.seen.Host.Node, "boot", w.seen.Host.BootID)
	receipt, err := d.Driver.Isolate(call, d.Target, func(identity string) error { return fencing.SameMachine(identity, d.SystemUUID) })
	switch {
	case err == nil:
		return v1alpha1.AttemptAccepted, fmt.Sprintf("taken in %s; %s", receipt.Took.Round(time.Millisecond), receipt.Detail)
	case errors.Is(err, fencing.ErrUnclear):
		return v1alpha1.AttemptUnclear, err.Error()
	default:
		return v1alpha1.AttemptFailed, err.Error()
	}
}

// answer journals what the device said. The journal may have moved on in lookAgain's reading only in its resource version; a conflict leaves
// the attempt Intended, and later readings settle it.
func (r *Reconciler) answer(ctx context.Context, w *world, id string, state v1alpha1.AttemptState, words string) error {
	for i := range w.incident.Status.Attempts {
		if a := &w.incident.Status.Attempts[i]; a.ID == id {
			a.State, a.Message, a.AnsweredAt = state, words, &metav1.Time{Time: r.Clock.Now()}
		}
	}
	r.event(w, "Warning", "Isolate", "host %s: Off command %s is %s", w.seen.Host.Node, id, state)
	return nil // record writes it
}

// restart has the host's agent restart its kubelet: journal it, look again, decide again, ask, journal the answer. The agent is asked within the deadline of a
// driver's call, however long it takes: the host is looked at meanwhile by nobody else.
func (r *Reconciler) restart(ctx context.Context, w *world, found verdict.Found, todo plan.Plan, step plan.Step) error {
	p := v1alpha1.Repair{ID: nextRepair(w.incident.Status.Repairs), State: v1alpha1.RepairIntended, IntendedAt: metav1.Time{Time: r.Clock.Now()}, By: r.Self, Because: step.Because}
	if err := r.intend(ctx, w, found, todo, step, p); err != nil {
		return err
	}
	call, done := context.WithTimeout(ctx, r.CallDeadline)
	defer done()
	logf.FromContext(ctx).Info("Having the kubelet restarted", "host", w.seen.Host.Node, "boot", w.seen.Host.BootID, "because", step.Because)
	answer, err := r.Witnesses.Restart(call, w.seen.Host.Node, wire.RestartRequest{BootID: w.seen.Host.BootID, Reason: shorten(step.Because, wire.ReasonBytes),
		WindowMillis: (plan.RepairWindow - agentsLag).Milliseconds()})
	switch {
	case err == nil:
		r.repaired(w, p.ID, v1alpha1.RepairDone, fmt.Sprintf("%s: %s", answer.By, answer.State))
	case errors.Is(err, wire.ErrNothingDone):
		r.repaired(w, p.ID, v1alpha1.RepairFailed, err.Error())
	default:
		r.repaired(w, p.ID, v1alpha1.RepairUnclear, err.Error())
	}
	return nil // record writes it
}

// intend journals a restart and decides again, one host at a time, so that each sees what the others have journalled.
func (r *Reconciler) intend(ctx context.Context, w *world, found verdict.Found, todo plan.Plan, step plan.Step, p v1alpha1.Repair) error {
	r.repairing.Lock()
	defer r.repairing.Unlock()
	w.incident.Status.Repairs = append(recent(w.incident.Status.Repairs), p)
	if err := r.journal(ctx, w, found, todo); err != nil {
		return err
	}
	_, err := r.lookAgain(ctx, w, step, p.ID)
	if err != nil {
		r.repaired(w, p.ID, v1alpha1.RepairWithdrawn, err.Error())
	}
	return err
}

// repaired notes what came of a restart; record writes it. A conflict there leaves it Intended, which counts as done.
func (r *Reconciler) repaired(w *world, id string, state v1alpha1.RepairState, words string) {
	for i := range w.incident.Status.Repairs {
		if p := &w.incident.Status.Repairs[i]; p.ID == id {
			p.State, p.Message, p.AnsweredAt = state, shorten(words, messageBytes), &metav1.Time{Time: r.Clock.Now()}
		}
	}
	r.event(w, "Warning", "RestartKubelet", "host %s: restart %s of the kubelet is %s: %s", w.seen.Host.Node, id, state, shorten(words, messageBytes))
}

// agentsLag is how much later than the journal's the agent's window may begin: the next restart must not meet its end.
const agentsLag = time.Minute

// messageBytes is how much is said again of what an agent answers.
const messageBytes = 400

func shorten(words string, most int) string {
	if len(words) <= most {
		return words
	}
	return strings.ToValidUTF8(words[:most-len("…")], "") + "…"
}

// resetConnections has connections to the address of a released pod reset, from now on and in the background, and writes that down.
func (r *Reconciler) resetConnections(w *world, address string) {
	resets := &w.incident.Status.Resets
	known := slices.ContainsFunc(*resets, func(c v1alpha1.ConnectionReset) bool { return c.Address == address })
	if r.Resets == nil || !known && len(*resets) >= resetsAtMost {
		return // nothing is done that the journal has no room for
	}
	left := plan.ResetWindow
	for _, p := range w.incident.Status.Pods {
		if slices.Contains(p.Addresses, address) {
			left = min(left, plan.ResetWindow-r.ago(p))
		}
	}
	r.Resets.Begin(w.seen.Host.Node, address, left)
	if !known {
		*resets = append(*resets, v1alpha1.ConnectionReset{Address: address, Since: metav1.Time{Time: r.Clock.Now()}})
		r.event(w, "Normal", "ResetConnections", "host %s is lost: connections to %s are reset on the other hosts", w.seen.Host.Node, address)
	}
}

// resetsAtMost is how many addresses a journal has room for.
const resetsAtMost = 128

// letGo ends it, whoever began it.
func (r *Reconciler) letGo(w *world, address, because string) {
	if r.Resets == nil {
		return
	}
	r.Resets.LetGo(w.seen.Host.Node, address, because)
	r.noteResets(w)
	for i := range w.incident.Status.Resets {
		if c := &w.incident.Status.Resets[i]; c.Address == address && c.EndedAt == nil {
			c.EndedAt, c.Ended = &metav1.Time{Time: r.Clock.Now()}, shorten(because, messageBytes)
		}
	}
}

// deletePod removes one pod object after proof: by UID and resource version, with grace 0, and with the finalizer of the hold taken off.
func (r *Reconciler) deletePod(ctx context.Context, w, fresh *world, uid string) error {
	p, ok := fresh.pods[uid]
	if !ok {
		return nil // gone already
	}
	zero := int64(0)
	err := r.Client.Delete(ctx, p, &client.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &p.UID, ResourceVersion: &p.ResourceVersion}})
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	var left corev1.Pod
	switch err := r.Live.Get(ctx, client.ObjectKeyFromObject(p), &left); {
	case apierrors.IsNotFound(err):
	case err != nil:
		return err
	case left.UID == p.UID:
		base := left.DeepCopy()
		controllerutil.RemoveFinalizer(&left, v1alpha1.FinalizerHold)
		if err := r.Client.Patch(ctx, &left, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	for i := range w.incident.Status.Pods {
		if w.incident.Status.Pods[i].UID == uid {
			w.incident.Status.Pods[i].ReleasedAt = &metav1.Time{Time: r.Clock.Now()}
		}
	}
	r.event(w, "Warning", "Released", "pod %s/%s was released from host %s after proof", p.Namespace, p.Name, w.seen.Host.Node)
	return r.unlist(ctx, p, w.incident.Name, p.Labels[v1alpha1.LabelHold])
}
