// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"
)

// Counts are what was refused since the start, by what was wrong with it.
type Counts struct {
	// Undecryptable packets, and packets that came a second time.
	Undecryptable, Replayed uint64
	// Streams that were not let in, or said nothing that could be understood with these keys.
	Streams uint64
	// Oversize and Garbled are facts of others, and notes, that could not be read.
	Oversize, Garbled uint64
	// Claims of a name that another host has.
	Claims uint64
	// OtherBoot: answers of another boot than the one whose facts are known, or of nobody who is known.
	OtherBoot uint64
	// Keys, Seeds and Files: what could not be read of them; the keys before stay in use.
	Keys, Seeds, Files uint64
	// Other: what memberlist complains of besides.
	Other uint64
	// Slowness is memberlist's own suspicion of this agent, 0 if it is well. No count.
	Slowness int
}

// kind is one sort of trouble. There are as many as there are counts, so that nobody outside can make the log grow by inventing some.
type kind int

const (
	kindUndecryptable kind = iota
	kindReplayed
	kindStream
	kindOversize
	kindGarbled
	kindClaim
	kindOtherBoot
	kindKeys
	kindSeeds
	kindFiles
	kindOther
	kinds
)

// logPeriod is how often one kind is logged.
const logPeriod = time.Minute

// journal counts trouble and logs it, once per period and kind. It is memberlist's log as well.
type journal struct {
	log   logr.Logger
	clock clock.PassiveClock
	// suspected is told the host of which memberlist says that its own probe failed.
	suspected func(node string)
	// happened is told that a count grew; tests await it.
	happened func()

	mu     sync.Mutex
	counts [kinds]uint64
	logged [kinds]time.Time
	unsaid [kinds]uint64
}

func newJournal(log logr.Logger, clk clock.PassiveClock) *journal {
	return &journal{log: log, clock: clk, suspected: func(string) {}, happened: func() {}}
}

func (j *journal) count(k kind) {
	defer j.happened()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[k]++
}

// note counts, and logs unless this kind was logged within the period; the next line of it says how many were not.
func (j *journal) note(k kind, what string, keysAndValues ...any) {
	defer j.happened()
	j.mu.Lock()
	j.counts[k]++
	now := j.clock.Now()
	if last := j.logged[k]; !last.IsZero() && now.Sub(last) < logPeriod {
		j.unsaid[k]++
		j.mu.Unlock()
		return
	}
	unsaid := j.unsaid[k]
	j.logged[k], j.unsaid[k] = now, 0
	j.mu.Unlock()
	j.log.Info(what, append(keysAndValues, "alikeNotLogged", unsaid)...)
}

func (j *journal) counted() Counts {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.counts
	return Counts{
		Undecryptable: c[kindUndecryptable], Replayed: c[kindReplayed], Streams: c[kindStream], Oversize: c[kindOversize], Garbled: c[kindGarbled],
		Claims: c[kindClaim], OtherBoot: c[kindOtherBoot], Keys: c[kindKeys], Seeds: c[kindSeeds], Files: c[kindFiles], Other: c[kindOther],
	}
}

// failedProbe is the line with which memberlist v0.5.3 begins a suspicion of its own. It has no event for that, and a test notices when the words change.
var failedProbe = regexp.MustCompile(`\A\[INFO\] memberlist: Suspect (\S+) has failed, no acks received\n?\z`)

// Write takes one line of memberlist.
func (j *journal) Write(line []byte) (int, error) {
	if found := failedProbe.FindSubmatch(line); found != nil {
		j.suspected(string(found[1]))
	}
	level, text, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
	text = strings.TrimPrefix(text, "memberlist: ")
	switch {
	case level == "[DEBUG]":
		j.log.V(2).Info(text)
	case level == "[INFO]":
		j.log.V(1).Info(text)
	case strings.HasPrefix(text, "failed to receive"):
		j.note(kindStream, "A stream cannot be read", "why", text)
	case strings.HasPrefix(text, "Conflicting address"):
		// NotifyConflict has said so.
	default:
		j.note(kindOther, text)
	}
	return len(line), nil
}
