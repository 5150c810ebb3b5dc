// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package manifest is what the agents run as: docs/spec/witness.md, "In a cluster".
package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// Names of what there is for the agents.
const (
	// Namespace has all of it but the authority, and Name is that of the DaemonSet, the ConfigMap and the service account in it.
	Namespace = wire.Namespace
	Name      = "holdfast-witness"
	// Keys is the Secret with the keys of the gossip.
	Keys = "holdfast-witness-gossip"
	// Authority is the Secret with the authority, in Holdfast's own namespace.
	Authority = "holdfast-witness-authority"
	// Seeds and CA are the files in the ConfigMap.
	Seeds = "seeds"
	CA    = "ca.crt"
)

// annotationAuthority has the agents start anew when the authority is another one: until then they would show certificates that nobody trusts any more. It is not
// one of the keys that only Holdfast may set: the DaemonSet's controller makes the pods, and our own policies refuse those from it.
const annotationAuthority = "witness.holdfast.dev/authority"

// Where the container finds what.
const (
	pathCluster  = "/etc/holdfast/cluster"
	pathKeys     = "/etc/holdfast/gossip"
	pathIdentity = "/var/run/holdfast"
	pathRuntime  = "/host/runtime"
	pathBootID   = "/host/boot_id"
	pathMounts   = "/host/mounts"
	pathBus      = "/host/bus"
	hostBus      = "/run/dbus"
	hostBootID   = "/proc/sys/kernel/random/boot_id"
	hostMounts   = "/proc/1/mountinfo"
)

var labels = map[string]string{"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "witness", "app.kubernetes.io/part-of": "holdfast"}

// Wanted says what the agents are to be.
type Wanted struct {
	Image    string
	Settings v1alpha1.Witness
	// CA is the authority's certificate, and Seeds the addresses to begin with, one a line.
	CA    []byte
	Seeds string
	// ByHand has nobody but a human replace an agent: one that runs may hold its host by a watchdog, and to end it may be to reset the host.
	ByHand bool
}

// ConfigMap is what all agents read.
func (w Wanted) ConfigMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Name, Labels: labels},
		Data:       map[string]string{Seeds: w.Seeds, CA: string(w.CA)},
	}
}

// DaemonSet is the agents: one on every Linux host, whatever its taints.
func (w Wanted) DaemonSet() *appsv1.DaemonSet {
	sum := sha256.Sum256(w.CA)
	selector := map[string]string{"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "witness"}
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Name, Labels: labels},
		Spec: appsv1.DaemonSetSpec{
			Selector:       &metav1.LabelSelector{MatchLabels: selector},
			UpdateStrategy: w.strategy(),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{annotationAuthority: hex.EncodeToString(sum[:8])}},
				Spec:       w.pod(),
			},
		},
	}
}

func (w Wanted) strategy() appsv1.DaemonSetUpdateStrategy {
	if w.ByHand || w.Settings.Watchdog != nil {
		return appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
	}
	return appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromString("10%"))}}
}

// flagWatchdog has an agent arm a watchdog.
const flagWatchdog = "--watchdog="

// MayHold reports whether an agent that runs may hold its host by a watchdog: this DaemonSet makes such agents, or it made them before, and not every agent has been replaced since.
func MayHold(agents *appsv1.DaemonSet) bool {
	if agents == nil {
		return false
	}
	for _, c := range agents.Spec.Template.Spec.Containers {
		if slices.ContainsFunc(c.Args, func(arg string) bool { return strings.HasPrefix(arg, flagWatchdog) }) {
			return true
		}
	}
	st := agents.Status
	return agents.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType && (st.ObservedGeneration < agents.Generation || st.UpdatedNumberScheduled < st.DesiredNumberScheduled)
}

func (w Wanted) pod() corev1.PodSpec {
	pod := w.plain()
	if unit := w.Settings.KubeletUnit; unit != "" {
		c := &pod.Containers[0]
		c.Args = append(c.Args, "--kubelet-restart=systemd:"+unit, "--system-bus="+path.Join(pathBus, "system_bus_socket"))
		// The directory, since a bus that starts anew makes its socket anew.
		pod.Volumes = append(pod.Volumes, host("bus", hostBus, corev1.HostPathDirectory))
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "bus", MountPath: pathBus, ReadOnly: true, MountPropagation: ptr.To(corev1.MountPropagationHostToContainer)})
		// With AppArmor the bus refuses whom the profile of containers does not let speak to it.
		c.SecurityContext.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	}
	if w.Settings.Resets() {
		c := &pod.Containers[0]
		c.Args = append(c.Args, "--reset-connections")
		// For the table in nftables and the tracked connections; and for packets in the name of the lost.
		c.SecurityContext.Capabilities.Add = []corev1.Capability{"NET_ADMIN", "NET_RAW"}
	}
	if dog := w.Settings.Watchdog; dog != nil {
		c := &pod.Containers[0]
		c.Args = append(c.Args, flagWatchdog+dog.Device, "--watchdog-identities="+strings.Join(dog.Identities, ","),
			fmt.Sprintf("--watchdog-contact=%ds", dog.ContactSeconds), fmt.Sprintf("--watchdog-timeout=%ds", dog.TimeoutSeconds))
		// No other container reaches a device of the host's, and one that is mounted into it would keep the agent from every host that has none.
		c.SecurityContext.Privileged, c.SecurityContext.AllowPrivilegeEscalation, c.SecurityContext.Capabilities = ptr.To(true), nil, nil
	}
	return pod
}

