// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package arrayclient speaks with the storage array: Session is a host's mount of a volume, Control is the
// administrator's side.
package arrayclient

import (
	"bufio"
	"cmp"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

const (
	dialTimeout   = time.Second
	redialEvery   = 250 * time.Millisecond
	deadPeerAfter = 4 * time.Second // unacknowledged bytes older than this end the connection
)

// Config says who mounts what. All fields but IOTimeout are required.
type Config struct {
	Address    string // host:port of the array
	Host, Boot string
	Volume     string
	// IOTimeout is after how long an unanswered operation fails with EIO. 0 means never.
	IOTimeout time.Duration
}

// MountError is the array's refusal to let a volume be mounted.
type MountError struct {
	Errno   syscall.Errno
	Message string
}

func (e *MountError) Error() string { return e.Message }

// Unwrap gives the errno: ENOENT for an unknown volume, EACCES when the host is not attached.
func (e *MountError) Unwrap() error { return e.Errno }

// Session is one mount of a volume. It reconnects by itself; what was not answered is asked again, and the
// array does nothing twice. Operations wait while the array cannot be reached, until IOTimeout.
type Session struct {
	config  Config
	welcome wire.Welcome
	mount   string

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]*Call
	unsent  []*Call
	wake    chan struct{} // holds a token when unsent is not empty
	cancel  context.CancelFunc
	done    chan struct{}
}

// Call is one operation under way.
type Call struct {
	session  *Session
	request  *wire.Request
	sent     bool // guarded by session.mu
	answered chan struct{}
	response wire.Response
	deadline <-chan time.Time
	timer    *time.Timer
}

// Mount connects to the array and mounts the volume. It fails with a *MountError when the array refuses,
// and with the error of ctx when the array does not answer in time.
func Mount(ctx context.Context, config Config) (*Session, error) {
	s := &Session{config: config, mount: uuid.NewString(), pending: map[uint64]*Call{},
		wake: make(chan struct{}, 1), done: make(chan struct{})}
	l, err := s.dialUntil(ctx)
	if err != nil {
		return nil, err
	}
	s.welcome = l.welcome
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(run, l)
	return s, nil
}

// Register makes (host, boot) known to the array without mounting anything.
func Register(ctx context.Context, config Config) error {
	config.Volume = ""
	l, err := dial(ctx, config.Address, wire.Hello{Host: config.Host, Boot: config.Boot})
	if err != nil {
		return err
	}
	return l.conn.Close()
}

// Epoch returns the epoch of this mount.
func (s *Session) Epoch() uint64 { return s.welcome.Epoch }

// link is one connection after its Hello was answered.
type link struct {
	conn    net.Conn
	in      *gob.Decoder
	out     *bufio.Writer
	enc     *gob.Encoder
	welcome wire.Welcome
}

func dial(ctx context.Context, address string, hello wire.Hello) (*link, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true,
		Idle: deadPeerAfter, Interval: time.Second, Count: 3}, Control: endDeadPeers}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l := &link{conn: c, in: gob.NewDecoder(bufio.NewReaderSize(c, 1<<16)), out: bufio.NewWriterSize(c, 1<<16)}
	l.enc = gob.NewEncoder(l.out)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := l.hello(hello); err != nil {
		_ = c.Close()
		return nil, cmp.Or(ctx.Err(), err)
	}
	return l, nil
}

// endDeadPeers makes the kernel give up a connection whose bytes are not acknowledged. Otherwise I/O would
// hang for minutes after a cut was healed, until TCP's next retransmission.
func endDeadPeers(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeerAfter.Milliseconds()))
	})
	return errors.Join(err, failed)
}

func (l *link) hello(hello wire.Hello) error {
	if err := l.conn.SetDeadline(time.Now().Add(deadPeerAfter)); err != nil {
		return err
	}
	if err := l.send(hello); err != nil {
		return err
	}
	if err := l.in.Decode(&l.welcome); err != nil {
		return fmt.Errorf("array %s: reading its welcome: %w", l.conn.RemoteAddr(), err)
	}
	if l.welcome.Errno != 0 {
		return &MountError{Errno: syscall.Errno(l.welcome.Errno), Message: l.welcome.Message}
	}
	return l.conn.SetDeadline(time.Time{})
}

func (l *link) send(messages ...any) error {
	for _, m := range messages {
		if err := l.enc.Encode(m); err != nil {
			return err
		}
	}
	return l.out.Flush()
}

// dialUntil dials until the array answers yes or no, or ctx is done.
func (s *Session) dialUntil(ctx context.Context) (*link, error) {
	hello := wire.Hello{Host: s.config.Host, Boot: s.config.Boot, Volume: s.config.Volume,
		Mount: s.mount, Epoch: s.welcome.Epoch}
	tick := time.NewTicker(redialEvery)
	defer tick.Stop()
	for {
		l, err := dial(ctx, s.config.Address, hello)
		var refused *MountError
		if err == nil || errors.As(err, &refused) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("array %s does not answer: %w", s.config.Address, err)
		case <-tick.C:
		}
	}
}

