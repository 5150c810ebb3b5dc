// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// EndpointChange is what the Service led to from a moment on.
type EndpointChange struct {
	mono.Stamp
	// Ready are the ready endpoints, "host:port", sorted.
	Ready []string
}

// Endpoints records the ready endpoints of the ledger's Service as a watch tells of them.
type Endpoints struct {
	mu      sync.Mutex
	changes []EndpointChange
	file    string
	tell    func(string)
}

// Changes returns every change so far, in order.
func (e *Endpoints) Changes() []EndpointChange {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.changes)
}

// Gap is for how long in sum no endpoint was ready between two moments of the monotonic clock.
func (e *Endpoints) Gap(since, until int64) time.Duration {
	changes := e.Changes()
	var sum int64
	for i, c := range changes {
		begin, end := max(c.Mono, since), until
		if i+1 < len(changes) {
			end = min(end, changes[i+1].Mono)
		}
		if len(c.Ready) == 0 && end > begin {
			sum += end - begin
		}
	}
	return time.Duration(sum)
}

func (e *Endpoints) see(slice map[string]*discoveryv1.EndpointSlice) {
	ready := readyEndpoints(slice)
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := len(e.changes); n > 0 && slices.Equal(e.changes[n-1].Ready, ready) {
		return
	}
	e.changes = append(e.changes, EndpointChange{Stamp: mono.Now(), Ready: ready})
	// The client reads the file before each attempt: it has to find the old list or the new one.
	text := strings.Join(append(slices.Clone(ready), ""), "\n")
	err := os.WriteFile(e.file+".new", []byte(text), 0o644)
	if err == nil {
		err = os.Rename(e.file+".new", e.file)
	}
	if err != nil {
		e.tell("the client's list of endpoints: " + err.Error())
	}
}

func readyEndpoints(all map[string]*discoveryv1.EndpointSlice) []string {
	ready := map[string]bool{}
	for _, s := range all {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(s.Ports) == 0 || s.Ports[0].Port == nil {
				continue
			}
			for _, a := range e.Addresses {
				ready[a+":"+strconv.Itoa(int(*s.Ports[0].Port))] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ready))
}

// followEndpoints records until the stage is left.
func (a *Actor) followEndpoints() error {
	s := a.stage
	dir := filepath.Join(s.Lab.StateDir(), "stage", a.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	a.Endpoints = &Endpoints{file: filepath.Join(dir, "endpoints"), tell: s.tell}
	a.acks = filepath.Join(dir, "acks.jsonl")
	where := []client.ListOption{client.InNamespace(Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: a.Name + "-front"}}
	s.running.Go(func() {
		// It ends with the stage. That an API server does not answer is part of the play: follow is called again.
		_ = await.Until(s.playing, "the end", func() (bool, error) {
			_ = follow(s.playing, s.Client, &discoveryv1.EndpointSliceList{}, where, func(now map[string]*discoveryv1.EndpointSlice) bool {
				a.Endpoints.see(now)
				return false
			})
			return s.playing.Err() != nil, nil
		})
	})
	return nil
}

// startClient lets ledger-client append from outside the hosts until the lab goes down.
func (a *Actor) startClient(ctx context.Context) error {
	name := "client-" + a.Name
	if old, err := a.stage.Lab.Process(name); err != nil || !old.Alive() {
		args := []string{a.stage.programs.client, "--endpoints-file", a.Endpoints.file, "--out", a.acks}
		if a.Interval != "" {
			args = append(args, "--interval", a.Interval)
		}
		if _, err := a.stage.Lab.Spawn(ctx, lab.Process{Name: name, NetNS: a.stage.Lab.NetNS("client"), Args: args}); err != nil {
			return err
		}
	}
	return a.AwaitServed(ctx)
}

// AwaitServed waits until the client gets an acknowledgement for something that it asked for from now on.
func (a *Actor) AwaitServed(ctx context.Context) error {
	if err := awaitAck(ctx, a.acks); err != nil {
		return fmt.Errorf("waiting for an acknowledgement of %s: %w; endpoints: %+v", a.Name, err, a.Endpoints.Changes())
	}
	return nil
}

// awaitAck waits for an acknowledgement that is given after now.
func awaitAck(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	since, from := mono.Nanoseconds(), size(path)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		acks, err := acksFrom(path, from, since)
		if err != nil || len(acks) > 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// size is how many bytes of acknowledgements there are, in whole lines or not.
func size(path string) int64 {
	found, err := os.Stat(path)
	if err != nil {
		return 0 // none yet
	}
	return found.Size()
}

// LastAck is when the client got its last acknowledgement, CLOCK_MONOTONIC in nanoseconds; 0 for never.
func (a *Actor) LastAck() (int64, error) {
	acks, err := a.Acks(0)
	if err != nil || len(acks) == 0 {
		return 0, err
	}
	return acks[len(acks)-1].Mono, nil
}

// Acks are the acknowledgements since a moment.
func (a *Actor) Acks(since int64) ([]mono.Stamp, error) { return acksFrom(a.acks, 0, since) }

// acksFrom reads from an offset in the file, which may be in the middle of a line.
func acksFrom(path string, offset, since int64) ([]mono.Stamp, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	var acks []mono.Stamp
	torn := offset > 0
	err = jsonl.ScanFrom(file, func(line []byte) error {
		if torn {
			torn = false
			return nil
		}
		stamp, err := decode[mono.Stamp](line)
		if err == nil && stamp.Mono >= since {
			acks = append(acks, stamp)
		}
		return err
	})
	return acks, err
}
