// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"net"
	"slices"
	"sync"
	"time"
)

// eager is one end of a pipe whose writer does not wait for its reader, as a socket's does not: net/http takes leave of the other side with a lock held, and who waits
// for a lock keeps the simulated clock from going on.
type eager struct {
	net.Conn
	out    chan []byte
	closed chan struct{}
	once   sync.Once
}

const (
	// ahead is how many writes may wait.
	ahead = 4096
	// lingers is how long one that is closed tries to get rid of what was written.
	lingers = 5 * time.Second
)

// pipe connects two ends. What drives them ends when both are closed.
func pipe() (here, far net.Conn) {
	a, b := net.Pipe()
	return begin(a), begin(b)
}

func begin(conn net.Conn) *eager {
	e := &eager{Conn: conn, out: make(chan []byte, ahead), closed: make(chan struct{})}
	go e.drive()
	return e
}

func (e *eager) drive() {
	defer e.Conn.Close()
	for {
		select {
		case b := <-e.out:
			if _, err := e.Conn.Write(b); err != nil {
				return
			}
		case <-e.closed:
			for len(e.out) > 0 {
				if _, err := e.Conn.Write(<-e.out); err != nil {
					return
				}
			}
			return
		}
	}
}

func (e *eager) Write(b []byte) (int, error) {
	select {
	case <-e.closed:
		return 0, net.ErrClosed
	default:
	}
	select {
	case e.out <- slices.Clone(b):
		return len(b), nil
	case <-e.closed:
		return 0, net.ErrClosed
	}
}

// SetDeadline is for reading: writing takes no time.
func (e *eager) SetDeadline(t time.Time) error { return e.SetReadDeadline(t) }

func (e *eager) SetWriteDeadline(time.Time) error { return nil }

func (e *eager) Close() error {
	e.once.Do(func() {
		_ = e.Conn.SetWriteDeadline(time.Now().Add(lingers))
		_ = e.SetReadDeadline(time.Now())
		close(e.closed)
	})
	return nil
}
