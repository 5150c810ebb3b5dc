// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/conformance"
	"github.com/holdfast-dev/holdfast/fencing/fake"
)

// broken is a driver with one thing wrong, by a function in place of a method; the rest is the fake's.
type broken struct {
	fencing.Driver
	observe func(context.Context, fencing.Target) (fencing.Reading, error)
	isolate func(context.Context, fencing.Target, func(string) error) (fencing.Receipt, error)
}

func (b broken) Observe(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
	if b.observe == nil {
		return b.Driver.Observe(ctx, t)
	}
	return b.observe(ctx, t)
}

func (b broken) Isolate(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
	if b.isolate == nil {
		return b.Driver.Isolate(ctx, t, permit)
	}
	return b.isolate(ctx, t, permit)
}

func anyone(string) error { return nil }

// breakages are drivers that the suite must not let pass.
var breakages = map[string]func(d fencing.Driver) broken{
	"does not ask permit": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, _ func(string) error) (fencing.Receipt, error) {
			return d.Isolate(ctx, t, anyone)
		}}
	},
	"asks permit after the command": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			r, err := d.Isolate(ctx, t, anyone)
			if err == nil {
				err = permit(r.Identity)
			}
			return r, err
		}}
	},
	"leaves out the command when the power is off": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			if now, err := d.Observe(ctx, t); err == nil && now.Power == fencing.PowerOff {
				return fencing.Receipt{Before: now.Power, Identity: now.Identity}, permit(now.Identity)
			}
			return d.Isolate(ctx, t, permit)
		}}
	},
	"cycles": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			r, err := d.Isolate(ctx, t, permit)
			if err == nil {
				_, err = d.Release(ctx, t)
			}
			return r, err
		}}
	},
	"waits for the effect and fails without it": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			r, err := d.Isolate(ctx, t, permit)
			if now, _ := d.Observe(ctx, t); err == nil && now.Power != fencing.PowerOff {
				err = fencing.ErrUnclear
			}
			return r, err
		}}
	},
	"takes silence after the command for acceptance": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			r, err := d.Isolate(ctx, t, permit)
			if errors.Is(err, fencing.ErrUnclear) {
				err = nil
			}
			return r, err
		}}
	},
	"takes silence for Off": func(d fencing.Driver) broken {
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			r, err := d.Observe(ctx, t)
			if errors.Is(err, fencing.ErrUnreachable) {
				r.Power, err = fencing.PowerOff, nil
			}
			return r, err
		}}
	},
	"remembers the identity": func(d fencing.Driver) broken {
		seen := map[string]string{}
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			r, err := d.Observe(ctx, t)
			if seen[t.Address] == "" {
				seen[t.Address] = r.Identity
			}
			r.Identity = seen[t.Address]
			return r, err
		}}
	},
	"commands when it observes": func(d fencing.Driver) broken {
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			r, err := d.Observe(ctx, t)
			if r.Power == fencing.PowerOn {
				_, _ = d.Release(ctx, t)
			}
			return r, err
		}}
	},
	"does not look at its context": func(d fencing.Driver) broken {
		return broken{isolate: func(_ context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			return d.Isolate(context.Background(), t, permit)
		}}
	},
	"says a wrong password is a dead device": func(d fencing.Driver) broken {
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			r, err := d.Observe(ctx, t)
			if errors.Is(err, fencing.ErrDenied) {
				err = fencing.ErrUnreachable
			}
			return r, err
		}}
	},
	"shows the password in an error": func(d fencing.Driver) broken {
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			r, err := d.Observe(ctx, t)
			if err != nil {
				err = fmt.Errorf("with %s: %w", t.Credentials.Password, err)
			}
			return r, err
		}}
	},
	"takes what it cannot read for Off": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if r.Power == fencing.PowerUnreadable && err == nil {
			r.Power = fencing.PowerOff
		}
		return r, err
	}),
	"takes what makes no sense for On": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if err != nil && strings.Contains(err.Error(), "makes no sense") {
			r.Power, err = fencing.PowerOn, nil
		}
		return r, err
	}),
	"does not say what it could not read": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if r.Power == fencing.PowerUnreadable {
			r.Detail = "power is unreadable"
		}
		return r, err
	}),
	"does not say which device makes no sense": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if errors.Is(err, fencing.ErrUnreachable) {
			err = fencing.ErrUnreachable
		}
		return r, err
	}),
	"commands nothing when it cannot read the power": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			if now, err := d.Observe(ctx, t); err == nil && now.Power == fencing.PowerUnreadable {
				return fencing.Receipt{Before: now.Power}, fencing.ErrUnreachable
			}
			return d.Isolate(ctx, t, permit)
		}}
	},
	"says Off of a machine that is gone": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if r.Power == fencing.PowerGone {
			r.Power = fencing.PowerOff
		}
		return r, err
	}),
	"says Gone of a machine that is off": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if r.Power == fencing.PowerOff {
			r.Power = fencing.PowerGone
		}
		return r, err
	}),
	"says Gone without an identity": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if r.Power == fencing.PowerGone {
			r.Identity = ""
		}
		return r, err
	}),
	"says Gone of the machine that it was asked for": func(d fencing.Driver) broken {
		own := map[string]string{}
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			r, err := d.Observe(ctx, t)
			if r.Power == fencing.PowerGone && own[t.Address] != "" {
				r.Identity = own[t.Address]
			} else if own[t.Address] == "" {
				own[t.Address] = r.Identity
			}
			return r, err
		}}
	},
	"takes a machine that cannot be found for Gone": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if err != nil && strings.Contains(err.Error(), "192.0.2.250") {
			r.Power, err = fencing.PowerGone, nil
		}
		return r, err
	}),
	"does not ask permit when the machine is gone": onGone(func(_ fencing.Driver, now fencing.Reading, _ func(string) error) (fencing.Receipt, error) {
		return fencing.Receipt{Before: now.Power, Identity: now.Identity}, nil
	}),
	"fails to isolate a machine that is gone": onGone(func(_ fencing.Driver, now fencing.Reading, permit func(string) error) (fencing.Receipt, error) {
		return fencing.Receipt{Before: now.Power, Identity: now.Identity}, errors.Join(permit(now.Identity), fencing.ErrUnsupported)
	}),
	"says a machine that is gone was on before the command": onGone(func(_ fencing.Driver, now fencing.Reading, permit func(string) error) (fencing.Receipt, error) {
		return fencing.Receipt{Before: fencing.PowerOn, Identity: now.Identity}, permit(now.Identity)
	}),
	"shows the password in a reading": func(d fencing.Driver) broken {
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			r, err := d.Observe(ctx, t)
			r.Detail += t.Credentials.Password
			return r, err
		}}
	},
}

