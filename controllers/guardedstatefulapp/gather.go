// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// sighting is everything known about one app at one moment.
type sighting struct {
	app     v1alpha1.GuardedStatefulApp
	gone    bool // deleted, and nothing of it is held
	refused *refusal
	guarded guard.App
	claims  *guard.Claims
	// strangers are pods in any namespace that name one of its volumes and are not its own; those in its own namespace are its guests.
	strangers []*corev1.Pod
	// incidents that are open, by node.
	incidents map[string]*v1alpha1.HostIncident
	config    v1alpha1.GuardConfig
	open      []string // what the policies cannot protect on this cluster
	findings  []string
	// crew is what decides whether connections are recycled.
	crew plan.Crew
	// decided is whether they are.
	decided plan.Recycling
}

func (r *Reconciler) gather(ctx context.Context, req ctrl.Request) (*sighting, error) {
	s := &sighting{incidents: map[string]*v1alpha1.HostIncident{}}
	if err := r.Client.Get(ctx, req.NamespacedName, &s.app); err != nil {
		if apierrors.IsNotFound(err) {
			r.Board.Set(req.String(), nil)
		}
		return nil, client.IgnoreNotFound(err)
	}
	var err error
	if s.guarded, err = guard.Resolve(ctx, r.Client, s.app); err != nil {
		return nil, err
	}
	if s.claims, err = guard.ReadClaims(ctx, r.Client); err != nil {
		return nil, err
	}
	if s.strangers, err = r.strangers(ctx, s); err != nil {
		return nil, err
	}
	if s.refused, err = r.preflight(ctx, s); err != nil {
		return nil, err
	}
	var incidents v1alpha1.HostIncidentList
	if err := r.Client.List(ctx, &incidents); err != nil {
		return nil, err
	}
	for i := range incidents.Items {
		h := &incidents.Items[i]
		if !h.Status.Step.Over() {
			s.incidents[h.Spec.NodeName] = h
		}
	}
	err = r.Client.Get(ctx, types.NamespacedName{Name: v1alpha1.GuardConfigName}, &s.config)
	if client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	if s.open, err = r.open(ctx, s); err != nil {
		return nil, err
	}
	s.findings = r.findings(ctx, s)
	s.crew = r.crew(s, incidents.Items)
	return s, nil
}

// crew gathers what decides whether connections of the app are recycled. Incidents are all that there are, also those that are over.
func (r *Reconciler) crew(s *sighting, incidents []v1alpha1.HostIncident) plan.Crew {
	c := plan.Crew{Equipped: r.Recycles != nil && s.config.Spec.Witness.Resets(), Enforced: s.app.Spec.Mode == v1alpha1.ModeEnforce || s.app.Spec.Mode == "",
		Released: map[string]string{}}
	if asked := s.app.Spec.Connections.Recycle; asked != nil {
		for _, after := range asked.After {
			c.After = append(c.After, plan.Trigger(after))
		}
	}
	if h := s.concerning(); h != nil {
		c.Incident = h.Name
	}
	for i := range incidents {
		h := &incidents[i]
		if !h.Status.Step.Over() && h.Status.Verdict == verdict.Blind.String() {
			c.Blind = h.Name
		}
		for _, p := range h.Status.Pods {
			if p.Namespace == s.app.Namespace && p.App == s.app.Name && p.ReleasedAt != nil {
				c.Released[p.UID] = h.Spec.NodeName
			}
		}
	}
	if w := s.guarded.Workload; w != nil {
		c.Want, c.Sure = w.Replicas, w.Kind != guard.KindPods
	}
	c.Want = max(c.Want, r.ready(s, &c))
	if len(c.After) > 0 {
		c.Beyond = s.beyond(c.Ready)
	}
	if j := s.app.Status.Connections; j != nil {
		c.Journal = plan.CrewJournal{Kept: true, Known: j.Known, Size: int(j.Size), Away: j.Away, Open: j.Round != nil && j.Round.EndedAt == nil}
		if c.Journal.Open {
			now, known := r.Recycles.Of(key(&s.app), s.round())
			c.Ours, c.Over = known, now.Over
		}
	}
	return c
}

