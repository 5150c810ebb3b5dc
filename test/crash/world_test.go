// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/fake"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

const (
	lostIP, podIP, nextIP = "10.0.0.1", "10.1.0.1", "10.1.0.2"
	machine               = "4c4c4544-0042-3510-8052-b4c04f4a4e32"
	leaseSeconds          = 8
	appPort               = 5432
)

var worlds atomic.Int32

// world is a cluster of two hosts: a carries the pod db-0 of a guarded StatefulSet, and b is well throughout. Its objects are named after it, and
// the controllers of its lives see no others.
type world struct {
	t     *testing.T
	name  string
	admin client.WithWatch
	// clock is everybody's; each request takes a millisecond of it.
	clock *clocktesting.FakeClock
	bmcs  *fake.World
	bmc   *fake.Host
	pod   *corev1.Pod

	mu       sync.Mutex
	renews   map[string]bool // hosts whose kubelet renews its lease
	renewed  time.Time
	kernel   bool // host a's kernel answers while it has power
	serves   bool // the application answers while host a has power
	budget   int32
	trace    []string
	watchers []func(operation)
	told     []string // events
	lives    int
	armed    bool
	offs     int // Off commands taken while the host was on
	tenants  []tenant
	config   *v1alpha1.GuardConfigSpec // what the GuardConfig says beside the budget; nil once it is deleted
	stuck    bool                      // nothing is detached
	bolted   map[string]bool           // what carries the label of the hold, of the GuardConfig and the definitions of kinds
}

// tenant is one guarded StatefulSet with one pod on host a. The first, db, is in the world's own namespace, and the others are in namespaces beside it.
type tenant struct {
	namespace, name, ip string
	pod                 *corev1.Pod
}

func (a tenant) volume(w *world) string {
	return strings.TrimPrefix(a.namespace, w.name) + "-" + a.name
}

// operation is one request that changes something, or one call of the device.
type operation struct {
	life *life
	// what is "verb Kind" for requests, "Observe" or "Off" for the device.
	what string
	// done is false just before it takes effect, and true just after, before its answer is given.
	done   bool
	object client.Object
}

func (o operation) String() string {
	if o.done {
		return o.what + " done"
	}
	return o.what
}

// ofOne reports whether the object is of a kind that carries the label of its world, so that a world's lists have nothing else in them. Nodes and Leases
// are made with it; pods and apps are told apart by their namespaces.
func ofOne(o client.Object) bool {
	switch o.(type) {
	case *corev1.PersistentVolume, *corev1.PersistentVolumeClaim, *storagev1.VolumeAttachment,
		*v1alpha1.FencingProfile, *v1alpha1.HostAttestation, *v1alpha1.HostIncident:
		return true
	}
	return false
}

// admin is an administrator's client that labels what it creates, for whomever, with the world that it is for.
func admin(t *testing.T, world string) client.WithWatch {
	t.Helper()
	config := rest.AnonymousClientConfig(cluster.Config)
	config.BearerToken = token
	config.QPS, config.Burst = 5000, 5000
	c, err := client.NewWithWatch(config, client.Options{Scheme: envtest.Scheme(), Mapper: cluster.Client.RESTMapper()})
	if err != nil {
		t.Fatal(err)
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if ofOne(o) {
				labels := maps.Clone(o.GetLabels())
				if labels == nil {
					labels = map[string]string{}
				}
				labels["world"] = world
				o.SetLabels(labels)
			}
			return c.Create(ctx, o, opts...)
		},
	})
}

func newWorld(t *testing.T, change ...func(*v1alpha1.GuardedStatefulApp)) *world {
	t.Helper()
	name := fmt.Sprintf("w%d", worlds.Add(1))
	w := &world{t: t, name: name, admin: admin(t, name), clock: clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
		bmcs: fake.NewWorld(), renews: map[string]bool{"a": true, "b": true}, kernel: true, serves: true, budget: 2,
		config: &v1alpha1.GuardConfigSpec{}, bolted: map[string]bool{}}
	w.bmc = w.bmcs.Add("bmc-a", machine, fencing.Credentials{Username: "admin", Password: w.password()})
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.name, Annotations: map[string]string{
		v1alpha1.AnnotationHeld: "stranger=other,bare", v1alpha1.AnnotationClaims: "other=claim"}}})
	w.hosts()
	w.workload(change...)
	t.Cleanup(func() {
		w.secretsAreUntold()
		w.vanish()
	})
	return w
}

func (w *world) password() string { return "correct-horse-" + w.name + "-battery" }

// label is on what belongs to the world; see [ofOne].
func (w *world) label() client.MatchingLabels { return client.MatchingLabels{"world": w.name} }

// host is the Node's name of host a or b.
func (w *world) host(letter string) string { return w.name + "-" + letter }

