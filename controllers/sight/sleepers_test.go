// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"errors"
	"testing"
	"time"

	"k8s.io/utils/clock"
)

// started returns sleepers that run until the test ends, on the real clock, and the hosts that woke.
func started(t *testing.T) (*Sleepers, chan string) {
	t.Helper()
	woken := make(chan string, 1)
	s := NewSleepers(NewClock(clock.RealClock{}), func(host string) { woken <- host })
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for begun := false; !begun; { // Start says nothing; what it allows is seen
		s.mu.Lock()
		begun = s.ctx != nil
		s.mu.Unlock()
	}
	return s, woken
}

func TestADeviceThatDidNotAnswerIsAskedInTheBackground(t *testing.T) {
	s, woken := started(t)
	answers := make(chan error, 2)
	answers <- errors.New("still no route")
	answers <- nil
	s.Sleep("host-1", "bmc", "no route", func(context.Context) error { return <-answers })
	if why, asleep := s.Asleep("bmc"); !asleep || why != "no route" {
		t.Errorf("asleep %v because %q", asleep, why)
	}
	if _, asleep := s.Asleep("other"); asleep {
		t.Error("one device's silence puts another to sleep")
	}
	select {
	case host := <-woken:
		if host != "host-1" {
			t.Errorf("%s woke", host)
		}
	case <-time.After(4 * sleeperEvery):
		t.Fatal("the device answers, and nobody is told")
	}
	if why, asleep := s.Asleep("bmc"); asleep {
		t.Errorf("still asleep because %q", why)
	}
}

func TestNothingSleepsWhereNobodyAsksAgain(t *testing.T) {
	s := NewSleepers(NewClock(clock.RealClock{}), func(string) {})
	s.Sleep("host-1", "bmc", "no route", func(context.Context) error { return nil })
	if _, asleep := s.Asleep("bmc"); asleep {
		t.Error("a device sleeps that nobody will wake")
	}
}