// ready notes which pods are, and whether all answer their own probes, and returns how many there are.
func (r *Reconciler) ready(s *sighting, c *plan.Crew) (pods int) {
	for i := range s.guarded.Pods {
		p := &s.guarded.Pods[i]
		if guard.Finished(p) {
			continue
		}
		pods++
		a, ok := r.Board.App(string(p.UID))
		c.Unheard = c.Unheard || !ok || a.Serving != evidence.ServingYes
		c.Failing = c.Failing || ok && a.Serving == evidence.ServingNo
		if p.DeletionTimestamp != nil || p.Labels[v1alpha1.LabelHold] != "" {
			continue
		}
		for _, is := range p.Status.Conditions {
			if is.Type == corev1.PodReady && is.Status == corev1.ConditionTrue {
				c.Ready = append(c.Ready, plan.CrewPod{UID: string(p.UID), Name: p.Name, Host: p.Spec.NodeName, For: r.Clock.Since(is.LastTransitionTime.Time)})
			}
		}
	}
	return pods
}

// round is the name of the app's last round. No other app or round has it: numbers begin anew where recycling was off meanwhile, and agents remember.
func (s *sighting) round() string {
	j := s.app.Status.Connections
	if j == nil || j.Round == nil {
		return ""
	}
	return fmt.Sprintf("%s-%d-%d", s.app.UID, j.Round.Number, j.Round.BeganAt.Unix())
}

// beyond says what of the app is more than agents take.
func (s *sighting) beyond(ready []plan.CrewPod) string {
	if servers, peers := s.servers(ready); max(len(servers), len(peers)) > wire.Servers {
		return fmt.Sprintf("its pods have %d addresses, and clients connect to %d with their ports; agents take %d of each: name fewer ports in spec.connections.recycle.ports",
			len(peers), len(servers), wire.Servers)
	}
	return ""
}

// servers are where clients connect to some of the app's pods, and peers the addresses of all its pods. A pod on its host's network has no address of its own.
func (s *sighting) servers(of []plan.CrewPod) (servers, peers []string) {
	for i := range s.guarded.Pods {
		p := &s.guarded.Pods[i]
		if p.Spec.HostNetwork || guard.Finished(p) {
			continue
		}
		peers = append(peers, guard.PodIPs(p)...)
		if !slices.ContainsFunc(of, func(o plan.CrewPod) bool { return o.UID == string(p.UID) }) {
			continue
		}
		for _, port := range s.app.Spec.Connections.Recycle.Ports {
			number := port.IntVal
			if port.StrVal != "" {
				number = ports(p.Spec)[port.StrVal]
			}
			for _, ip := range guard.PodIPs(p) {
				if number > 0 {
					servers = append(servers, net.JoinHostPort(ip, strconv.Itoa(int(number))))
				}
			}
		}
	}
	return servers, peers
}

// strangers finds the pods of others on the app's volumes: its guests, and those that name the same volumes by other claims.
func (r *Reconciler) strangers(ctx context.Context, s *sighting) ([]*corev1.Pod, error) {
	var out []*corev1.Pod
	for i := range s.guarded.Guests {
		out = append(out, &s.guarded.Guests[i])
	}
	aliases := map[string]bool{}
	for claim := range s.guarded.Claims {
		for _, same := range s.claims.Same(s.app.Namespace + "/" + claim)[1:] {
			aliases[same] = true
		}
	}
	if len(aliases) == 0 {
		return out, nil
	}
	known := map[types.UID]bool{}
	for _, p := range s.guarded.All() {
		known[p.UID] = true
	}
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods); err != nil {
		return nil, err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if !known[p.UID] && slices.ContainsFunc(guard.Of(p), func(claim string) bool { return aliases[claim] }) {
			out = append(out, p)
		}
	}
	return out, nil
}

