// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
)

// Rewrite runs a scenario and returns its text with every expectation as it really came out. A scenario is
//
//	# Prose, for whoever reads it.
//	host node-3 boot b1
//	app db-0; device ipmi
//	at 0s   kubelet dies
//	at 50s
//	decide
//	----
//	verdict  …
//
// Sentences are those of phrases, several on a line divided by semicolons. "at T" lets time pass until T, with everybody watching and
// nobody acting. "decide" looks once and changes nothing. "run D", "run until step S within D" and "run until verdict V within D" let Holdfast act, and
// tell what changed, and when. What stands between ---- and the next empty line is the expectation.
func Rewrite(text string) (string, error) {
	return (&story{moves: map[Move]bool{}, turns: map[Turn]bool{}}).rewrite(text)
}

// Moves lists the moves between steps that incidents make in a scenario, and the verdicts that follow on each other in them.
func Moves(text string) (map[Move]bool, map[Turn]bool, error) {
	s := &story{moves: map[Move]bool{}, turns: map[Turn]bool{}}
	_, err := s.rewrite(text)
	return s.moves, s.turns, err
}

func (s *story) rewrite(text string) (string, error) {
	var out strings.Builder
	expectation := false
	for n, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case expectation && strings.TrimSpace(line) == "":
			expectation = false
		case expectation:
			continue
		}
		fmt.Fprintln(&out, line)
		if strings.TrimSpace(line) == "----" {
			if s.answer == "" {
				return "", fmt.Errorf("line %d: ---- without decide or run before it", n+1)
			}
			out.WriteString(s.answer)
			s.answer, expectation = "", true
			continue
		}
		if err := s.line(line); err != nil {
			return "", fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	if s.answer != "" {
		return "", fmt.Errorf("the last decide or run has no ---- after it")
	}
	return out.String(), nil
}

type story struct {
	world  *World
	warm   bool
	answer string
	moves  map[Move]bool // of all worlds of the text
	turns  map[Turn]bool
}

func (s *story) line(line string) error {
	line, _, _ = strings.Cut(line, "#")
	words := strings.Fields(line)
	switch {
	case len(words) == 0:
		return nil
	case words[0] == "host" && len(words) == 4 && words[2] == "boot":
		*s = story{world: NewWorld(words[1], words[3]), moves: s.moves, turns: s.turns}
		s.world.moves, s.world.turns = s.moves, s.turns
		return nil
	case s.world == nil:
		return fmt.Errorf(`a story begins with "host NAME boot ID"`)
	case words[0] == "at" && len(words) > 1:
		if err := s.until(words[1]); err != nil {
			return err
		}
		_, line, _ = strings.Cut(line, words[1])
	case words[0] == "decide" && len(words) == 1:
		s.warmUp()
		s.answer = s.world.decideWords()
		return nil
	case words[0] == "run":
		s.warmUp()
		return s.run(words[1:])
	}
	for _, sentence := range strings.Split(line, ";") {
		if strings.TrimSpace(sentence) == "" {
			continue
		}
		if err := s.world.Say(sentence); err != nil {
			return err
		}
	}
	return nil
}

// warmUp lets the observer watch a host that is well, before the story's own clock begins.
func (s *story) warmUp() {
	if !s.warm {
		s.warm = true
		s.world.Advance(warmUp)
	}
}

func (s *story) until(word string) error {
	s.warmUp()
	d, err := time.ParseDuration(word)
	if err != nil {
		return fmt.Errorf("at: %w", err)
	}
	left := warmUp + d - s.world.now
	if left < 0 {
		return fmt.Errorf("at %s: it is %s already", d, s.world.clock())
	}
	s.world.Advance(left)
	return nil
}

// run lets Holdfast act for a while: "30s", or "until step Closed within 5m".
func (s *story) run(words []string) error {
	stop := func(Round) bool { return false }
	if len(words) == 5 && words[0] == "until" && words[3] == "within" {
		kind, name := words[1], words[2]
		stop = func(r Round) bool {
			return (kind == "verdict" && r.Found.Class.String() == name) || (kind == "step" && s.world.stepWord() == name)
		}
		if kind != "verdict" && kind != "step" {
			return fmt.Errorf("run until step or verdict, not %q", kind)
		}
		words = words[4:]
	}
	if len(words) != 1 {
		return fmt.Errorf("run D, or run until step S within D")
	}
	d, err := time.ParseDuration(words[0])
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	s.answer = s.world.Run(d, stop)
	return nil
}

// stepWord is the step of the open incident, or Closed.
func (w *World) stepWord() string {
	if !w.journal.Open() {
		return string(evidence.StepClosed)
	}
	return string(w.journal.Step)
}

