// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestWithoutAKernelFilesAreReadAtOnceAndWithEachTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithTimeout(t.Context(), 2*rereadPeriod+time.Second)
		defer end()
		every := time.NewTicker(rereadPeriod)
		defer every.Stop()
		began, at := time.Now(), []time.Duration{}
		if err := look(ctx, every.C, nil, func() { at = append(at, time.Since(began)) }); err != nil {
			t.Error(err)
		}
		if len(at) != 3 || at[0] != 0 || at[1] != rereadPeriod || at[2] != 2*rereadPeriod {
			t.Errorf("files were read after %v", at)
		}
	})
}
