// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bmc runs the lab's management controllers: one ipmi_sim per host, a
// real IPMI 2.0 LAN endpoint whose power control switches the host and whose
// GUID is the host's machine ID, and its menu of faults.
package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// Port is the UDP port of IPMI over LAN.
const Port = 623

// StartTimeout bounds how long a started BMC may take to answer.
const StartTimeout = 10 * time.Second

// Spawn starts argv in the network namespace at the path netns, with its
// output appended to the file log, and returns the PID that argv runs under.
// It records the process under name before the process runs.
type Spawn func(ctx context.Context, name, netns string, argv []string, log string) (pid int, err error)

// BMC describes the management controller of one host. Its state is in Dir:
// two values with the same Dir are the same BMC, in whatever process.
type BMC struct {
	// Host names the host, for example host-1.
	Host string
	// MachineID is the host's machine ID, 32 hexadecimal digits; see WireGUID.
	MachineID string
	// Address is where it listens, inside the namespace NetNS.
	Address netip.AddrPort
	// NetNS is the path of the network namespace it runs in.
	NetNS string
	// Dir is its directory, absolute; it is created.
	Dir string
	// Control is the command that ipmi_sim runs for every chassis request,
	// with the request as further arguments; it calls Control.Run.
	Control []string
	// Log is the file for ipmi_sim's output.
	Log string
	// Spawn starts ipmi_sim.
	Spawn Spawn
}

// Start runs the BMC in the mode its fault file names and returns once it
// answers (in mode Dead: at once). It is idempotent; a BMC that died or was
// configured otherwise is started anew.
func (b *BMC) Start(ctx context.Context) error {
	return b.locked(func() error {
		mode, err := ReadMode(b.Dir)
		if err != nil {
			return err
		}
		return b.enter(ctx, mode)
	})
}

// SetMode applies a fault, which replaces the one before; Clear undoes it. It
// returns once the BMC behaves so, and is idempotent. Sessions end when the
// mode changes to or from WrongPassword or WrongIdentity, or from Dead.
func (b *BMC) SetMode(ctx context.Context, mode Mode) error {
	if _, err := ParseMode(string(mode)); err != nil {
		return err
	}
	return b.locked(func() error {
		if err := writeMode(b.Dir, mode); err != nil {
			return err
		}
		return b.enter(ctx, mode)
	})
}

// Process is the running ipmi_sim; ok is false if there is none.
func (b *BMC) Process() (id process.ID, ok bool) {
	run, err := b.running()
	return run.ID, err == nil && run.Alive()
}

// run is the content of process.json: the last ipmi_sim and what it was configured with.
type run struct {
	process.ID
	Configuration string `json:"configuration"`
}

func (b *BMC) running() (run, error) {
	raw, err := os.ReadFile(b.processFile())
	if errors.Is(err, os.ErrNotExist) {
		return run{}, nil
	}
	if err != nil {
		return run{}, err
	}
	var r run
	if err := json.Unmarshal(raw, &r); err != nil {
		return run{}, fmt.Errorf("%s: %w", b.processFile(), err)
	}
	return r, nil
}

func (b *BMC) processFile() string { return filepath.Join(b.Dir, "process.json") }

func (b *BMC) locked(work func() error) error {
	if err := b.validate(); err != nil {
		return err
	}
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(b.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // releases the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err := work(); err != nil {
		return fmt.Errorf("BMC of %s: %w", b.Host, err)
	}
	return nil
}

// enter makes the process be what mode asks for.
func (b *BMC) enter(ctx context.Context, mode Mode) error {
	now, err := b.running()
	if err != nil {
		return err
	}
	if mode == Dead {
		if !now.Alive() {
			return nil
		}
		return now.Stop(ctx)
	}
	conf, err := b.configuration(mode)
	if err != nil {
		return err
	}
	if now.Alive() && !now.Stopped() && now.Configuration == conf.digest() {
		return nil
	}
	if err := now.Kill(ctx); err != nil {
		return err
	}
	return b.spawn(ctx, conf)
}

func (b *BMC) spawn(ctx context.Context, conf configuration) error {
	simulator, err := exec.LookPath("ipmi_sim")
	if err != nil {
		return fmt.Errorf("%w; run hack/debian-packages (it is in the Debian package openipmi)", err)
	}
	if err := conf.write(b.Dir); err != nil {
		return err
	}
	argv := []string{simulator, "-c", filepath.Join(b.Dir, "lan.conf"), "-f", filepath.Join(b.Dir, "commands"),
		"-s", filepath.Join(b.Dir, "state"), "-n"}
	pid, err := b.Spawn(ctx, "bmc-"+b.Host, b.NetNS, argv, b.Log)
	if err != nil {
		return err
	}
	id, err := process.Find(pid)
	if err != nil {
		return fmt.Errorf("ipmi_sim ended at once, see %s: %w", b.Log, err)
	}
	raw, err := json.Marshal(run{ID: id, Configuration: conf.digest()})
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.processFile(), append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return b.awaitAnswer(ctx, id)
}

func (b *BMC) awaitAnswer(ctx context.Context, id process.ID) error {
	ctx, cancel := context.WithTimeout(ctx, StartTimeout)
	defer cancel()
	conn, err := netns.Dialer(b.NetNS)(ctx, "udp", b.Address.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	return await.Until(ctx, fmt.Sprintf("%s to answer, see %s", b.Address, b.Log), func() (bool, error) {
		if !id.Alive() {
			return false, fmt.Errorf("ipmi_sim ended, see %s", b.Log)
		}
		return pong(conn), nil
	})
}
