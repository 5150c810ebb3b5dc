// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

const (
	// A datagram without answer is sent again after firstWait, then after twice that, and so on up to longestWait. Datagrams get
	// lost; slow BMCs need up to a second for the handshake, and some forget the first question when it is asked again.
	firstWait   = time.Second
	longestWait = 4 * time.Second
	// datagramMax is longer than any packet of ours.
	datagramMax = 1024
)

// errNotSent: nothing has left this machine.
var errNotSent = errors.New("not sent")

// line is a datagram socket to one BMC. It is not for concurrent use.
type line struct {
	conn   net.Conn
	buffer [datagramMax]byte
	// resent: the last question was sent more than once.
	resent bool
}

// dial connects to address (host:port). The caller hangs up. When ctx ends, a read that waits ends.
func dial(ctx context.Context, address string) (l *line, hangUp func(), err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return nil, nil, err
	}
	long := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(long) })
	return &line{conn: conn}, func() { stop(); _ = conn.Close() }, nil
}

func (l *line) send(packet []byte) error {
	_, err := l.conn.Write(packet)
	return err
}

// ask sends what next gives until take accepts a datagram, and asks next anew for each repetition. take answers errNotOurs for
// datagrams to be dropped; any other error of it ends the wait. The error wraps errNotSent if nothing was sent, and
// ctx's cause when ctx has ended.
func (l *line) ask(ctx context.Context, next func() ([]byte, error), take func(datagram []byte) error) error {
	l.resent = false
	for sent, wait := false, firstWait; ; wait = min(2*wait, longestWait) {
		packet, err := next()
		if err == nil && ctx.Err() == nil {
			err = l.send(packet)
		}
		if err = errors.Join(err, ctx.Err()); err != nil && !sent {
			return fmt.Errorf("%w: %w", errNotSent, err)
		} else if err != nil {
			return err
		}
		l.resent, sent = sent, true
		answered, err := l.listen(ctx, time.Now().Add(wait), take)
		if answered || err != nil {
			return err
		}
	}
}

// listen reads until take accepts a datagram (true), the time has come (false), or something fails.
func (l *line) listen(ctx context.Context, until time.Time, take func(datagram []byte) error) (bool, error) {
	if err := l.conn.SetReadDeadline(until); err != nil {
		return false, err
	}
	for {
		// After the deadline was set: an end of ctx from here on sets an earlier one, see dial.
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("no answer: %w", err)
		}
		n, err := l.conn.Read(l.buffer[:])
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
			return false, nil
		case ctx.Err() != nil:
			return false, fmt.Errorf("no answer: %w", ctx.Err())
		default:
			return false, err
		}
		if err := take(l.buffer[:n]); !errors.Is(err, errNotOurs) {
			return err == nil, err
		}
	}
}
