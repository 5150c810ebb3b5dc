// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// signer is an API server whose requests are answered by what the test says.
type signer struct {
	ca    *authority.Authority
	clock *clocktesting.FakeClock

	mu sync.Mutex
	// answer answers what was asked, when it is looked at. An error is what looking gives.
	answer func(request []byte) (Answer, error)
	create error
	asked  []string // names of requests that were created
	texts  map[string][]byte
	looked chan struct{}
}

func (s *signer) Create(_ context.Context, name string, request []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, name)
	if s.create == nil {
		s.texts[name] = request
	}
	return s.create
}

func (s *signer) Get(_ context.Context, name string) (Answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.looked <- struct{}{} }()
	request, made := s.texts[name]
	if !made {
		return Answer{}, fmt.Errorf("%w: %s was never made", ErrLost, name)
	}
	return s.answer(request)
}

func (s *signer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *signer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// issue answers as the manager does.
func (s *signer) issue(request []byte) (Answer, error) {
	return s.issueAs("host-1", s.clock.Now())(request)
}

func (s *signer) issueAs(node string, at time.Time) func([]byte) (Answer, error) {
	return func(request []byte) (Answer, error) {
		key, err := authority.Check(request, "host-1")
		if err != nil {
			return Answer{}, err
		}
		certificate, err := s.ca.Issue(key, wire.WitnessName(node), at)
		return Answer{Certificate: certificate}, err
	}
}

func silent([]byte) (Answer, error) { return Answer{}, nil }

type rig struct {
	*testing.T
	*signer
	credential *Credential
	file       string
	log        chan string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	at := clocktesting.NewFakeClock(time.Now().Truncate(time.Second))
	ca, err := authority.New(at.Now().Add(-365 * 24 * time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, file: filepath.Join(t.TempDir(), "witness.pem"), log: make(chan string, 1000)}
	r.signer = &signer{ca: ca, clock: at, texts: map[string][]byte{}, looked: make(chan struct{}, 1000)}
	r.answer = r.issue
	r.credential = New(Config{Node: "host-1", File: r.file, Requests: r.signer, Clock: at,
		Log: funcr.New(func(_, args string) { r.log <- args }, funcr.Options{})})
	return r
}

// keep runs until the test ends.
func (r *rig) keep() {
	r.Helper()
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error)
	go func() { over <- r.credential.Keep(ctx) }()
	r.Cleanup(func() {
		stop()
		if err := <-over; !errors.Is(err, context.Canceled) {
			r.Errorf("Keep: %v", err)
		}
	})
}

// says waits for the next line of the log.
func (r *rig) says(part string) {
	r.Helper()
	if line := <-r.log; !strings.Contains(line, part) {
		r.Fatalf("it says %s, want %q in it", line, part)
	}
}

// idle waits until nothing is left to do but to wait.
func (r *rig) idle() {
	for !r.clock.HasWaiters() {
		runtime.Gosched()
	}
}

// pass lets time pass, once somebody waits for it.
func (r *rig) pass(d time.Duration) {
	r.idle()
	r.clock.Step(d)
}

// until is when the certificate in the file ends. It is one that an agent can use.
func (r *rig) until() time.Time {
	r.Helper()
	text, err := os.ReadFile(r.file)
	if err != nil {
		r.Fatal(err)
	}
	authorities, _, err := r.ca.PEM()
	if err != nil {
		r.Fatal(err)
	}
	own, err := identity.Parse(text, text, authorities)
	if err != nil {
		r.Fatal(err)
	}
	return own.Certificate().Leaf.NotAfter
}

func TestAnAgentObtainsACertificate(t *testing.T) {
	r := newRig(t)
	if err := r.credential.Obtain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.until(); !got.Equal(r.clock.Now().Add(authority.Life)) {
		t.Errorf("good until %s", got)
	}
	if stat, err := os.Stat(r.file); err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("the key can be read by others: %v, %v", stat.Mode(), err)
	}
	if left, err := os.ReadDir(filepath.Dir(r.file)); err != nil || len(left) != 1 {
		t.Errorf("something is left beside it: %v, %v", left, err)
	}
	if err := New(r.credential.Config).Obtain(t.Context()); err != nil || len(r.requests()) != 1 {
		t.Errorf("the next life of the agent asks again: %v, %v", r.requests(), err)
	}
}