// unknowing are the breakages of drivers that no provider tells of a machine that is gone; the others have one.
var unknowing = map[string]func(d fencing.Driver) broken{
	"takes what it cannot read for Gone": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if r.Power == fencing.PowerUnreadable && err == nil {
			r.Power = fencing.PowerGone
		}
		return r, err
	}),
	"takes a dead device for a machine that is gone": reads(func(r fencing.Reading, err error) (fencing.Reading, error) {
		if errors.Is(err, fencing.ErrUnreachable) {
			r.Power, err = fencing.PowerGone, nil
		}
		return r, err
	}),
	"takes Off for Gone before the command": func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			r, err := d.Isolate(ctx, t, permit)
			if r.Before == fencing.PowerOff {
				r.Before = fencing.PowerGone
			}
			return r, err
		}}
	},
}

// reads makes a breakage of something done to every reading.
func reads(change func(fencing.Reading, error) (fencing.Reading, error)) func(d fencing.Driver) broken {
	return func(d fencing.Driver) broken {
		return broken{observe: func(ctx context.Context, t fencing.Target) (fencing.Reading, error) {
			return change(d.Observe(ctx, t))
		}}
	}
}

// onGone makes a breakage of an isolate for machines that are gone; the others are isolated as they should be.
func onGone(isolate func(d fencing.Driver, now fencing.Reading, permit func(string) error) (fencing.Receipt, error)) func(d fencing.Driver) broken {
	return func(d fencing.Driver) broken {
		return broken{isolate: func(ctx context.Context, t fencing.Target, permit func(string) error) (fencing.Receipt, error) {
			if now, err := d.Observe(ctx, t); err == nil && now.Power == fencing.PowerGone {
				return isolate(d, now, permit)
			}
			return d.Isolate(ctx, t, permit)
		}}
	}
}

