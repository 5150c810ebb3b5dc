// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// watch sees everything that every agent sees, while it lasts.
type watch struct {
	mu sync.Mutex
	// lost are the hosts that are, and when; knows is when each agent called one of them dead.
	lost  map[string]time.Time
	knows map[string]map[string]time.Time // by the lost, and by the agent
	// suspicions and deaths are of hosts that live, by all agents together; views is how often any view changed.
	suspicions, deaths, views int
	news                      chan struct{}

	end   context.CancelFunc
	tasks sync.WaitGroup
}

func (c *circle) watch() *watch {
	w := &watch{lost: map[string]time.Time{}, knows: map[string]map[string]time.Time{}, news: make(chan struct{}, 1)}
	ctx, end := context.WithCancel(context.Background())
	w.end = end
	for _, a := range c.agents {
		w.tasks.Go(func() { w.follow(ctx, a) })
	}
	return w
}

func (w *watch) close() {
	w.end()
	w.tasks.Wait()
}

func (w *watch) follow(ctx context.Context, a *agent) {
	view := a.View()
	states := map[string]wire.State{}
	for {
		now := time.Now()
		for _, h := range view.Hosts {
			if was := states[h.Node]; was != h.State {
				states[h.Node] = h.State
				w.seen(a.node, h.Node, h.State, now)
			}
		}
		index := view.Index
		if view = a.Await(ctx, index); ctx.Err() != nil || a.link.isDown() {
			return
		}
		w.mu.Lock()
		w.views++
		w.mu.Unlock()
	}
}

// seen is told that an agent sees another state of a host.
func (w *watch) seen(by, host string, state wire.State, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, isLost := w.lost[host]
	_, blind := w.lost[by]
	switch {
	case blind: // it was on its way out
	case isLost && state == wire.StateDead:
		if _, again := w.knows[host][by]; !again {
			w.knows[host][by] = at
		}
		select {
		case w.news <- struct{}{}:
		default:
		}
	case !isLost && state == wire.StateDead:
		w.deaths++
	case !isLost && state == wire.StateSuspect:
		w.suspicions++
	}
}

// expect says that hosts are lost now.
func (w *watch) expect(lost []*agent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range lost {
		w.lost[a.node], w.knows[a.node] = time.Now(), map[string]time.Time{}
	}
}

// noticed is how long it took each of the agents to call the host dead; those are missing that have not.
func (w *watch) noticed(host string, agents []*agent) (after []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range agents {
		if at, ok := w.knows[host][a.node]; ok {
			after = append(after, at.Sub(w.lost[host]))
		}
	}
	return after
}
