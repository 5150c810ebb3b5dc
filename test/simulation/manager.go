// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// What controllers/sight does, as docs/spec/witness.md says it under "As evidence".
const (
	// vantages is how many agents a manager asks, breath its least time between two awaited views, and round how often it looks for a host that is doubted.
	vantages = 5
	breath   = 250 * time.Millisecond
	round    = time.Second
	// kubeletPort is where a doubted host is tried.
	kubeletPort = 10250
	apiPort     = 7949
)

// manager asks the first agents of the circle for their views, always, and while hosts are doubted every second for one more, and to look for these.
type manager struct {
	circle    *circle
	authority *authority.Authority
	self      *identity.Identity

	doubted                  atomic.Pointer[[]*agent]
	requests, bytes, refused atomic.Int64

	end   context.CancelFunc
	tasks sync.WaitGroup
}

// manage has the first agents serve, and asks them until it is closed.
func (c *circle) manage() (*manager, error) {
	ca, err := authority.New(time.Now())
	if err != nil {
		return nil, err
	}
	m := &manager{circle: c, authority: ca}
	if m.self, err = m.identity(wire.ManagerName); err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	m.end = end
	for _, a := range c.agents[:min(vantages, len(c.agents))] {
		if err := m.employ(ctx, a); err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	return m, nil
}

func (m *manager) identity(name string) (*identity.Identity, error) {
	certificate, key, err := m.authority.Pair(name, time.Now())
	if err != nil {
		return nil, err
	}
	root, _, err := m.authority.PEM()
	if err != nil {
		return nil, err
	}
	return identity.Parse(certificate, key, root)
}

func (m *manager) employ(ctx context.Context, a *agent) error {
	own, err := m.identity(wire.WitnessName(a.node))
	if err != nil {
		return err
	}
	l := &listener{at: a.link.ip, calls: make(chan net.Conn), closed: make(chan struct{})}
	server := api.New(a, own, logr.Discard())
	server.Dial = m.circle.dial
	m.tasks.Go(func() { _ = server.Serve(ctx, l) })
	client := call.New(a.node, m.self)
	client.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return m.dial(ctx, l) }
	address := net.JoinHostPort(a.link.ip.String(), strconv.Itoa(apiPort))
	m.tasks.Go(func() {
		defer client.Close()
		m.follow(ctx, client, address)
	})
	m.tasks.Go(func() { m.rounds(ctx, client, address) })
	return nil
}

// took counts what came of a request.
func (m *manager) took(err error) bool {
	m.requests.Add(1)
	if err != nil {
		m.refused.Add(1)
	}
	return err == nil
}

// follow awaits one view after the other.
func (m *manager) follow(ctx context.Context, client *call.Client, address string) {
	view, err := client.View(ctx, address)
	for ctx.Err() == nil && m.took(err) {
		pause(ctx, breath)
		index := view.Index
		view, err = client.Await(ctx, address, index)
	}
}

// rounds look for what is doubted.
func (m *manager) rounds(ctx context.Context, client *call.Client, address string) {
	for ctx.Err() == nil {
		pause(ctx, round)
		doubted := m.doubted.Load()
		if ctx.Err() != nil || doubted == nil {
			continue
		}
		var questions []wire.Question
		for _, a := range *doubted {
			if len(questions)+2 > wire.Questions {
				break // the manager has the others in the next round
			}
			to := a.link.ip.String()
			questions = append(questions, wire.Question{Name: strconv.Itoa(len(questions)), Agent: a.node, Address: to},
				wire.Question{Name: strconv.Itoa(len(questions) + 1), Address: to, Port: kubeletPort, TLS: true})
		}
		m.tasks.Go(func() { _, err := client.View(ctx, address); m.took(err) })
		m.tasks.Go(func() { _, err := client.Probe(ctx, address, questions); m.took(err) })
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (m *manager) close() error {
	m.end()
	m.tasks.Wait()
	if n := m.refused.Load(); n > int64(vantages) { // those that were under way at the end
		return fmt.Errorf("%d of the manager's %d requests were answered by an error", n, m.requests.Load())
	}
	return nil
}

// dial is how an agent tries a port of a host: nobody there answers.
func (c *circle) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// dial is the manager's way to an agent, whose bytes are counted as TLS has made them.
func (m *manager) dial(ctx context.Context, l *listener) (net.Conn, error) {
	here, far := pipe()
	select {
	case l.calls <- named{far, net.IPv4(10, 255, 0, 1)}:
		return &counted{Conn: here, bytes: &m.bytes}, nil
	case <-l.closed:
	case <-ctx.Done():
	}
	return nil, errors.Join(net.ErrClosed, here.Close(), far.Close())
}

// listener is where an agent's API is.
type listener struct {
	at     net.IP
	calls  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.calls:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: l.at, Port: apiPort} }
