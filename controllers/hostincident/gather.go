// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
	"github.com/holdfast-dev/holdfast/fencing"
)

// depth is how a host is looked at.
type depth uint8

const (
	// fromCache costs no request; it is enough to see that nothing is wrong.
	fromCache depth = iota
	// live reads everything that decides from the API server and from the devices.
	live
)

// world is a snapshot with the objects behind it, for whoever acts.
type world struct {
	seen     evidence.Snapshot
	policy   verdict.Policy
	budget   plan.Budget
	address  string
	node     *corev1.Node
	incident *v1alpha1.HostIncident
	pods     map[string]*corev1.Pod // writers on the host, and probed pods, by UID
	apps     []guard.App
	claims   *guard.Claims
	profile  *v1alpha1.FencingProfile
	settings []v1alpha1.DecidedSetting
	counting time.Time // the budget counts from here on; from the beginning where nobody knows
	devices  []guard.Device
	ignore   string // an attempt in hand, which the look before the call leaves out
}

// readTimeout bounds one live read; an API server that needs longer counts as silent.
const readTimeout = 2 * time.Second

// gather looks at everything. It never fails: what cannot be read is Unread.
func (r *Reconciler) gather(ctx context.Context, host string, how depth) *world {
	return r.gatherBut(ctx, host, how, "")
}

// gatherBut leaves out one attempt, which the caller has just journalled and not yet made.
func (r *Reconciler) gatherBut(ctx context.Context, host string, how depth, attempt string) *world {
	w := &world{pods: map[string]*corev1.Pod{}, ignore: attempt}
	w.seen.Host.Node = host
	w.seen.Listed = true // until a list is not answered
	from := r.reader(how)

	r.gatherIncident(ctx, w, from)
	r.gatherNode(ctx, w, from, how)
	r.gatherLease(ctx, w, from, how)
	apps := r.gatherApps(ctx, w, from)
	r.gatherWriters(ctx, w, from, apps)
	r.gatherAttachments(ctx, w, from)
	r.gatherAddresses(ctx, w)
	r.gatherPolicy(ctx, w, from)
	w.seen.Port = r.Board.Port(host)
	r.gatherAgentLease(ctx, w, how)
	r.gatherCluster(ctx, w)
	if how == live && w.incident != nil {
		r.gatherAttestations(ctx, w)
		r.gatherPower(ctx, w) // last, so that a reading of Off is later than every reading of the Node (invariant I3)
	}
	w.seen.Witnesses = r.Witnesses.Of(host) // after what takes long: what they say is of the present for seconds only
	w.seen.At = r.Clock.Instant()
	return w
}

func (r *Reconciler) reader(how depth) client.Reader {
	if how == live {
		return r.Live
	}
	return r.Client
}

// read does one read, bounded, and tells the API's memory whether it was answered.
func (r *Reconciler) read(ctx context.Context, do func(context.Context) error) (answered bool, err error) {
	call, done := context.WithTimeout(ctx, readTimeout)
	defer done()
	err = do(call)
	var status apierrors.APIStatus
	answered = err == nil || (errors.As(err, &status) && !apierrors.IsServerTimeout(err) && !apierrors.IsInternalError(err) && !apierrors.IsServiceUnavailable(err) && !apierrors.IsTooManyRequests(err))
	return answered, err
}

// gatherIncident finds the open incident of the host. Where the API server does not answer, what the cache remembers is better than nothing: the
// journal's own lock refuses whatever was decided on an old one.
func (r *Reconciler) gatherIncident(ctx context.Context, w *world, from client.Reader) {
	var list v1alpha1.HostIncidentList
	if _, err := r.read(ctx, func(c context.Context) error { return from.List(c, &list) }); err != nil {
		logf.FromContext(ctx).Error(err, "incidents cannot be listed")
		w.seen.Listed = false
		if err := r.Client.List(ctx, &list); err != nil {
			return
		}
	}
	for i := range list.Items {
		if h := &list.Items[i]; h.Spec.NodeName == w.seen.Host.Node && !h.Status.Step.Over() {
			w.incident = h
			return
		}
	}
}

