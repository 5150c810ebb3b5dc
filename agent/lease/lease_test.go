// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/holdfast-dev/holdfast/agent/gossip"
)

// scene is an agent whose ears, API and time are the test's.
type scene struct {
	t     *testing.T
	clock *clocktesting.FakeClock
	began time.Time
	// looked has one entry for each look, wrote one for each attempt to write.
	looked, wrote, touch chan struct{}

	mu       sync.Mutex
	standing func(now time.Time) gossip.Standing
	fails    bool
	words    []Word
}

func (s *scene) set(standing func(now time.Time) gossip.Standing, fails bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing, s.fails = standing, fails
}

func (s *scene) write(_ context.Context, w Word) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.wrote <- struct{}{} }()
	if s.fails {
		return errors.New("no route to the API server")
	}
	s.words = append(s.words, w)
	return nil
}

// well hears one of so many others at every moment.
func well(others int) func(time.Time) gossip.Standing {
	return func(now time.Time) gossip.Standing { return gossip.Standing{Last: now, Others: others, Heard: others} }
}

// unheard hears nobody since then; gossip has given nobody up yet.
func unheard(since time.Time, others int) func(time.Time) gossip.Standing {
	return func(time.Time) gossip.Standing { return gossip.Standing{Last: since, Others: others, Heard: others} }
}

func begin(t *testing.T, fails bool) *scene {
	t.Helper()
	return beginWith(t, fails, Pulse{})
}

func beginWith(t *testing.T, fails bool, pulse Pulse) *scene {
	t.Helper()
	began := time.Unix(1_700_000_000, 0)
	s := &scene{t: t, clock: clocktesting.NewFakeClock(began), began: began, looked: make(chan struct{}), wrote: make(chan struct{}, 1000), touch: make(chan struct{}), standing: well(2), fails: fails}
	ctx, stop := context.WithCancel(context.Background())
	var ran sync.WaitGroup
	ran.Go(func() {
		Keep(ctx, Config{BootID: "b1", Pulse: pulse, Clock: s.clock, Log: logr.Discard(), Write: s.write, Touch: s.touch,
			Standing: func() gossip.Standing {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.standing(s.clock.Now())
			},
			looked: func() {
				select {
				case s.looked <- struct{}{}:
				case <-ctx.Done():
				}
			}})
	})
	t.Cleanup(func() { stop(); ran.Wait() })
	<-s.wrote
	return s
}

// pass lets time go by, one look after the other.
func (s *scene) pass(d time.Duration) {
	for ; d > 0; d -= look {
		for !s.clock.HasWaiters() {
			s.t.Helper()
			if s.t.Context().Err() != nil {
				s.t.Fatal("nobody waits for the clock")
			}
		}
		s.clock.Step(look)
		<-s.looked
	}
}

// said are the moments of all words but the first, and what they announce.
func (s *scene) said() (at, every []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.words[1:] {
		if w.BootID != "b1" {
			s.t.Errorf("a word of boot %q", w.BootID)
		}
		at, every = append(at, w.At.Sub(s.began)), append(every, w.Every)
	}
	return at, every
}

func TestAnAgentThatIsCutOffSpeaksAtOnceAndThenEverySecond(t *testing.T) {
	s := begin(t, false)
	s.pass(10 * time.Second)
	if at, _ := s.said(); len(at) != 0 {
		t.Fatalf("it speaks at %v, and hears everybody", at)
	}
	cut := s.clock.Now()
	s.set(unheard(cut, 2), false)
	s.pass(4 * time.Second)
	at, every := s.said()
	if !slices.Equal(at, []time.Duration{11250 * time.Millisecond, 12250 * time.Millisecond, 13250 * time.Millisecond}) || every[0] != time.Second {
		t.Errorf("cut off after 10 s it speaks at %v, every %v", at, every)
	}
	s.set(well(2), false)
	s.pass(30 * time.Second)
	if again, _ := s.said(); len(again) != len(at) {
		t.Errorf("it goes on when it hears the others again: %v", again)
	}
}

func TestTheFirstWordOfATimeIsNeverPutOff(t *testing.T) {
	s := begin(t, false)
	const others = 999 // of a thousand, five seconds apart
	cut := s.clock.Now()
	s.set(unheard(cut, others), false)
	s.pass(2 * time.Second)
	s.set(well(others), false)
	s.pass(time.Second)
	again := s.clock.Now()
	s.set(unheard(again, others), false)
	s.pass(8 * time.Second)
	at, every := s.said()
	if !slices.Equal(at, []time.Duration{1250 * time.Millisecond, 4250 * time.Millisecond, 9250 * time.Millisecond}) || every[0] != 5*time.Second {
		t.Errorf("it speaks at %v, every %v", at, every)
	}
}

