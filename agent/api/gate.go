// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// handshakeFor is how long a caller may take to show its certificate.
	handshakeFor = 5 * time.Second
	// connections and connectionsFrom bound what is open at a time, handshakes included: all together, and from one address. The manager has a handful.
	connections     = 256
	connectionsFrom = 32
)

// gate is a listener that lets those through whose handshake is done. Whoever does not get as far costs no more than a handshake, and is counted.
type gate struct {
	net.Listener
	config func() *tls.Config
	refuse func(kind Refusal, from, why string)

	passed chan *tls.Conn
	failed chan error
	closed context.Context
	close  context.CancelFunc

	mu   sync.Mutex
	open map[string]int // by address; "" is all of them
}

// newGate begins to accept; it ends when the gate is closed, or with the context.
func newGate(ctx context.Context, l net.Listener, config func() *tls.Config, refuse func(kind Refusal, from, why string)) *gate {
	g := &gate{Listener: l, config: config, refuse: refuse, passed: make(chan *tls.Conn), failed: make(chan error), open: map[string]int{}}
	g.closed, g.close = context.WithCancel(ctx)
	go g.run()
	return g
}

// Accept waits for the next caller with a good certificate. It implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case conn := <-g.passed:
		return conn, nil
	case err := <-g.failed:
		return nil, err
	case <-g.closed.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (g *gate) Close() error {
	g.close()
	return g.Listener.Close()
}

func (g *gate) run() {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			select {
			case g.failed <- err: // whoever accepts decides how long to wait before the next
			case <-g.closed.Done():
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		if mine, ok := g.count(conn); ok {
			go g.shake(mine)
		}
	}
}

// count closes a connection that is one too many.
func (g *gate) count(conn net.Conn) (net.Conn, bool) {
	from, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		from = conn.RemoteAddr().String()
	}
	g.mu.Lock()
	all, here := g.open[""], g.open[from]
	ok := all < connections && here < connectionsFrom
	if ok {
		g.open[""]++
		g.open[from]++
	}
	g.mu.Unlock()
	if !ok {
		g.refuse(Crowd, from, fmt.Sprintf("%d connections are open from there, %d in all; the limits are %d and %d", here, all, connectionsFrom, connections))
		_ = conn.Close()
		return nil, false
	}
	return &counted{Conn: conn, end: sync.OnceFunc(func() { g.uncount(from) })}, true
}

func (g *gate) uncount(from string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[""]--
	if g.open[from]--; g.open[from] == 0 {
		delete(g.open, from)
	}
}

func (g *gate) shake(conn net.Conn) {
	ctx, done := context.WithTimeout(g.closed, handshakeFor)
	defer done()
	secure := tls.Server(conn, g.config())
	if err := secure.HandshakeContext(ctx); err != nil {
		if g.closed.Err() == nil {
			g.refuse(Handshake, conn.RemoteAddr().String(), err.Error())
		}
		_ = conn.Close()
		return
	}
	select {
	case g.passed <- secure:
	case <-g.closed.Done():
		_ = conn.Close()
	}
}

// counted is a connection that counts until it is closed.
type counted struct {
	net.Conn
	end func()
}

func (c *counted) Close() error {
	defer c.end()
	return c.Conn.Close()
}
