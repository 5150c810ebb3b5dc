// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/stamp"
	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

const (
	// freshFor is how long one successful append makes the ledger ready.
	freshFor = time.Second
	// retryEvery paces the attempts while appends fail.
	retryEvery = 100 * time.Millisecond
	// tailBytes is more than the longest line.
	tailBytes = 1024
)

// Config says what to write where.
type Config struct {
	Path     string        // the ledger's file, on a volume of the array
	Interval time.Duration // between the lines that nobody asked for
	Host     string        // when not empty, the host by which the array must know the mount
}

// Writer appends to one file, from one goroutine. When an append fails it tries again, on the same path
// and never on another, as long as it lives.
type Writer struct {
	config   Config
	requests chan request

	file *os.File // only Run uses it, and next
	next Line     // who writes, and the next sequence number

	mu    sync.Mutex
	state Status
	last  time.Time // of the last successful append
}

// Status is what GET /status answers.
type Status struct {
	Ready bool   `json:"ready"`
	Host  string `json:"host"`
	Boot  string `json:"boot"`
	Epoch uint64 `json:"epoch"`
	Seq   uint64 `json:"seq"` // the last one written
	Error string `json:"error,omitempty"`
}

type request struct {
	ctx    context.Context // the client's patience travels with its request
	id     string
	answer chan<- Receipt
}

// Receipt acknowledges a line: it is in the file, and fsync has returned.
type Receipt struct {
	Seq   uint64 `json:"seq"`
	ID    string `json:"id"`
	Host  string `json:"host"`
	Epoch uint64 `json:"epoch"`
}

// NewWriter makes a writer; nothing is opened before Run.
func NewWriter(config Config) *Writer {
	return &Writer{config: config, requests: make(chan request), state: Status{Error: "nothing was appended yet"}}
}

// Append writes a line for a client and returns once it is safe, or with the error of ctx.
func (w *Writer) Append(ctx context.Context, id string) (Receipt, error) {
	if err := CheckID(id); err != nil {
		return Receipt{}, err
	}
	answer := make(chan Receipt, 1)
	select {
	case w.requests <- request{ctx: ctx, id: id, answer: answer}:
	case <-ctx.Done():
		return Receipt{}, ctx.Err()
	}
	select {
	case r := <-answer:
		return r, nil
	case <-ctx.Done():
		return Receipt{}, ctx.Err()
	}
}

// Status tells how the writer fares.
func (w *Writer) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state
	s.Ready = !w.last.IsZero() && time.Since(w.last) <= freshFor
	if !s.Ready && s.Error == "" {
		s.Error = fmt.Sprintf("the append under way has been waiting since %s ago", time.Since(w.last).Round(time.Millisecond))
	}
	return s
}

// Run appends a line every Interval, and one for each client, until ctx is done.
func (w *Writer) Run(ctx context.Context) {
	defer w.close()
	pace := time.NewTicker(w.config.Interval)
	defer pace.Stop()
	for {
		var asked *request
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		case r := <-w.requests:
			asked = &r
		}
		if err := w.step(asked); err != nil {
			w.failed(err)
			if !pause(ctx) {
				return
			}
		}
	}
}

// pause waits before the next attempt; false means that ctx is done.
func pause(ctx context.Context) bool {
	t := time.NewTimer(retryEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// step appends one line: its own, or the one that was asked for. The client hears of it after fsync; if
// that fails it hears nothing and its patience ends.
func (w *Writer) step(asked *request) error {
	if asked != nil && asked.ctx.Err() != nil {
		return nil // nobody waits for it any more
	}
	if w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	line := w.next
	line.Mono = stamp.Now().Mono
	if asked != nil {
		line.ID = asked.id
	}
	if err := w.append(line, asked != nil); err != nil {
		w.close()
		return err
	}
	w.next.Seq++
	w.succeeded()
	if asked != nil {
		asked.answer <- Receipt{Seq: line.Seq, ID: line.ID, Host: line.Host, Epoch: line.Epoch}
	}
	return nil
}

func (w *Writer) append(line Line, fsync bool) error {
	if _, err := w.file.WriteString(line.String() + "\n"); err != nil || !fsync {
		return err
	}
	return w.file.Sync()
}

// open learns from the array who we are, opens the file and counts on from its last line.
func (w *Writer) open() error {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(w.config.Path), ".array", "session"))
	if err != nil {
		return fmt.Errorf("%w: the ledger's directory must be a volume of the array", err)
	}
	var me wire.SessionRecord
	if err := json.Unmarshal(b, &me); err != nil {
		return fmt.Errorf("the array's session record: %w", err)
	}
	if w.config.Host != "" && w.config.Host != me.Host {
		return fmt.Errorf("this runs on host %q, but the array knows the mount as host %q: start the CSI node plugin with --host %s", w.config.Host, me.Host, w.config.Host)
	}
	f, err := os.OpenFile(w.config.Path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	seq, err := resume(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.file = f
	w.next = Line{Host: me.Host, Boot: me.Boot, Epoch: me.Epoch, Seq: seq}
	slog.Info("appending", "path", w.config.Path, "host", me.Host, "boot", me.Boot, "epoch", me.Epoch, "seq", seq)
	return nil
}

// resume returns the sequence number after the last line, and ends a line that was torn.
func resume(f *os.File) (uint64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	tail := make([]byte, min(st.Size(), tailBytes))
	if _, err := f.ReadAt(tail, st.Size()-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	text := string(tail)
	if text != "" && !strings.HasSuffix(text, "\n") {
		if _, err := f.WriteString("\n"); err != nil {
			return 0, err
		}
	}
	lines := strings.Split(text, "\n")
	for i := len(lines) - 2; i >= 0; i-- { // what follows the last newline is no whole line
		if last, err := ParseLine(lines[i]); err == nil {
			return last.Seq + 1, nil
		}
	}
	return 1, nil
}

func (w *Writer) close() {
	if w.file != nil {
		_ = w.file.Close() // what counts was told by write and fsync
		w.file = nil
	}
}

func (w *Writer) succeeded() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = time.Now()
	w.state = Status{Host: w.next.Host, Boot: w.next.Boot, Epoch: w.next.Epoch, Seq: w.next.Seq - 1}
}

func (w *Writer) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.Error != err.Error() {
		slog.Error("the append failed, trying on", "path", w.config.Path, "err", err)
	}
	w.state.Error = err.Error()
}