func TestAnAgentThatStaysCutOffSpeaksLessOften(t *testing.T) {
	s := begin(t, false)
	cut := s.clock.Now()
	s.set(unheard(cut, 2), false)
	s.pass(2 * time.Minute)
	at, every := s.said()
	last := len(at) - 1
	if at[last]-at[last-1] != slow || every[last] != slow || at[1]-at[0] != time.Second || at[last] < 110*time.Second {
		t.Errorf("after two minutes it speaks at %v, every %v", at[last-3:], every[last])
	}
	for i := range last {
		if gap := at[i+1] - at[i]; gap > every[i] { // who waits for the next takes the host for dead before it comes
			t.Errorf("at %v it says that it speaks again in %v, and does in %v", at[i], every[i], gap)
		}
	}
}

// TestAnAgentThatIsCutOffBeforeItsFirstWordCalls: one before it, in the same boot, has left a word in the Lease, and was heard.
func TestAnAgentThatIsCutOffBeforeItsFirstWordCalls(t *testing.T) {
	s := begin(t, true)
	for pause := atFirst; pause <= 16*time.Second; pause *= 2 { // the API has been away for a while: the next try is in half a minute
		for !s.clock.HasWaiters() {
			continue
		}
		s.clock.Step(pause)
		<-s.wrote
	}
	cut := s.clock.Now()
	s.set(unheard(cut, 2), false)
	for range 5 {
		for !s.clock.HasWaiters() {
			continue
		}
		s.clock.Step(look)
	}
	select {
	case <-s.wrote:
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for its next try")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.words) != 1 || s.words[0].At.Sub(cut) != 1250*time.Millisecond {
		t.Errorf("it is cut off after %s, and says %+v", cut.Sub(s.began), s.words)
	}
}

func TestAWordThatIsNotTakenIsSaidAgain(t *testing.T) {
	s := begin(t, true)
	for pause := atFirst; pause <= 4*time.Second; pause *= 2 { // the first word
		for !s.clock.HasWaiters() {
			continue
		}
		s.clock.Step(pause)
		<-s.wrote
	}
	s.set(well(2), false)
	for !s.clock.HasWaiters() {
		continue
	}
	s.clock.Step(8 * time.Second)
	<-s.wrote
	cut := s.clock.Now()
	s.set(unheard(cut, 2), true)
	s.pass(5 * time.Second)
	if tries := len(s.wrote); tries < 7 || tries > 9 {
		t.Errorf("it was tried %d times in 3.75 s", tries)
	}
	s.set(unheard(cut, 2), false)
	s.pass(hurry)
	if at, _ := s.said(); len(at) != 1 {
		t.Errorf("taken at %v", at)
	}
}

// A touch says nothing new of the host: whoever takes it for a call would hold a host for alive that has died since.
func TestATouchIsNoWord(t *testing.T) {
	s := begin(t, false)
	s.pass(10 * time.Second)
	for range 3 { // one after the other; the keeper takes the next when it is done with the last
		s.touch <- struct{}{}
	}
	<-s.wrote
	s.pass(4 * time.Second)
	s.touch <- struct{}{}
	<-s.wrote
	s.mu.Lock()
	words := slices.Clone(s.words)
	s.mu.Unlock()
	if len(words) != 3 {
		t.Fatalf("four touches, three of them at once, wrote %d times", len(words)-1)
	}
	for i, w := range words[1:] {
		if want := s.began.Add(10*time.Second + time.Duration(i)*4*time.Second); w.BootID != "b1" || !w.At.Equal(words[0].At) || w.Every != words[0].Every || !w.Touched.Equal(want) {
			t.Errorf("touched at %s: %+v", want, w)
		}
	}
	cut := s.clock.Now()
	s.set(unheard(cut, 2), false)
	s.pass(1500 * time.Millisecond)
	s.touch <- struct{}{}
	s.pass(look)
	if at, _ := s.said(); at[len(at)-1] != cut.Sub(s.began)+1250*time.Millisecond || len(at) != 3 {
		t.Errorf("an agent that calls is touched: %v", at)
	}
}

// Where a watchdog holds the host, every word that was taken is a contact, dated by its question, and says what the watchdog does.
func TestAPulseGoesOnWhileTheOthersAreHeard(t *testing.T) {
	asked, taken := 0, 0
	var s *scene
	bound := time.Duration(0)
	s = beginWith(t, false, Pulse{Every: 5 * time.Second, Asking: func() func() { asked++; return func() { taken++ } }, Bound: func() time.Duration { return bound }})
	s.pass(look)
	bound = 40 * time.Second
	s.pass(12 * time.Second)
	at, every := s.said()
	if !slices.Equal(at, []time.Duration{5 * time.Second, 10 * time.Second}) || every[0] != time.Second || asked != 3 || taken != 3 {
		t.Errorf("it speaks at %v, every %v; asked %d, taken %d", at, every, asked, taken)
	}
	if first, second := s.words[0], s.words[1]; !first.Pulse || first.Bound != 0 || !second.Pulse || second.Bound != bound {
		t.Errorf("it says %+v and %+v", first, second)
	}
	s.set(well(2), true)
	s.pass(5 * time.Second)
	if asked < 5 || taken != 3 {
		t.Errorf("with no answer it asked %d times, and %d were taken", asked, taken)
	}
	s.set(unheard(s.clock.Now(), 2), false)
	s.pass(3 * time.Second)
	last := s.words[len(s.words)-1]
	if last.Pulse || last.Bound != bound {
		t.Errorf("cut off it says %+v", last)
	}
}

