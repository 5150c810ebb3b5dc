// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package facts keeps what an agent says of its own host: which boot it is in, and what on it answers. See docs/spec/witness.md#facts.
package facts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Where a host keeps what is asked, and how often it is. An ask has until the next one.
const (
	BootIDPath     = "/proc/sys/kernel/random/boot_id"
	SystemUUIDPath = "/sys/class/dmi/id/product_uuid"
	KubeletURL     = "http://127.0.0.1:10248/healthz"
	RuntimeSocket  = "/run/containerd/containerd.sock"

	KubeletPeriod = time.Second
	RuntimePeriod = 2 * time.Second
	APIPeriod     = 2 * time.Second
)

// Config says where to look. What is empty is where hosts have it; without an APIURL the API is never asked, and Unread.
type Config struct {
	// Node is the name of the host's Node.
	Node           string
	BootIDPath     string
	SystemUUIDPath string
	KubeletURL     string
	RuntimeSocket  string
	MountsPath     string
	SysPath        string
	PressurePath   string
	// APIURL is all of it, as https://10.0.0.1:6443/readyz. APITLS is how the server is known; no certificate of the caller is needed, since a refusal to
	// answer an unknown caller is an answer.
	APIURL string
	APITLS *tls.Config
	// Changed is called with the facts after each change, never twice at a time and in order. It should not wait for long: while it does, nothing is asked.
	Changed func(wire.Facts)
	// AskingAPI is called before the API is asked, and what it returns when the API has answered.
	AskingAPI func() (answered func())
	Clock     clock.WithDelayedExecution
}

// Local keeps the facts of its own host.
type Local struct {
	config Config
	// asked is told the pulse after each ask; tests await it.
	asked func(what string, pulse wire.Pulse)

	mu    sync.Mutex
	facts wire.Facts
}

// New reads what is read once. A host whose boot is not known has nothing to say, so this is an error; its system UUID may be unknown.
func New(config Config) (*Local, error) {
	setDefaults(&config)
	if config.Node == "" {
		return nil, errors.New("the name of the Node is empty: pass it to the agent, from spec.nodeName")
	}
	bootID, err := line(config.BootIDPath)
	if err != nil {
		return nil, fmt.Errorf("read the boot ID: %w", err)
	}
	// Only root can read it, and virtual machines and small boards may have none.
	systemUUID, _ := line(config.SystemUUIDPath)
	return &Local{
		config: config,
		asked:  func(string, wire.Pulse) {},
		facts:  wire.Facts{Node: config.Node, BootID: bootID, SystemUUID: strings.ToLower(systemUUID), Revision: 1},
	}, nil
}

func setDefaults(config *Config) {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&config.BootIDPath, BootIDPath},
		{&config.SystemUUIDPath, SystemUUIDPath},
		{&config.KubeletURL, KubeletURL},
		{&config.RuntimeSocket, RuntimeSocket},
		{&config.MountsPath, MountsPath},
		{&config.SysPath, SysPath},
		{&config.PressurePath, PressurePath},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if config.Clock == nil {
		config.Clock = clock.RealClock{}
	}
	if config.Changed == nil {
		config.Changed = func(wire.Facts) {}
	}
	if config.AskingAPI == nil {
		config.AskingAPI = func() func() { return func() {} }
	}
}

// line is what a file holds, which must be one word.
func line(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	words := strings.Fields(string(raw))
	if len(words) != 1 {
		return "", fmt.Errorf("%s holds %d words, and should hold one", path, len(words))
	}
	return words[0], nil
}

// Facts are the present ones.
func (l *Local) Facts() wire.Facts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.facts
}

// Run asks until ctx ends.
func (l *Local) Run(ctx context.Context) {
	kubelet := overHTTP(l.config.KubeletURL, nil, fresh)
	defer kubelet.close()
	api := overHTTP(l.config.APIURL, l.config.APITLS, kept)
	defer api.close()
	volumes := &storage{mounts: l.config.MountsPath, sys: l.config.SysPath, clock: l.config.Clock}
	subjects := []subject{
		{"kubelet", KubeletPeriod, kubelet.ask, func(f *wire.Facts) *wire.Pulse { return &f.Kubelet }},
		{"runtime", RuntimePeriod, overCRI(l.config.RuntimeSocket), func(f *wire.Facts) *wire.Pulse { return &f.Runtime }},
		{"storage", StoragePeriod, volumes.ask, func(f *wire.Facts) *wire.Pulse { return &f.Storage }},
		{"memory", PressurePeriod, pressure(filepath.Join(l.config.PressurePath, "memory"), ofMemory), func(f *wire.Facts) *wire.Pulse { return &f.Memory }},
		{"io", PressurePeriod, pressure(filepath.Join(l.config.PressurePath, "io"), ofStorage), func(f *wire.Facts) *wire.Pulse { return &f.IO }},
	}
	if l.config.APIURL != "" {
		subjects = append(subjects, subject{"api", APIPeriod, l.told(api.ask), func(f *wire.Facts) *wire.Pulse { return &f.API }})
	}
	var all sync.WaitGroup
	for _, s := range subjects {
		all.Go(func() { l.keep(ctx, s) })
	}
	all.Wait()
}

// told has whoever counts on the API's answers know of them.
func (l *Local) told(ask func(context.Context) reply) func(context.Context) reply {
	return func(ctx context.Context) reply {
		answer := l.config.AskingAPI()
		got := ask(ctx)
		if got == answered {
			answer()
		}
		return got
	}
}

// FencesItself says from now on that the host is reset within the bound of its last contact, rounded up to seconds; 0 says that it is not.
func (l *Local) FencesItself(bound time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seconds := int64((bound + time.Second - 1) / time.Second)
	if l.facts.SelfFenceSeconds == seconds {
		return
	}
	l.facts.SelfFenceSeconds = seconds
	l.facts.Revision++
	l.config.Changed(l.facts)
}

// subject is one thing that is asked.
type subject struct {
	name   string
	period time.Duration
	ask    func(context.Context) reply
	pulse  func(*wire.Facts) *wire.Pulse
}

// keep asks one subject, at once and then once a period; what has not answered when the period is over is silent.
func (l *Local) keep(ctx context.Context, s subject) {
	silences := 0
	for {
		due := l.config.Clock.NewTimer(s.period)
		got := l.ask(ctx, s)
		if ctx.Err() != nil {
			due.Stop()
			return
		}
		if got == silent {
			silences++
		} else {
			silences = 0
		}
		pulse := judge(got, silences)
		l.set(s, pulse)
		l.asked(s.name, pulse)
		select {
		case <-due.C():
		case <-ctx.Done():
			due.Stop()
			return
		}
	}
}

func (l *Local) ask(ctx context.Context, s subject) reply {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	patience := l.config.Clock.AfterFunc(s.period, cancel)
	defer patience.Stop()
	return s.ask(ctx)
}

// judge is the rule of the spec page: one silence is no death, since a busy host is late once.
func judge(got reply, silences int) wire.Pulse {
	switch {
	case got == answered:
		return wire.Alive
	case got == refused, silences >= 2:
		return wire.Dead
	default:
		return wire.Unread
	}
}

func (l *Local) set(s subject, pulse wire.Pulse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := s.pulse(&l.facts)
	if *now == pulse {
		return
	}
	*now = pulse
	l.facts.Revision++
	// Under the lock, so that changes are told in their order.
	l.config.Changed(l.facts)
}
