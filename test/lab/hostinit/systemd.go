// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostinit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/agent/unit"
	"github.com/holdfast-dev/holdfast/agent/unit/fake"
	"github.com/holdfast-dev/holdfast/test/lab/await"
)

// restartTimeout bounds what takes as long as starting a process does.
const restartTimeout = 15 * time.Second

// systemd answers for the services as a host's systemd does, whose place PID 1 has.
type systemd struct{ *supervisor }

// listenAsSystemd takes the place of the system's bus. A host without it works: nobody but an agent that restarts the kubelet wants it.
func (s *supervisor) listenAsSystemd() {
	if err := os.MkdirAll(filepath.Dir(unit.Socket), 0o755); err != nil {
		fmt.Fprintf(os.Stderr, "bus: %v\n", err)
		return
	}
	l, err := listen(unit.Socket)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bus: %v\n", err)
		return
	}
	go func() { fmt.Fprintf(os.Stderr, "bus: %v\n", fake.Serve(l, systemd{s})) }()
}

// State implements fake.Units. A service that was killed has failed, and one that somebody stopped is inactive.
func (s systemd) State(name string) (load, active string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, found := s.services[strings.TrimSuffix(name, ".service")]
	switch {
	case !found:
		return "not-found", "inactive"
	case r.pid > 0:
		return "loaded", "active"
	case r.wanted:
		return "loaded", "activating"
	case r.killed:
		return "loaded", "failed"
	default:
		return "loaded", "inactive"
	}
}

// Restart implements fake.Units.
func (s systemd) Restart(name string) (result string) {
	name = strings.TrimSuffix(name, ".service")
	ctx, cancel := context.WithTimeout(context.Background(), restartTimeout)
	defer cancel()
	for _, step := range []struct {
		do      func(string) error
		running bool
	}{{s.stop, false}, {s.start, true}} {
		err := step.do(name)
		if err == nil {
			err = await.Until(ctx, name, func() (bool, error) { return s.status()[name].Running == step.running, nil })
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "restart %s: %v\n", name, err)
			return "failed"
		}
	}
	return "done"
}
