// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger"
	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger/client"
	"github.com/holdfast-dev/holdfast/test/lab/storage/stamp"
)

var (
	first  = WriterID{Host: "host-1", Boot: "b1", Epoch: 1}
	second = WriterID{Host: "host-2", Boot: "b2", Epoch: 2}
)

const ms = int64(1e6)

func write(by WriterID, mono int64, result array.Result) array.Write {
	return array.Write{Stamp: stamp.Stamp{Mono: mono}, Volume: "v", File: "ledger", Host: by.Host, Boot: by.Boot,
		Epoch: by.Epoch, Length: 60, Result: result}
}

func line(by WriterID, mono int64, seq uint64, id string) ledger.Line {
	return ledger.Line{Mono: mono, Host: by.Host, Boot: by.Boot, Epoch: by.Epoch, Seq: seq, ID: id}
}

func ack(id string, seq uint64) client.Ack {
	return client.Ack{Stamp: stamp.Stamp{Mono: 7}, ID: id, Seq: seq}
}

func TestInterleavings(t *testing.T) {
	for name, c := range map[string]struct {
		writes []array.Write
		lines  []ledger.Line
		want   []Interleaving
	}{
		"one writer after the other is innocent": {
			writes: []array.Write{write(first, 10, array.ResultOK), write(second, 20, array.ResultOK), write(second, 30, array.ResultOK)},
			lines:  []ledger.Line{line(first, 10, 1, ""), line(second, 20, 2, "")},
		},
		"an older writer's write that the array refused is innocent": {
			writes: []array.Write{write(first, 10, array.ResultOK), write(second, 20, array.ResultOK), write(first, 30, array.ResultDetached)},
		},
		"an older writer may go on until the newer one writes": {
			writes: []array.Write{write(first, 10, array.ResultOK), write(first, 20, array.ResultOK), write(second, 30, array.ResultOK)},
		},
		"an older writer's accepted write after the newer one's first is guilty": {
			writes: []array.Write{write(first, 10, array.ResultOK), write(second, 20, array.ResultOK), write(first, 30, array.ResultOK),
				write(second, 40, array.ResultOK), write(first, 50, array.ResultOK)},
			want: []Interleaving{{Witness: "array", Older: first, Newer: second, Count: 2, First: 30, Last: 50}},
		},
		"the ledger alone convicts": {
			lines: []ledger.Line{line(first, 10, 1, ""), line(second, 20, 2, ""), line(first, 30, 2, "")},
			want:  []Interleaving{{Witness: "ledger", Older: first, Newer: second, Count: 1, First: 30, Last: 30}},
		},
		"two writers in one epoch are guilty": {
			writes: []array.Write{write(first, 10, array.ResultOK), write(WriterID{Host: "host-9", Boot: "b9", Epoch: 1}, 20, array.ResultOK)},
			want: []Interleaving{{Witness: "array", Older: WriterID{Host: "host-9", Boot: "b9", Epoch: 1}, Newer: first,
				Count: 1, First: 20, Last: 20}},
		},
		"the same host after a reboot is another writer": {
			writes: []array.Write{write(first, 10, array.ResultOK), write(WriterID{Host: "host-1", Boot: "b7", Epoch: 2}, 20, array.ResultOK),
				write(first, 30, array.ResultOK)},
			want: []Interleaving{{Witness: "array", Older: first, Newer: WriterID{Host: "host-1", Boot: "b7", Epoch: 2},
				Count: 1, First: 30, Last: 30}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := Judge(Evidence{Lines: c.lines, Writes: c.writes})
			if c.want == nil {
				c.want = []Interleaving{}
			}
			if !reflect.DeepEqual(r.Interleavings, c.want) {
				t.Errorf("interleavings:\n got %+v\nwant %+v", r.Interleavings, c.want)
			}
			if r.Guilty() != (len(c.want) > 0) {
				t.Errorf("guilty: %v", r.Guilty())
			}
		})
	}
}

