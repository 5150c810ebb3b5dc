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
}

func (l *letGo) flags() {
	flag.StringVar(&l.device, "watchdog", "", "hardware watchdog, as /dev/watchdog0, that is fed only while the API or a majority of agents answers; empty: none, and this host does not fence itself")
	flag.StringVar(&l.identities, "watchdog-identities", "", "identities that the watchdog may have, separated by commas, as /sys/class/watchdog/watchdog0/identity gives them")
	flag.DurationVar(&l.timeout, "watchdog-timeout", time.Minute, "timeout that the watchdog is set to; an agent that takes another's place must be there before it is over")
	flag.DurationVar(&l.span, "watchdog-contact", 20*time.Second, "how long nobody has to answer for the watchdog to be fed no more, for good")
}

// Bounds of the span: the API is asked every two seconds, and a host that is let go after minutes is of no use to anybody.
const (
	leastSpan = 10 * time.Second
	mostSpan  = 10 * time.Minute
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

// check names the option that is missing or wrong. api is where the API is asked.
func (l letGo) check(api string) error {
	switch {
	case l.device == "":
		return nil
	case api == "":
		return errors.New("--watchdog: it is used only once the API has answered; give --api or --authority")
	case l.span < leastSpan || l.span > mostSpan:
		return fmt.Errorf("--watchdog-contact %s: give %s to %s", l.span, leastSpan, mostSpan)
	}
	if err := l.hardware().Check(); err != nil {
		return fmt.Errorf("--watchdog: %w", err)
	}
	return nil
}

// leash is what holds this host; nil where no watchdog is given. Member and facts are asked for once it runs.
func (o options) leash(member func() *gossip.Member, local func() *facts.Local, log logr.Logger) *watchdog.Leash {
	if o.letGo.device == "" {
		return nil
	}
	return watchdog.New(watchdog.Config{
		Open: o.letGo.hardware().Open, Span: o.letGo.span, Log: log.WithName("watchdog"),
		Majority: func(ctx context.Context) bool { return member().Majority(ctx) },
		Guarded:  func(ctx context.Context) (bool, error) { return facts.Guarded(ctx, o.runtime) },
		Armed:    func(bound time.Duration) { local().FencesItself(bound) },
	})
}
