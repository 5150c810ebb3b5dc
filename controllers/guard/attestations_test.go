// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
)

func TestAnAttestationExpiresByWhicheverClockSaysSoFirst(t *testing.T) {
	made := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := &v1alpha1.HostAttestation{Spec: v1alpha1.HostAttestationSpec{ExpiresInSeconds: 600}}
	a.CreationTimestamp = metav1.Time{Time: made}
	for _, c := range []struct {
		what    string
		now     time.Duration // after it was made
		watched time.Duration
		expired bool
	}{
		{"just made", 0, 0, false},
		{"just made, and this clock lags a little", -10 * time.Second, 0, false},
		{"nearly over", 599 * time.Second, 599 * time.Second, false},
		{"over by the time of day", 10 * time.Minute, time.Second, true},
		{"over by this observer's own watch, and the clock was set back", time.Minute, 10 * time.Minute, true},
		{"from the future: the clock was set back by an hour", -time.Hour, 0, true},
	} {
		if got := guard.Expired(a, made.Add(c.now), c.watched); got != c.expired {
			t.Errorf("%s: expired is %v", c.what, got)
		}
	}
	a.Spec.ExpiresInSeconds = 0
	if !guard.Expired(a, made.Add(time.Hour), 0) {
		t.Error("one without a span holds for ever")
	}
}
