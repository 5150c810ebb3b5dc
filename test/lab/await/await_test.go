// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package await

import (
	"context"
	"errors"
	"testing"
)

func TestUntil(t *testing.T) {
	asked := 0
	third := func() (bool, error) { asked++; return asked == 3, nil }
	if err := Until(t.Context(), "the third question", third); err != nil || asked != 3 {
		t.Errorf("Until: %v after %d questions, want nil after 3", err, asked)
	}

	broken := errors.New("broken")
	if err := Until(t.Context(), "nothing", func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("an error of the question: %v, want %v", err, broken)
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	err := Until(ended, "the moon", func() (bool, error) { return false, nil })
	if !errors.Is(err, context.Canceled) || err.Error() != "waiting for the moon: context canceled" {
		t.Errorf("an ended context: %v, want the awaited fact and why it ended", err)
	}
}
