// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/guardconfig"
	"github.com/holdfast-dev/holdfast/controllers/guardedstatefulapp"
	"github.com/holdfast-dev/holdfast/controllers/hostincident"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/fake"
)

// callDeadline is the manager's.
const callDeadline = 2500 * time.Millisecond

// life is one process of the manager, with its own memory.
type life struct {
	*world
	self  string
	hosts *hostincident.Reconciler
	apps  *guardedstatefulapp.Reconciler
	bolt  *guardconfig.Bolt
	end   func()
}

// crashed is what a crash panics with.
type crashed struct{}

// boot starts a process that knows nothing.
func (w *world) boot() *life {
	w.t.Helper()
	w.lives++
	l := &life{world: w, self: fmt.Sprintf("manager/%d", w.lives)}
	api := interceptor.NewClient(w.admin, l.hooks())
	clock := sight.NewClock(w.clock)
	board := sight.NewBoard(clock, func(string) {})
	board.Dial = w.dial
	devices := &guard.Devices{Secrets: api, Namespace: w.name, Drivers: fencing.Registry{"ipmi": device{Driver: w.bmcs.Driver(), life: l}}}
	l.bolt = &guardconfig.Bolt{Direct: api, Clock: clock}
	l.hosts = &hostincident.Reconciler{Bolt: l.bolt.Arm, Client: api, Live: api, Events: l, Clock: clock, Leases: sight.NewLeases(clock), Powers: sight.NewPowers(clock),
		Sleepers: sight.NewSleepers(clock, func(string) {}),
		Board:    board, API: sight.NewAPI(clock), Devices: devices, Self: l.self, CallDeadline: callDeadline}
	l.apps = &guardedstatefulapp.Reconciler{Client: api, Live: api, Clock: clock, Board: board, Devices: devices, Self: l.self}
	ctx, cancel := context.WithCancel(w.ctx())
	over := make(chan error)
	go func() { over <- board.Start(ctx) }()
	l.end = func() {
		if cancel != nil {
			cancel()
			<-over
			cancel = nil
		}
	}
	w.t.Cleanup(l.end)
	return l
}

// Eventf notes what people are told. It implements events.EventRecorder.
func (w *world) Eventf(about, _ runtime.Object, _, reason, _, note string, args ...any) {
	kind := fmt.Sprintf("%T", about)
	if k := about.GetObjectKind().GroupVersionKind().Kind; k != "" {
		kind = k
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprintf("%s %s: %s", kind[strings.LastIndex(kind, ".")+1:], reason, fmt.Sprintf(note, args...)))
}

// device is the fake device, watched.
type device struct {
	fencing.Driver
	life *life
}

func (d device) Observe(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
	defer d.life.note("Observe")
	d.life.clock.Step(time.Millisecond)
	return d.Driver.Observe(ctx, t)
}

func (d device) Isolate(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
	w := d.life.world
	w.saw(operation{life: d.life, what: "Off"})
	before, calls := w.bmc.Power(), offs(w.bmcs)
	receipt, err := d.Driver.Isolate(ctx, t, permit)
	if offs(w.bmcs) > calls && before == fencing.PowerOn {
		w.set(func() { w.offs++ })
	}
	w.saw(operation{life: d.life, what: "Off", done: true})
	return receipt, err
}

func offs(w *fake.World) int {
	n := 0
	for _, c := range w.Calls() {
		if c.Operation == fake.Off {
			n++
		}
	}
	return n
}

func (w *world) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, what)
}

// saw tells those who watch, in order; one of them may panic.
func (w *world) saw(o operation) {
	w.note(o.life.self + " " + o.String())
	for _, watch := range w.watchers {
		watch(o)
	}
}

// watch has f told of every operation. It is called before the first life begins.
func (w *world) watch(f func(operation)) { w.watchers = append(w.watchers, f) }

func (l *life) write(verb string, o client.Object, do func() error) error {
	gvk, err := apiutil.GVKForObject(o, l.admin.Scheme())
	if err != nil {
		return err
	}
	op := operation{life: l, what: verb + " " + gvk.Kind, object: o}
	l.clock.Step(time.Millisecond)
	l.saw(op)
	err = do()
	if op.done = true; err == nil {
		l.saw(op)
	}
	return err
}

// guardConfig is the world's own: there is one in the cluster, and the worlds share that.
func (l *life) guardConfig(o *v1alpha1.GuardConfig) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.config == nil {
		return apierrors.NewNotFound(schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "guardconfigs"}, v1alpha1.GuardConfigName)
	}
	o.Spec = *l.config.DeepCopy()
	o.Spec.FenceBudget = v1alpha1.FenceBudget{Count: l.budget, WindowSeconds: 3600}
	return nil
}

// shared are the metadata of what all worlds share: the GuardConfig and the definitions of kinds.
func (l *life) shared(name string, o *metav1.PartialObjectMetadata) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	o.Name, o.ResourceVersion, o.Labels = name, "1", map[string]string{"other": "stays"}
	if l.bolted[name] {
		o.Labels[v1alpha1.LabelHold] = "armed"
	}
	return nil
}

