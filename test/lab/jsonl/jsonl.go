// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package jsonl keeps journals of one JSON object per line, written by several
// processes of which any may be killed halfway.
package jsonl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Append adds record as one line to the file at path, which it creates if
// need be. Writers take turns. A line that a killed writer left unfinished is
// closed first, so that it damages nothing but itself.
func Append(path string, record any) error {
	line, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("append to %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("append: %w", err)
	}
	defer file.Close() // releases the lock
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("append to %s: lock: %w", path, err)
	}
	line = append(line, '\n')
	torn, err := endsTorn(file)
	if err != nil {
		return fmt.Errorf("append to %s: %w", path, err)
	}
	if torn {
		line = append([]byte{'\n'}, line...)
	}
	if _, err := file.Write(line); err != nil {
		return fmt.Errorf("append to %s: %w", path, err)
	}
	return nil
}

func endsTorn(file *os.File) (bool, error) {
	stat, err := file.Stat()
	if err != nil || stat.Size() == 0 {
		return false, err
	}
	last := make([]byte, 1)
	if _, err := file.ReadAt(last, stat.Size()-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

// Scan calls use with every complete line of the file at path, in order and
// without its line feed; the slice is valid only during the call. A last line
// without line feed is still being written and is left out; so are empty
// lines. Memory is bounded by the longest line. A file that does not exist has
// no lines.
func Scan(path string, use func(line []byte) error) error {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := ScanFrom(file, use); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// ScanFrom is Scan of what a reader yields.
func ScanFrom(from io.Reader, use func(line []byte) error) error {
	reader := bufio.NewReaderSize(from, 64<<10)
	var long []byte // start of a line that did not fit into the reader
	for {
		part, err := reader.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			long = append(long, part...)
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		line := part
		if len(long) > 0 {
			long = append(long, part...)
			line = long
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) > 0 {
			if err := use(line); err != nil {
				return err
			}
		}
		long = long[:0]
	}
}