// Run acts whenever the plan says when to look next, until the time is over or stop says so, and tells what changed.
func (w *World) Run(d time.Duration, stop func(Round) bool) string {
	var out strings.Builder
	end, before := w.now+d, map[string]bool{}
	for {
		r := w.Act()
		for _, line := range w.roundLines(r, before) {
			fmt.Fprintf(&out, "%-8s %s\n", w.clock(), line)
		}
		if stop(r) || w.now >= end {
			break
		}
		w.sleep(min(max(r.Plan.Next, tick), end-w.now))
	}
	if out.Len() == 0 {
		fmt.Fprintf(&out, "%-8s nothing to tell\n", w.clock())
	}
	return out.String()
}

// sleep lets time pass until the next look is due, or an answer changes.
func (w *World) sleep(d time.Duration) {
	w.eyes.woken = false
	for end := w.now + d; w.now < end && !w.eyes.woken; {
		w.Advance(min(tick, end-w.now))
	}
}

// roundLines tells a round: what the world told, what is new in verdict and refusals, and what was done.
func (w *World) roundLines(r Round, before map[string]bool) []string {
	var lines []string
	for _, t := range w.told {
		lines = append(lines, "* "+t)
	}
	w.told = nil
	verdict := fmt.Sprintf("%s by %s", r.Found.Class, r.Found.Rule())
	refusals := w.refusals(r.Plan)
	if !before[verdict] {
		lines = append(lines, verdict+": "+r.Found.Findings[0].Because)
	}
	for _, line := range refusals {
		if !before[gist(line)] {
			lines = append(lines, line)
		}
	}
	clear(before)
	before[verdict] = true
	for _, line := range refusals {
		before[gist(line)] = true
	}
	for _, s := range r.Done {
		lines = append(lines, "  "+w.stepWords(s))
	}
	return append(lines, w.brokenLines()...)
}

// gist is a refusal without the words, in which numbers change.
func gist(line string) string {
	what, _, _ := strings.Cut(line, ":")
	return what
}

// brokenLines makes a broken promise impossible to overlook in a golden file.
func (w *World) brokenLines() []string {
	var lines []string
	for _, b := range w.Broken {
		lines = append(lines, "  BROKEN "+b)
	}
	w.Broken = nil
	return lines
}

func (w *World) refusals(p plan.Plan) []string {
	var lines []string
	for _, x := range p.Refusals {
		line := fmt.Sprintf("  held %s %s by %s", x.What, x.Target, x.By)
		if x.What != "Reschedule" && x.By != "Blind" && x.By != "Unknown" {
			line += ": " + x.Because
		}
		lines = append(lines, line)
	}
	if p.Blocked != "" {
		lines = append(lines, fmt.Sprintf("  blocked by %s: %s", p.BlockedBy, p.Blocked))
	}
	if p.Stalled != "" {
		lines = append(lines, "  stalled: "+p.Stalled)
	}
	for _, s := range p.Would {
		lines = append(lines, "  would "+w.stepWords(s))
	}
	return lines
}

// stepWords is a step with the pod's name in place of its UID.
func (w *World) stepWords(s plan.Step) string {
	target := strings.TrimPrefix(s.Target, "uid-")
	words := strings.TrimSpace(s.Kind.String() + " " + target)
	if s.As != "" {
		words += " as " + string(s.As)
	}
	return words
}

// decideWords tells one decision in full.
func (w *World) decideWords() string {
	w.look()
	r := w.Plan()
	var out strings.Builder
	f := r.Found
	fmt.Fprintf(&out, "verdict  %s by %s: %s\n", f.Class, f.Rule(), f.Findings[0].Because)
	for _, x := range f.Findings[1:] {
		fmt.Fprintf(&out, "also     %s by %s\n", x.Says, x.Rule)
	}
	for _, s := range r.Plan.Steps {
		fmt.Fprintf(&out, "plan     %s\n", w.stepWords(s))
	}
	for _, line := range w.refusals(r.Plan) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		fmt.Fprintf(&out, "%-8s %s\n", strings.TrimSuffix(word, ":"), rest)
	}
	if r.Plan.ApprovalRequired {
		fmt.Fprintln(&out, "approval required")
	}
	if r.Plan.BudgetExhausted {
		fmt.Fprintln(&out, "budget   exhausted")
	}
	fmt.Fprintf(&out, "next     %s\n", r.Plan.Next)
	return out.String()
}

// clock is the story's own time.
func (w *World) clock() string {
	return (w.now - warmUp).String()
}
