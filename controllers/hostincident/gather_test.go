// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// methods is a profile whose methods reach host a by the devices given, in order.
func methods(named ...[2]string) *v1alpha1.FencingProfile {
	p := &v1alpha1.FencingProfile{Spec: v1alpha1.FencingProfileSpec{Levels: []v1alpha1.FencingLevel{{}}}}
	for _, m := range named {
		p.Spec.Levels[0].Methods = append(p.Spec.Levels[0].Methods, v1alpha1.FencingMethod{Name: m[0], IPMI: &v1alpha1.IPMIMethod{Port: 623,
			Hosts: []v1alpha1.HostDevice{{NodeName: "b", Address: "bmc-of-b"}, {NodeName: "a", Address: m[1]}}}})
	}
	return p
}

// What Holdfast puts back for a kubelet is what that kubelet would say itself.
func TestAnEndpointIsOwedWhereAKubeletWouldSayReady(t *testing.T) {
	const gate = "example.org/gate"
	for says, c := range map[string]struct {
		containers, gated corev1.ConditionStatus
		gates, going      bool
		want              bool
	}{
		"the containers are ready":             {containers: corev1.ConditionTrue, want: true},
		"they are not":                         {containers: corev1.ConditionFalse},
		"nobody said":                          {},
		"and so is what else it waits for":     {containers: corev1.ConditionTrue, gates: true, gated: corev1.ConditionTrue, want: true},
		"and what else it waits for is not":    {containers: corev1.ConditionTrue, gates: true, gated: corev1.ConditionFalse},
		"and what else it waits for is silent": {containers: corev1.ConditionTrue, gates: true},
		"the pod is going":                     {containers: corev1.ConditionTrue, going: true},
	} {
		p := &corev1.Pod{}
		for kind, status := range map[corev1.PodConditionType]corev1.ConditionStatus{corev1.PodReady: corev1.ConditionFalse, corev1.ContainersReady: c.containers, gate: c.gated} {
			if status != "" {
				p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: status})
			}
		}
		if c.gates {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: gate}}
		}
		if c.going {
			p.DeletionTimestamp = &metav1.Time{}
		}
		if got := owed(p); got != c.want {
			t.Errorf("%s: owed is %v", says, got)
		}
	}
}

func TestAnAttemptIsOfTheDeviceThatWasCommanded(t *testing.T) {
	for says, c := range map[string]struct {
		profile    *v1alpha1.FencingProfile
		device     string // of the attempt by the method power
		distrusted []string
		method     string
		liars      []string
	}{
		"the device is still there":                     {methods([2]string{"power", "one"}), "one:623", nil, "power", nil},
		"the journal does not say which":                {methods([2]string{"power", "one"}), "", nil, "power", nil},
		"another device has the method":                 {methods([2]string{"power", "two"}), "one:623", nil, "power at one:623", nil},
		"another port is another device":                {methods([2]string{"power", "one"}), "one:6230", nil, "power at one:6230", nil},
		"an IPv6 address":                               {methods([2]string{"power", "2001:db8::1"}), "[2001:db8::1]:623", nil, "power", nil},
		"the method is called otherwise":                {methods([2]string{"other", "one"}), "one:623", nil, "other", nil},
		"the method is gone, and its device too":        {methods([2]string{"other", "two"}), "one:623", nil, "power", nil},
		"there is no profile":                           {nil, "one:623", nil, "power", nil},
		"a method that lied keeps its name":             {methods([2]string{"power", "two"}), "one:623", []string{"power"}, "power", []string{"power"}},
		"a device that lied is called otherwise":        {methods([2]string{"other", "one"}), "one:623", []string{"power"}, "power", []string{"power", "other"}},
		"a device that lied while away is back":         {methods([2]string{"power", "one"}), "one:623", []string{"power at one:623"}, "power", []string{"power at one:623", "power"}},
		"the device in place of a liar is not the liar": {methods([2]string{"power", "two"}), "one:623", []string{"power at one:623"}, "power at one:623", []string{"power at one:623"}},
	} {
		w := &world{profile: c.profile, incident: &v1alpha1.HostIncident{Status: v1alpha1.HostIncidentStatus{Distrusted: c.distrusted,
			Attempts: []v1alpha1.Attempt{{ID: "off-1", Method: "power", Device: c.device}}}}}
		w.seen.Host.Node = "a"
		if got := w.method(w.incident.Status.Attempts[0]); got != c.method {
			t.Errorf("%s: the attempt is by %q, want %q", says, got, c.method)
		}
		if got := w.distrusted(); !slices.Equal(got, c.liars) {
			t.Errorf("%s: distrusted are %q, want %q", says, got, c.liars)
		}
	}
}
