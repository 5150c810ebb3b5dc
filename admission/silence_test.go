// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

const silencePolicy = "holdfast-silent-hosts/"

// leadership is the managers' lease by the clock of whoever writes about a pod: when it was renewed, and when the one that has it took it, both before that.
type leadership struct{ renewed, taken time.Duration }

// write stores it; nil is no lease.
func (l *leadership) write(ctx context.Context, t *testing.T, at time.Time) {
	t.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: admission.DefaultNamespace, Name: admission.ManagersLease}}
	must(t, client.IgnoreNotFound(cluster.Client.Delete(ctx, lease)))
	if l == nil {
		return
	}
	holder, seconds := "manager-1", int32(6)
	lease.ResourceVersion = ""
	lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds,
		RenewTime: &metav1.MicroTime{Time: at.Add(-l.renewed)}, AcquireTime: &metav1.MicroTime{Time: at.Add(-l.taken)}}
	must(t, cluster.Client.Create(ctx, lease))
}

// known writes the lease and returns what the node controller is answered once it is the one wanted: policies read the lease from a cache of their own.
func (l *leadership) known(ctx context.Context, t *testing.T, s scene, at time.Time, refused bool) error {
	t.Helper()
	l.write(ctx, t, at)
	patient, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := s.written(ctx, t, taintManager, "False", at)
		if (err != nil) == refused || patient.Err() != nil {
			return err
		}
	}
}

// written is what the caller is answered who says that the pod, which is Ready, has been so or not since then.
func (s scene) written(ctx context.Context, t *testing.T, who identity, status string, at time.Time) error {
	t.Helper()
	must(t, readiness("True", at.Add(-time.Hour))(ctx, ownKubelet.client(t), s))
	return readiness(status, at)(ctx, who.client(t), s)
}

func readiness(status string, at time.Time) act {
	return patchStatus(fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q,"lastTransitionTime":%q}]}}`, status, at.UTC().Format(time.RFC3339)))
}

// TestSilenceTakesNoEndpointOutWhileNobodyLeads: what the node controller writes of a silent host's pods counts while a manager leads, who would put it right,
// and when none has led for five minutes. Before each answer the opposite one is seen, so that it is by the lease that is meant.
func TestSilenceTakesNoEndpointOutWhileNobodyLeads(t *testing.T) {
	const s, old = time.Second, time.Hour
	ctx := guarded(t)
	at := time.Now().Truncate(s)
	pods := scene{}.set(ctx, t)
	must(t, patchPod(`{"metadata":{"labels":{"`+v1alpha1.LabelTraffic+`":"`+v1alpha1.TrafficKeep+`"}}}`)(ctx, holdfast.client(t), pods))
	unmarked := scene{}.set(ctx, t)
	leads, gone := &leadership{s, old}, &leadership{7 * s, old}
	for name, c := range map[string]struct {
		lease   *leadership
		refused bool
	}{
		"a manager leads":                       {lease: leads},
		"at the end of its lease":               {lease: &leadership{6 * s, old}},
		"past its lease":                        {lease: gone, refused: true},
		"for minutes":                           {lease: &leadership{5 * time.Minute, old}, refused: true},
		"for longer":                            {lease: &leadership{5*time.Minute + s, old}},
		"a new leader looks about":              {lease: &leadership{s, 14 * s}, refused: true},
		"a new leader has looked about":         {lease: &leadership{s, 15 * s}},
		"the writer's clock is a little behind": {lease: &leadership{-2 * s, -2 * s}, refused: true},
		"the writer's clock is behind":          {lease: &leadership{-20 * s, -15 * s}},
		"no manager ever led":                   {},
	} {
		t.Run(name, func(t *testing.T) {
			opposite := gone
			if c.refused {
				opposite = leads
			}
			if err := opposite.known(ctx, t, pods, at, !c.refused); (err != nil) == c.refused {
				t.Fatalf("before, the answer was %v", err)
			}
			err := c.lease.known(ctx, t, pods, at, c.refused)
			if !c.refused {
				judge(t, err, "", nil)
				return
			}
			judge(t, err, silencePolicy+"HostSilence", []string{"no manager of Holdfast leads", "pod " + pods.namespace + "/" + podName, hostName})
		})
	}
	judge(t, gone.known(ctx, t, pods, at, true), silencePolicy+"HostSilence", nil)
	for name, err := range map[string]error{
		"a pod that stays Ready":         pods.written(ctx, t, taintManager, "True", at),
		"an app that follows Kubernetes": unmarked.written(ctx, t, taintManager, "False", at),
		"Holdfast":                       pods.written(ctx, t, holdfast, "False", at),
		"its own kubelet":                pods.written(ctx, t, ownKubelet, "False", at),
		"a pod that is not Ready":        readiness("False", at)(ctx, taintManager.client(t), pods),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