func (w *world) ctx() context.Context { return w.t.Context() }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// create creates objects with their status.
func (w *world) create(objects ...client.Object) {
	w.t.Helper()
	for _, o := range objects {
		status := o.DeepCopyObject().(client.Object)
		w.must(w.admin.Create(w.ctx(), o))
		switch status.(type) {
		case *corev1.Node, *corev1.Pod, *v1alpha1.GuardedStatefulApp:
			if n, ok := o.(*corev1.Node); ok {
				n.Spec.Taints = nil // the API server expects a controller that takes not-ready off
				w.must(w.admin.Update(w.ctx(), n))
			}
			status.SetResourceVersion(o.GetResourceVersion())
			status.SetUID(o.GetUID())
			w.must(w.admin.Status().Update(w.ctx(), status))
		}
	}
}

func (w *world) hosts() {
	w.t.Helper()
	for _, letter := range []string{"a", "b"} {
		name := w.host(letter)
		ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(w.clock.Now())}
		w.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"world": w.name}}, Status: corev1.NodeStatus{
			NodeInfo:   corev1.NodeSystemInfo{BootID: "boot-1", SystemUUID: map[string]string{"a": machine, "b": "b"}[letter]},
			Conditions: []corev1.NodeCondition{ready},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: map[string]string{"a": lostIP, "b": "10.0.0.2"}[letter]}},
		}})
		now := metav1.NewMicroTime(w.clock.Now())
		w.create(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name, Labels: map[string]string{"world": w.name}},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: ptr.To[int32](leaseSeconds), RenewTime: &now}})
	}
	w.create(w.secret())
	w.rack()
}

// rack is the FencingProfile of both hosts; it names a device for host a.
func (w *world) rack() {
	w.t.Helper()
	w.create(&v1alpha1.FencingProfile{ObjectMeta: metav1.ObjectMeta{Name: w.name + "-rack"}, Spec: v1alpha1.FencingProfileSpec{
		NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"world": w.name}}, Floors: v1alpha1.Floors{ConfirmAfterSeconds: 1},
		Levels: []v1alpha1.FencingLevel{{Methods: []v1alpha1.FencingMethod{{Name: "power", TimeoutSeconds: 2, SettleSeconds: 4, IPMI: &v1alpha1.IPMIMethod{
			CredentialsSecretRef: &v1alpha1.SecretReference{Name: "bmc"}, Hosts: []v1alpha1.HostDevice{{NodeName: w.host("a"), Address: "bmc-a"}}}}}}},
	}})
}

func (w *world) workload(change ...func(*v1alpha1.GuardedStatefulApp)) {
	w.t.Helper()
	w.pod = w.tenant(tenant{namespace: w.name, name: "db", ip: podIP}, change...).pod
}

// moreApps puts another guarded app with a pod on host a into a namespace of its own.
func (w *world) moreApps(name string, change ...func(*v1alpha1.GuardedStatefulApp)) tenant {
	w.t.Helper()
	a := tenant{namespace: w.name + "-" + name, name: name, ip: fmt.Sprintf("10.1.1.%d", len(w.tenants))}
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: a.namespace}})
	return w.tenant(a, change...)
}

func (w *world) tenant(a tenant, change ...func(*v1alpha1.GuardedStatefulApp)) tenant {
	w.t.Helper()
	volume := w.name + a.volume(w)
	claim := corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: ptr.To(""),
		VolumeName: volume, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": a.name}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "db", Image: "db", Ports: []corev1.ContainerPort{{Name: "sql", ContainerPort: appPort}}}}}}
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: a.name}, Spec: appsv1.StatefulSetSpec{
		ServiceName: a.name, Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template,
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: claim}}}}
	w.create(set,
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume}, Spec: corev1.PersistentVolumeSpec{
			AccessModes: claim.AccessModes, Capacity: claim.Resources.Requests, PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: volume}}}},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "data-" + a.name + "-0"}, Spec: claim},
		&storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: volume}, Spec: storagev1.VolumeAttachmentSpec{Attacher: "csi.example.com",
			NodeName: w.host("a"), Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &claim.VolumeName}}})
	g := &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: a.name, Finalizers: []string{v1alpha1.FinalizerApp}},
		Spec: v1alpha1.GuardedStatefulAppSpec{
			WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: a.name},
			OnHostLoss:  v1alpha1.OnHostLoss{ConfirmAfterSeconds: 2},
			Health: v1alpha1.Health{StartupSeconds: 1, Probes: []v1alpha1.Probe{{Name: "sql", PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 2,
				TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromString("sql")}}}},
		}}
	for _, c := range change {
		c(g)
	}
	w.create(g)
	a.pod = w.start(set, "a", a.ip)
	w.tenants = append(w.tenants, a)
	return a
}

