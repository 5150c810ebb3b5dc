// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import "slices"

// Without runs f as if nothing were refused by that name.
func Without(refusal Refusal, f func()) {
	for _, g := range groups {
		if g.what != refusal.What {
			continue
		}
		all := *g.brakes
		defer func() { *g.brakes = all }()
		*g.brakes = slices.DeleteFunc(slices.Clone(all), func(b brake) bool { return b.name == refusal.By })
	}
	f()
}
