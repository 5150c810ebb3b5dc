// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package array

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/stamp"
)

// flushEvery bounds the age of a line that a reader of a journal does not see yet.
const flushEvery = 50 * time.Millisecond

// Result tells what the array did with a write.
type Result string

// The results of a write.
const (
	ResultOK       Result = "ok"
	ResultDetached Result = "detached" // refused: the mount is not the one that is attached
	ResultError    Result = "error"    // the file system beneath refused
)

// Write is one line of writes.jsonl: one attempt to change a volume. Lines of one volume stand in the
// order in which the array decided on them.
type Write struct {
	stamp.Stamp
	Volume string `json:"volume"`
	File   string `json:"file"`
	Host   string `json:"host"`
	Boot   string `json:"boot"`
	Epoch  uint64 `json:"epoch"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Fsync  bool   `json:"fsync"`
	Result Result `json:"result"`
	// Op is empty for a write or an fsync, else create, truncate, mkdir, rmdir, unlink or rename.
	Op string `json:"op,omitempty"`
}

// Event is one line of events.jsonl: a change of who may use a volume.
type Event struct {
	stamp.Stamp
	Event  string `json:"event"` // create, delete, attach, detach, mount, unmount
	Volume string `json:"volume"`
	Host   string `json:"host,omitempty"`
	Boot   string `json:"boot,omitempty"`
	Epoch  uint64 `json:"epoch"`
}

// journal appends JSON lines to a file, at the latest flushEvery after they were given.
type journal struct {
	mu   sync.Mutex
	file *os.File
	out  *bufio.Writer
	err  error // the first failure; a judge that lost a line must not go on
	stop chan struct{}
	done chan struct{}
}

func openJournal(path string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	j := &journal{file: f, out: bufio.NewWriterSize(f, 1<<16), stop: make(chan struct{}), done: make(chan struct{})}
	go j.run()
	return j, nil
}

func (j *journal) run() {
	defer close(j.done)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = j.flush() // kept in j.err, which every later append returns
		case <-j.stop:
			return
		}
	}
}

// append adds one line. It returns the first error that the journal ever met.
func (j *journal) append(line any) error {
	b, err := json.Marshal(line)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		_, j.err = j.out.Write(append(b, '\n'))
	}
	return j.err
}

func (j *journal) flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = j.out.Flush()
	}
	return j.err
}

func (j *journal) close() error {
	close(j.stop)
	<-j.done
	return errors.Join(j.flush(), j.file.Close())
}