func (r *Reconciler) gatherNode(ctx context.Context, w *world, from client.Reader, how depth) {
	var node corev1.Node
	asked := r.Clock.Instant()
	answered, err := r.read(ctx, func(c context.Context) error { return from.Get(c, types.NamespacedName{Name: w.seen.Host.Node}, &node) })
	if how == live && answered {
		r.API.Answered()
	}
	n := evidence.Node{Read: answered, At: asked}
	if answered && apierrors.IsNotFound(err) {
		n.Missing = true
	}
	if err == nil {
		w.node = &node
		w.address = internalIP(&node)
		r.Leases.SeeNode(&node, asked, how == live)
		describe(&n, &node)
		n.Spoke, n.SpokeNotBefore = r.Leases.Spoke(node.Name)
		w.seen.Host.NodeUID, w.seen.Host.BootID, w.seen.Host.SystemUUID = n.UID, n.BootID, n.SystemUUID
	} else if err != nil && !n.Missing {
		n.Read = false
	}
	if w.incident != nil {
		s := w.incident.Spec
		w.seen.Host.NodeUID, w.seen.Host.BootID, w.seen.Host.SystemUUID = s.NodeUID, s.BootID, s.SystemUUID
	}
	n.FencedBefore = n.Fenced && episodeOf(fencedBy(w.node), w.seen.Host) == 0
	w.seen.Node = n
}

func describe(n *evidence.Node, node *corev1.Node) {
	n.UID, n.BootID, n.SystemUUID = string(node.UID), node.Status.NodeInfo.BootID, node.Status.NodeInfo.SystemUUID
	for _, c := range node.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		n.ReadyReason = c.Reason
		n.Ready = map[corev1.ConditionStatus]evidence.Ready{corev1.ConditionTrue: evidence.ReadyTrue, corev1.ConditionFalse: evidence.ReadyFalse, corev1.ConditionUnknown: evidence.ReadyUnknown}[c.Status]
		n.RuntimeDown = c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "container runtime")
	}
	for _, t := range node.Spec.Taints {
		n.Fenced = n.Fenced || (t.Key == v1alpha1.TaintFenced && t.Effect == corev1.TaintEffectNoExecute)
		n.OutOfService = n.OutOfService || (t.Key == v1alpha1.TaintOutOfService && t.Value == outOfServiceValue)
	}
}

// fencedBy names the incident that our taint on the Node is of.
func fencedBy(node *corev1.Node) string {
	for _, t := range node.Spec.Taints {
		if t.Key == v1alpha1.TaintFenced {
			return t.Value
		}
	}
	return ""
}

func internalIP(node *corev1.Node) string {
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return ""
}

// gatherLease reads the lease of the host; when looked at live, those of all hosts, because the contrast to the others is evidence too.
func (r *Reconciler) gatherLease(ctx context.Context, w *world, from client.Reader, how depth) {
	asked := r.Clock.Instant()
	read, missing := true, true
	var list coordinationv1.LeaseList
	_, err := r.read(ctx, func(c context.Context) error {
		return from.List(c, &list, client.InNamespace(corev1.NamespaceNodeLease), client.UnsafeDisableDeepCopy) // it is only read
	})
	if err != nil {
		read = false
	}
	for i := range list.Items {
		r.Leases.SeeLease(&list.Items[i], asked, how == live)
		missing = missing && list.Items[i].Name != w.seen.Host.Node
	}
	w.seen.Lease = r.Leases.Lease(w.seen.Host.Node, read, read && missing)
}

// gatherAgentLease reads the Lease of the host's own agent, which says whether the host calls, and now and then those of the agents that look for it: that they are
// written shows that the API takes what hosts write. Ages count from when a word was seen to come; that there is no later one, only a live read tells.
func (r *Reconciler) gatherAgentLease(ctx context.Context, w *world, how depth) {
	if !r.Witnesses.On() {
		return
	}
	asked := r.Clock.Instant()
	read, missing := false, false
	if how == live {
		var others sync.WaitGroup
		for _, host := range r.contrasting(asked) {
			if host != w.seen.Host.Node {
				others.Go(func() { r.readAgentLease(ctx, host, asked) })
			}
		}
		read, missing = r.readAgentLease(ctx, w.seen.Host.Node, asked)
		others.Wait()
	}
	w.seen.AgentLease = r.Leases.Agent(w.seen.Host.Node, read, missing, asked)
}

// contrastEvery is how often the Leases of the agents that are asked are read, however many hosts are looked at.
const contrastEvery = 500 * time.Millisecond