// preflight refuses what could not be guarded.
func (r *Reconciler) preflight(ctx context.Context, s *sighting) (*refusal, error) {
	g, w := &s.app, s.guarded.Workload
	if w == nil {
		ref := g.Spec.WorkloadRef
		return &refusal{v1alpha1.ReasonWorkloadMissing, fmt.Sprintf("there is no %s %s/%s: create it, or correct spec.workloadRef.name", ref.Kind, g.Namespace, ref.Name)}, nil
	}
	taken, err := r.takenBy(ctx, s)
	if err != nil {
		return nil, err
	}
	if taken != "" {
		return &refusal{v1alpha1.ReasonWorkloadTaken, fmt.Sprintf("%s is guarded by GuardedStatefulApp %s already: delete one of the two", called(w), taken)}, nil
	}
	if w.Kind == guard.KindPods && len(s.guarded.Pods) == 0 {
		if controllerutil.ContainsFinalizer(g, v1alpha1.FinalizerApp) {
			return nil, nil // its pods are away for a moment
		}
		return &refusal{v1alpha1.ReasonWorkloadMissing, "spec.podSelector selects no pod: start the workload, or correct the selector"}, nil
	}
	for _, why := range []string{unguardable(w), s.rolls(), unknownPorts(g, w.Pod.Spec)} {
		if why != "" {
			return &refusal{v1alpha1.ReasonPreflightFailed, why}, nil
		}
	}
	if len(s.guarded.Entries()) == 0 {
		return &refusal{v1alpha1.ReasonNoVolumes, called(w) + " names no PersistentVolumeClaim: there is nothing to guard"}, nil
	}
	return nil, nil
}

// called is what people call the workload.
func called(w *guard.Workload) string {
	if w.Kind == guard.KindPods {
		return "a pod of spec.podSelector"
	}
	return w.Kind + " " + w.Name
}

// takenBy returns the older app that guards the same workload, or one of the same pods, if there is one.
func (r *Reconciler) takenBy(ctx context.Context, s *sighting) (string, error) {
	g := &s.app
	var list v1alpha1.GuardedStatefulAppList
	if err := r.Client.List(ctx, &list, client.InNamespace(g.Namespace)); err != nil {
		return "", err
	}
	for _, o := range list.Items {
		older := o.CreationTimestamp.Before(&g.CreationTimestamp) || (o.CreationTimestamp.Equal(&g.CreationTimestamp) && o.Name < g.Name)
		if o.UID == g.UID || !older {
			continue
		}
		if o.Spec.WorkloadRef != nil && g.Spec.WorkloadRef != nil {
			if *o.Spec.WorkloadRef == *g.Spec.WorkloadRef {
				return o.Name, nil
			}
			continue
		}
		other, err := guard.Resolve(ctx, r.Client, o)
		if err != nil {
			return "", err
		}
		for _, p := range other.Pods {
			if slices.ContainsFunc(s.guarded.Pods, func(ours corev1.Pod) bool { return ours.UID == p.UID }) {
				return o.Name, nil
			}
		}
	}
	return "", nil
}

// unguardable says what in the pod template leaves a way around the guard.
func unguardable(w *guard.Workload) string {
	pod := w.Pod.Spec
	if grace := pod.TerminationGracePeriodSeconds; grace != nil && *grace == 0 {
		return "terminationGracePeriodSeconds is 0 in the pod template: every delete would be a removal; set at least 1"
	}
	for _, t := range pod.Tolerations {
		if t.Key == "" && t.Operator == corev1.TolerationOpExists {
			return "the pod template tolerates every taint (operator: Exists without key): a fenced host could not be cleared; name the keys"
		}
	}
	for _, v := range pod.Volumes {
		if v.Ephemeral != nil {
			return fmt.Sprintf("volume %s is a generic ephemeral volume, which is deleted with its pod: use volumeClaimTemplates or a PersistentVolumeClaim", v.Name)
		}
	}
	return ""
}

// rolls says why a rollout of a Deployment could not come to its end.
func (s *sighting) rolls() string {
	w := s.guarded.Workload
	if !w.Rolls {
		return ""
	}
	for _, c := range w.Claims(s.app.Name) {
		if !s.claims.Many(s.app.Namespace + "/" + c.Name) {
			return fmt.Sprintf("Deployment %s starts new pods before old ones have stopped (strategy RollingUpdate), and both would wait for claim %s, which is for one host: "+
				"set spec.strategy.type to Recreate", w.Name, c.Name)
		}
	}
	return ""
}