func TestAcknowledgementsMustBeKept(t *testing.T) {
	lines := []ledger.Line{line(first, 1, 1, "a"), line(first, 2, 2, ""), line(second, 3, 3, "c")}
	r := Judge(Evidence{Lines: lines, Acks: []client.Ack{ack("a", 1), ack("b", 2), ack("c", 4), ack("c", 3)}})
	want := []LostAck{{ID: "b", Seq: 2, Mono: 7}, {ID: "c", Seq: 4, Mono: 7}}
	if !reflect.DeepEqual(r.LostAcks, want) || r.Acked != 4 || !r.Guilty() {
		t.Errorf("got %+v, acked %d, guilty %v; want %+v, 4, true", r.LostAcks, r.Acked, r.Guilty(), want)
	}
}

func TestWritersAreSummedUpFromAcceptedWrites(t *testing.T) {
	fsync := write(first, 45*ms, array.ResultOK)
	fsync.Fsync = true
	r := Judge(Evidence{Writes: []array.Write{
		write(first, 10*ms, array.ResultOK), write(first, 20*ms, array.ResultOK), write(first, 45*ms, array.ResultOK), fsync,
		write(first, 50*ms, array.ResultDetached), write(first, 60*ms, array.ResultError), write(second, 70*ms, array.ResultOK),
	}})
	want := []Writer{
		{WriterID: first, First: 10 * ms, Last: 45 * ms, Count: 3, MaxGapMillis: 25},
		{WriterID: second, First: 70 * ms, Last: 70 * ms, Count: 1},
	}
	if !reflect.DeepEqual(r.Writers, want) {
		t.Errorf("writers:\n got %+v\nwant %+v", r.Writers, want)
	}
	if r.RefusedWrites != 1 || r.FailedWrites != 1 {
		t.Errorf("refused %d, failed %d; want 1 and 1", r.RefusedWrites, r.FailedWrites)
	}
}

func TestAnAppendDoneTwiceIsCounted(t *testing.T) {
	r := Judge(Evidence{Lines: []ledger.Line{line(first, 1, 1, ""), line(first, 1, 1, ""), line(second, 2, 1, "")}})
	if r.DuplicateLines != 1 || r.Guilty() {
		t.Errorf("duplicates %d, guilty %v; want 1, false", r.DuplicateLines, r.Guilty())
	}
}

func TestReadLedgerCountsWhatIsNoWholeLine(t *testing.T) {
	lines, malformed, err := ReadLedger(strings.NewReader("1 host-1 b1 1 1\n2 host-1\n3 host-1 b1 1 2 id\n4 host-1 b"))
	if err != nil {
		t.Fatal(err)
	}
	want := []ledger.Line{line(first, 1, 1, ""), line(first, 3, 2, "id")}
	if !reflect.DeepEqual(lines, want) || malformed != 1 {
		t.Errorf("got %+v, malformed %d; want %+v, 1", lines, malformed, want)
	}
}

func TestReadWrites(t *testing.T) {
	journal := `{"mono":1,"wall":"w","volume":"v","file":"ledger","host":"host-1","boot":"b1","epoch":1,"offset":0,"length":60,"fsync":false,"result":"ok"}
{"mono":2,"volume":"other","result":"ok"}
{"mono":3,"volume":"v","resu`
	writes, err := ReadWrites(strings.NewReader(journal), "v")
	want := write(first, 1, array.ResultOK)
	want.Wall = "w"
	if err != nil || !reflect.DeepEqual(writes, []array.Write{want}) {
		t.Errorf("got %+v, %v", writes, err)
	}
	if _, err := ReadWrites(strings.NewReader(journal), ""); err == nil || !strings.Contains(err.Error(), `"v" and "other": say which one with --volume`) {
		t.Errorf("two volumes and no --volume: %v", err)
	}
	if _, err := ReadWrites(strings.NewReader("{}\nnonsense\n"), ""); err == nil || !strings.Contains(err.Error(), "writes, line 2") {
		t.Errorf("nonsense in line 2: %v", err)
	}
}
