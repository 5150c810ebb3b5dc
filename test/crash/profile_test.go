// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/fencingprofile"
	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/fake"
)

// otherDevice is a device that nobody commanded. It says that it belongs to host a, and that it is off.
const otherDevice = "bmc-b"

func (w *world) profile() *v1alpha1.FencingProfile {
	w.t.Helper()
	p := &v1alpha1.FencingProfile{}
	w.must(w.admin.Get(w.ctx(), client.ObjectKey{Name: w.name + "-rack"}, p))
	return p
}

// reprofile edits the FencingProfile as a person would.
func (w *world) reprofile(change func(*v1alpha1.FencingMethod)) {
	w.t.Helper()
	p := w.profile()
	change(&p.Spec.Levels[0].Methods[0])
	w.must(w.admin.Update(w.ctx(), p))
}

// shelf is a second profile that selects the same hosts; the device it names is another.
func (w *world) shelf() *v1alpha1.FencingProfile {
	p := &v1alpha1.FencingProfile{ObjectMeta: metav1.ObjectMeta{Name: w.name + "-shelf"}, Spec: *w.profile().Spec.DeepCopy()}
	p.Spec.Levels[0].Methods[0].IPMI.Hosts[0].Address = otherDevice
	return p
}

// second puts the other device into the world.
func (w *world) second() *fake.Host {
	h := w.bmcs.Add(otherDevice, machine, fencing.Credentials{Username: "admin", Password: w.password()})
	h.SetPower(fencing.PowerOff)
	w.t.Cleanup(func() {
		shelf := &v1alpha1.FencingProfile{ObjectMeta: metav1.ObjectMeta{Name: w.name + "-shelf"}}
		if err := client.IgnoreNotFound(w.admin.Delete(context.Background(), shelf)); err != nil { // the test's own context has ended
			w.t.Error(err)
		}
	})
	return h
}

func (w *world) secret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "bmc"},
		Data: map[string][]byte{"username": []byte("admin"), "password": []byte(w.password())}}
}

// commanded counts the Off commands that the device at the address took.
func (w *world) commanded(address string) int {
	n := 0
	for _, c := range w.bmcs.Calls() {
		if c.Address == address && c.Operation == fake.Off {
			n++
		}
	}
	return n
}

// blocked reports whether the incident waits for a person, and says all these words.
func (w *world) blocked(words ...string) func() bool {
	return func() bool {
		c := meta.FindStatusCondition(w.incident().Status.Conditions, v1alpha1.ConditionBlocked)
		return c != nil && c.Status == metav1.ConditionTrue && !slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(c.Message, s) })
	}
}

// after has f done once, right after the first such operation took effect and before its answer is given.
func (w *world) after(such func(operation) bool, f func()) {
	done := false
	w.watch(func(o operation) {
		if o.done && !done && such(o) {
			done = true
			f()
		}
	})
}

func commandsOff(o operation) bool { return o.what == "Off" }

// puts is the operation that puts the taint on a Node.
func puts(key string) func(operation) bool {
	return func(o operation) bool {
		n, ok := o.object.(*corev1.Node)
		if !ok {
			return false
		}
		_, tainted := taint(n, key)
		return tainted
	}
}

// moment is when something happens in the middle of a loss.
type moment struct {
	name string
	such func(operation) bool
}

// The moments between which nothing but a reading of the device leads on.
var (
	commanded    = moment{"once Off was commanded", commandsOff}
	fenced       = moment{"once the Node is fenced", puts(v1alpha1.TaintFenced)}
	outOfService = moment{"once the Node is out of service", puts(v1alpha1.TaintOutOfService)}
)

// profileEdits take the device that was commanded out of sight, and put it back.
var profileEdits = []struct {
	name     string
	do, undo func(*world)
	// says are words of cause and remedy that status must have, whether the attempt is open or settled.
	says []string
	// at are its moments: always that of the open attempt, and one or two of the later ones.
	at []moment
}{
	{"the profile is deleted",
		func(w *world) { w.must(w.admin.Delete(w.ctx(), w.profile())) },
		func(w *world) { w.rack() },
		[]string{"FencingProfile"}, []moment{commanded, fenced}},
	{"another profile selects the host",
		func(w *world) { w.must(w.admin.Create(w.ctx(), w.shelf())) },
		func(w *world) { w.must(w.admin.Delete(w.ctx(), w.shelf())) },
		[]string{"-rack", "-shelf", "narrow the nodeSelector"}, []moment{commanded, outOfService}},
	{"the host is not listed any more",
		func(w *world) { w.reprofile(func(m *v1alpha1.FencingMethod) { m.IPMI.Hosts[0].NodeName = "nobody" }) },
		func(w *world) {
			w.reprofile(func(m *v1alpha1.FencingMethod) { m.IPMI.Hosts[0].NodeName = w.host("a") })
		},
		[]string{"to the hosts of method power"}, []moment{commanded}},
	{"the Secret is deleted",
		func(w *world) { w.must(w.admin.Delete(w.ctx(), w.secret())) },
		func(w *world) { w.must(w.admin.Create(w.ctx(), w.secret())) },
		[]string{"create Secret", "/bmc with the keys username and password"}, []moment{commanded, fenced, outOfService}},
	{"the Secret is rotated and the device is not",
		func(w *world) {
			s := w.secret()
			s.Data["password"] = []byte("of-tomorrow")
			w.must(w.admin.Update(w.ctx(), s))
		},
		func(w *world) {
			w.bmc.SetCredentials(fencing.Credentials{Username: "admin", Password: "of-tomorrow"})
		},
		[]string{"refused the credentials", "bmc-a"}, []moment{commanded}},
}

