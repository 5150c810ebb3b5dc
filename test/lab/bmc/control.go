// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package bmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// SlowDelay is how long a BMC in mode Slow takes for a chassis request.
const SlowDelay = 8 * time.Second

// Call is one chassis request as the BMC saw it: a line of calls.jsonl,
// written when the request was answered and stamped when it came.
type Call struct {
	mono.Stamp
	Host string `json:"host"`
	// Op is get, set or reset.
	Op string `json:"op"`
	// Value is on or off: what get answered or set was asked for. Reset has none.
	Value string `json:"value,omitempty"`
	// Actual is the host's power, on or off, as get found it.
	Actual string `json:"actual,omitempty"`
	// Fault is the mode the BMC was in.
	Fault Mode `json:"fault"`
	// Took is the time until the answer, in nanoseconds.
	Took int64 `json:"took"`
	// Error says why the request failed, if it did.
	Error string `json:"error,omitempty"`
}

// CallsFile is the journal of the BMC whose directory is dir.
func CallsFile(dir string) string { return filepath.Join(dir, "calls.jsonl") }

// Power is the switch of the host behind the BMC. Set is idempotent and
// returns once the host is off for good, or has begun to start.
type Power interface {
	On(ctx context.Context) (bool, error)
	Set(ctx context.Context, on bool) error
}

// Control carries out what ipmi_sim asks of its chassis_control command.
type Control struct {
	Host string
	// Dir is the BMC's directory: the fault file is read there, the journal written.
	Dir   string
	Power Power
}

// Run carries out one invocation, such as `get power`, `set power 0` or
// `set reset 1`, and writes to out what ipmi_sim wants to read. An error means
// that the client shall get an error completion code.
func (c Control) Run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 2 {
		return fmt.Errorf("chassis control %q: want get NAME… or set NAME VALUE…", args)
	}
	verb, rest := args[0], args[1:]
	for len(rest) > 0 {
		var err error
		switch {
		case verb == "get" && rest[0] == "power":
			err, rest = c.get(ctx, out), rest[1:]
		case verb == "set" && rest[0] == "power" && len(rest) > 1 && (rest[1] == "0" || rest[1] == "1"):
			err, rest = c.set(ctx, rest[1] == "1"), rest[2:]
		case verb == "set" && rest[0] == "reset" && len(rest) > 1:
			err, rest = c.reset(ctx), rest[2:]
		default:
			err = fmt.Errorf("chassis control %q: the lab's BMCs only get power, set power 0|1 and set reset 1", args)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c Control) get(ctx context.Context, out io.Writer) error {
	return c.logged(ctx, Call{Op: "get"}, func(call *Call) error {
		on, err := c.Power.On(ctx)
		if err != nil {
			return err
		}
		call.Actual = onOff(on)
		on = on && call.Fault != LieOff
		call.Value = onOff(on)
		digit := map[bool]string{false: "0", true: "1"}[on]
		_, err = fmt.Fprintf(out, "power:%s\n", digit)
		return err
	})
}

func (c Control) set(ctx context.Context, on bool) error {
	return c.logged(ctx, Call{Op: "set", Value: onOff(on)}, func(call *Call) error {
		if !on && call.Fault.refusesOff() {
			return nil
		}
		return c.Power.Set(ctx, on)
	})
}

func (c Control) reset(ctx context.Context) error {
	return c.logged(ctx, Call{Op: "reset"}, func(call *Call) error {
		if call.Fault.refusesOff() {
			return nil
		}
		on, err := c.Power.On(ctx)
		if err != nil {
			return err
		}
		if !on {
			return errors.New("reset of a host that is off")
		}
		if err := c.Power.Set(ctx, false); err != nil {
			return err
		}
		return c.Power.Set(ctx, true)
	})
}

func (m Mode) refusesOff() bool { return m == Ignore || m == LieOff }

// logged carries out one request under the mode in force and journals it.
func (c Control) logged(ctx context.Context, call Call, act func(*Call) error) error {
	call.Stamp, call.Host = mono.Now(), c.Host
	err := func() (err error) {
		if call.Fault, err = ReadMode(c.Dir); err != nil {
			return err
		}
		if call.Fault == Slow {
			if err := c.dawdle(ctx); err != nil {
				return err
			}
		}
		return act(&call)
	}()
	if err != nil {
		call.Error = err.Error()
	}
	call.Took = mono.Nanoseconds() - call.Mono
	return errors.Join(err, jsonl.Append(CallsFile(c.Dir), call))
}

// dawdle lets SlowDelay pass and everything get lost that is sent to the BMC meanwhile.
func (c Control) dawdle(ctx context.Context) error {
	timer := time.NewTimer(SlowDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	id, ok := (&BMC{Dir: c.Dir}).Process()
	if !ok {
		return errors.New("the BMC ended while it was slow")
	}
	return drain(id)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