func unknownPorts(g *v1alpha1.GuardedStatefulApp, pod corev1.PodSpec) string {
	for _, p := range g.Spec.Health.Probes {
		if name := unknownPort(p, pod); name != "" {
			return fmt.Sprintf("spec.health.probes[%s] names port %q, which no container has: correct the name, or use the number", p.Name, name)
		}
	}
	if recycle := g.Spec.Connections.Recycle; recycle != nil {
		for i, p := range recycle.Ports {
			if _, ok := ports(pod)[p.StrVal]; p.StrVal != "" && !ok {
				return fmt.Sprintf("spec.connections.recycle.ports[%d] names port %q, which no container has: correct the name, or use the number", i, p.StrVal)
			}
		}
	}
	return ""
}

func unknownPort(p v1alpha1.Probe, pod corev1.PodSpec) string {
	name := ""
	switch {
	case p.TCPSocket != nil:
		name = p.TCPSocket.Port.StrVal
	case p.HTTPGet != nil:
		name = p.HTTPGet.Port.StrVal
	case p.GRPC != nil:
		name = p.GRPC.Port.StrVal
	}
	if _, ok := ports(pod)[name]; ok {
		return ""
	}
	return name
}

func ports(pod corev1.PodSpec) map[string]int32 {
	out := map[string]int32{}
	for _, c := range pod.Containers {
		for _, p := range c.Ports {
			if p.Name != "" {
				out[p.Name] = p.ContainerPort
			}
		}
	}
	return out
}

// controllersOf are service accounts that the controller manager makes when it starts its controllers, if it gives each its own.
var controllersOf = []string{"node-controller", "pod-garbage-collector", "attachdetach-controller"}

// open tells what the policies cannot protect on this cluster.
func (r *Reconciler) open(ctx context.Context, s *sighting) ([]string, error) {
	var out []string
	capable, err := admission.Discover(r.Client.RESTMapper())
	if err != nil {
		return nil, err
	}
	if w := s.guarded.Workload; !capable.MutatingPolicies && w != nil && !carriesOurs(w, s.app.Name) {
		out = append(out, fmt.Sprintf("this cluster has no MutatingAdmissionPolicy (Kubernetes 1.36): pods get their label only after they are created, and pods of others "+
			"on these claims are not kept at the gate; put the label %s: %s and the scheduling gate %s into the pod template", v1alpha1.LabelApp, s.app.Name, v1alpha1.GateNewcomer))
	}
	if r.separate.Load() {
		return out, nil
	}
	for _, name := range controllersOf {
		var account corev1.ServiceAccount
		err := r.Live.Get(ctx, types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: name}, &account)
		if apierrors.IsNotFound(err) {
			return append(out, fmt.Sprintf("the controller manager seems to run without --use-service-account-credentials (there is no service account %s/%s): "+
				"its controllers cannot be told apart, and none can be refused", metav1.NamespaceSystem, name)), nil
		}
		if err != nil {
			return nil, fmt.Errorf("get service account %s: %w", name, err)
		}
	}
	r.separate.Store(true)
	return out, nil
}

// carriesOurs reports whether the pod template itself has the label and the gate.
func carriesOurs(w *guard.Workload, app string) bool {
	return w.Pod.Labels[v1alpha1.LabelApp] == app && guard.Gated(&corev1.Pod{Spec: w.Pod.Spec})
}

