// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"math/rand/v2"
	"slices"
	"time"
)

// renewEvery is how often a kubelet renews its lease with default timings.
const renewEvery = 10 * time.Second

// Case is one fault that is wanted.
type Case struct {
	Seed   uint64
	Kind   Kind
	Number int // from 1
	// Renewals and Age say when the fault comes: so many further renewals of the host's lease are let pass, and Age after the last of them the host is
	// lost. Age is spread evenly over the 10 s between two renewals: every run has losses right after one and right before the next. Where Kubernetes does
	// the rest, there is one renewal or two: together they spread over 20 s, the period of pod garbage collection, and with it over the 5 s in which the node
	// lifecycle controller looks. With Holdfast there is none: the renewal that is there counts if its Age is still to come.
	Renewals int
	Age      time.Duration
	// Pick chooses among the hosts that may be lost.
	Pick uint64
}

// Cases are n cases of a kind. The same seed gives the same cases, and case i does not depend on the other kinds.
func Cases(kind Kind, n int, seed uint64) []Case {
	random := rand.New(rand.NewPCG(seed, uint64(slices.Index(Kinds, kind))))
	strata := random.Perm(n)
	var out []Case
	for i := range n {
		age := (float64(strata[i]) + random.Float64()) / float64(n)
		c := Case{Seed: seed, Kind: kind, Number: i + 1, Renewals: 1 + random.IntN(2), Age: time.Duration(age * float64(renewEvery)), Pick: random.Uint64()}
		if kind.ByHoldfast() {
			c.Renewals = 0
		}
		out = append(out, c)
	}
	return out
}

// Missing are the cases that have no row yet.
func Missing(cases []Case, rows []Row) []Case {
	return slices.DeleteFunc(slices.Clone(cases), func(c Case) bool {
		return slices.ContainsFunc(rows, func(r Row) bool { return r.Seed == c.Seed && r.Kind == c.Kind && r.Number == c.Number })
	})
}
