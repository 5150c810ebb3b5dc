// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardconfig

import (
	"context"

	"github.com/holdfast-dev/holdfast/admission"
)

// act installs the policies where they are not in force, and has the canary try them.
func (r *Reconciler) act(ctx context.Context, s *sighting) {
	if s.proven {
		return
	}
	caps, err := admission.Discover(r.Client.RESTMapper())
	if err != nil {
		s.err = err
		return
	}
	if s.installed, s.err = admission.Install(ctx, r.Direct, r.Identity, caps); s.err != nil {
		return
	}
	proof, err := admission.Prove(ctx, admission.Canary{Identity: r.Identity, Holdfast: r.Direct, Servers: r.Servers, Capabilities: caps, Version: s.installed.Version})
	s.proof, s.err = &proof, err
}
