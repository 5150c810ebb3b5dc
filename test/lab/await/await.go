// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package await waits for facts that nothing announces.
package await

import (
	"context"
	"fmt"
	"time"
)

// Interval is how often a fact is asked for.
const Interval = 10 * time.Millisecond

// Until asks, at once and then every Interval, until the answer is yes or an
// error, or ctx ends; what names the awaited fact in that error.
func Until(ctx context.Context, what string, reached func() (bool, error)) error {
	return Every(ctx, Interval, what, reached)
}

// Every is Until with an interval of one's own, for questions that cost somebody something.
func Every(ctx context.Context, interval time.Duration, what string, reached func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		ok, err := reached()
		if err != nil || ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}