// start lets the StatefulSet's pod run on a host.
func (w *world) start(set *appsv1.StatefulSet, letter, ip string) *corev1.Pod {
	w.t.Helper()
	yes := corev1.ConditionTrue
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: set.Namespace, Name: set.Name + "-0", Labels: map[string]string{"app": set.Name, v1alpha1.LabelApp: set.Name},
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}},
		Spec: *set.Spec.Template.Spec.DeepCopy(), Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: yes}, {Type: corev1.ContainersReady, Status: yes}}}}
	p.Spec.NodeName = w.host(letter)
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-" + set.Name + "-0"}}}}
	w.create(p)
	return p
}

// mine reports whether the world's controllers may see the object.
func (w *world) mine(o client.Object) bool {
	name := o.GetName()
	switch o.(type) {
	case *corev1.Pod, *v1alpha1.GuardedStatefulApp, *appsv1.StatefulSet, *appsv1.Deployment, *appsv1.ReplicaSet, *corev1.PersistentVolumeClaim:
		name = o.GetNamespace()
	}
	return name == w.name || strings.HasPrefix(name, w.name+"-")
}

// dial is the network: host a answers while it has power and a kernel.
func (w *world) dial(_ context.Context, _, addr string) (net.Conn, error) {
	w.mu.Lock()
	alive, serves := w.kernel && w.bmc.Power() == fencing.PowerOn, w.serves
	w.mu.Unlock()
	ip, port, _ := net.SplitHostPort(addr)
	lost := ip == lostIP || ip == podIP || strings.HasPrefix(ip, "10.1.1.")
	switch {
	case lost && !alive:
		return nil, &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}
	case port != fmt.Sprint(appPort) || lost && !serves:
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	ours, theirs := net.Pipe()
	_ = theirs.Close() // a probe that connects asks no more
	return ours, nil
}

// set changes what is true in the world.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// powerFails takes the power from host a: nothing of it is heard any more.
func (w *world) powerFails() {
	w.set(func() { w.renews["a"] = false })
	w.bmc.SetPower(fencing.PowerOff)
}

// hangs lets host a fall silent with its power on.
func (w *world) hangs() { w.set(func() { w.renews["a"], w.kernel = false, false }) }

// kubeletDies lets host a and its application run without their kubelet.
func (w *world) kubeletDies() { w.set(func() { w.renews["a"] = false }) }

// pass lets time go by, with what goes on in it: kubelets renew, and Kubernetes detaches what is out of service.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	w.clock.Step(d)
	w.mu.Lock()
	due := w.clock.Since(w.renewed) >= time.Second
	var letters []string
	for letter, renews := range w.renews {
		if renews && due {
			letters = append(letters, letter)
		}
	}
	if due {
		w.renewed = w.clock.Now()
	}
	w.mu.Unlock()
	for _, letter := range letters {
		w.renew(letter)
	}
}

func (w *world) renew(letter string) {
	w.t.Helper()
	patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, w.clock.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: w.host(letter)}}
	w.must(w.admin.Patch(w.ctx(), l, merge(patch)))
}

// detach is what Kubernetes does for a Node that is out of service and has no such pod.
func (w *world) detach() {
	w.t.Helper()
	if _, tainted := taint(w.node("a"), v1alpha1.TaintOutOfService); !tainted || w.stuck {
		return
	}
	for _, a := range w.tenants {
		if w.theirs(a) == nil {
			w.must(client.IgnoreNotFound(w.admin.Delete(w.ctx(), &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: w.name + a.volume(w)}})))
		}
	}
}

// theirs is the pod that an app had on host a from the beginning, nil once its object is gone.
func (w *world) theirs(a tenant) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{}
	err := w.admin.Get(w.ctx(), client.ObjectKeyFromObject(a.pod), p)
	if apierrors.IsNotFound(err) || err == nil && p.UID != a.pod.UID {
		return nil
	}
	w.must(err)
	return p
}

func merge(patch string) client.Patch {
	return client.RawPatch("application/merge-patch+json", []byte(patch))
}

func (w *world) node(letter string) *corev1.Node {
	w.t.Helper()
	n := &corev1.Node{}
	w.must(w.admin.Get(w.ctx(), client.ObjectKey{Name: w.host(letter)}, n))
	return n
}

// setNode changes what the kubelet of host a says of itself.
func (w *world) setNode(change func(*corev1.NodeStatus)) {
	w.t.Helper()
	n := w.node("a")
	base := n.DeepCopy()
	change(&n.Status)
	w.must(w.admin.Status().Patch(w.ctx(), n, client.MergeFrom(base)))
}

