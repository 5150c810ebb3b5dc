// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package check judges what was written to a ledger: whether two writers ever took turns, and whether
// anything that a client was told is safe is gone.
//
// There are two witnesses. The array's journal has every write in the order in which the array accepted
// it. The ledger file has what is left. Either may convict.
package check

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger"
	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger/client"
)

// Evidence is what a judgement rests on. A witness that was not asked is nil.
type Evidence struct {
	Lines []ledger.Line
	// Malformed counts lines of the ledger that are not whole.
	Malformed int
	Writes    []array.Write // of one volume
	Acks      []client.Ack
}

// WriterID is one attachment of one boot of one host.
type WriterID struct {
	Host  string `json:"host"`
	Boot  string `json:"boot"`
	Epoch uint64 `json:"epoch"`
}

// Writer sums up the accepted writes of one writer. First and Last are nanoseconds of CLOCK_MONOTONIC.
type Writer struct {
	WriterID
	First        int64   `json:"first"`
	Last         int64   `json:"last"`
	Count        int     `json:"count"`
	MaxGapMillis float64 `json:"maxGapMillis"`
}

// Interleaving says that an older writer wrote after a newer one had begun.
type Interleaving struct {
	Witness string   `json:"witness"` // array or ledger
	Older   WriterID `json:"older"`
	Newer   WriterID `json:"newer"`
	Count   int      `json:"count"` // writes of the older one that came too late
	First   int64    `json:"first"` // mono of the first of them
	Last    int64    `json:"last"`
}

// LostAck is an acknowledgement whose line is not in the ledger.
type LostAck struct {
	ID   string `json:"id"`
	Seq  uint64 `json:"seq"`
	Mono int64  `json:"mono"` // when the client was told
}

// Report is the judgement.
type Report struct {
	Writers        []Writer       `json:"writers"` // by epoch; from the array's journal, else from the ledger
	Interleavings  []Interleaving `json:"interleavings"`
	RefusedWrites  int            `json:"refusedWrites"` // attempts that the array refused to a detached host
	FailedWrites   int            `json:"failedWrites"`  // attempts that failed for another reason
	Acked          int            `json:"acked"`
	LostAcks       []LostAck      `json:"lostAcks"`
	Lines          int            `json:"lines"`
	MalformedLines int            `json:"malformedLines"`
	DuplicateLines int            `json:"duplicateLines"` // same writer and sequence number: an append done twice
}

// Guilty reports whether there was an interleaving or a lost acknowledgement.
func (r Report) Guilty() bool { return len(r.Interleavings) > 0 || len(r.LostAcks) > 0 }

// act is one accepted write as either witness tells it.
type act struct {
	by   WriterID
	mono int64
}

// Judge judges.
func Judge(e Evidence) Report {
	r := Report{
		Interleavings: []Interleaving{}, LostAcks: []LostAck{}, Acked: len(e.Acks),
		Lines: len(e.Lines), MalformedLines: e.Malformed, DuplicateLines: duplicates(e.Lines),
	}
	var accepted []act
	for _, w := range e.Writes {
		switch {
		case w.Result == array.ResultDetached:
			r.RefusedWrites++
		case w.Result != array.ResultOK:
			r.FailedWrites++
		case !w.Fsync:
			accepted = append(accepted, act{by: WriterID{w.Host, w.Boot, w.Epoch}, mono: w.Mono})
		}
	}
	var written []act
	for _, l := range e.Lines {
		written = append(written, act{by: WriterID{l.Host, l.Boot, l.Epoch}, mono: l.Mono})
	}
	r.Interleavings = append(r.Interleavings, interleavings("array", accepted)...)
	r.Interleavings = append(r.Interleavings, interleavings("ledger", written)...)
	if e.Writes != nil {
		r.Writers = writers(accepted)
	} else {
		r.Writers = writers(written)
	}
	r.LostAcks = append(r.LostAcks, lost(e.Acks, e.Lines)...)
	return r
}

