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

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
)

// startEvery paces, and startTimeout bounds, the questions of a replica that waits for the API.
const (
	startEvery   = 500 * time.Millisecond
	startTimeout = 2 * time.Second
)

// awaitAPI returns when the API server answers, or with the context's error. A replica whose leadership ended because nobody reached the API would
// otherwise end at once after each new start, and the kubelet lets such a container wait, up to five minutes from the tenth second on: that long after
// the API's return there would be a replica less. Meanwhile /healthz at the address says that the process is well, and /readyz that it does not serve.
func awaitAPI(ctx context.Context, config *rest.Config, health string) error {
	asking := rest.CopyConfig(config)
	asking.Timeout = startTimeout
	api, err := discovery.NewDiscoveryClientForConfig(asking)
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	end, err := serveWaiting(ctx, health)
	if err != nil {
		return err
	}
	defer end()
	log, waits := ctrl.Log.WithName("start"), false
	return wait.PollUntilContextCancel(ctx, startEvery, true, func(context.Context) (bool, error) {
		_, err := api.ServerVersion()
		switch {
		case !answered(err) && !waits:
			waits = true
			log.Error(err, "Waiting for the API server to answer", "server", config.Host)
		case answered(err) && waits:
			log.Info("The API server answers")
		}
		return answered(err), nil
	})
}

// answered reports whether a request was answered by a server that works: also with a refusal, which is for those to report who are refused.
func answered(err error) bool {
	var status apierrors.APIStatus
	return err == nil || errors.As(err, &status) && status.Status().Code < http.StatusInternalServerError
}

// serveWaiting serves the probes of a replica that waits, until its end is called.
func serveWaiting(ctx context.Context, address string) (end func(), err error) {
	if address == "" || address == "0" {
		return func() {}, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve health probes (--health-probe-bind-address): %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "waiting for the API server to answer", http.StatusServiceUnavailable)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: startTimeout}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			ctrl.Log.WithName("start").Error(err, "Health probes are not answered")
		}
	}()
	return func() {
		if err := server.Close(); err != nil {
			ctrl.Log.WithName("start").Error(err, "Health probes are still answered")
		}
		<-served
	}, nil
}
