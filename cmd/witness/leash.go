// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/facts"
	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/watchdog"
)

// letGo are the options of a host that resets itself when nobody answers it.
type letGo struct {
	device     string
	identities string
	timeout    time.Duration
	span       time.Duration
	majority   bool
}

func (l *letGo) flags() {
	flag.StringVar(&l.device, "watchdog", "", "hardware watchdog, as /dev/watchdog0, that is fed only while the API takes this agent's Lease; empty: none, and this host does not fence itself")
	flag.StringVar(&l.identities, "watchdog-identities", "", "identities that the watchdog may have, separated by commas, as /sys/class/watchdog/watchdog0/identity gives them")
	flag.DurationVar(&l.timeout, "watchdog-timeout", time.Minute, "timeout that the watchdog is set to; an agent that takes another's place must be there before it is over")
	flag.DurationVar(&l.span, "watchdog-contact", 20*time.Second, "how long nobody has to answer for the watchdog to be fed no more, for good")
	flag.BoolVar(&l.majority, "watchdog-majority", false, "feed the watchdog, once the API has taken this agent's Lease, also while it answers anything else, or a majority of agents does; then the host announces nothing, and nothing is concluded from its silence")
}

// Bounds of the span: the API is asked every two seconds, and a host that is let go after minutes is of no use to anybody.
const (
	leastSpan = 10 * time.Second
	mostSpan  = 10 * time.Minute
	// pulsesIn is how many times in the span the Lease is written.
	pulsesIn = 4
)

func (l letGo) hardware() watchdog.Hardware {
	var identities []string
	for _, identity := range strings.Split(l.identities, ",") {
		if identity = strings.TrimSpace(identity); identity != "" {
			identities = append(identities, identity)
		}
	}
	return watchdog.Hardware{Path: l.device, Identities: identities, Timeout: l.timeout}
}

// check names the option that is missing or wrong. api is where the API is asked, and leases where the agent keeps its Lease.
func (l letGo) check(api, leases string) error {
	switch {
	case l.device == "":
		return nil
	case api == "":
		return errors.New("--watchdog: it is used only once the API has answered; give --api or --authority")
	case leases == "":
		return errors.New("--watchdog: it is fed while the API takes this agent's Lease, and with --watchdog-majority once the API has taken it; give --lease-namespace")
	case l.span < leastSpan || l.span > mostSpan:
		return fmt.Errorf("--watchdog-contact %s: give %s to %s", l.span, leastSpan, mostSpan)
	}
	if err := l.hardware().Check(); err != nil {
		return fmt.Errorf("--watchdog: %w", err)
	}
	return nil
}

// leash is what holds this host; nil where no watchdog is given. Member and facts are asked for once it runs.
func (o options) leash(leases *leases, member func() *gossip.Member, local func() *facts.Local, log logr.Logger) *watchdog.Leash {
	if o.letGo.device == "" {
		return nil
	}
	config := watchdog.Config{
		Open: o.letGo.open(leases), Span: o.letGo.span, Log: log.WithName("watchdog"),
		Guarded: func() (bool, error) { return facts.Volumes(o.mounts) },
		Armed:   func(bound time.Duration) { local().FencesItself(bound) },
	}
	if o.letGo.majority {
		config.Majority = func(ctx context.Context) bool { return member().Majority(ctx) }
	} else {
		config.Disarming = func(ctx context.Context) error { return leases.disarming(ctx, local().Facts().BootID) }
	}
	return watchdog.New(config)
}

// open opens the device. A host that announces nothing feeds it on contacts that leave no word; an agent before this one, in the same boot, may have announced a reset. So that word
// must be gone first.
func (l letGo) open(leases *leases) func() (watchdog.Device, error) {
	if !l.majority {
		return l.hardware().Open
	}
	return func() (watchdog.Device, error) {
		if !leases.said.Load() {
			return nil, errors.New("the API has not taken this agent's Lease yet, and an agent before it may have announced a reset there")
		}
		return l.hardware().Open()
	}
}