// contrasting are the hosts of the agents whose Leases are to be read now: those that the manager has look for others write theirs.
func (r *Reconciler) contrasting(now evidence.Instant) []string {
	last := r.contrasted.Load()
	if (last != 0 && now.Sub(evidence.Instant(last)) < contrastEvery) || !r.contrasted.CompareAndSwap(last, int64(now)) {
		return nil
	}
	return r.Witnesses.Asked()
}

// readAgentLease reads the Lease of one host's agent live, and reports whether that was answered, and whether the answer was that there is none.
func (r *Reconciler) readAgentLease(ctx context.Context, host string, asked evidence.Instant) (read, missing bool) {
	var lease coordinationv1.Lease
	_, err := r.read(ctx, func(c context.Context) error {
		return r.Live.Get(c, types.NamespacedName{Namespace: wire.Namespace, Name: host}, &lease)
	})
	if err == nil {
		r.Leases.SeeAgent(&lease, asked, true)
	}
	missing = apierrors.IsNotFound(err)
	return err == nil || missing, missing
}

// gatherApps returns all guarded apps.
func (r *Reconciler) gatherApps(ctx context.Context, w *world, from client.Reader) []guard.App {
	apps, err := guard.Apps(ctx, r.Client, from)
	if err != nil {
		logf.FromContext(ctx).Error(err, "guarded apps cannot be listed")
		w.seen.Listed = false
	}
	return apps
}

// gatherWriters finds the pods on the host that name a guarded volume, by whatever claim in whatever namespace, whoever owns them and whatever their labels
// (invariant I10). What this incident holds is a writer also when nobody guards it any more.
func (r *Reconciler) gatherWriters(ctx context.Context, w *world, from client.Reader, apps []guard.App) {
	var pods corev1.PodList
	if _, err := r.read(ctx, func(c context.Context) error {
		return from.List(c, &pods, client.MatchingFields{guard.IndexPodNode: w.seen.Host.Node})
	}); err != nil {
		w.seen.Listed = false // without the pods of the host nothing may be decided about it
		return
	}
	claims, err := guard.ReadClaims(ctx, r.Client)
	if err != nil {
		w.seen.Listed = false
		return
	}
	w.claims = claims
	guards := guard.GuardsOf(apps, claims)
	concerned := map[string]guard.App{}
	for i := range pods.Items {
		p := &pods.Items[i]
		guarding := guards.Of(p)
		for _, app := range guarding {
			concerned[app.Key()] = *app
		}
		switch {
		case len(guarding) > 0:
			r.writer(ctx, w, p, named(guarding, p))
		case w.incident != nil && p.Labels[v1alpha1.LabelHold] == w.incident.Name:
			r.writer(ctx, w, p, p.Namespace+"/"+p.Labels[v1alpha1.LabelApp])
		}
	}
	r.gatherSuccessors(w, apps, concerned)
	for _, app := range concerned {
		w.apps = append(w.apps, app)
	}
}

// named is the app that a writer is counted to: the one that its label names, if that guards it.
func named(guarding []*guard.App, p *corev1.Pod) string {
	for _, app := range guarding {
		if app.Namespace == p.Namespace && app.Name == p.Labels[v1alpha1.LabelApp] {
			return app.Key()
		}
	}
	return guarding[0].Key()
}

func (r *Reconciler) writer(ctx context.Context, w *world, p *corev1.Pod, app string) {
	uid := string(p.UID)
	w.pods[uid] = p
	w.seen.Writers = append(w.seen.Writers, evidence.Writer{
		App: app, Namespace: p.Namespace, Name: p.Name, UID: uid, Volumes: guard.Volumes(ctx, r.Client, p),
		Held:        held(p, w.incident),
		HeldBy:      p.Labels[v1alpha1.LabelHold],
		Terminating: p.DeletionTimestamp != nil,
		Removed: p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0 &&
			!slices.Contains(p.Finalizers, v1alpha1.FinalizerHold),
		Finished:  guard.TerminalPhase(p),
		Addresses: addresses(p),
	})
	a, ok := r.Board.App(uid)
	if !ok {
		return
	}
	a.Exclusive = r.exclusive(ctx, p)
	a.EndpointReady = isTrue(p, corev1.PodReady)
	a.EndpointOwed = !a.EndpointReady && owed(p)
	w.seen.Apps = append(w.seen.Apps, a)
}

