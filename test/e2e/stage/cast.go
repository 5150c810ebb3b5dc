// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// managers selects Holdfast's pods.
var managers = client.MatchingLabels{"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "manager"}

// Is reports whether a condition is True.
func Is(conditions []metav1.Condition, kind string) bool {
	return meta.IsStatusConditionTrue(conditions, kind)
}

// PodReady reports whether the pod is Ready and not being deleted.
func PodReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// NodeReady reports whether the Node is Ready.
func NodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// leads is the pod that holds the leader's lease; other leases have none.
func leads(l *coordinationv1.Lease) string {
	if l.Namespace != HoldfastNamespace || l.Name != admission.ManagersLease || l.Spec.HolderIdentity == nil {
		return ""
	}
	name, _, _ := strings.Cut(*l.Spec.HolderIdentity, "_")
	return name
}

// Leader returns the pod of Holdfast that leads.
func (s *Stage) Leader(ctx context.Context) (*corev1.Pod, error) {
	name, err := s.AwaitLeader(ctx)
	if err != nil {
		return nil, err
	}
	var p corev1.Pod
	return &p, s.Client.Get(ctx, types.NamespacedName{Namespace: HoldfastNamespace, Name: name}, &p)
}

// FreeHost waits for a host that has no pod of Holdfast, not even one that is going: after a host came back, its old pod is still there for a moment.
func (s *Stage) FreeHost(ctx context.Context) (string, error) {
	free := ""
	err := follow(ctx, s.Client, &corev1.PodList{}, []client.ListOption{client.InNamespace(HoldfastNamespace), managers}, func(now map[string]*corev1.Pod) bool {
		taken := map[string]bool{}
		for _, p := range now {
			taken[p.Spec.NodeName] = true
		}
		i := slices.IndexFunc(s.hostNames(), func(h string) bool { return !taken[h] })
		if i >= 0 {
			free = s.hostNames()[i]
		}
		return i >= 0
	})
	if err != nil {
		err = fmt.Errorf("every host has a pod of Holdfast; if they stay, raise the stage with more hosts: %w", err)
	}
	return free, err
}

func (s *Stage) hostNames() []string {
	var names []string
	for _, h := range s.Lab.Hosts() {
		names = append(names, h.Name())
	}
	return names
}

// Scale sets how many managers there are, and waits until so many are ready; with none, until every pod of Holdfast is gone.
func (s *Stage) Scale(ctx context.Context, replicas int32) error {
	if _, err := s.Kubectl(ctx, "scale", "-n", HoldfastNamespace, "deployment/holdfast-manager", fmt.Sprintf("--replicas=%d", replicas)); err != nil {
		return err
	}
	if replicas > 0 {
		return s.awaitManager(ctx, replicas)
	}
	return follow(ctx, s.Client, &corev1.PodList{}, []client.ListOption{client.InNamespace(HoldfastNamespace), managers},
		func(now map[string]*corev1.Pod) bool { return len(now) == 0 })
}

// ProcessOf finds the process of a pod's program, by its command name, as the machine sees it. Signal it through the ID: a reused pid is never hit.
func (s *Stage) ProcessOf(pod *corev1.Pod, command string) (process.ID, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return process.ID{}, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if strings.TrimSpace(string(comm)) != command {
			continue
		}
		cgroups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if strings.Contains(string(cgroups), string(pod.UID)) || strings.Contains(string(cgroups), strings.ReplaceAll(string(pod.UID), "-", "_")) {
			return process.Find(pid)
		}
	}
	return process.ID{}, fmt.Errorf("no process %s of pod %s/%s on this machine", command, pod.Namespace, pod.Name)
}

// Diagnose tells what there is, for the reader of a failure: apps, incidents, pods, nodes, and what the managers logged last.
func (s *Stage) Diagnose(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var out strings.Builder
	for _, args := range [][]string{
		{"get", "nodes,pods", "-A", "-o", "wide"},
		{"get", "statefulsets,deployments,replicasets,pods", "-n", Namespace,
			"-o", "custom-columns=KIND:.kind,NAME:.metadata.name,UID:.metadata.uid,LEAVING:.metadata.deletionTimestamp,OWNERS:.metadata.ownerReferences[*].uid"},
		{"get", "gsa,hi,fp,gc", "-A", "-o", "wide"},
		{"get", "hi", "-o", "yaml"},
		{"get", "gsa", "-A", "-o", "yaml"},
		{"logs", "-n", HoldfastNamespace, "-l", "app.kubernetes.io/component=manager", "--tail=60", "--prefix"},
	} {
		text, _ := s.Kubectl(ctx, args...) // what cannot be told is told as such
		fmt.Fprintf(&out, "$ kubectl %s\n%s\n", strings.Join(args, " "), text)
	}
	return out.String()
}
