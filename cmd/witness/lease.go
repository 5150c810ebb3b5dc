// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/lease"
)

// leases are where the agent keeps its Lease: one server-side apply makes it or renews it, and reads nothing.
type leases struct {
	apiServer
	// node is the name of the Lease.
	namespace, node string
}

// applied is the Lease as it is sent: client-go's own types would be a tenth of the agent's memory.
type applied struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Spec struct {
		Holder   string `json:"holderIdentity"`
		Duration int    `json:"leaseDurationSeconds"`
		Renewed  string `json:"renewTime"`
		Acquired string `json:"acquireTime,omitempty"`
	} `json:"spec"`
}

// microTime is how the API writes the time of a renewal.
const microTime = "2006-01-02T15:04:05.000000Z07:00"

// Write implements lease.Config.
func (l leases) Write(ctx context.Context, w lease.Word) error {
	wanted := applied{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
	wanted.Metadata.Name, wanted.Metadata.Namespace = l.node, l.namespace
	wanted.Spec.Holder, wanted.Spec.Renewed = w.BootID, w.At.UTC().Format(microTime)
	wanted.Spec.Duration = int((w.Every + time.Second - 1) / time.Second)
	if !w.Touched.IsZero() {
		wanted.Spec.Acquired = w.Touched.UTC().Format(microTime)
	}
	body, err := json.Marshal(wanted)
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/apis/coordination.k8s.io/v1/namespaces/%s/leases/%s?fieldManager=holdfast-witness&force=true", url.PathEscape(l.namespace), url.PathEscape(l.node))
	code, text, err := l.send(ctx, http.MethodPatch, path, "application/apply-patch+yaml", bytes.NewReader(body))
	if err != nil {
		return err
	}
	if code/100 != 2 {
		return fmt.Errorf("the API server answers %d %s: %.200q", code, http.StatusText(code), text)
	}
	return nil
}

// speak keeps the agent's Lease until ctx ends, where it has one.
func (a *agent) speak(ctx context.Context) {
	if a.self.leases == nil {
		return
	}
	lease.Keep(ctx, lease.Config{BootID: a.boot, Touch: a.missed, Standing: a.member.Standing, Write: a.self.leases.Write, Clock: clock.RealClock{}, Log: a.log.WithName("lease")})
}

// looking is a member of the gossip that tells when the manager had it look for another in vain.
type looking struct {
	*gossip.Member
	missed chan<- struct{}
}

// Ping implements api.Sight.
func (l looking) Ping(ctx context.Context, node, address string) (bootID string, err error) {
	bootID, err = l.Member.Ping(ctx, node, address)
	if err != nil {
		select {
		case l.missed <- struct{}{}:
		default: // it is told already
		}
	}
	return bootID, err
}