// interleavings finds, in the order of the acts, every one by a writer whose epoch is below the highest
// that was seen before, or equal to it under another name. One line per pair of writers.
func interleavings(witness string, acts []act) []Interleaving {
	var found []Interleaving
	at := map[[2]WriterID]int{}
	var newest WriterID
	for _, a := range acts {
		if a.by.Epoch > newest.Epoch || newest == (WriterID{}) {
			newest = a.by
		}
		if a.by == newest {
			continue
		}
		pair := [2]WriterID{a.by, newest}
		i, known := at[pair]
		if !known {
			i = len(found)
			at[pair] = i
			found = append(found, Interleaving{Witness: witness, Older: a.by, Newer: newest, First: a.mono})
		}
		found[i].Count++
		found[i].Last = a.mono
	}
	return found
}

func writers(acts []act) []Writer {
	all := []Writer{}
	at := map[WriterID]int{}
	for _, a := range acts {
		i, known := at[a.by]
		if !known {
			i = len(all)
			at[a.by] = i
			all = append(all, Writer{WriterID: a.by, First: a.mono, Last: a.mono})
		}
		w := &all[i]
		w.Count++
		w.MaxGapMillis = max(w.MaxGapMillis, float64(a.mono-w.Last)/1e6)
		w.Last = a.mono
	}
	slices.SortStableFunc(all, func(a, b Writer) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return all
}

func lost(acks []client.Ack, lines []ledger.Line) []LostAck {
	kept := make(map[string]uint64, len(lines))
	for _, l := range lines {
		if l.ID != "" {
			kept[l.ID] = l.Seq
		}
	}
	var gone []LostAck
	for _, a := range acks {
		if seq, ok := kept[a.ID]; !ok || seq != a.Seq {
			gone = append(gone, LostAck{ID: a.ID, Seq: a.Seq, Mono: a.Mono})
		}
	}
	return gone
}

func duplicates(lines []ledger.Line) int {
	type key struct {
		by  WriterID
		seq uint64
	}
	seen := make(map[key]bool, len(lines))
	count := 0
	for _, l := range lines {
		k := key{by: WriterID{l.Host, l.Boot, l.Epoch}, seq: l.Seq}
		if seen[k] {
			count++
		}
		seen[k] = true
	}
	return count
}

// ReadLedger reads a ledger. What is no whole line is counted, but the last line may be under way.
func ReadLedger(in io.Reader) ([]ledger.Line, int, error) {
	lines := []ledger.Line{}
	malformed := 0
	err := eachLine(in, func(text []byte) {
		l, err := ledger.ParseLine(string(text))
		if err != nil {
			malformed++
			return
		}
		lines = append(lines, l)
	})
	return lines, malformed, err
}

// ReadWrites reads the array's journal and keeps the lines of one volume. An empty name keeps all, which
// is right only when the journal speaks of one volume.
func ReadWrites(in io.Reader, volume string) ([]array.Write, error) {
	writes := []array.Write{}
	err := eachJSON(in, "writes", func(w array.Write) error {
		if volume == "" || w.Volume == volume {
			writes = append(writes, w)
		}
		if volume == "" && w.Volume != writes[0].Volume {
			return fmt.Errorf("the journal speaks of the volumes %q and %q: say which one with --volume", writes[0].Volume, w.Volume)
		}
		return nil
	})
	return writes, err
}

// ReadAcks reads the client's record.
func ReadAcks(in io.Reader) ([]client.Ack, error) {
	acks := []client.Ack{}
	err := eachJSON(in, "acks", func(a client.Ack) error {
		acks = append(acks, a)
		return nil
	})
	return acks, err
}

// eachJSON decodes line by line. What follows the last newline is still being written.
func eachJSON[T any](in io.Reader, what string, take func(T) error) error {
	number := 0
	var failed error
	err := eachLine(in, func(text []byte) {
		number++
		var one T
		if failed == nil {
			failed = json.Unmarshal(text, &one)
		}
		if failed == nil {
			failed = take(one)
		}
	})
	if failed != nil {
		return fmt.Errorf("%s, line %d: %w", what, number, failed)
	}
	return err
}

func eachLine(in io.Reader, take func([]byte)) error {
	r := bufio.NewReaderSize(in, 1<<16)
	for {
		text, err := r.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		take(text[:len(text)-1])
	}
}
