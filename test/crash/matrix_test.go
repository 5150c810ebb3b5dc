// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"fmt"
	"testing"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// loss is the story of a host that hangs, from the first look of a process to the end of the release. Lives that crash are followed by others, which
// know nothing. It returns how many operations the first life went through.
func loss(t *testing.T, crashAt int) (operations []string) {
	t.Helper()
	w := lawful(t)
	w.hangs()
	first := false
	w.watch(func(o operation) {
		if !first {
			return
		}
		operations = append(operations, o.String())
		if len(operations) == crashAt {
			first = false
			panic(crashed{})
		}
	})
	l := w.boot()
	l.lookAtApp()
	first = true
	over := step(w, v1alpha1.StepRecovering)
	for range rounds {
		if over() {
			break
		}
		next, survived := l.look()
		if !survived {
			l = w.boot()
			l.lookAtApp()
		}
		w.detach()
		w.pass(min(next, l.hosts.CallDeadline/3))
	}
	if !over() {
		t.Fatalf("it never came to the end\n%s", w.tell())
	}
	l.look() // what the last step left
	w.releasedOnce(t)
	if w.offs != 1 {
		t.Errorf("the host was switched off %d times\n%s", w.offs, w.tell())
	}
	if w.lost() != nil {
		t.Error("the pod's object is still there")
	}
	return operations
}

// TestEveryCrashOnTheWayOfALossIsSurvived kills the manager just before and just after every request that changes something and every call of the
// device, and lets a new one finish.
func TestEveryCrashOnTheWayOfALossIsSurvived(t *testing.T) {
	t.Parallel()
	whole := loss(t, 0)
	if len(whole) < 20 {
		t.Fatalf("only %d operations in the whole story: %v", len(whole), whole)
	}
	for i, operation := range whole {
		t.Run(fmt.Sprintf("%d %s", i+1, operation), func(t *testing.T) {
			t.Parallel()
			loss(t, i+1)
		})
	}
}