// held reports whether the open incident's hold stands on a pod as far as it can. A pod that is terminating takes no new finalizer; one that a human has
// overridden is left as the human left it. A hold of an incident that was deleted stands, and is armed anew in the name of the one that is open.
func held(p *corev1.Pod, h *v1alpha1.HostIncident) bool {
	if p.Annotations[v1alpha1.AnnotationOverride] != "" {
		return true
	}
	return h != nil && p.Labels[v1alpha1.LabelHold] == h.Name && (slices.Contains(p.Finalizers, v1alpha1.FinalizerHold) || p.DeletionTimestamp != nil)
}

// exclusive reports whether no other pod object has the pod's address. If that cannot be told, it is not.
func (r *Reconciler) exclusive(ctx context.Context, p *corev1.Pod) bool {
	if p.Status.PodIP == "" {
		return false
	}
	var list corev1.PodList
	if err := r.Client.List(ctx, &list, client.MatchingFields{guard.IndexPodIP: p.Status.PodIP}); err != nil {
		return false
	}
	for i := range list.Items {
		if other := &list.Items[i]; other.UID != p.UID && !guard.TerminalPhase(other) {
			return false
		}
	}
	return true
}

// addresses are those that a pod has for itself. One on its host's network has none: it is the host's own, at which somebody may look for the host.
func addresses(p *corev1.Pod) []string {
	if p.Spec.HostNetwork {
		return nil
	}
	hosts := []string{p.Status.HostIP}
	for _, h := range p.Status.HostIPs {
		hosts = append(hosts, h.IP)
	}
	return slices.DeleteFunc(guard.PodIPs(p), func(ip string) bool {
		address, err := netip.ParseAddr(ip)
		return slices.Contains(hosts, ip) || err != nil || !address.IsGlobalUnicast() || address.Is4In6()
	})
}

// gatherAddresses says what has become of the addresses of the pods in the journal.
func (r *Reconciler) gatherAddresses(ctx context.Context, w *world) {
	if w.incident == nil || r.Resets == nil {
		return
	}
	for _, p := range w.incident.Status.Pods {
		_, there := w.pods[p.UID]
		for _, ip := range p.Addresses {
			a := evidence.Address{IP: ip, Gone: w.seen.Listed && !there && p.ReleasedAt != nil, Ago: r.ago(p)}
			for _, c := range w.incident.Status.Resets {
				if c.Address == ip {
					a.Begun, a.Ended = true, c.EndedAt != nil
				}
			}
			now, known := r.Resets.Of(ip)
			if a.Begun { // an address that ended before was another incident's: the same pod gets the same one again
				a.Over = now.Over
			}
			a.Ours = known && now.Over == ""
			users, err := r.users(ctx, ip)
			a.Unread = err != nil
			for _, u := range users {
				if string(u.UID) == p.UID {
					a.Gone = false
				} else {
					a.User = "pod " + u.Namespace + "/" + u.Name
				}
			}
			w.seen.Addresses = append(w.seen.Addresses, a)
		}
	}
}

// ago is how long a pod has been released. A time in the future is now.
func (r *Reconciler) ago(p v1alpha1.IncidentPod) time.Duration {
	if p.ReleasedAt == nil {
		return 0
	}
	return max(0, r.Clock.Since(p.ReleasedAt.Time))
}

// users are the pod objects that have an address, on whatever host and in whatever phase.
func (r *Reconciler) users(ctx context.Context, address string) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := r.Client.List(ctx, &list, client.MatchingFields{guard.IndexPodIP: address})
	return list.Items, err
}

// UserOf names a pod object that has an address; empty where none has.
func (r *Reconciler) UserOf(ctx context.Context, address string) (string, error) {
	users, err := r.users(ctx, address)
	if err != nil || len(users) == 0 {
		return "", err
	}
	return "pod " + users[0].Namespace + "/" + users[0].Name, nil
}

// owed reports whether a kubelet would call the pod Ready (pkg/kubelet/status, GeneratePodReadyCondition): its containers are, and so is every readiness
// gate. The node controller changes Ready alone.
func owed(p *corev1.Pod) bool {
	for _, g := range p.Spec.ReadinessGates {
		if !isTrue(p, g.ConditionType) {
			return false
		}
	}
	return p.DeletionTimestamp == nil && isTrue(p, corev1.ContainersReady)
}

