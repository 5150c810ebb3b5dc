// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
)

// Judgement is what ledger-check found in the array's log, the ledger's file and the client's acknowledgements.
type Judgement struct {
	Writers []struct {
		Host         string  `json:"host"`
		Boot         string  `json:"boot"`
		Epoch        uint64  `json:"epoch"`
		Count        int     `json:"count"`
		MaxGapMillis float64 `json:"maxGapMillis"`
	} `json:"writers"`
	Interleavings []json.RawMessage `json:"interleavings"`
	LostAcks      []json.RawMessage `json:"lostAcks"`
	RefusedWrites int               `json:"refusedWrites"`
	Acked         int               `json:"acked"`
	Lines         int               `json:"lines"`
}

// Guilty names what must never happen, or is nil.
func (j Judgement) Guilty() error {
	var err error
	if len(j.LostAcks) > 0 {
		err = fmt.Errorf("%d of %d acknowledged lines are gone, the first is %s", len(j.LostAcks), j.Acked, j.LostAcks[0])
	}
	if len(j.Interleavings) > 0 {
		err = errors.Join(err, fmt.Errorf("two writers at once: %s", j.Interleavings[0]))
	}
	if j.Acked == 0 || j.Lines == 0 {
		err = errors.Join(err, fmt.Errorf("nothing to judge: %d lines, %d acknowledged", j.Lines, j.Acked))
	}
	return err
}

// Judge runs ledger-check over everything that the actor ever did.
func (a *Actor) Judge(ctx context.Context) (Judgement, error) {
	return a.stage.judge(ctx, "--volume", a.Volume(), "--acks", a.acks)
}

// JudgeVolume runs ledger-check over everything that was ever written to a volume, whoever's it is. Nothing acknowledged is known of it.
func (s *Stage) JudgeVolume(ctx context.Context, volume string) (Judgement, error) {
	return s.judge(ctx, "--volume", volume)
}

func (s *Stage) judge(ctx context.Context, of ...string) (Judgement, error) {
	var j Judgement
	if err := s.FlushArray(ctx); err != nil {
		return j, err
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, s.programs.check, append([]string{"--array-dir", filepath.Join(s.Lab.StateDir(), "array")}, of...)...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return j, fmt.Errorf("ledger-check: %w: %s", err, errs.String())
	}
	if err := json.Unmarshal(out, &j); err != nil {
		return j, err
	}
	if (err != nil) != (len(j.LostAcks)+len(j.Interleavings) > 0) {
		return j, fmt.Errorf("ledger-check: its exit code contradicts its report: %s", out)
	}
	return j, nil
}

// FlushArray has the array's log written out: it may be 50 ms late.
func (s *Stage) FlushArray(ctx context.Context) error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.Lab.ArrayControl())
	}
	array := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://array/flush", nil)
	if err != nil {
		return err
	}
	response, err := array.Do(request)
	if err != nil {
		return fmt.Errorf("flush the array's log: %w", err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode/100 != 2 {
		return fmt.Errorf("flush the array's log: %s, %w", response.Status, err)
	}
	return nil
}

// Writer is one writer's part in a stretch of time, by the array's log.
type Writer struct {
	Host  string
	Boot  string
	Epoch uint64
	// Count is how many writes succeeded; First and Last are when, CLOCK_MONOTONIC in nanoseconds.
	Count       int
	First, Last int64
	// MaxGap is the longest pause between two of them.
	MaxGap time.Duration
}

// Writers tells who wrote to the actor's volume between two moments, in the order of first writes. What the array refused does not count.
func (a *Actor) Writers(ctx context.Context, since, until int64) ([]Writer, error) {
	s := a.stage
	if err := s.FlushArray(ctx); err != nil {
		return nil, err
	}
	type write struct {
		Mono   int64  `json:"mono"`
		Volume string `json:"volume"`
		Host   string `json:"host"`
		Boot   string `json:"boot"`
		Epoch  uint64 `json:"epoch"`
		Result string `json:"result"`
		Op     string `json:"op"`
	}
	var writers []Writer
	err := jsonl.Scan(filepath.Join(s.Lab.StateDir(), "array", "writes.jsonl"), func(line []byte) error {
		w, err := decode[write](line)
		if err != nil || w.Volume != a.Volume() || w.Result != "ok" || w.Op != "" || w.Mono < since || w.Mono > until {
			return err
		}
		i := slices.IndexFunc(writers, func(k Writer) bool { return k.Host == w.Host && k.Boot == w.Boot && k.Epoch == w.Epoch })
		if i < 0 {
			writers = append(writers, Writer{Host: w.Host, Boot: w.Boot, Epoch: w.Epoch, First: w.Mono, Last: w.Mono})
			i = len(writers) - 1
		}
		k := &writers[i]
		k.Count, k.MaxGap, k.Last = k.Count+1, max(k.MaxGap, time.Duration(w.Mono-k.Last)), w.Mono
		return nil
	})
	return writers, err
}

func decode[T any](line []byte) (T, error) {
	var v T
	if err := json.Unmarshal(line, &v); err != nil {
		return v, fmt.Errorf("%w: %s", err, line)
	}
	return v, nil
}

// Calls are what the host's BMC was asked for since a moment, in order.
func (s *Stage) Calls(host string, since int64) ([]bmc.Call, error) {
	var calls []bmc.Call
	err := jsonl.Scan(filepath.Join(s.Lab.StateDir(), "bmc", host, "calls.jsonl"), func(line []byte) error {
		c, err := decode[bmc.Call](line)
		if err == nil && c.Mono >= since {
			calls = append(calls, c)
		}
		return err
	})
	return calls, err
}

// Offs selects the Off commands of Calls.
func Offs(calls []bmc.Call) []bmc.Call {
	return slices.DeleteFunc(slices.Clone(calls), func(c bmc.Call) bool { return c.Op != "set" || c.Value != "off" })
}

// PowerLosses counts how often the host lost its power since a moment, whoever took it; an Off to a host without power is none.
func (s *Stage) PowerLosses(host string, since int64) (int, error) {
	found, err := s.Lab.Events(events.Filter{Since: since, Sources: []events.Source{events.Faults}})
	n := 0
	for _, e := range found {
		if e.Fault != nil && e.Fault.Fault == "power-off" && e.Fault.Target == host && e.Fault.State == fault.Applied {
			n++
		}
	}
	return n, err
}

// Asked returns requests to the API since a moment that q selects.
func (s *Stage) Asked(since int64, q events.Query) ([]events.Request, error) {
	q.Since = since
	return s.Lab.Requests(q)
}

// ByHoldfast reports whether Holdfast itself asked.
func ByHoldfast(r events.Request) bool {
	return strings.HasPrefix(r.User, "system:serviceaccount:"+HoldfastNamespace+":")
}