// TestTheProfileChangesInTheMiddle takes the device away at every stage after Off: nothing is released without it, nobody is commanded a second time, status
// says what is wrong, and what was put back goes on where it was.
func TestTheProfileChangesInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, edit := range profileEdits {
		for _, moment := range edit.at {
			t.Run(edit.name+" "+moment.name, func(t *testing.T) {
				t.Parallel()
				w := lawful(t)
				w.second()
				w.after(moment.such, func() { edit.do(w) })
				l := w.boot()
				l.settle()
				w.hangs()
				l.until("a person is told what is wrong", w.blocked(edit.says...))
				l.while(4*time.Second, "held, commanded once and not released", func() bool {
					return isHeld(w.lost()) && w.count("Off done") == 1 && w.blocked(edit.says...)()
				})
				edit.undo(w)
				l.until("the pod is released", func() bool { return w.lost() == nil })
				l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
				w.releasedOnce(t)
				if n := w.count("Off done"); n != 1 || w.commanded("bmc-a") != 1 {
					t.Errorf("%d Off commands, %d of them by the device of the first; want one", n, w.commanded("bmc-a"))
				}
			})
		}
	}
}

// TestAnotherDeviceSettlesNothing puts another device into the place of the one that was commanded, while nobody knows yet whether that one took effect.
func TestAnotherDeviceSettlesNothing(t *testing.T) {
	t.Parallel()
	for name, method := range map[string]string{"under the same name": "power", "as another method": "other"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			w.second()
			w.after(commandsOff, func() {
				w.reprofile(func(m *v1alpha1.FencingMethod) { m.Name, m.IPMI.Hosts[0].Address = method, otherDevice })
			})
			l := w.boot()
			l.settle()
			w.hangs()
			l.until("a person is told what is wrong", w.blocked("attempt off-1 by power", "does not name that device any more", "put it back"))
			l.while(10*time.Second, "held, and commanded once", func() bool {
				return isHeld(w.lost()) && w.incident().Status.Proof == nil && w.count("Off done") == 1
			})
			if a := w.incident().Status.Attempts; len(a) != 1 || a[0].Device != "bmc-a:623" || a[0].State != v1alpha1.AttemptAccepted {
				t.Errorf("attempts %+v, want one by bmc-a:623 that is accepted", a)
			}
			w.reprofile(func(m *v1alpha1.FencingMethod) { m.Name, m.IPMI.Hosts[0].Address = "power", "bmc-a" })
			l.until("the pod is released", func() bool { return w.lost() == nil })
			if w.count("Off done") != 1 || w.commanded(otherDevice) != 0 {
				t.Errorf("%d Off commands, %d by the other device", w.count("Off done"), w.commanded(otherDevice))
			}
		})
	}
}

// TestAnotherDeviceIsCommandedBeforeItProves puts another device into the place of one that was commanded and has read Off: it proves what it was commanded
// itself, and nothing before.
func TestAnotherDeviceIsCommandedBeforeItProves(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	w.second()
	w.after(puts(v1alpha1.TaintFenced), func() {
		w.reprofile(func(m *v1alpha1.FencingMethod) { m.IPMI.Hosts[0].Address = otherDevice })
	})
	w.watch(func(o operation) {
		if o.what == "delete Pod" && !o.done && w.commanded(otherDevice) == 0 {
			t.Error("a pod is deleted by the word of a device that was never commanded")
		}
	})
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("the pod is released", func() bool { return w.lost() == nil })
	h := w.incident()
	last := h.Status.Attempts[len(h.Status.Attempts)-1]
	if h.Status.Proof == nil || h.Status.Proof.AttemptID != last.ID || last.Device != otherDevice+":623" {
		t.Errorf("proof %+v by attempts %+v, want it by the other device's own", h.Status.Proof, h.Status.Attempts)
	}
	if w.offs != 1 || w.commanded("bmc-a") != 1 || w.commanded(otherDevice) != 1 {
		t.Errorf("switched off %d times, commanded %d and %d times; want each device once", w.offs, w.commanded("bmc-a"), w.commanded(otherDevice))
	}
}

