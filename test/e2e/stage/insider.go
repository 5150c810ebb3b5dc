// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// Insider is a client on a host: it uses the Service's own address, so that it is led by what the host's proxy knows, and not by what the API says.
type Insider struct {
	acks    string
	process process.ID
}

// Within starts a client of the actor on a host. It runs until Leave.
func (a *Actor) Within(ctx context.Context, host string) (*Insider, error) {
	var service corev1.Service
	if err := a.stage.Client.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: a.Name + "-front"}, &service); err != nil {
		return nil, err
	}
	dir := filepath.Join(a.stage.Lab.StateDir(), "stage", a.Name)
	endpoints, name := filepath.Join(dir, "inside-"+host), "client-"+a.Name+"-"+host
	if err := os.WriteFile(endpoints, []byte(service.Spec.ClusterIP+":8080\n"), 0o644); err != nil {
		return nil, err
	}
	i := &Insider{acks: filepath.Join(dir, "acks-"+host+".jsonl")}
	var err error
	i.process, err = a.stage.Lab.Spawn(ctx, lab.Process{Name: name, NetNS: a.stage.Lab.NetNS(host),
		Args: []string{a.stage.programs.client, "--endpoints-file", endpoints, "--out", i.acks, "--interval", "50ms"}})
	return i, err
}

// Leave ends the client.
func (i *Insider) Leave(ctx context.Context) error { return i.process.Kill(ctx) }

// AwaitServed waits until the client gets an acknowledgement that is given after now.
func (i *Insider) AwaitServed(ctx context.Context) error {
	if err := awaitAck(ctx, i.acks); err != nil {
		return fmt.Errorf("waiting for an acknowledgement in %s: %w", i.acks, err)
	}
	return nil
}

// LongestPause is the longest time between two acknowledgements in a stretch, its ends included.
func (i *Insider) LongestPause(since, until int64) (time.Duration, error) {
	acks, err := acksFrom(i.acks, 0, since)
	if err != nil {
		return 0, err
	}
	last, pause := since, int64(0)
	for _, a := range acks {
		if a.Mono > until {
			break
		}
		pause, last = max(pause, a.Mono-last), a.Mono
	}
	if last == since {
		return 0, fmt.Errorf("nothing was acknowledged inside: %s", i.acks)
	}
	return time.Duration(max(pause, until-last)), nil
}
