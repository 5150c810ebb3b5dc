// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package array

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

const (
	helloTimeout   = 10 * time.Second
	replyTimeout   = 10 * time.Second // a reader that does not take its answers for so long is gone
	inFlightPerTCP = 64
	repliesKept    = 1024
)

// mount is one mounting of a volume by one boot of a host; it outlives the connections that carry it.
// files is guarded by the volume's mu.
type mount struct {
	id, host, boot string
	epoch          uint64
	files          map[uint64]*os.File

	mu      sync.Mutex
	conn    net.Conn
	replies map[uint64]*reply // answers to Once operations, so that a repeated request is not done twice
	kept    []uint64          // keys of replies, oldest first
}

type reply struct {
	done     chan struct{}
	response wire.Response
}

// replaceConn makes c the connection of the mount and closes the one before.
func (m *mount) replaceConn(c net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.conn != c {
		_ = m.conn.Close() // its reader reports
	}
	m.conn = c
}

// once carries out op unless the request with this ID was carried out before; then it answers as before.
func (m *mount) once(id uint64, op func() wire.Response) wire.Response {
	m.mu.Lock()
	if r := m.replies[id]; r != nil {
		m.mu.Unlock()
		<-r.done
		return r.response
	}
	r := &reply{done: make(chan struct{})}
	m.replies[id] = r
	m.kept = append(m.kept, id)
	if len(m.kept) > repliesKept {
		delete(m.replies, m.kept[0])
		m.kept = m.kept[1:]
	}
	m.mu.Unlock()
	r.response = op()
	close(r.done)
	return r.response
}

func (m *mount) closeFiles() {
	for h, f := range m.files {
		_ = f.Close() // nothing is buffered in it
		delete(m.files, h)
	}
}

// Serve answers hosts on l until l is closed or Close is called.
func (a *Array) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		if !a.track(c) {
			_ = c.Close()
			return nil
		}
		go func() {
			defer a.untrack(c)
			if err := a.serveConn(c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				slog.Info("a host's connection ended", "from", c.RemoteAddr().String(), "err", err)
			}
		}()
	}
}

func (a *Array) track(c net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.conns[c] = struct{}{}
	a.serving.Add(1)
	return true
}

func (a *Array) untrack(c net.Conn) {
	_ = c.Close()
	a.mu.Lock()
	delete(a.conns, c)
	a.mu.Unlock()
	a.serving.Done()
}

// answers writes messages to a connection, one at a time.
type answers struct {
	mu   sync.Mutex
	conn net.Conn
	buf  *bufio.Writer
	enc  *gob.Encoder
}

func (w *answers) send(message any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conn.SetWriteDeadline(time.Now().Add(replyTimeout)); err != nil {
		return err
	}
	if err := w.enc.Encode(message); err != nil {
		return err
	}
	return w.buf.Flush()
}

func (a *Array) serveConn(c net.Conn) error {
	buf := bufio.NewWriterSize(c, 1<<16)
	out := &answers{conn: c, buf: buf, enc: gob.NewEncoder(buf)}
	in := gob.NewDecoder(bufio.NewReaderSize(c, 1<<16))
	var hello wire.Hello
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	if err := in.Decode(&hello); err != nil {
		return err
	}
	v, m, err := a.welcome(hello)
	welcome := wire.Welcome{Instance: a.instance}
	if err != nil {
		welcome.Errno, welcome.Message = int32(errnoOf(err)), err.Error()
		return out.send(welcome)
	}
	if m == nil { // the host only made itself known
		return out.send(welcome)
	}
	m.replaceConn(c)
	r := v.snapshot()
	welcome.Class, welcome.SizeBytes, welcome.Epoch = string(r.Class), r.SizeBytes, m.epoch
	if err := out.send(welcome); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return serveMount(in, out, session{volume: v, mount: m})
}

// welcome registers the host and finds or makes the mount that hello names.
func (a *Array) welcome(hello wire.Hello) (*volume, *mount, error) {
	if hello.Host == "" || hello.Boot == "" {
		return nil, nil, refuse(KindInvalid, "hello: name host and boot")
	}
	if err := a.RegisterHost(hello.Host, hello.Boot); err != nil {
		return nil, nil, err
	}
	if hello.Volume == "" {
		return nil, nil, nil
	}
	if hello.Mount == "" {
		return nil, nil, refuse(KindInvalid, "hello: name the mount")
	}
	v, err := a.find(hello.Volume)
	if err != nil {
		return nil, nil, err
	}
	m, err := v.mountFor(hello)
	return v, m, err
}

// serveMount reads requests until the connection ends, and answers each as soon as it is done.
func serveMount(in *gob.Decoder, out *answers, s session) error {
	slots := make(chan struct{}, inFlightPerTCP)
	var running sync.WaitGroup
	defer running.Wait()
	for {
		q := new(wire.Request)
		if err := in.Decode(q); err != nil {
			return err
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			response := s.answer(q)
			response.ID = q.ID
			if err := out.send(response); err != nil {
				_ = out.conn.Close() // ends the reader, which reports; the client will ask again
			}
		})
	}
}

// errnoOf gives the errno by which a host learns of err.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	var refusal *Refusal
	if errors.As(err, &refusal) {
		switch refusal.Kind {
		case KindDetached:
			return syscall.EACCES
		case KindNotFound:
			return syscall.ENOENT
		case KindConflict:
			return syscall.EBUSY
		case KindInvalid:
			return syscall.EINVAL
		}
	}
	slog.Error("an error without errno", "err", fmt.Sprintf("%T: %v", err, err))
	return syscall.EIO
}