func isTrue(p *corev1.Pod, kind corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// gatherSuccessors finds the pods that took the places of those in the journal; see [guard.App.Places].
func (r *Reconciler) gatherSuccessors(w *world, apps []guard.App, concerned map[string]guard.App) {
	if w.incident == nil {
		return
	}
	serving := func(p *corev1.Pod) evidence.Serving {
		a, _ := r.Board.App(string(p.UID))
		return a.Serving
	}
	for _, app := range apps {
		places := app.Places(w.lost(app.Key()))
		for _, s := range app.Successors(w.seen.Host.Node, serving) {
			if slices.Contains(places, s.App) {
				w.seen.Successors = append(w.seen.Successors, s)
			}
		}
		if len(w.lost(app.Key())) > 0 {
			concerned[app.Key()] = app
		}
	}
}

// lost are the names of the app's pods in the journal.
func (w *world) lost(app string) []string {
	var out []string
	for _, p := range w.incident.Status.Pods {
		if p.Namespace+"/"+p.App == app {
			out = append(out, p.Name)
		}
	}
	return out
}

func (r *Reconciler) gatherAttachments(ctx context.Context, w *world, from client.Reader) {
	if w.incident == nil {
		return
	}
	volumes := map[string]bool{}
	for _, app := range w.apps {
		for claim := range app.Claims {
			if w.claims == nil {
				break
			}
			for _, pv := range w.claims.PersistentVolumes(app.Namespace + "/" + claim) {
				volumes[pv] = true
			}
		}
	}
	var list storagev1.VolumeAttachmentList
	if _, err := r.read(ctx, func(c context.Context) error { return from.List(c, &list) }); err != nil {
		w.seen.Listed = false
		return
	}
	for _, a := range list.Items {
		// By its label too: when a pod is gone, nothing names its claim any more, but its volume may still be attached.
		if a.Spec.NodeName == w.seen.Host.Node && a.Spec.Source.PersistentVolumeName != nil &&
			(volumes[*a.Spec.Source.PersistentVolumeName] || a.Labels[v1alpha1.LabelGuardedVolume] != "") {
			w.seen.Attachments = append(w.seen.Attachments, evidence.Attachment{Name: a.Name, Volume: *a.Spec.Source.PersistentVolumeName, Attached: a.Status.Attached})
		}
	}
}

// gatherPolicy reads what apps, profile and cluster ask for, the budget, and the journal.
func (r *Reconciler) gatherPolicy(ctx context.Context, w *world, from client.Reader) {
	var config v1alpha1.GuardConfig
	if _, err := r.read(ctx, func(c context.Context) error {
		return from.Get(c, types.NamespacedName{Name: v1alpha1.GuardConfigName}, &config)
	}); client.IgnoreNotFound(err) != nil {
		w.seen.Listed = false // unread means that nobody knows the brakes
	}
	r.gatherProfile(ctx, w, from)
	w.policy = guard.PolicyFor(w.apps, w.profile, config.Spec)
	if w.seen.NoMethods != "" {
		w.policy.MinimumProof = max(w.policy.MinimumProof, evidence.StrengthPowerOff) // one of them may not allow less
	}
	w.settings = guard.Decided(w.apps, w.profile, config.Spec)
	if window := config.Spec.FenceBudget.WindowSeconds; window > 0 {
		w.counting = r.Clock.Now().Add(-time.Duration(window) * time.Second)
	}
	w.budget = r.gatherBudget(ctx, w, from, config.Spec.FenceBudget)
	if w.policy.RestartKubelet {
		r.gatherRepairs(ctx, w, from)
	}
	if w.incident != nil {
		w.seen.Journal = r.gatherJournal(w)
	}
}

// gatherProfile finds the host's profile. Where two select the host, or nobody knows how many do, there is none, and what is asked for is not less for that.
func (r *Reconciler) gatherProfile(ctx context.Context, w *world, from client.Reader) {
	if w.node == nil {
		return
	}
	p, err := r.Devices.Profile(ctx, from, w.node)
	switch {
	case err == nil:
		w.profile = p
	case !errors.Is(err, guard.ErrNoProfile):
		w.seen.NoMethods = err.Error()
	}
}

// gatherBudget counts the Off commands of the sliding window that changed state or may have, but for the attempt in hand. Times in the future count as well.
// Without a GuardConfig nothing is left: whoever deleted it has not thereby allowed more.
func (r *Reconciler) gatherBudget(ctx context.Context, w *world, from client.Reader, b v1alpha1.FenceBudget) plan.Budget {
	if b.WindowSeconds == 0 {
		return plan.Budget{}
	}
	out := plan.Budget{Max: int(b.Count)}
	var list v1alpha1.HostIncidentList
	if _, err := r.read(ctx, func(c context.Context) error { return from.List(c, &list) }); err != nil {
		return plan.Budget{} // nothing left: what cannot be counted is not spent
	}
	begin := w.counting
	out.Used = vanished(list.Items, begin)
	for _, h := range list.Items {
		if h.Status.JournalVersion > v1alpha1.JournalVersion && (h.Status.LastObserved == nil || h.Status.LastObserved.After(begin)) {
			return plan.Budget{Used: out.Max, Max: out.Max} // whoever wrote it may count otherwise
		}
		for _, a := range h.Status.Attempts {
			if w.incident != nil && h.Name == w.incident.Name && a.ID == w.ignore {
				continue
			}
			if a.State != v1alpha1.AttemptFailed && a.PowerBefore != evidence.PowerOff.String() && a.IntendedAt.After(begin) {
				out.Used++
			}
		}
	}
	return out
}

// gatherRepairs reads from all journals when kubelets were last restarted.
func (r *Reconciler) gatherRepairs(ctx context.Context, w *world, from client.Reader) {
	var list v1alpha1.HostIncidentList
	if _, err := r.read(ctx, func(c context.Context) error { return from.List(c, &list) }); err == nil {
		w.seen.Repairs = w.repairs(list.Items, r.Clock.Now())
	}
}

// repairs are those of all journals but for the one in hand. What may have been done counts; a time in the future is now.
func (w *world) repairs(list []v1alpha1.HostIncident, now time.Time) evidence.Repairs {
	out := evidence.Repairs{Read: true}
	for _, h := range list {
		for _, p := range h.Status.Repairs {
			ours := w.incident != nil && h.Name == w.incident.Name && p.ID == w.ignore
			if ours || p.State == v1alpha1.RepairWithdrawn {
				continue
			}
			ago := max(0, now.Sub(p.IntendedAt.Time))
			if h.Spec.NodeName == w.seen.Host.Node {
				if !out.Tried || ago < out.Ago {
					out.Tried, out.Ago, out.Failed = true, ago, p.State == v1alpha1.RepairFailed
				}
			} else if out.Elsewhere == "" || ago < out.ElsewhereAgo {
				out.Elsewhere, out.ElsewhereAgo = h.Spec.NodeName, ago
			}
		}
	}
	return out
}

// vanished counts the incidents since begin whose episode before was deleted: each may have had an Off command of its own that nobody can count any more.
func vanished(list []v1alpha1.HostIncident, begin time.Time) int {
	there := map[string]bool{}
	for _, h := range list {
		there[h.Name] = true
	}
	n := 0
	for _, h := range list {
		host := evidence.Host{Node: h.Spec.NodeName, BootID: h.Spec.BootID}
		if h.Spec.Episode > 1 && h.CreationTimestamp.After(begin) && !there[incidentName(host, h.Spec.Episode-1)] {
			n++
		}
	}
	return n
}

func (r *Reconciler) gatherJournal(w *world) evidence.Journal {
	s := w.incident.Status
	j := evidence.Journal{Name: w.incident.Name, Step: evidence.Step(s.Step), ProofRecorded: s.Proof != nil, Distrusted: w.distrusted(),
		Approved: w.incident.Annotations[v1alpha1.AnnotationApproved] == w.incident.Spec.BootID && w.incident.Spec.BootID != ""}
	if j.Step == evidence.StepNone {
		j.Step = evidence.StepSuspected
	}
	j.StepFor = r.phases.running(w.incident, r.Clock)
	if s.Proof != nil {
		j.Word = map[v1alpha1.ProofStrength]string{v1alpha1.ProofAttested: evidence.Attesting, v1alpha1.ProofSelfFenced: evidence.SelfFencing}[s.Proof.Strength]
		j.ProvenSince = r.Clock.Instant() - evidence.Instant(r.Powers.Since(w.incident.Name+"/proof/"+s.Proof.EstablishedAt.String()))
	}
	for _, a := range s.Attempts {
		if a.ID == w.ignore {
			continue
		}
		known := r.Powers.Since(w.incident.Name + "/" + a.ID + "/" + string(a.State))
		own := a.By == r.Self
		j.Attempts = append(j.Attempts, evidence.Attempt{ID: a.ID, Method: w.method(a), Level: int(a.Level), State: evidence.AttemptState(a.State),
			Own: own, CallOver: own || known > 2*r.CallDeadline, Overdue: known > r.settle(w, a.Method)})
	}
	for _, p := range s.Pods {
		j.Pods++
		if p.ReleasedAt != nil {
			j.Released++
		}
	}
	j.Apps = w.places()
	return j
}

// method is the name under which an attempt is known: that of the method which reaches the device now that was commanded. Where the profile names another
// device for its method, and no method for its device, it stands under a name of its own: nothing that is read now can settle it, or is proof by it. A
// method that lied keeps its name.
func (w *world) method(a v1alpha1.Attempt) string {
	now := guard.Addresses(w.profile, w.seen.Host.Node)
	if a.Device == "" || now[a.Method] == a.Device || slices.Contains(w.incident.Status.Distrusted, a.Method) {
		return a.Method
	}
	for _, method := range slices.Sorted(maps.Keys(now)) {
		if now[method] == a.Device {
			return method
		}
	}
	if now[a.Method] == "" {
		return a.Method
	}
	return atDevice(a)
}

// distrusted are the methods that lied, and those that by now reach a device that was commanded and lied under another name.
func (w *world) distrusted() []string {
	s := w.incident.Status
	out := slices.Clone(s.Distrusted)
	now := guard.Addresses(w.profile, w.seen.Host.Node)
	for _, method := range slices.Sorted(maps.Keys(now)) {
		lied := func(a v1alpha1.Attempt) bool {
			return a.Device == now[method] && (slices.Contains(s.Distrusted, a.Method) || slices.Contains(s.Distrusted, atDevice(a)))
		}
		if !slices.Contains(out, method) && slices.ContainsFunc(s.Attempts, lied) {
			out = append(out, method)
		}
	}
	return out
}

func atDevice(a v1alpha1.Attempt) string { return a.Method + " at " + a.Device }

// places are those that somebody still waits to see filled. Where the apps could not be listed, somebody waits for every pod.
func (w *world) places() []string {
	var out []string
	if !w.seen.Listed {
		for _, p := range w.incident.Status.Pods {
			out = append(out, p.Namespace+"/"+p.App+"/"+p.Name)
		}
		return out
	}
	for _, app := range w.apps {
		if lost := w.lost(app.Key()); len(lost) > 0 {
			out = append(out, app.Places(lost)...)
		}
	}
	slices.Sort(out)
	return out
}

// settle is how long an accepted Off may take by the profile.
func (r *Reconciler) settle(w *world, method string) time.Duration {
	if w.profile != nil {
		for _, l := range w.profile.Spec.Levels {
			for _, m := range l.Methods {
				if m.Name == method && m.SettleSeconds > 0 {
					return time.Duration(m.SettleSeconds) * time.Second
				}
			}
		}
	}
	return 20 * time.Second
}

func (r *Reconciler) gatherCluster(ctx context.Context, w *world) {
	c := evidence.Cluster{APISilent: r.API.SilentFor(), Observing: r.Clock.Instant().Sub(evidence.Instant(r.began.Load()))}
	var nodes corev1.NodeList
	// Neither list is changed, and a copy of every Node for every look at one of them would be most of what this process does in a large cluster.
	if err := r.Client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err == nil {
		proven := r.provenLost(ctx)
		names := make([]string, 0, len(nodes.Items))
		for _, n := range nodes.Items {
			if !proven[n.Name] || n.Name == w.seen.Host.Node {
				names = append(names, n.Name)
			}
		}
		c.Hosts = len(names)
		c.StaleHosts, c.HasOther, c.OtherNotBefore = r.Leases.Late(names, w.policy.Late, w.seen.Host.Node, r.OwnHost)
	}
	w.seen.Cluster = c
}

// provenLost returns the hosts that are known to be off: that their leases are late says nothing about the observer's eyes.
func (r *Reconciler) provenLost(ctx context.Context) map[string]bool {
	out := map[string]bool{}
	var list v1alpha1.HostIncidentList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return out // they count as late, which is the careful mistake
	}
	for i := range list.Items {
		if h := &list.Items[i]; h.Status.Proof != nil && !h.Status.Step.Over() {
			out[h.Spec.NodeName] = true
		}
	}
	return out
}