// findings are what could be better, without a refusal.
func (r *Reconciler) findings(ctx context.Context, s *sighting) []string {
	w := s.guarded.Workload
	if w == nil {
		return nil
	}
	var out []string
	for _, c := range w.Pod.Spec.Containers {
		if c.ReadinessProbe == nil {
			out = append(out, fmt.Sprintf("container %s has no readinessProbe", c.Name))
		}
	}
	if w.Replicas > 1 && (w.Pod.Spec.Affinity == nil || w.Pod.Spec.Affinity.PodAntiAffinity == nil) && len(w.Pod.Spec.TopologySpreadConstraints) == 0 {
		out = append(out, "several replicas without podAntiAffinity or topologySpreadConstraints: one host can carry them all")
	}
	for _, c := range w.Claims(s.app.Name) {
		if w.Replicas > 1 && !strings.HasSuffix(c.Name, "*") && !s.claims.Many(s.app.Namespace+"/"+c.Name) {
			out = append(out, fmt.Sprintf("%d replicas share claim %s, which is for one host: they run on one host only, and wait for each other", w.Replicas, c.Name))
		}
	}
	for claim := range s.guarded.Claims {
		out = append(out, r.volumeFindings(ctx, s.app.Namespace, claim)...)
	}
	for _, p := range append(s.guarded.All(), s.strangers...) {
		for _, c := range p.Status.Conditions {
			if c.Type == v1alpha1.ConditionLetIn && c.Status == corev1.ConditionFalse && guard.Gated(p) {
				out = append(out, fmt.Sprintf("pod %s waits at the gate %s", p.Name, c.Message))
			}
		}
	}
	sort.Strings(out)
	return slices.Compact(out)
}

// volumeFindings tell what a volume makes harder.
func (r *Reconciler) volumeFindings(ctx context.Context, namespace, claim string) []string {
	pv, err := guard.VolumeOf(ctx, r.Client, namespace, claim)
	if err != nil {
		return nil // not bound yet
	}
	var out []string
	if r.oneHost(ctx, pv) {
		out = append(out, fmt.Sprintf("claim %s is on a volume of one host (%s): the app cannot migrate, and a lost host stays lost to it", claim, pv.Name))
	}
	if !r.attaches(ctx, pv) {
		out = append(out, fmt.Sprintf("the volume of claim %s is not attached to a host: Kubernetes does not keep a second host from it, Holdfast is the only gate", claim))
	}
	return out
}

// oneHost reports whether a volume is to be had on one of the cluster's hosts only.
func (r *Reconciler) oneHost(ctx context.Context, pv *corev1.PersistentVolume) bool {
	if pv.Spec.Local != nil || pv.Spec.HostPath != nil {
		return true
	}
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return false
	}
	var nodes corev1.NodeList
	if err := r.Client.List(ctx, &nodes); err != nil || len(nodes.Items) < 2 {
		return false
	}
	fits := 0
	for i := range nodes.Items {
		if slices.ContainsFunc(pv.Spec.NodeAffinity.Required.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool { return selects(t, &nodes.Items[i]) }) {
			fits++
		}
	}
	return fits < 2
}

// selects reports whether a term is about the Node. Greater and less are not looked at: no volume is bound to a host by them.
func selects(t corev1.NodeSelectorTerm, n *corev1.Node) bool {
	matches := func(e corev1.NodeSelectorRequirement, value string, has bool) bool {
		switch e.Operator {
		case corev1.NodeSelectorOpIn:
			return has && slices.Contains(e.Values, value)
		case corev1.NodeSelectorOpNotIn:
			return !has || !slices.Contains(e.Values, value)
		case corev1.NodeSelectorOpExists:
			return has
		case corev1.NodeSelectorOpDoesNotExist:
			return !has
		}
		return true
	}
	for _, e := range t.MatchExpressions {
		if value, has := n.Labels[e.Key]; !matches(e, value, has) {
			return false
		}
	}
	for _, e := range t.MatchFields {
		if !matches(e, n.Name, true) {
			return false
		}
	}
	return len(t.MatchExpressions)+len(t.MatchFields) > 0
}

// attaches reports whether a volume has to be attached to a host before it can be used there.
func (r *Reconciler) attaches(ctx context.Context, pv *corev1.PersistentVolume) bool {
	switch s := pv.Spec.PersistentVolumeSource; {
	case s.CSI != nil:
		var driver storagev1.CSIDriver
		if err := r.Client.Get(ctx, types.NamespacedName{Name: s.CSI.Driver}, &driver); err != nil {
			return true // a driver that does not say otherwise is attached
		}
		return driver.Spec.AttachRequired == nil || *driver.Spec.AttachRequired
	case s.NFS != nil, s.CephFS != nil, s.Glusterfs != nil, s.HostPath != nil, s.Local != nil:
		return false
	}
	return true
}