// plain is the pod of agents that restart, reset and arm nothing.
func (w Wanted) plain() corev1.PodSpec {
	return corev1.PodSpec{
		ServiceAccountName: Name,
		PriorityClassName:  "holdfast",
		NodeSelector:       map[string]string{corev1.LabelOSStable: "linux"},
		Tolerations:        []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		// The agents speak for their hosts, from their addresses, and know nobody by name.
		HostNetwork:                   true,
		DNSPolicy:                     corev1.DNSDefault,
		TerminationGracePeriodSeconds: ptr.To[int64](5),
		SecurityContext: &corev1.PodSecurityContext{
			// The socket of the container runtime and the system UUID are root's own; what belongs to root needs no capability to be read by it.
			RunAsUser: ptr.To[int64](0), RunAsGroup: ptr.To[int64](0),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			// With SELinux no other type of container reaches that socket.
			SELinuxOptions: &corev1.SELinuxOptions{Type: "spc_t"},
		},
		Containers: []corev1.Container{w.container()},
		Volumes:    w.volumes(),
	}
}

func (w Wanted) container() corev1.Container {
	s := w.Settings
	return corev1.Container{
		Name: "witness", Image: w.Image, ImagePullPolicy: corev1.PullIfNotPresent,
		Args: []string{
			fmt.Sprintf("--port=%d", s.Port), fmt.Sprintf("--gossip-port=%d", s.GossipPort), fmt.Sprintf("--health=127.0.0.1:%d", s.Port),
			"--seeds=" + path.Join(pathCluster, Seeds), "--authority=" + path.Join(pathCluster, CA), "--keys=" + pathKeys, "--identity=" + pathIdentity,
			"--boot-id-file=" + pathBootID, "--mounts-file=" + pathMounts, "--lease-namespace=" + Namespace, "--runtime=" + path.Join(pathRuntime, path.Base(s.RuntimeSocket)),
		},
		Env: []corev1.EnvVar{field("NODE_NAME", "spec.nodeName"), field("HOST_IP", "status.hostIP")},
		Ports: []corev1.ContainerPort{
			{Name: "api", ContainerPort: s.Port, HostPort: s.Port, Protocol: corev1.ProtocolTCP},
			{Name: "gossip", ContainerPort: s.GossipPort, HostPort: s.GossipPort, Protocol: corev1.ProtocolTCP},
			{Name: "gossip-udp", ContainerPort: s.GossipPort, HostPort: s.GossipPort, Protocol: corev1.ProtocolUDP},
		},
		ReadinessProbe: probe("/readyz", s.Port, 5, 3),
		// An agent is most needed while its host is slow: only one that is stuck for a minute is ended.
		LivenessProbe: probe("/healthz", s.Port, 10, 6),
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("20m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
		},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(false), ReadOnlyRootFilesystem: ptr.To(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "cluster", MountPath: pathCluster, ReadOnly: true},
			{Name: "keys", MountPath: pathKeys, ReadOnly: true},
			{Name: "identity", MountPath: pathIdentity},
			{Name: "boot-id", MountPath: pathBootID, ReadOnly: true},
			{Name: "mounts", MountPath: pathMounts, ReadOnly: true},
			// What the host mounts below it, as the file systems of containers, is let go when the host lets it go.
			{Name: "runtime", MountPath: pathRuntime, ReadOnly: true, MountPropagation: ptr.To(corev1.MountPropagationHostToContainer)},
		},
	}
}

func host(name, path string, kind corev1.HostPathType) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}}
}

func (w Wanted) volumes() []corev1.Volume {
	return []corev1.Volume{
		{Name: "cluster", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: Name}}}},
		{Name: "keys", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: Keys, DefaultMode: ptr.To[int32](0o400)}}},
		// The private key is in memory only.
		{Name: "identity", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr.To(resource.MustParse("1Mi"))}}},
		// What the kubelet reports as the boot is what the host shows it there.
		host("boot-id", hostBootID, corev1.HostPathFile),
		// Which devices are under which pods' volumes; the agent's own mounts are others.
		host("mounts", hostMounts, corev1.HostPathFile),
		// The directory, since a runtime that starts anew makes its socket anew.
		host("runtime", path.Dir(w.Settings.RuntimeSocket), corev1.HostPathDirectory),
	}
}

func field(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

func probe(path string, port, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: "127.0.0.1", Path: path, Port: intstr.FromInt32(port)}},
		PeriodSeconds: period, TimeoutSeconds: 3, FailureThreshold: failures,
	}
}
