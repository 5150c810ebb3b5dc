// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// As is a client that the API server takes for somebody else.
func (s *Stage) As(user string, groups ...string) (client.Client, error) {
	config := rest.CopyConfig(s.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: append([]string{"system:authenticated"}, groups...)}
	return client.New(config, client.Options{Scheme: s.Client.Scheme()})
}

// AwaitAnyGone waits until one of the pods is gone or being deleted, and names it.
func (s *Stage) AwaitAnyGone(ctx context.Context, pods ...*corev1.Pod) (string, error) {
	gone := ""
	err := follow(ctx, s.Client, &corev1.PodList{}, []client.ListOption{client.InNamespace(Namespace)}, func(now map[string]*corev1.Pod) bool {
		for _, p := range pods {
			is, ok := now[client.ObjectKeyFromObject(p).String()]
			if !ok || is.UID != p.UID || is.DeletionTimestamp != nil {
				gone = p.Name
			}
		}
		return gone != ""
	})
	return gone, err
}

// KillHoldfast ends every process of Holdfast with SIGKILL, and lets none come back before Scale. It returns once every pod of Holdfast is gone.
func (s *Stage) KillHoldfast(ctx context.Context) error {
	var pods corev1.PodList
	if err := s.Client.List(ctx, &pods, client.InNamespace(HoldfastNamespace), managers); err != nil {
		return err
	}
	for _, p := range pods.Items {
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		id, err := s.ProcessOf(&p, "manager")
		if err != nil {
			return err
		}
		if err := id.Signal(unix.SIGKILL); err != nil {
			return err
		}
	}
	deployment := &appsv1.Deployment{}
	deployment.Namespace, deployment.Name = HoldfastNamespace, "holdfast-manager"
	if err := s.Client.Patch(ctx, deployment, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"replicas":0}}`))); err != nil {
		return err
	}
	return s.Scale(ctx, 0)
}

// clear takes every workload but the ledger off, with its guard: an earlier play on this lab left it.
func (s *Stage) clear(ctx context.Context) error {
	for _, kinds := range []string{"gsa", "statefulsets,deployments"} {
		if _, err := s.Kubectl(ctx, "delete", "-n", Namespace, kinds, "--field-selector=metadata.name!="+App, "--wait=true", "--timeout=60s"); err != nil {
			return fmt.Errorf("remove what an earlier play left: %w", err)
		}
	}
	return nil
}
