// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// Agents reach the system's bus, by which anything can be asked of a host, only where somebody named the unit that they may restart.
func TestAgentsReachTheBusOnlyToRestartTheKubelet(t *testing.T) {
	for unit, reaches := range map[string]bool{"": false, "kubelet.service": true, "k3s.service": true} {
		pod := Wanted{Settings: v1alpha1.Witness{RuntimeSocket: "/run/containerd/containerd.sock", KubeletUnit: unit}}.DaemonSet().Spec.Template.Spec
		c := pod.Containers[0]
		bus := slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil && v.HostPath.Path == "/run/dbus" })
		mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "bus" && m.ReadOnly })
		ordered := slices.Contains(c.Args, "--kubelet-restart=systemd:"+unit) && slices.Contains(c.Args, "--system-bus=/host/bus/system_bus_socket")
		free := c.SecurityContext.AppArmorProfile != nil
		if bus != reaches || mounted != reaches || ordered != reaches || free != reaches {
			t.Errorf("%q: volume %v, mounted %v, ordered %v, without AppArmor %v; want all %v", unit, bus, mounted, ordered, free, reaches)
		}
		if got := strings.Join(c.Args, " "); !reaches && strings.Contains(got, "kubelet-restart") {
			t.Errorf("nobody named a unit, and the agent gets %s", got)
		}
	}
}

// Agents have capabilities only where they reset connections, and then those two.
func TestAgentsHaveCapabilitiesOnlyToResetConnections(t *testing.T) {
	for _, c := range []struct {
		settings v1alpha1.Witness
		resets   bool
	}{
		{v1alpha1.Witness{Enabled: true}, true},
		{v1alpha1.Witness{Enabled: true, ResetConnections: ptr.To(true)}, true},
		{v1alpha1.Witness{Enabled: true, ResetConnections: ptr.To(false)}, false},
		{v1alpha1.Witness{Enabled: true, ResetConnections: ptr.To(false), KubeletUnit: "kubelet.service"}, false},
		{v1alpha1.Witness{ResetConnections: ptr.To(true)}, false},
	} {
		agent := Wanted{Settings: c.settings}.DaemonSet().Spec.Template.Spec.Containers[0]
		var want []corev1.Capability
		if c.resets {
			want = []corev1.Capability{"NET_ADMIN", "NET_RAW"}
		}
		got := agent.SecurityContext.Capabilities
		if slices.Contains(agent.Args, "--reset-connections") != c.resets || !slices.Equal(got.Add, want) || !slices.Equal(got.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%+v: args %v, capabilities %+v", c.settings, agent.Args, got)
		}
	}
}
