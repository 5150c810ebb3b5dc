// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command ledger-check judges a ledger from the file, the array's journal and a client's acknowledgements,
// and prints its report as JSON. It exits 0 when all is well, 1 at an interleaving of writers or a lost
// acknowledgement, 2 when it could not judge.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger/check"
)

// witnesses are the files to read; an empty path is not asked.
type witnesses struct{ ledger, writes, acks, volume string }

func main() {
	var w witnesses
	arrayDir := flag.String("array-dir", "", "directory of the array: stands for --writes DIR/writes.jsonl and --ledger DIR/volumes/VOLUME/data/ledger")
	flag.StringVar(&w.volume, "volume", "", "the volume to judge")
	flag.StringVar(&w.ledger, "ledger", "", "the ledger's file")
	flag.StringVar(&w.writes, "writes", "", "the array's writes.jsonl")
	flag.StringVar(&w.acks, "acks", "", "the record of ledger-client")
	flag.Parse()
	guilty, err := run(w, *arrayDir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "ledger-check:", err)
		os.Exit(2)
	}
	if guilty {
		os.Exit(1)
	}
}

func run(w witnesses, arrayDir string) (guilty bool, err error) {
	if arrayDir != "" {
		if w.volume == "" {
			return false, errors.New("--array-dir needs --volume")
		}
		w.writes = filepath.Join(arrayDir, "writes.jsonl")
		w.ledger = filepath.Join(arrayDir, "volumes", w.volume, "data", "ledger")
	}
	if w.ledger == "" && w.writes == "" {
		return false, errors.New("nothing to judge: give --array-dir and --volume, or --ledger, or --writes")
	}
	if w.acks != "" && w.ledger == "" {
		return false, errors.New("--acks needs --ledger")
	}
	evidence, err := w.read()
	if err != nil {
		return false, err
	}
	report := check.Judge(evidence)
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return report.Guilty(), out.Encode(report)
}

// read takes the acknowledgements first: a line that is acknowledged later than the ledger was read would
// seem lost.
func (w witnesses) read() (check.Evidence, error) {
	var e check.Evidence
	err := open(w.acks, func(in io.Reader) (err error) {
		e.Acks, err = check.ReadAcks(in)
		return err
	})
	if err != nil {
		return e, err
	}
	err = open(w.ledger, func(in io.Reader) (err error) {
		e.Lines, e.Malformed, err = check.ReadLedger(in)
		return err
	})
	if err != nil {
		return e, err
	}
	return e, open(w.writes, func(in io.Reader) (err error) {
		e.Writes, err = check.ReadWrites(in, w.volume)
		return err
	})
}

func open(path string, read func(io.Reader) error) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if err := read(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
