// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/events"
)

// timeline is what the lab recorded, short: faults, BMC commands, volumes, writers, and who asked the API for what matters. Equal lines in a row are one.
func (d *demo) timeline() error {
	d.title("What was recorded", "faults, BMCs, API server and array, in the order of one clock")
	all, err := d.s.Lab.Events(events.Filter{Since: d.began})
	if err != nil {
		return err
	}
	taints, err := d.taints()
	if err != nil {
		return err
	}
	from := d.began
	d.line(dim, "  seconds since the kubelet was killed")
	before, at, times := "", "", 0
	flush := func() {
		switch {
		case times > 1:
			d.entry(at, fmt.Sprintf("%s (%d times)", before, times))
		case times == 1:
			d.entry(at, before)
		}
		times = 0
	}
	for _, e := range all {
		if e.Mono >= d.lost && from == d.began {
			flush()
			from = d.lost
			d.line(dim, "  seconds since the power was lost")
		}
		what := tellEvent(e, taints)
		if what == "" {
			continue
		}
		if what != before || times == 0 {
			flush()
			before, at = what, fmt.Sprintf("  %+7.1f  %-6s ", time.Duration(e.Mono-from).Seconds(), e.Source)
		}
		times++
	}
	flush()
	d.line("", "")
	return nil
}

func (d *demo) entry(at, text string) {
	d.lines("", wrap(text, at, strings.Repeat(" ", len(at))))
}

// taints are those that each of Holdfast's patches of the host's Node left there, by audit ID.
func (d *demo) taints() (map[string]string, error) {
	asked, err := d.s.Asked(d.began, events.Query{Verbs: []string{"patch"}, Resource: "nodes", Name: d.host, Match: stage.ByHoldfast})
	left := map[string]string{}
	for _, r := range asked {
		var patch struct {
			Spec *struct {
				Taints []corev1.Taint `json:"taints"`
			} `json:"spec"`
		}
		if json.Unmarshal(r.Sent, &patch) != nil || patch.Spec == nil {
			continue
		}
		var keys []string
		for _, t := range patch.Spec.Taints {
			keys = append(keys, t.Key)
		}
		left[r.ID] = "none"
		if len(keys) > 0 {
			left[r.ID] = strings.Join(keys, ", ")
		}
	}
	return left, err
}

// tellEvent puts an event that matters into words; the others have none.
func tellEvent(e events.Event, taints map[string]string) string {
	switch {
	case e.Fault != nil && (e.Fault.State == "applied" || e.Fault.State == "undone"):
		return fmt.Sprintf("%s %s: %s", e.Fault.Target, e.Fault.Fault, e.Fault.State)
	case e.Call != nil && e.Call.Op == "set":
		return fmt.Sprintf("BMC of %s is commanded %s", e.Call.Host, e.Call.Value)
	case e.Volume != nil && e.Volume.Volume == stage.Volume && (e.Volume.Event == "attach" || e.Volume.Event == "detach"):
		return fmt.Sprintf("%s %s, epoch %d", e.Volume.Event, e.Volume.Host, e.Volume.Epoch)
	case e.Run != nil && e.Run.Volume == stage.Volume && e.Run.Op == "" && e.Run.Result == "ok":
		return fmt.Sprintf("%s writes: %d in %.1f s", e.Run.Host, e.Run.Count, time.Duration(e.Run.Last-e.Run.First).Seconds())
	case e.Request != nil:
		return tellRequest(*e.Request, taints)
	}
	return ""
}

func tellRequest(r events.Request, taints map[string]string) string {
	who := r.User[strings.LastIndex(r.User, ":")+1:]
	did := ""
	switch {
	case r.Resource == "pods" && r.Name == stage.Pod && r.Verb == "delete":
		did = "deletes pod " + r.Name
	case r.Subresource == "eviction" && r.Name == stage.Pod:
		did = "evicts pod " + r.Name
	case r.Subresource == "binding" && r.Name == stage.Pod:
		did = "binds pod " + r.Name
	case r.Resource == "nodes" && r.Verb == "delete":
		did = "deletes node " + r.Name
	case r.Resource == "hostincidents" && r.Verb == "create":
		did = "opens incident " + r.Name
	case taints[r.ID] != "":
		did = "sets the taints of " + r.Name + ": " + taints[r.ID]
	default:
		return ""
	}
	switch at := refused.FindString(r.Message); {
	case r.Code == http.StatusForbidden:
		return who + " " + did + ": refused " + at
	case r.Code >= http.StatusBadRequest:
		return fmt.Sprintf("%s %s: %d %s", who, did, r.Code, r.Reason)
	}
	return who + " " + did
}
