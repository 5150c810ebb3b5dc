// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"time"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// skew is how far this machine's clock may lag behind the API server's before an attestation that seems to come from the future is not believed.
const skew = time.Minute

// Expired reports whether an attestation counts no more. It is over when the time of day says so, or when this observer has watched it for its whole span,
// whichever is first, so that a clock which is set back prolongs nothing; and one that was created well after now, by a clock that was set back before this
// observer looked, does not count at all.
func Expired(a *v1alpha1.HostAttestation, now time.Time, watched time.Duration) bool {
	span := seconds(orDefault(a.Spec.ExpiresInSeconds, 3600))
	age := now.Sub(a.CreationTimestamp.Time)
	return age >= span || age < -skew || watched >= span
}
