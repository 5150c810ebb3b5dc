// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/rest"
)

// free is an address that nobody listens at.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func status(ctx context.Context, url string) (int, error) {
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	answer, err := http.DefaultClient.Do(ask)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}

// A replica that starts while the API is away lives on, is not ready, and goes on as soon as the API answers, be it with a refusal.
func TestAReplicaWaitsForTheAPI(t *testing.T) {
	for _, answer := range []int{http.StatusOK, http.StatusForbidden} {
		health := free(t)
		var asked, healthy, ready atomic.Int32
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if asked.Add(1) == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			for path, to := range map[string]*atomic.Int32{"/healthz": &healthy, "/readyz": &ready} {
				code, err := status(r.Context(), "http://"+health+path)
				if err != nil {
					t.Error(err)
				}
				to.Store(int32(code))
			}
			w.WriteHeader(answer)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d}`, answer)
		}))
		err := awaitAPI(t.Context(), &rest.Config{Host: api.URL}, health)
		api.Close()
		if err != nil || asked.Load() != 2 || healthy.Load() != http.StatusOK || ready.Load() != http.StatusServiceUnavailable {
			t.Errorf("it went on with %v after %d questions; meanwhile /healthz was %d and /readyz %d", err, asked.Load(), healthy.Load(), ready.Load())
		}
		if l, err := net.Listen("tcp", health); err != nil {
			t.Errorf("the manager cannot serve its probes: %v", err)
		} else if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAReplicaThatWaitsCanBeStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		stop()
	}))
	defer api.Close()
	if err := awaitAPI(ctx, &rest.Config{Host: api.URL}, "0"); !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}
