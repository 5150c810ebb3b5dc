// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// healthFor bounds one question of the kubelet's.
const healthFor = 5 * time.Second

// tellHealth answers the kubelet's probes until ctx ends: /healthz as long as the agent knows what it sees, and /readyz once the manager can ask it.
func (a *agent) tellHealth(ctx context.Context) error {
	if a.health == "" {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.health)
	if err != nil {
		return fmt.Errorf("--health: %w", err)
	}
	server := &http.Server{Handler: a.probes(), ReadHeaderTimeout: healthFor, WriteTimeout: healthFor}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--health: %w", err)
	}
	return nil
}

func (a *agent) probes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		a.member.View() // does not come back if the agent is stuck
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !a.answers.Load() {
			http.Error(w, "there is no certificate yet", http.StatusServiceUnavailable)
		}
	})
	return mux
}
