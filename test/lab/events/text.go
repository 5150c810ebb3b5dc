// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
)

// String is the event as one line of a timeline: wall time, monotonic seconds,
// source, and what happened.
func (e Event) String() string {
	return fmt.Sprintf("%s %14.6f %-6s %s", e.Wall.Format("15:04:05.000"), float64(e.Mono)/1e9, e.Source, e.what())
}

func (e Event) what() string {
	switch {
	case e.Damaged != "":
		return "DAMAGED " + e.Damaged
	case e.Fault != nil:
		return faultText(e.Fault)
	case e.Request != nil:
		return e.Request.String()
	case e.Volume != nil:
		v := e.Volume
		return words(v.Volume, v.Event, v.Host, "epoch", fmt.Sprint(v.Epoch))
	case e.Run != nil:
		return e.Run.String()
	case e.Call != nil:
		return callText(e.Call)
	}
	return ""
}

// words joins those that are not empty.
func words(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), " ")
}

func faultText(r *fault.Record) string {
	var args []string
	for _, name := range slices.Sorted(maps.Keys(r.Args)) {
		args = append(args, name+"="+r.Args[name])
	}
	return words(r.Target, r.Fault, string(r.State), strings.Join(args, " "), r.Error)
}

// String is who did what to what and what came of it.
func (r Request) String() string {
	what := r.Resource
	if r.Subresource != "" {
		what += "/" + r.Subresource
	}
	name := r.Name
	if r.Namespace != "" {
		name = r.Namespace + "/" + name
	}
	if what == "" {
		what = r.URI
	}
	message := ""
	if r.Code >= 400 {
		message = r.Message
	}
	return words(r.User, r.Verb, what, name, fmt.Sprint(r.Code), message)
}

// String is who wrote how much to what, and for how long.
func (r Run) String() string {
	did := fmt.Sprintf("%d writes, %d bytes", r.Count, r.Bytes)
	if r.Op != "" {
		did = fmt.Sprintf("%d × %s", r.Count, r.Op)
	}
	if r.Count > 1 {
		did += fmt.Sprintf(" in %v", time.Duration(r.Last-r.First).Round(time.Millisecond))
	}
	return fmt.Sprintf("%s %s by %s (boot %.8s, epoch %d): %s: %s", r.Volume, r.File, r.Host, r.Boot, r.Epoch, did, r.Result)
}

func callText(c *bmc.Call) string {
	answer, fault := "", ""
	switch {
	case c.Actual != "" && c.Actual != c.Value:
		answer = "(in truth " + c.Actual + ")"
	case c.Error != "":
		answer = "failed: " + c.Error
	}
	if c.Fault != bmc.Clear {
		fault = "fault=" + string(c.Fault)
	}
	return words(c.Host, c.Op, c.Value, answer, fmt.Sprintf("in %v", time.Duration(c.Took).Round(time.Millisecond)), fault)
}