// TestTheDeviceChangesBetweenJournalAndCall: what is journalled is what is commanded.
func TestTheDeviceChangesBetweenJournalAndCall(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	b := w.second()
	b.SetPower(fencing.PowerOn)
	changed := false
	w.watch(func(o operation) {
		h, ok := o.object.(*v1alpha1.HostIncident)
		if changed || !ok || !o.done || len(h.Status.Attempts) == 0 {
			return
		}
		changed = true
		w.reprofile(func(m *v1alpha1.FencingMethod) { m.IPMI.Hosts[0].Address = otherDevice })
	})
	w.watch(func(o operation) {
		if o.what != "Off" || o.done {
			return
		}
		if h := w.incident(); h.Status.Attempts[len(h.Status.Attempts)-1].Device != otherDevice+":623" {
			t.Errorf("Off goes to %s, and the journal has %+v", otherDevice, h.Status.Attempts)
		}
	})
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("the other device is commanded", func() bool { return w.commanded(otherDevice) == 1 })
	if w.commanded("bmc-a") != 0 || !strings.Contains(w.incident().Status.Attempts[0].Message, "another device") {
		t.Errorf("attempts %+v", w.incident().Status.Attempts)
	}
}

// TestTwoProfilesOnOneHostFenceNothing has two profiles select the lost host from the beginning.
func TestTwoProfilesOnOneHostFenceNothing(t *testing.T) {
	t.Parallel()
	attested := func(g *v1alpha1.GuardedStatefulApp) {
		g.Spec.OnHostLoss.MinimumProof = v1alpha1.MinimumProofAttested
	}
	w := lawful(t, attested)
	w.second()
	shelf := w.shelf()
	w.must(w.admin.Create(t.Context(), shelf))
	l := w.boot()
	for mine, rival := range map[string]string{"-rack": "-shelf", "-shelf": "-rack"} {
		r := &fencingprofile.Reconciler{Client: l.apps.Client, Clock: l.hosts.Clock, Devices: l.hosts.Devices, CallDeadline: callDeadline}
		name := client.ObjectKey{Name: w.name + mine}
		_, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: name})
		w.must(err)
		p := &v1alpha1.FencingProfile{}
		w.must(w.admin.Get(t.Context(), name, p))
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionConflicted)
		if c == nil || c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonOverlap || !strings.Contains(c.Message, w.name+rival) || p.Status.Ready != 0 {
			t.Errorf("%s: %d hosts ready, Conflicted %+v; want none, and the rival named", name.Name, p.Status.Ready, c)
		}
	}
	if n := w.count("Observe"); n != 0 {
		t.Errorf("%d readings of devices that nobody may use", n)
	}
	l.settle()
	w.hangs()
	l.until("a person is told what is wrong", w.blocked(w.name+"-rack", w.name+"-shelf", "narrow the nodeSelector"))
	// Neither profile allows a human's word, and nobody knows which of them is meant.
	w.create(&v1alpha1.HostAttestation{ObjectMeta: metav1.ObjectMeta{Name: w.name + "-word"}, Spec: v1alpha1.HostAttestationSpec{
		NodeName: w.host("a"), BootID: "boot-1", Reason: "seen in the rack with its plugs pulled", ExpiresInSeconds: 3600}})
	l.while(10*time.Second, "held, and nothing is fenced on doubt", func() bool {
		_, fenced := taint(w.node("a"), v1alpha1.TaintFenced)
		return isHeld(w.lost()) && w.count("Off") == 0 && w.count("Observe") == 0 && !fenced
	})
	w.must(w.admin.Delete(t.Context(), shelf))
	l.until("the pod is released", func() bool { return w.lost() == nil })
	if w.commanded("bmc-a") != 1 || w.commanded(otherDevice) != 0 {
		t.Errorf("commanded %d and %d times, want the one whose profile is left once", w.commanded("bmc-a"), w.commanded(otherDevice))
	}
}

// TestARotatedSecretIsUsedForTheNextReading changes the password of the device first, as it is done in practice, and then the Secret.
func TestARotatedSecretIsUsedForTheNextReading(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	asking, end := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- l.hosts.Sleepers.Start(asking) }() // a device that refused is left to the background
	t.Cleanup(func() { end(); <-over })
	l.settle()
	w.bmc.SetCredentials(fencing.Credentials{Username: "admin", Password: "of-tomorrow"})
	w.hangs()
	l.until("a person is told what is wrong", w.blocked("refused the credentials", "bmc-a"))
	l.while(8*time.Second, "held, and not switched off", func() bool { return isHeld(w.lost()) && w.count("Off") == 0 })
	s := w.secret()
	s.Data["password"] = []byte("of-tomorrow")
	w.must(w.admin.Update(t.Context(), s))
	l.look()
	l.until("the pod is released", func() bool { return w.lost() == nil })
	l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
	w.releasedOnce(t)
	if w.offs != 1 || w.count("Off done") != 1 {
		t.Errorf("%d Off commands, %d of them to a host that was on; want one", w.count("Off done"), w.offs)
	}
}
