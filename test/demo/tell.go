// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// width bounds every line.
const width = 100

// teller writes the story as plain text; colours only for a terminal, and only where NO_COLOR is not set.
type teller struct {
	out    io.Writer
	colour bool
	begin  time.Time
}

const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func newTeller(out io.Writer) *teller {
	t := &teller{out: out, begin: time.Now()}
	if file, ok := out.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		stat, err := file.Stat()
		t.colour = err == nil && stat.Mode()&os.ModeCharDevice != 0
	}
	return t
}

func (t *teller) line(colour, text string) {
	if t.colour && colour != "" && text != "" {
		text = "\x1b[" + colour + "m" + text + "\x1b[0m"
	}
	fmt.Fprintln(t.out, text)
}

func (t *teller) lines(colour string, lines []string) {
	for _, l := range lines {
		t.line(colour, l)
	}
}

func (t *teller) title(name, what string) {
	t.line("", "")
	t.line(bold, strings.Repeat("=", width))
	t.line(bold, name+": "+what)
	t.line(bold, strings.Repeat("=", width))
}

func (t *teller) heading(text string) {
	t.line("", "")
	t.line(bold, text)
}

func (t *teller) say(text string)  { t.lines("", wrap(text, "", "")) }
func (t *teller) good(text string) { t.lines(green, wrap(text, "", "")) }
func (t *teller) bad(text string) {
	for _, l := range strings.Split(text, "\n") {
		t.lines(red, wrap(l, "", ""))
	}
}

// progress is a line of what is being prepared, with minutes and seconds since the beginning.
func (t *teller) progress(text string) {
	for _, l := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		since := time.Since(t.begin).Truncate(time.Second)
		t.lines(dim, wrap(l, fmt.Sprintf("  %2d:%02d  ", int(since.Minutes()), int(since.Seconds())%60), "         "))
	}
}

// command is what a person would type, and output what it printed.
func (t *teller) command(text string) {
	t.line("", "")
	t.lines(cyan, wrap(text, "  $ ", "      "))
}

func (t *teller) output(text string) {
	for _, l := range narrow(strings.Split(strings.TrimRight(text, "\n"), "\n")) {
		t.lines("", wrap(l, "  ", "    "))
	}
}

// narrow takes space from between the columns of a table that would not fit.
func narrow(table []string) []string {
	var rows [][]rune
	widest := 0
	for _, l := range table {
		rows = append(rows, []rune(strings.TrimRight(l, " ")))
		widest = max(widest, len(rows[len(rows)-1])+2)
	}
	empty := func(column int) bool {
		return !slices.ContainsFunc(rows, func(r []rune) bool { return column < len(r) && r[column] != ' ' })
	}
	for column := widest; column >= 2 && widest > width && len(rows) > 1; column-- {
		if !empty(column) || !empty(column-1) || !empty(column-2) {
			continue
		}
		for i, r := range rows {
			if column < len(r) {
				rows[i] = slices.Delete(r, column, column+1)
			}
		}
	}
	out := make([]string, 0, len(rows))
	for _, r := range rows {
		out = append(out, string(r))
	}
	return out
}

// at is a line of a timeline.
func (t *teller) at(since time.Duration, text string) {
	t.lines("", wrap(text, fmt.Sprintf("  %+7.1f s  ", since.Seconds()), "             "))
}

// kept is a promise that was checked.
func (t *teller) kept(text string) { t.lines(green, wrap(text, "  ok  ", "      ")) }

// wrap breaks text into lines, the first after one indent and the others after another. What fits into one line stays as it is, and a word
// that is too long stays whole.
func wrap(text, first, others string) []string {
	if utf8.RuneCountInString(first+text) <= width {
		return []string{strings.TrimRight(first+text, " ")}
	}
	var lines []string
	now := first
	for i, word := range strings.Fields(text) {
		gap := " "
		if i == 0 || now == others {
			gap = ""
		}
		if gap != "" && utf8.RuneCountInString(now+gap+word) > width {
			lines = append(lines, now)
			now, gap = others, ""
		}
		now += gap + word
	}
	return append(lines, now)
}