// run carries the session over one connection after the other until ctx is done.
func (s *Session) run(ctx context.Context, l *link) {
	defer close(s.done)
	for {
		err := s.carry(ctx, l)
		if ctx.Err() != nil {
			return
		}
		slog.Info("the connection to the array ended, dialling again", "volume", s.config.Volume, "err", err)
		if l = s.redial(ctx); l == nil {
			return
		}
	}
}

// redial returns the next connection, nil when ctx is done. As long as the array refuses the mount, for
// example because the volume was deleted, everything asked fails with EIO.
func (s *Session) redial(ctx context.Context) *link {
	tick := time.NewTicker(redialEvery)
	defer tick.Stop()
	for {
		l, err := s.dialUntil(ctx)
		if err == nil {
			s.requeue(l.welcome.Instance)
			return l
		}
		if ctx.Err() != nil {
			return nil
		}
		s.failAll()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// requeue makes every unanswered call unsent again, in order. Another instance of the array does not know
// what the one before has done: what may have been done already and must not be done twice fails with EIO.
func (s *Session) requeue(instance string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sameArray := instance == s.welcome.Instance
	s.welcome.Instance = instance
	s.unsent = nil
	for _, id := range slices.Sorted(maps.Keys(s.pending)) {
		c := s.pending[id]
		if c.sent && !sameArray && c.request.Op.Once() {
			s.answerLocked(wire.Response{ID: id, Errno: int32(syscall.EIO)})
			continue
		}
		s.unsent = append(s.unsent, c)
	}
	s.wakeLocked()
}

func (s *Session) wakeLocked() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Session) failAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.pending {
		s.answerLocked(wire.Response{ID: id, Errno: int32(syscall.EIO)})
	}
	s.unsent = nil
}

// answerLocked ends a call; an answer to a call that was given up is dropped. The caller holds mu.
func (s *Session) answerLocked(r wire.Response) {
	if c := s.pending[r.ID]; c != nil {
		delete(s.pending, r.ID)
		c.response = r
		close(c.answered)
	}
}

// carry sends calls and takes answers on one connection until it fails or ctx is done.
func (s *Session) carry(ctx context.Context, l *link) error {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()
	readFailed := make(chan error, 1)
	go func() { readFailed <- s.receive(l) }()
	for {
		select {
		case err := <-readFailed:
			return err
		case <-s.wake:
			if err := l.send(s.take()...); err != nil {
				_ = l.conn.Close()
				<-readFailed
				return err
			}
		}
	}
}

func (s *Session) receive(l *link) error {
	defer func() { _ = l.conn.Close() }()
	for {
		var r wire.Response
		if err := l.in.Decode(&r); err != nil {
			return err
		}
		s.mu.Lock()
		s.answerLocked(r)
		s.mu.Unlock()
	}
}

// take returns the requests to send now. Calls that were given up meanwhile are not sent at all.
func (s *Session) take() []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests := make([]any, 0, len(s.unsent))
	for _, c := range s.unsent {
		if s.pending[c.request.ID] != nil {
			c.sent = true
			requests = append(requests, c.request)
		}
	}
	s.unsent = nil
	return requests
}

// Start begins an operation. The request belongs to the session from here on; it sets its ID.
func (s *Session) Start(q *wire.Request) *Call {
	c := &Call{session: s, request: q, answered: make(chan struct{})}
	if s.config.IOTimeout > 0 {
		c.timer = time.NewTimer(s.config.IOTimeout)
		c.deadline = c.timer.C
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	q.ID = s.nextID
	s.pending[q.ID] = c
	s.unsent = append(s.unsent, c)
	s.wakeLocked()
	return c
}

// Wait returns the answer, or EIO after the session's IOTimeout. It returns false when interrupted fires
// first; then Wait may be called again, or Abandon.
func (c *Call) Wait(interrupted <-chan struct{}) (wire.Response, bool) {
	select {
	case <-c.answered:
	case <-c.deadline:
		c.abandonWith(syscall.EIO)
	case <-interrupted:
		return wire.Response{}, false
	}
	c.stopTimer()
	return c.response, true
}

// Abandon gives the call up. If its request was sent the array may still carry it out.
func (c *Call) Abandon() { c.abandonWith(syscall.EINTR); c.stopTimer() }

func (c *Call) abandonWith(errno syscall.Errno) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.session.answerLocked(wire.Response{ID: c.request.ID, Errno: int32(errno)})
}

func (c *Call) stopTimer() {
	if c.timer != nil {
		c.timer.Stop()
	}
}

// Do carries out one operation and waits for its end.
func (s *Session) Do(q *wire.Request) (wire.Response, error) {
	r, _ := s.Start(q).Wait(nil)
	if r.Errno != 0 {
		return r, syscall.Errno(r.Errno)
	}
	return r, nil
}

// Close ends the mount. It tells the array when the array can be reached within a second; whatever still
// waits fails with EIO.
func (s *Session) Close() {
	bye := s.Start(&wire.Request{Op: wire.OpUnmount})
	patience := make(chan struct{})
	timer := time.AfterFunc(time.Second, func() { close(patience) })
	defer timer.Stop()
	if _, answered := bye.Wait(patience); !answered {
		bye.Abandon()
	}
	s.cancel()
	<-s.done
	s.failAll()
}