const breakageVariable = "HOLDFAST_CONFORMANCE_BREAKAGE"

// TestBreakage is run by TestTheSuiteCatchesEveryBreakage in a process of its own, with one breakage; alone it runs the suite over
// the unbroken fake.
func TestBreakage(t *testing.T) {
	world := fake.NewWorld()
	d := broken{Driver: world.Driver()}
	truthOf := func(h *host) conformance.Truth { return h }
	if breakage, given := os.LookupEnv(breakageVariable); given {
		breaks, knowing := breakages[breakage]
		if !knowing {
			breaks = unknowing[breakage]
			truthOf = func(h *host) conformance.Truth { return struct{ conformance.Truth }{h} } // hides that it is a Provider
		}
		d = breaks(world.Driver())
		d.Driver = world.Driver()
	}
	rig := conformance.Rig{Driver: d}
	for i := range 2 {
		h := &host{world: world, address: fmt.Sprintf("192.0.2.%d", i), identity: fmt.Sprintf("4c4c4544-0042-3510-8053-b4c04f4d323%d", i)}
		credentials := fencing.Credentials{Username: "fencer-account", Password: "correct horse"}
		h.Host = world.Add(h.address, h.identity, credentials)
		rig.Hosts = append(rig.Hosts, conformance.Host{Target: fencing.Target{Address: h.address, Credentials: credentials}, Truth: truthOf(h)})
	}
	conformance.Run(t, rig)
}

// host is the truth over one host of a fake world.
type host struct {
	*fake.Host
	world             *fake.World
	address, identity string
}

var _ conformance.Provider = (*host)(nil)

func (h *host) Remove(testing.TB) { h.SetPower(fencing.PowerGone) }

func (h *host) Stranger(testing.TB) fencing.Target {
	return fencing.Target{Address: "192.0.2.250", Credentials: fencing.Credentials{Username: "fencer-account", Password: "correct horse"}}
}

func (h *host) On(testing.TB) bool         { return h.Power() == fencing.PowerOn }
func (h *host) Identity(testing.TB) string { return h.identity }

func (h *host) SetOn(_ testing.TB, on bool) {
	h.SetPower(map[bool]fencing.Power{true: fencing.PowerOn, false: fencing.PowerOff}[on])
}

func (h *host) SetFault(_ testing.TB, f conformance.Fault) { h.Host.SetFault(fake.Fault(f)) }

func (h *host) Commands(testing.TB) (c conformance.Commands) {
	for _, call := range h.world.Calls() {
		switch {
		case call.Address == h.address && call.Operation == fake.Off:
			c.Off++
		case call.Address == h.address && call.Operation == fake.On:
			c.On++
		}
	}
	return c
}

func TestTheSuiteCatchesEveryBreakage(t *testing.T) {
	for _, breakage := range slices.Sorted(maps.Keys(all())) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBreakage$", "-test.v") //nolint:gosec // this test itself
		cmd.Env = append(os.Environ(), breakageVariable+"="+breakage)
		out, err := cmd.CombinedOutput()
		var failed *exec.ExitError
		if !errors.As(err, &failed) || !strings.Contains(string(out), "--- FAIL: TestBreakage") {
			t.Errorf("a driver that %s passes (%v):\n%s", breakage, err, out)
			continue
		}
		t.Logf("a driver that %s fails at: %s", breakage, strings.Join(failures(string(out)), "; "))
	}
}

// all are the breakages of both sorts.
func all() map[string]func(d fencing.Driver) broken {
	out := maps.Clone(breakages)
	maps.Copy(out, unknowing)
	return out
}

// failures are the names of the tests that failed below TestBreakage.
func failures(out string) (names []string) {
	for line := range strings.Lines(out) {
		if _, name, found := strings.Cut(line, "--- FAIL: TestBreakage/"); found {
			name, _, _ = strings.Cut(name, " ")
			names = append(names, strings.ReplaceAll(name, "_", " "))
		}
	}
	slices.Sort(names)
	return names
}
