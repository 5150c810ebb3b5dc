// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// warmth is whether a replica has read all that a leader reads: it is ready then, and not before. It implements manager.Runnable.
type warmth struct {
	cache  cache.Cache
	synced atomic.Bool
}

// warm has what no controller watches read and kept as well, from the start on and not when the first leader's question needs it.
func warm(ctx context.Context, mgr ctrl.Manager) error {
	w := &warmth{cache: mgr.GetCache()}
	for _, kind := range []client.Object{&coordinationv1.Lease{}, &corev1.PersistentVolume{}, &corev1.PersistentVolumeClaim{}, &storagev1.CSIDriver{}} {
		if _, err := w.cache.GetInformer(ctx, kind); err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	return errors.Join(mgr.Add(w), mgr.AddReadyzCheck("readyz", w.check))
}

// NeedLeaderElection has it run on standbys too.
func (w *warmth) NeedLeaderElection() bool { return false }

// Start waits for all that is watched.
func (w *warmth) Start(ctx context.Context) error {
	w.synced.Store(w.cache.WaitForCacheSync(ctx))
	<-ctx.Done()
	return nil
}

func (w *warmth) check(*http.Request) error {
	if !w.synced.Load() {
		return errors.New("the API has not been read yet")
	}
	return nil
}
