// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package journal is the list of everything that a lab has made on the machine.
//
// A record is on disk before the thing it names is made, so whoever reads the journal after a crash knows at
// least everything that exists. A journal that was closed takes no more records: whoever wants to make
// something then has to stop.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/mono"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// Kind says what a record names, and so how it is undone.
type Kind string

// The kinds of records.
const (
	// Process has PID, Start and KernelBoot.
	Process Kind = "process"
	// NetNS has the Path of the bind mount that keeps a network namespace.
	NetNS Kind = "netns"
	// Cgroup has a Path relative to the root of every cgroup hierarchy.
	Cgroup Kind = "cgroup"
	// Mount has the Path of a mount point in the first mount namespace.
	Mount Kind = "mount"
	// Directory has a Path that is removed with everything below it.
	Directory Kind = "directory"
	// closed is the last record of a journal.
	closed Kind = "closed"
)

// Record is one line of the journal.
type Record struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name,omitempty"`
	Path string `json:"path,omitempty"`
	process.ID
	// KernelBoot is the boot ID of the machine's kernel; a process of another boot is gone.
	KernelBoot string `json:"kernelBoot,omitempty"`
	mono.Stamp
}

// ErrClosed is the answer of Append after Close.
var ErrClosed = errors.New("the lab is being taken down, nothing more may be made for it")

// Append writes one record and returns when it is on disk. The stamp is filled in. It returns ErrClosed
// when the journal is closed or gone; the caller then must not make the thing.
func Append(path string, r Record) error {
	file, err := lock(path, os.O_RDWR|os.O_APPEND)
	if errors.Is(err, os.ErrNotExist) {
		return ErrClosed
	}
	if err != nil {
		return err
	}
	defer file.Close()
	return appendLocked(file, r)
}

// Create makes an empty journal; it fails when there is one.
func Create(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}

// Close makes every later Append fail. Closing twice is no error, nor is closing a journal that is gone.
func Close(path string) error {
	file, err := lock(path, os.O_RDWR|os.O_APPEND)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := appendLocked(file, Record{Kind: closed}); !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// Read returns all records, oldest first, without the mark that Close leaves. A last line that was cut off
// counts as not written: what it names was not made. A journal that is gone has no records.
func Read(path string) ([]Record, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	records, _, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return records, nil
}

func lock(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

func appendLocked(file *os.File, r Record) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	if _, isClosed, err := parse(text); err != nil {
		return fmt.Errorf("%s: %w", file.Name(), err)
	} else if isClosed {
		return ErrClosed
	}
	r.Stamp = mono.Now()
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		line = append([]byte("\n"), line...) // ends the line that was cut off
	}
	if _, err := file.Write(append(line, '\n')); err != nil {
		return err
	}
	return file.Sync()
}

// parse skips lines that are cut off: only the last line can be, or one after which a later writer went on.
func parse(text []byte) (records []Record, isClosed bool, err error) {
	for number, line := range bytes.Split(text, []byte("\n")) {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var r Record
		if err := json.Unmarshal(line, &r); err != nil {
			if strings.Contains(err.Error(), "unexpected end of JSON input") {
				continue
			}
			return nil, false, fmt.Errorf("line %d: %w", number+1, err)
		}
		if r.Kind == closed {
			return records, true, nil
		}
		records = append(records, r)
	}
	return records, false, nil
}