func taint(n *corev1.Node, key string) (corev1.Taint, bool) {
	for _, t := range n.Spec.Taints {
		if t.Key == key {
			return t, true
		}
	}
	return corev1.Taint{}, false
}

// current is the pod of that name, nil if there is none.
func (w *world) current(name string) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{}
	err := w.admin.Get(w.ctx(), client.ObjectKey{Namespace: w.name, Name: name}, p)
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must(err)
	return p
}

// lost is the pod that ran on host a from the beginning, nil once its object is gone.
func (w *world) lost() *corev1.Pod {
	w.t.Helper()
	if p := w.current("db-0"); p != nil && p.UID == w.pod.UID {
		return p
	}
	return nil
}

func (w *world) app() *v1alpha1.GuardedStatefulApp {
	w.t.Helper()
	g := &v1alpha1.GuardedStatefulApp{}
	w.must(w.admin.Get(w.ctx(), client.ObjectKey{Namespace: w.name, Name: "db"}, g))
	return g
}

func (w *world) incidents() []v1alpha1.HostIncident {
	w.t.Helper()
	var list, mine v1alpha1.HostIncidentList
	w.must(w.admin.List(w.ctx(), &list, w.label()))
	for _, h := range list.Items {
		if w.mine(&h) {
			mine.Items = append(mine.Items, h)
		}
	}
	return mine.Items
}

// incident is the only one there is, an empty one if there is none.
func (w *world) incident() *v1alpha1.HostIncident {
	w.t.Helper()
	switch list := w.incidents(); len(list) {
	case 0:
		return &v1alpha1.HostIncident{}
	case 1:
		return &list[0]
	default:
		w.t.Fatalf("%d incidents for one loss: opening one must be a lock", len(list))
		return nil
	}
}

func (w *world) held() string {
	w.t.Helper()
	ns := &corev1.Namespace{}
	w.must(w.admin.Get(w.ctx(), client.ObjectKey{Name: w.name}, ns))
	return ns.Annotations[v1alpha1.AnnotationHeld]
}

func isHeld(p *corev1.Pod) bool {
	if p == nil || p.Labels[v1alpha1.LabelHold] == "" {
		return false
	}
	for _, f := range p.Finalizers {
		if f == v1alpha1.FinalizerHold {
			return true
		}
	}
	return false
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func is(conditions []metav1.Condition, kind, reason string) bool {
	c := meta.FindStatusCondition(conditions, kind)
	return c != nil && c.Status == metav1.ConditionTrue && c.Reason == reason
}

// secretsAreUntold looks for the device's password wherever people or other programs look.
func (w *world) secretsAreUntold() {
	if said.contains(w.password()) {
		w.t.Error("the password of the device is in the log")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.told {
		if strings.Contains(e, w.password()) {
			w.t.Errorf("the password of the device is in an event: %s", e)
		}
	}
	ctx := context.Background() // the test's own has ended
	for _, list := range []client.ObjectList{&v1alpha1.HostIncidentList{}, &v1alpha1.FencingProfileList{}} {
		if err := w.admin.List(ctx, list); err != nil {
			w.t.Error(err)
			continue
		}
		if text, err := json.Marshal(list); err != nil || strings.Contains(string(text), w.password()) {
			w.t.Errorf("the password of the device is in a %T (%v)", list, err)
		}
	}
}

// vanish removes what every other world would have to read past.
func (w *world) vanish() {
	ctx := context.Background() // the test's own has ended
	objects := []client.Object{&v1alpha1.FencingProfile{ObjectMeta: metav1.ObjectMeta{Name: w.name + "-rack"}}}
	for _, a := range w.tenants {
		objects = append(objects, &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: w.name + a.volume(w)}})
	}
	var list v1alpha1.HostIncidentList
	if err := w.admin.List(ctx, &list, w.label()); err != nil {
		w.t.Error(err)
	}
	for i := range list.Items {
		if w.mine(&list.Items[i]) {
			objects = append(objects, &list.Items[i])
		}
	}
	for _, letter := range []string{"a", "b"} {
		objects = append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.host(letter)}},
			&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: w.host(letter)}})
	}
	for _, o := range objects {
		if err := client.IgnoreNotFound(w.admin.Delete(ctx, o)); err != nil {
			w.t.Error(err)
		}
	}
}

// tell describes where things stand, for a test that fails.
func (w *world) tell() string {
	w.mu.Lock()
	trace := strings.Join(w.trace[max(0, len(w.trace)-40):], "\n  ")
	w.mu.Unlock()
	text, _ := json.MarshalIndent(map[string]any{"incidents": w.incidents(), "taints": w.node("a").Spec.Taints, "held": w.held()}, "", " ")
	return fmt.Sprintf("trace:\n  %s\n%s\nlog:\n%s", trace, text, said.about(w.host("a")))
}
