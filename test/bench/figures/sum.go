// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Sum is what the rows of one kind say about one span.
type Sum struct {
	// N is how many cases there are, Seen in how many of them the span ended.
	N, Seen          int
	P50, P90, Max    time.Duration
	censoredAt       time.Duration
	p50, p90, maxEnd bool // whether the quantile is a time that was seen
}

// never stands for a span that did not end: it is longer than all that did.
const never = time.Duration(math.MaxInt64)

// SumOf sorts spans and takes the nearest ranks. Spans that never ended count as longer than all others.
func SumOf(spans []time.Duration, censored []time.Duration) Sum {
	all := slices.Sorted(slices.Values(spans))
	s := Sum{N: len(spans) + len(censored), Seen: len(spans)}
	for _, c := range censored {
		all = append(all, never)
		s.censoredAt = max(s.censoredAt, c)
	}
	if s.N == 0 {
		return s
	}
	s.P50, s.p50 = s.rank(all, 50)
	s.P90, s.p90 = s.rank(all, 90)
	s.Max, s.maxEnd = s.rank(all, 100)
	return s
}

// rank is the nearest-rank percentile: the smallest span that at least so many percent of the spans do not exceed.
func (s Sum) rank(sorted []time.Duration, percent int) (time.Duration, bool) {
	i := max(0, (percent*len(sorted)+99)/100-1)
	if sorted[i] == never {
		return s.censoredAt, false
	}
	return sorted[i], true
}

// OfSeed selects the rows of one run.
func OfSeed(rows []Row, seed uint64) []Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return r.Seed != seed })
}

// Of selects the rows of a kind.
func Of(rows []Row, kind Kind) []Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return r.Kind != kind })
}

// Whole sums the time from the fault to the first write elsewhere.
func Whole(rows []Row) Sum {
	var spans, censored []time.Duration
	for _, r := range rows {
		if d, ok := r.Whole(); ok {
			spans = append(spans, d)
		} else {
			censored = append(censored, r.CensoredAt)
		}
	}
	return SumOf(spans, censored)
}

// Phase is the stretch that ends with a mark and began with the one before it that the kind has.
type Phase struct {
	From, To Mark // From is empty for the fault
	Sum      Sum
	// Share of the phase in the sum of all whole times.
	Share float64
}

// Phases takes the recovered rows of one kind apart, by the marks that all of them have, in the order of their medians. The phases of a row add up to its
// whole time: a mark that this row reached before an earlier one ends a phase of no length.
func Phases(rows []Row) []Phase {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { _, ok := r.Whole(); return !ok })
	var marks []Mark
	for _, m := range Marks {
		if len(rows) > 0 && !slices.ContainsFunc(rows, func(r Row) bool { _, ok := r.Marks[m]; return !ok }) {
			marks = append(marks, m)
		}
	}
	slices.SortStableFunc(marks, func(a, b Mark) int { return cmp.Compare(median(rows, a), median(rows, b)) })
	var out []Phase
	var from Mark
	for _, m := range marks {
		var spans []time.Duration
		var part, whole time.Duration
		for _, r := range rows {
			d := max(0, r.Marks[m]-reached(r, marks, m))
			w, _ := r.Whole()
			spans, part, whole = append(spans, d), part+d, whole+w
		}
		out = append(out, Phase{From: from, To: m, Sum: SumOf(spans, nil), Share: float64(part) / float64(whole)})
		from = m
	}
	return out
}

func median(rows []Row, m Mark) time.Duration {
	var spans []time.Duration
	for _, r := range rows {
		spans = append(spans, r.Marks[m])
	}
	return SumOf(spans, nil).P50
}

// reached is how far the row had come before a mark.
func reached(r Row, marks []Mark, before Mark) time.Duration {
	var d time.Duration
	for _, m := range marks {
		if m == before {
			return d
		}
		d = max(d, r.Marks[m])
	}
	return d
}

// Dominant is the phase with the largest share, or the zero Phase.
func Dominant(phases []Phase) Phase {
	var most Phase
	for _, p := range phases {
		if p.Share > most.Share {
			most = p
		}
	}
	return most
}

// Ratio says how many times as long as base something took, by the median; ok is false when either median was not seen. When only s was not seen, the
// ratio is a lower bound.
func (s Sum) Ratio(base Sum) (ratio float64, bound, ok bool) {
	if base.N == 0 || s.N == 0 || !base.p50 || base.P50 <= 0 {
		return 0, false, false
	}
	return float64(s.P50) / float64(base.P50), !s.p50, true
}

// RuleOfThree is the upper bound, at 95 %, of the share of what was seen in none of n cases.
func RuleOfThree(n int) float64 {
	if n == 0 {
		return 1
	}
	return min(1, 3/float64(n))
}
