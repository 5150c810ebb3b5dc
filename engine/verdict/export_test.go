// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict

import "slices"

// Without runs f as if there were no rule of that name.
func Without(name string, f func()) {
	all := rules
	defer func() { rules = all }()
	rules = slices.DeleteFunc(slices.Clone(all), func(r rule) bool { return r.name == name })
	f()
}