func TestItIsRenewedAtTwoThirdsOfItsLife(t *testing.T) {
	r := newRig(t)
	r.keep()
	r.says("a new certificate")
	first := r.until()
	begun := first.Add(-authority.Life)
	due := begun.Add(authority.Life / 3 * 2)
	for r.clock.Now().Add(2 * checkEvery).Before(due) {
		r.pass(checkEvery)
	}
	if n := len(r.requests()); n != 1 {
		t.Fatalf("%d requests before the time", n)
	}
	r.pass(checkEvery)
	r.pass(checkEvery)
	r.idle()
	if n := len(r.requests()); n != 2 || !r.until().After(first) {
		t.Errorf("%d requests, good until %s", n, r.until())
	}
}

func TestTheOldOneStaysWhateverFails(t *testing.T) {
	gone := fmt.Errorf("%w: not found", ErrLost)
	refused := func(why string) func(*rig) {
		return func(r *rig) { r.answer = func([]byte) (Answer, error) { return Answer{Refused: why}, nil } }
	}
	for name, test := range map[string]struct {
		fail func(*rig)
		says string
	}{
		"the API is away":           {func(r *rig) { r.create = errors.New("connection refused") }, "connection refused"},
		"denied":                    {refused("Denied, NotAnAgentsOwn: another host"), "another host"},
		"the request is deleted":    {func(r *rig) { r.answer = func([]byte) (Answer, error) { return Answer{}, gone } }, "not found"},
		"another host's is issued":  {func(r *rig) { r.answer = r.issueAs("host-2", r.clock.Now()) }, "host-2"},
		"an old one is issued":      {func(r *rig) { r.answer = r.issueAs("host-1", r.clock.Now().Add(-2*authority.Life)) }, "clocks"},
		"one almost over is issued": {func(r *rig) { r.answer = r.issueAs("host-1", r.clock.Now().Add(-authority.Life*3/4)) }, "clocks"},
		"nonsense is issued": {func(r *rig) {
			r.answer = func([]byte) (Answer, error) { return Answer{Certificate: []byte("x")}, nil }
		}, "PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if err := r.credential.Obtain(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.says("a new certificate")
			first := r.until()
			r.clock.Step(authority.Life * 5 / 6)
			r.set(func() { test.fail(r) })
			r.keep()
			if name == "one almost over is issued" {
				r.says("a new certificate")
			}
			r.says(test.says)
			if name != "one almost over is issued" && !r.until().Equal(first) {
				t.Error("the old one did not stay")
			}
			if n := len(r.requests()); n != 2 {
				t.Errorf("%d requests; it must wait before the next", n)
			}
			r.set(func() { r.create, r.answer = nil, r.issue })
			r.pass(retryFirst)
			r.says("a new certificate")
			if !r.until().After(first) {
				t.Error("it was not renewed when it could be")
			}
		})
	}
}

func TestARequestThatNobodyAnswersIsWaitedForAndNotMadeAgain(t *testing.T) {
	r := newRig(t)
	r.answer = silent
	r.keep()
	<-r.looked
	for range answerIn / lookEvery {
		r.pass(lookEvery)
		<-r.looked
	}
	r.says("does the manager run")
	r.pass(retryFirst)
	<-r.looked
	r.set(func() {
		r.answer = func([]byte) (Answer, error) { return Answer{}, errors.New("connection refused") }
	})
	r.pass(lookEvery)
	<-r.looked // an API that is away for a moment is no answer
	r.set(func() { r.answer = r.issue })
	r.pass(lookEvery)
	r.says("a new certificate")
	if n := len(r.requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestAFileThatIsNoneOfThisAgentsIsReplaced(t *testing.T) {
	for name, content := range map[string]func(*rig) []byte{
		"nonsense": func(*rig) []byte { return []byte("nonsense") },
		"another host's": func(r *rig) []byte {
			certificate, key, err := r.ca.Pair(wire.WitnessName("host-2"), r.clock.Now())
			if err != nil {
				r.Fatal(err)
			}
			return append(key, certificate...)
		},
		"expired": func(r *rig) []byte {
			certificate, key, err := r.ca.Pair(wire.WitnessName("host-1"), r.clock.Now().Add(-authority.Life))
			if err != nil {
				r.Fatal(err)
			}
			return append(key, certificate...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if err := os.WriteFile(r.file, content(r), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := r.credential.Obtain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := r.until(); !got.After(r.clock.Now()) {
				t.Errorf("good until %s", got)
			}
		})
	}
}

func TestObtainEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	r.answer = silent
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- r.credential.Obtain(ctx) }()
	<-r.looked
	stop()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestADirectoryThatCannotBeWrittenTo(t *testing.T) {
	r := newRig(t)
	r.credential.File = filepath.Join(filepath.Dir(r.file), "none", "witness.pem")
	r.keep()
	r.says("no such file")
}
