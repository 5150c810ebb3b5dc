// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stage brings up what the scenes play on: a lab, Holdfast inside its cluster, the guarded ledger, a client outside the hosts, and
// the witnesses that tell afterwards what happened. Tests and the demo use it. It needs root.
package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
)

// Names of what plays.
const (
	// Namespace is the guarded app's, HoldfastNamespace the operator's.
	Namespace         = "shop"
	HoldfastNamespace = "holdfast-system"
	// App is the first ledger's GuardedStatefulApp and StatefulSet, Pod its only pod, Volume its volume on the array.
	App    = "ledger"
	Pod    = "ledger-0"
	Volume = "ledger-0"
)

// Options say what Raise brings up. The zero value of a field is its default.
type Options struct {
	// Lab is the lab's name. A lab of that name that is up is used as it is. Default "stage".
	Lab string
	// Hosts is how many hosts a new lab has. Default 3.
	Hosts int
	// APIServers is how many API servers a new lab has. Default 1.
	APIServers int
	// Timings of a new lab. Default fast.
	Timings lab.Timings
	// WithoutHoldfast leaves Holdfast out: no operator, no policies, no guard.
	WithoutHoldfast bool
	// DeadBMC stops every BMC once everything else stands.
	DeadBMC bool
	// Witnesses has an agent on every host.
	Witnesses bool
	// FenceBudget is how many Off commands per hour Holdfast may give. Default: Holdfast's own.
	FenceBudget int32
	// Progress gets a line per step. Default: nothing is told.
	Progress func(line string)
}

// Stage is what Raise brought up.
type Stage struct {
	Lab *lab.Lab
	// Client is the administrator's.
	Client client.WithWatch
	// Actor is the ledger that is always there; Enter brings on others.
	*Actor

	config   *rest.Config
	options  Options
	programs programs
	// used says that the lab was up before, freshManager and freshWitness that its hosts have another manager's or agent's image since.
	used, freshManager, freshWitness bool
	playing                          context.Context //nolint:containedctx // the life of the watches and of the client
	stop                             context.CancelFunc
	running                          sync.WaitGroup
}

// Raise brings everything up and returns once the ledger serves its client and, with Holdfast, is guarded: GuardConfig PoliciesEffective and
// GuardedStatefulApp Ready. When it fails, the Stage is not nil if there is a lab to look at; Strike removes it in any case.
func Raise(ctx context.Context, o Options) (*Stage, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the stage is a lab: run this as root")
	}
	o = o.complete()
	s := &Stage{options: o}
	s.playing, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.openLab(ctx); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"building the images", s.build},
		{"loading the images into the hosts", s.loadImages},
		{"installing Holdfast", s.installHoldfast},
		{"placing the witness agents", s.placeWitnesses},
		{"starting the ledger", s.startLedger},
		{"guarding the ledger", s.guardLedger},
		{"starting the ledger's client", func(ctx context.Context) error { return s.startClient(ctx) }},
		{"stopping the BMCs", s.stopBMCs},
	} {
		if !s.plays(step.what) {
			continue
		}
		s.tell(step.what)
		if err := step.do(ctx); err != nil {
			return s, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return s, nil
}

func (o Options) complete() Options {
	if o.Lab == "" {
		o.Lab = "stage"
	}
	if o.Timings == "" {
		o.Timings = lab.FastTimings
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// plays reports whether the options ask for a step.
func (s *Stage) plays(step string) bool {
	switch step {
	case "installing Holdfast", "guarding the ledger":
		return !s.options.WithoutHoldfast
	case "placing the witness agents":
		return s.options.Witnesses && !s.options.WithoutHoldfast
	case "stopping the BMCs":
		return s.options.DeadBMC
	default:
		return true
	}
}

func (s *Stage) tell(line string) { s.options.Progress(line) }

// openLab uses the lab that is up, or makes one.
func (s *Stage) openLab(ctx context.Context) error {
	l, err := lab.Open(s.options.Lab)
	s.used = err == nil
	if err != nil {
		s.tell("making lab " + s.options.Lab)
		lines := &lineWriter{to: s.options.Progress}
		l, err = lab.Up(ctx, lab.Options{Name: s.options.Lab, Hosts: s.options.Hosts, APIServers: s.options.APIServers,
			Timings: s.options.Timings, Progress: lines})
	}
	if err != nil {
		return err
	}
	s.Lab = l
	if err := s.ofThisCheckout(); err != nil {
		return err
	}
	log.SetLogger(zapr.NewLogger(zap.NewNop())) // else controller-runtime's client complains that nobody listens
	if s.config, err = l.RESTConfig(); err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	s.Client, err = client.NewWithWatch(s.config, client.Options{Scheme: scheme})
	return err
}

// ofThisCheckout refuses a lab that another checkout made: its hosts would get that one's programs.
func (s *Stage) ofThisCheckout() error {
	dir, err := os.Getwd()
	if err != nil || dir == s.Lab.Root() || strings.HasPrefix(dir, s.Lab.Root()+"/") {
		return err
	}
	return fmt.Errorf("lab %q was made by the checkout %s and plays what that one builds: take it down, or name another", s.Lab.Name(), s.Lab.Root())
}

func (s *Stage) stopBMCs(ctx context.Context) error {
	for _, h := range s.Lab.Hosts() {
		if err := h.SetBMCMode(ctx, bmc.Dead); err != nil {
			return err
		}
	}
	return nil
}

// Leave ends what this process runs on the stage, and leaves the lab up.
func (s *Stage) Leave() {
	if s == nil {
		return
	}
	s.stop()
	s.running.Wait()
}

// Strike ends everything and removes the lab of that name; s may be nil.
func Strike(ctx context.Context, s *Stage, name string) error {
	s.Leave()
	_, err := lab.Down(ctx, name)
	return err
}

// lineWriter hands complete lines on.
type lineWriter struct {
	to   func(string)
	rest string
}

var _ io.Writer = (*lineWriter)(nil)

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, whole := strings.Cut(w.rest, "\n")
		if !whole {
			return len(p), nil
		}
		w.rest = rest
		w.to(line)
	}
}
