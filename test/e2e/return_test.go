// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
)

// TestCase4LostHost: what was declared lost speaks again, or is powered on by hand, or was never the machine that its device belongs to.
func TestCase4LostHost(t *testing.T) {
	playCase(t, 4,
		variant{"a lost boot speaks again", false, limitOfOneDevice},
		variant{"powered on by hand during release", true, poweredOnDuringRelease},
		variant{"two devices swapped", true, devicesSwapped},
		variant{"a device with another machine's identity", false, wrongIdentity},
	)
}

// foreign is a finalizer that nobody but the scene takes off: the release waits for it.
const foreign = "e2e.holdfast.dev/wait"

// poweredOnDuringRelease: the host is proven off and is being released, which a foreign finalizer holds up, and somebody powers it on. Nothing that it ran
// starts there again, and no volume gets a second writer.
func poweredOnDuringRelease(t *testing.T) {
	s := play(t, free, company...)
	for _, p := range s.guarded() {
		s.must(s.finalizer(p, foreign))
		s.Cleanup(func() {
			if err := s.finalizer(p, ""); err != nil {
				s.Error(err)
			}
		})
	}
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.incident("Releasing", step(v1alpha1.StepReleasing))
	s.mark("proven")
	s.must(s.host.PowerOn(s.ctx))
	s.poll("Holdfast, or Kubernetes, to notice the power", func() (bool, error) {
		return len(s.offs()) > 1 || nodeBoot(s) != s.boot, nil
	})
	t.Logf("powered on by hand during release: %d Off commands, another boot: %v", len(s.offs()), nodeBoot(s) != s.boot)
	for _, p := range s.guarded() {
		s.must(s.finalizer(p, ""))
		s.must(s.AwaitGone(s.soon(), p.pod))
	}
	s.mark("released")
	for _, p := range s.guarded() {
		_, err := p.AwaitPod(s.soon(), "a successor of "+p.pod.Name, func(now *corev1.Pod) bool { return now.UID != p.pod.UID && stage.PodReady(now) })
		s.must(err)
		s.must(p.AwaitServed(s.soon()))
	}
	s.mark("recovered")
	s.backAtLast()
	s.judged()
}

// nodeBoot is the boot that the scene's Node tells of.
func nodeBoot(s *scene) string {
	var n corev1.Node
	s.must(s.Client.Get(s.ctx, types.NamespacedName{Name: s.host.Name()}, &n))
	return n.Status.NodeInfo.BootID
}

// backAtLast: if it was switched off again it is powered on again; the incident ends, and the host takes work.
func (s *scene) backAtLast() {
	s.Helper()
	if !s.host.Powered() {
		s.incident("Resolved", step(v1alpha1.StepResolved))
		s.must(s.host.PowerOn(s.ctx))
	}
	s.incident("Closed", step(v1alpha1.StepClosed))
	n, err := s.AwaitNode(s.soon(), s.host.Name(), "the host to take work again", func(n *corev1.Node) bool {
		return stage.NodeReady(n) && len(n.Spec.Taints) == 0 && !n.Spec.Unschedulable
	})
	s.must(err)
	if n.Status.NodeInfo.BootID == s.boot {
		s.Error("the host is back with the boot that was lost")
	}
}

// finalizer sets the finalizer of somebody else on the part's pod, or takes it off.
func (s *scene) finalizer(p part, name string) error {
	ctx := context.WithoutCancel(s.ctx)
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var now corev1.Pod
		if err := s.Client.Get(ctx, client.ObjectKeyFromObject(p.pod), &now); err != nil || now.UID != p.pod.UID {
			return client.IgnoreNotFound(err)
		}
		before := now.DeepCopy()
		now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == foreign })
		if name != "" {
			now.Finalizers = append(now.Finalizers, name)
		}
		return s.Client.Patch(ctx, &now, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
}

// devicesSwapped: the profile gives this host another one's device and the other way round, credentials and all. That is found out before it is needed;
// neither machine is commanded through the other's device; put right, the host is proven off.
func devicesSwapped(t *testing.T) {
	s := play(t, free, company...)
	other := s.another()
	s.swapDevices(s.host.Name(), other)
	s.Cleanup(func() { s.devicesAsTheyWere() })
	s.fencingUnready()
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.blocked("ipmi belongs to another machine")
	for _, name := range []string{s.host.Name(), other} {
		calls, err := s.Calls(name, s.since)
		s.must(err)
		if offs := stage.Offs(calls); len(offs) != 0 {
			t.Errorf("the device of %s was commanded: %+v", name, offs)
		}
	}
	s.devicesAsTheyWere()
	s.migrated(1)
	s.returned()
}

// fencingUnready: the app says, before it matters, that its host could not be fenced.
func (s *scene) fencingUnready() {
	s.Helper()
	_, err := s.AwaitApp(s.soon(), "FencingReady to be False", func(g *v1alpha1.GuardedStatefulApp) bool {
		return slices.ContainsFunc(g.Status.Conditions, func(c metav1.Condition) bool {
			return c.Type == v1alpha1.ConditionFencingReady && c.Status == "False" && strings.Contains(c.Message, s.host.Name())
		})
	})
	s.must(err)
}

// wrongIdentity: a BMC that is another machine's is found out before it is needed, and never commanded.
func wrongIdentity(t *testing.T) {
	s := play(t, free)
	s.must(s.host.SetBMCMode(s.ctx, bmc.WrongIdentity))
	s.fencingUnready()
	s.begin()
	s.must(s.host.PowerOff(s.ctx))
	s.blocked("ipmi belongs to another machine")
	if offs := s.offs(); len(offs) != 0 {
		t.Errorf("a BMC of the wrong identity was commanded: %+v", offs)
	}
	s.must(s.host.SetBMCMode(s.ctx, bmc.Clear))
	s.migrated(1)
	s.returned()
}

// swapDevices gives each of two hosts the other's device in the profile.
func (s *scene) swapDevices(a, b string) {
	s.Helper()
	s.must(s.changeDevices(func(devices []v1alpha1.HostDevice) {
		i := slices.IndexFunc(devices, func(d v1alpha1.HostDevice) bool { return d.NodeName == a })
		k := slices.IndexFunc(devices, func(d v1alpha1.HostDevice) bool { return d.NodeName == b })
		devices[i].NodeName, devices[k].NodeName = b, a
	}))
}

// devicesAsTheyWere gives every host the device at its own address.
func (s *scene) devicesAsTheyWere() {
	s.Helper()
	err := s.changeDevices(func(devices []v1alpha1.HostDevice) {
		for i := range devices {
			for _, h := range s.Lab.Hosts() {
				if h.BMCAddress() == devices[i].Address {
					devices[i].NodeName = h.Name()
				}
			}
		}
	})
	if err != nil {
		s.Error(err)
	}
}

// changeDevices changes the stage's one profile; Holdfast writes its status at the same time, so it may take a second try.
func (s *scene) changeDevices(change func([]v1alpha1.HostDevice)) error {
	ctx := context.Background()
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		var profiles v1alpha1.FencingProfileList
		if err := s.Client.List(ctx, &profiles); err != nil {
			return err
		}
		if len(profiles.Items) != 1 {
			return errors.New("the stage has one FencingProfile")
		}
		change(profiles.Items[0].Spec.Levels[0].Methods[0].IPMI.Hosts)
		return s.Client.Update(ctx, &profiles.Items[0])
	})
}
