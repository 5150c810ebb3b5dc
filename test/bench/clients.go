// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
)

// stuck is how long connections are given to end once the application writes elsewhere.
const stuck = 10 * time.Second

// connect opens connections to the application for the kinds with agents, which are to end them: from a pod and from the network of a host that stays.
func (b *bench) connect(ctx context.Context, p *played) error {
	if p.Kind != figures.Witnessed && p.Kind != figures.Hung {
		return nil
	}
	leader, err := b.s.Leader(ctx)
	if err != nil {
		return err
	}
	for _, seat := range stage.Seats(leader.Spec.NodeName) { // no host with a manager is lost
		c, err := p.actor.Connect(ctx, seat)
		if err != nil {
			p.leave()
			return err
		}
		p.clients = append(p.clients, c)
	}
	return nil
}

// leave ends the clients.
func (p *played) leave() {
	for _, c := range p.clients {
		_ = c.Close() // what ended it is known, or it is of no interest any more
	}
}

// markClients marks when the endpoint went, and when connections ended; it waits for those that have not.
func (p *played) markClients(ctx context.Context, row figures.Row) {
	if p.actor == nil {
		return
	}
	lost := p.pod.Status.PodIP + ":"
	for _, c := range p.actor.Endpoints.Changes() {
		if c.Mono > p.t0.Mono && !slices.ContainsFunc(c.Ready, func(e string) bool { return strings.HasPrefix(e, lost) }) {
			row.Marks[figures.EndpointOut] = time.Duration(c.Mono - p.t0.Mono)
			break
		}
	}
	soon, cancel := context.WithTimeout(ctx, stuck)
	defer cancel()
	for _, c := range p.clients {
		at, _, err := c.End(soon)
		if err == nil && at.Mono >= p.t0.Mono { // else it stands, or was gone before
			row.Marks[endOf(c.Seat)] = time.Duration(at.Mono - p.t0.Mono)
		}
	}
}

// endOf is the mark of a client's kind.
func endOf(s stage.Seat) figures.Mark {
	where, what := "host", "reads"
	if s.InPod {
		where = "pod"
	}
	if s.Writes {
		what = "writes"
	}
	return figures.Mark(fmt.Sprintf("%s_%s_end", where, what))
}
