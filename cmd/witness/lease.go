// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/lease"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// leases are where the agent keeps its Lease: one server-side apply makes it or renews it, and reads nothing.
type leases struct {
	apiServer
	// node is the name of the Lease.
	namespace, node string
	// version is that of the Lease as this agent wrote it last, and empty where somebody else has written since; uid is the Lease's own: by a version alone, one that was
	// deleted would be made again.
	version, uid string
	// said is true once the API has taken a word of this agent's. From then on nothing is announced that an agent before it announced.
	said atomic.Bool
}

// applied is the Lease as it is sent: client-go's own types would be a tenth of the agent's memory.
type applied struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Version     string            `json:"resourceVersion,omitempty"`
		UID         string            `json:"uid,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
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

// Write implements lease.Config. A word that announces a bound is taken only if none was taken since this agent's last, so that one that is late cannot take back what was
// said after it; where that is not known, the word is said without.
func (l *leases) Write(ctx context.Context, w lease.Word) error {
	wanted := applied{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
	wanted.Metadata.Name, wanted.Metadata.Namespace = l.node, l.namespace
	wanted.Spec.Holder, wanted.Spec.Renewed = w.BootID, w.At.UTC().Format(microTime)
	wanted.Spec.Duration = int((w.Every + time.Second - 1) / time.Second)
	if !w.Touched.IsZero() {
		wanted.Spec.Acquired = w.Touched.UTC().Format(microTime)
	}
	wanted.Metadata.Annotations = map[string]string{}
	if w.Pulse {
		wanted.Metadata.Annotations[wire.AnnotationPulse] = "true"
	}
	if w.Bound > 0 && l.version != "" {
		wanted.Metadata.Version, wanted.Metadata.UID = l.version, l.uid
		wanted.Metadata.Annotations[wire.AnnotationSelfFence] = strconv.Itoa(int((w.Bound + time.Second - 1) / time.Second))
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
	if code/100 == 4 && code != http.StatusTooManyRequests {
		l.version = "" // somebody else has written or deleted it: the next word is said without
	}
	if code/100 != 2 {
		return fmt.Errorf("the API server answers %d %s: %.200q", code, http.StatusText(code), text)
	}
	var taken applied
	if err := json.Unmarshal(text, &taken); err != nil {
		return fmt.Errorf("read what the API server answers: %w", err)
	}
	if l.version != "" && taken.Metadata.Version == l.version {
		return errors.New("the API server wrote nothing, as it has this very word: by this host's clock no time has passed; whoever reads the Lease does not learn of it")
	}
	l.version, l.uid = taken.Metadata.Version, taken.Metadata.UID
	l.said.Store(true)
	return nil
}

// disarming says that the watchdog counts no more. Whatever was said before and is still on its way is not taken after it.
func (l *leases) disarming(ctx context.Context, boot string) error {
	return l.Write(ctx, lease.Word{BootID: boot, At: time.Now(), Every: time.Second, Pulse: true})
}

// speak keeps the agent's Lease until ctx ends, where it has one.
func (a *agent) speak(ctx context.Context) {
	if a.self.leases == nil {
		return
	}
	config := lease.Config{BootID: a.boot, Touch: a.missed, Standing: a.member.Standing, Write: a.self.leases.Write, Clock: clock.RealClock{}, Log: a.log.WithName("lease")}
	if a.leash != nil && !a.letGo.majority {
		config.Pulse = lease.Pulse{Every: a.letGo.span / pulsesIn, Asking: a.leash.Asking, Bound: a.leash.Bound}
	}
	lease.Keep(ctx, config)
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