func (l *life) bolts(o *metav1.PartialObjectMetadata) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bolted[o.Name] = o.Labels[v1alpha1.LabelHold] == "armed" && o.Labels["other"] == "stays"
}

// hooks let a life see its own world only, and let the world see what the life does.
func (l *life) hooks() interceptor.Funcs {
	return interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			l.clock.Step(time.Millisecond)
			switch o := o.(type) {
			case *v1alpha1.GuardConfig:
				return l.guardConfig(o)
			case *metav1.PartialObjectMetadata:
				return l.shared(key.Name, o)
			default:
				return c.Get(ctx, key, o, opts...)
			}
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			l.clock.Step(time.Millisecond)
			switch list.(type) {
			case *corev1.NodeList, *coordinationv1.LeaseList, *corev1.PersistentVolumeList, *corev1.PersistentVolumeClaimList, *storagev1.VolumeAttachmentList,
				*v1alpha1.FencingProfileList, *v1alpha1.HostAttestationList, *v1alpha1.HostIncidentList:
				opts = append(opts, l.label())
			case *corev1.PodList, *v1alpha1.GuardedStatefulAppList:
				if len(l.tenants) == 1 {
					opts = append(opts, client.InNamespace(l.name))
				}
			}
			if err := c.List(ctx, list, opts...); err != nil {
				return err
			}
			var mine []runtime.Object
			if err := meta.EachListItem(list, func(o runtime.Object) error {
				if a, ok := o.(*v1alpha1.HostAttestation); ok {
					a.CreationTimestamp = metav1.NewTime(l.clock.Now()) // the API server has a clock of its own, and this is just said
				}
				if l.mine(o.(client.Object)) {
					mine = append(mine, o.DeepCopyObject())
				}
				return nil
			}); err != nil {
				return err
			}
			return meta.SetList(list, mine)
		},
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return l.write("create", o, func() error { return c.Create(ctx, o, opts...) })
		},
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			return l.write("update", o, func() error { return c.Update(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if shared, ok := o.(*metav1.PartialObjectMetadata); ok {
				l.bolts(shared)
				return nil
			}
			return l.write("patch", o, func() error { return c.Patch(ctx, o, p, opts...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return l.write("delete", o, func() error { return c.Delete(ctx, o, opts...) })
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, o client.Object, opts ...client.SubResourceUpdateOption) error {
			return l.write("update "+sub+" of", o, func() error { return c.SubResource(sub).Update(ctx, o, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			return l.write("patch "+sub+" of", o, func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	}
}

// look lets the life look at host a once. It reports whether the life survived.
func (l *life) look() (next time.Duration, survived bool) {
	defer func() {
		switch r := recover(); r.(type) {
		case nil:
		case crashed:
			l.end()
			next, survived = time.Second, false
		default:
			panic(r)
		}
	}()
	request := ctrl.Request{NamespacedName: client.ObjectKey{Name: l.host("a")}}
	result, err := l.hosts.Reconcile(l.ctx(), request)
	if err != nil {
		l.note("error: " + err.Error())
	}
	return result.RequeueAfter, true
}

// lookAtApp lets the life look at the apps once: that is what has their pods probed.
func (l *life) lookAtApp() {
	l.t.Helper()
	for _, a := range l.tenants {
		if _, err := l.apps.Reconcile(l.ctx(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: a.namespace, Name: a.name}}); err != nil {
			l.note("error of the app: " + err.Error())
		}
	}
}

// rounds bounds how often a test looks before it gives up: half a minute of the clock and more.
const rounds = 150

// until lets the life look, and time pass, until something is so.
func (l *life) until(what string, is func() bool) {
	l.t.Helper()
	for range rounds {
		if is() {
			return
		}
		next, survived := l.look()
		if !survived {
			l.t.Fatalf("crashed on the way to: %s", what)
		}
		l.detach()
		l.pass(min(max(next, 50*time.Millisecond), time.Second))
	}
	l.t.Fatalf("it never came to: %s\n%s", what, l.tell())
}

// while looks for that long by the clock, and expects something to be so all the time.
func (l *life) while(d time.Duration, what string, is func() bool) {
	l.t.Helper()
	for begin := l.clock.Now(); l.clock.Since(begin) < d; {
		l.look()
		if !is() {
			l.t.Fatalf("no longer so: %s\n%s", what, l.tell())
		}
		l.detach()
		l.pass(time.Second)
	}
}

// settle lets a new life see the kubelets renew and the application answer.
func (l *life) settle() {
	l.t.Helper()
	l.lookAtApp()
	for range 4 {
		if _, survived := l.look(); !survived {
			l.t.Fatal("crashed while all was well")
		}
		l.pass(time.Second)
	}
	if n := len(l.incidents()); n != 0 {
		l.t.Fatalf("an incident of a host that is well\n%s", l.tell())
	}
}