// gatherAttestations reads what humans say of the host. What cannot be read was not said.
func (r *Reconciler) gatherAttestations(ctx context.Context, w *world) {
	at := r.Clock.Instant()
	var list v1alpha1.HostAttestationList
	if _, err := r.read(ctx, func(c context.Context) error { return r.Live.List(c, &list) }); err != nil {
		logf.FromContext(ctx).Error(err, "attestations cannot be listed")
		return
	}
	for i := range list.Items {
		a := &list.Items[i]
		if a.Spec.NodeName != w.seen.Host.Node {
			continue
		}
		watched := r.Powers.Since("attestation/" + string(a.UID))
		w.seen.Attestations = append(w.seen.Attestations, evidence.Attestation{Name: a.Name, BootID: a.Spec.BootID, At: at,
			Seen: r.Clock.Instant() - evidence.Instant(watched), Expired: guard.Expired(a, r.Clock.Now(), watched)})
	}
}

// gatherPower reads every device of the host, at once.
func (r *Reconciler) gatherPower(ctx context.Context, w *world) {
	if w.profile == nil {
		return
	}
	w.devices = r.Devices.For(ctx, w.profile, w.seen.Host.Node, w.seen.Host.SystemUUID)
	readings := make([]evidence.Power, len(w.devices))
	var wg sync.WaitGroup
	for i, d := range w.devices {
		wg.Add(1)
		go func() {
			defer wg.Done()
			readings[i] = r.readDevice(ctx, w.seen.Host, d)
		}()
	}
	wg.Wait()
	w.seen.Power = readings
}