// Whoever counts by when a watchdog resets the host begins anew with every write of its Lease. So whatever is written where one does is a word in full, which is a contact if it was
// taken, and is none if it was not.
func TestATouchWhereAWatchdogCountsIsTheNextWord(t *testing.T) {
	asked, taken := 0, 0
	s := beginWith(t, false, Pulse{Every: 20 * time.Second, Asking: func() func() { asked++; return func() { taken++ } }, Bound: func() time.Duration { return 40 * time.Second }})
	s.pass(10 * time.Second)
	s.touch <- struct{}{}
	<-s.wrote
	s.pass(look) // the keeper is done with it
	at, every := s.said()
	if !slices.Equal(at, []time.Duration{10 * time.Second}) || every[0] != time.Second || asked != 2 || taken != 2 {
		t.Errorf("touched after 10 s it speaks at %v, every %v; asked %d, taken %d", at, every, asked, taken)
	}
	if last := s.words[len(s.words)-1]; !last.Pulse || last.Bound != 40*time.Second || !last.Touched.IsZero() {
		t.Errorf("it says %+v", last)
	}
	s.touch <- struct{}{} // too soon
	s.pass(19750 * time.Millisecond)
	if at, _ := s.said(); !slices.Equal(at, []time.Duration{10 * time.Second, 30 * time.Second}) {
		t.Errorf("the next pulse is not counted from the touch: %v", at)
	}
	<-s.wrote
	s.set(well(2), true)
	s.pass(4 * time.Second)
	s.touch <- struct{}{}
	<-s.wrote
	s.pass(look)
	if asked != 4 || taken != 3 {
		t.Errorf("asked %d times, and %d were taken", asked, taken)
	}
	s.set(unheard(s.clock.Now().Add(-2*time.Second), 2), false)
	s.pass(3 * time.Second)
	s.touch <- struct{}{}
	s.pass(look)
	for _, w := range s.words[3:] {
		if w.Pulse {
			t.Errorf("cut off it says %+v", w)
		}
	}
}

// A slow call is no longer than a pulse: a minute after it was cut off an agent speaks every five seconds, and a watchdog may want it sooner.
func TestAPulseBoundsTheSlowestCall(t *testing.T) {
	s := beginWith(t, false, Pulse{Every: 2500 * time.Millisecond, Asking: func() func() { return func() {} }, Bound: func() time.Duration { return 0 }})
	s.set(unheard(s.clock.Now(), 2), false)
	s.pass(2 * time.Minute)
	at, every := s.said()
	if last := len(at) - 1; at[last]-at[last-1] != 2500*time.Millisecond || every[last] != 2500*time.Millisecond {
		t.Errorf("it speaks at %v, every %v", at[last-1:], every[last])
	}
}

func TestWhoIsAlone(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for what, c := range map[string]struct {
		standing gossip.Standing
		want     bool
	}{
		"has never heard anybody":         {gossip.Standing{}, false},
		"heard somebody just now":         {gossip.Standing{Last: now, Others: 4, Heard: 4}, false},
		"heard nobody for too long":       {gossip.Standing{Last: now.Add(-1101 * time.Millisecond), Others: 4, Heard: 4}, true},
		"heard nobody for one question":   {gossip.Standing{Last: now.Add(-time.Second), Others: 4, Heard: 4}, false},
		"one of a pair":                   {gossip.Standing{Last: now, Others: 1, Heard: 0}, true},
		"two of three":                    {gossip.Standing{Last: now, Others: 2, Heard: 1}, false},
		"two of four":                     {gossip.Standing{Last: now, Others: 3, Heard: 1}, true},
		"three of five":                   {gossip.Standing{Last: now, Others: 4, Heard: 2}, false},
		"two of five":                     {gossip.Standing{Last: now, Others: 4, Heard: 1}, true},
		"the last, long after the others": {gossip.Standing{Last: now.Add(-time.Hour)}, true},
	} {
		if got := Alone(c.standing, now); got != c.want {
			t.Errorf("one that %s: alone is %v", what, got)
		}
	}
}
