// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
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

// Agents are shown which devices are mounted where on the host, and can change nothing of it.
func TestAgentsAreShownTheHostsMounts(t *testing.T) {
	pod := Wanted{}.DaemonSet().Spec.Template.Spec
	shown := slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool {
		return v.Name == "mounts" && v.HostPath != nil && v.HostPath.Path == "/proc/1/mountinfo" && *v.HostPath.Type == corev1.HostPathFile
	})
	mounted := slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name == "mounts" && m.ReadOnly && m.MountPath == "/host/mounts"
	})
	if !shown || !mounted || !slices.Contains(pod.Containers[0].Args, "--mounts-file=/host/mounts") {
		t.Errorf("volumes %+v, args %v", pod.Volumes, pod.Containers[0].Args)
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

// Agents are privileged only where they arm a watchdog, and then nobody but a human replaces them.
func TestAgentsArePrivilegedOnlyToArmAWatchdog(t *testing.T) {
	dog := &v1alpha1.WitnessWatchdog{Device: "/dev/watchdog1", Identities: []string{"iTCO_wdt", "HPE iLO2+ HW Watchdog Timer"}, ContactSeconds: 30, TimeoutSeconds: 10}
	for what, c := range map[string]struct {
		settings      v1alpha1.Witness
		byHand        bool
		arms, replace bool
	}{
		"by default":                        {v1alpha1.Witness{Enabled: true}, false, false, true},
		"for a unit":                        {v1alpha1.Witness{Enabled: true, KubeletUnit: "kubelet.service"}, false, false, true},
		"for a watchdog":                    {v1alpha1.Witness{Enabled: true, Watchdog: dog}, false, true, false},
		"for a watchdog that is there":      {v1alpha1.Witness{Enabled: true, Watchdog: dog}, true, true, false},
		"while one may be held from before": {v1alpha1.Witness{Enabled: true}, true, false, false},
	} {
		agents := Wanted{Settings: c.settings, ByHand: c.byHand}.DaemonSet()
		agent := agents.Spec.Template.Spec.Containers[0]
		flags := 0
		for _, want := range []string{"--watchdog=/dev/watchdog1", "--watchdog-identities=iTCO_wdt,HPE iLO2+ HW Watchdog Timer", "--watchdog-contact=30s", "--watchdog-timeout=10s"} {
			if slices.Contains(agent.Args, want) {
				flags++
			}
		}
		if armed := strings.Contains(strings.Join(agent.Args, " "), "watchdog"); armed != c.arms || flags != map[bool]int{true: 4}[c.arms] {
			t.Errorf("%s: it is started with %v", what, agent.Args)
		}
		sc := agent.SecurityContext
		privileged, dropped := sc.Privileged != nil && *sc.Privileged, sc.Capabilities != nil && slices.Contains(sc.Capabilities.Drop, "ALL")
		if privileged != c.arms || dropped == c.arms || (sc.AllowPrivilegeEscalation == nil) != c.arms {
			t.Errorf("%s: its security context is %+v", what, sc)
		}
		if rolls := agents.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType; rolls != c.replace || rolls == (agents.Spec.UpdateStrategy.RollingUpdate == nil) {
			t.Errorf("%s: agents are replaced by %+v", what, agents.Spec.UpdateStrategy)
		}
	}
}

func TestWhichAgentsMayHoldTheirHosts(t *testing.T) {
	dog := &v1alpha1.WitnessWatchdog{Device: "/dev/watchdog0", Identities: []string{"iTCO_wdt"}, ContactSeconds: 20, TimeoutSeconds: 60}
	seen := func(w Wanted, generation, observed int64, desired, updated int32) *appsv1.DaemonSet {
		d := w.DaemonSet()
		d.Generation, d.Status = generation, appsv1.DaemonSetStatus{ObservedGeneration: observed, DesiredNumberScheduled: desired, UpdatedNumberScheduled: updated}
		return d
	}
	armed, before, never := Wanted{Settings: v1alpha1.Witness{Watchdog: dog}}, Wanted{ByHand: true}, Wanted{}
	rolled := seen(armed, 1, 1, 2, 2)
	rolled.Spec.UpdateStrategy = never.strategy()
	for what, c := range map[string]struct {
		agents *appsv1.DaemonSet
		want   bool
	}{
		"none that are not there":             {nil, false},
		"none that were never armed":          {seen(never, 2, 1, 2, 0), false},
		"those that are armed":                {seen(armed, 1, 1, 2, 2), true},
		"also if somebody has them replaced":  {rolled, true},
		"those before settings that are new":  {seen(before, 2, 1, 2, 2), true},
		"the one that is not replaced":        {seen(before, 2, 2, 2, 1), true},
		"none, when all have been replaced":   {seen(before, 2, 2, 2, 2), false},
		"none, where there are to be no more": {seen(before, 2, 2, 0, 0), false},
	} {
		if got := MayHold(c.agents); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