// readDevice reads one device, and adds what it is remembered to have read before: that stays known when it cannot be read now.
func (r *Reconciler) readDevice(ctx context.Context, h evidence.Host, d guard.Device) evidence.Power {
	key := h.Node + "/" + h.BootID + "/" + d.Method + "/" + d.Address() // what another device read is not remembered of this one
	out := r.askDevice(ctx, h.Node, key, d)
	r.Powers.See(key, &out, r.Clock.Instant())
	return out
}

func (r *Reconciler) askDevice(ctx context.Context, host, key string, d guard.Device) evidence.Power {
	out := evidence.Power{Method: d.Method, Level: int(d.Level), At: r.Clock.Instant()}
	if d.Err != nil {
		out.Why = d.Err.Error()
		return out
	}
	what := d.Driver.Describe()
	out.CoversHost, out.CoversDrivers = what.Coverage.Host, what.Coverage.Drivers
	if what.Strength == fencing.StrengthPowerOff {
		out.Strength = evidence.StrengthPowerOff
	}
	key += "/" + fingerprint(d.Target) // a new address or a rotated Secret is tried at once
	if why, asleep := r.Sleepers.Asleep(key); asleep {
		out.Why = why
		return out
	}
	observe := func(ctx context.Context) (fencing.Reading, error) {
		call, done := context.WithTimeout(ctx, min(d.Timeout, r.CallDeadline))
		defer done()
		return d.Driver.Observe(call, d.Target)
	}
	reading, err := observe(ctx)
	if err != nil {
		out.Why = err.Error()
		r.Sleepers.Sleep(host, key, out.Why, func(ctx context.Context) error {
			_, err := observe(ctx) // what it says is read again, in its turn: a reading has to be later than that of the Node
			return err
		})
		return out
	}
	out.State = map[fencing.Power]evidence.PowerState{fencing.PowerOn: evidence.PowerOn, fencing.PowerOff: evidence.PowerOff, fencing.PowerGone: evidence.PowerGone}[reading.Power]
	out.Why = reading.Detail
	out.Identity = identity(reading.Identity, d.SystemUUID)
	return out
}

// fingerprint tells targets apart without telling what is in them.
func fingerprint(t fencing.Target) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %v %q %q", t.Address, t.Port, t.Options, t.Credentials.Username, t.Credentials.Password))
	return hex.EncodeToString(sum[:8])
}

func identity(device, node string) evidence.Identity {
	switch {
	case device == "":
		return evidence.IdentityUnchecked
	case fencing.SameMachine(device, node) != nil:
		return evidence.IdentityDiffers
	default:
		return evidence.IdentityMatches
	}
}
