// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package figures is the arithmetic of the failover bench: which cases there are, what a row of results holds, and what many rows say. It touches
// neither a clock nor a cluster.
package figures

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"
)

// Kind is what is measured. docs/results/README.md tells them apart.
type Kind string

const (
	// Guarded is Holdfast in API-only mode: goal P3.
	Guarded Kind = "P1"
	// Unattached is the same with a volume that needs no attaching: Holdfast is the only gate, and no kubelet waits for its own next status.
	Unattached Kind = "P1n"
	// Prompt is P1 with kubelets that look at their own status every 2 s instead of 10 s, and mount that much earlier.
	Prompt Kind = "P1s"
	// Witnessed is P1 with an agent on every host: goal P1.
	Witnessed Kind = "P1w"
	// Hung is a host that hangs in silence, its power on, with an agent on every host: goal P2.
	Hung Kind = "P2w"
	// StatefulSet and Deployment are what Kubernetes does by itself.
	StatefulSet Kind = "B0"
	Deployment  Kind = "B1"
	// Human is a person who sets the out-of-service taint the instant the Node is Unknown.
	Human Kind = "B2"
)

// Kinds lists them. A kind keeps its place: its cases are drawn by it.
var Kinds = []Kind{Guarded, Prompt, Unattached, Human, Deployment, StatefulSet, Witnessed, Hung}

// ByHoldfast reports whether Holdfast brings the application elsewhere.
func (k Kind) ByHoldfast() bool { return slices.Contains(holdfasts, k) }

// holdfasts are the kinds that Holdfast brings elsewhere, in the order in which they are told.
var holdfasts = []Kind{Witnessed, Hung, Guarded, Prompt, Unattached}

// Outcome is how a case ended.
type Outcome string

const (
	// Recovered: the application wrote on another host.
	Recovered Outcome = "recovered"
	// Censored: it had not, when the case was given up at CensoredAt.
	Censored Outcome = "censored"
)

// Mark is a moment on the way from the fault to the first write elsewhere.
type Mark string

// The marks, in their order. Not every kind has every mark.
const (
	Suspected  Mark = "suspected"
	Opened     Mark = "opened"
	Commanded  Mark = "off_commanded"
	Proven     Mark = "proven"
	Deleted    Mark = "pod_deleted"
	Detached   Mark = "detached"
	Bound      Mark = "bound"
	Mounted    Mark = "mounted"
	Started    Mark = "started"
	FirstWrite Mark = "first_write"
)

// Marks lists them in order.
var Marks = []Mark{Suspected, Opened, Commanded, Proven, Deleted, Detached, Bound, Mounted, Started, FirstWrite}

// EndpointOut is when the Service's EndpointSlices told a watch that the lost pod is not ready. The way to the first write does not lead over it.
const EndpointOut Mark = "endpoint_out"

// Ends are when connections to the lost application ended, by who had them: a client in a pod of a surviving host, or on that host's network; one that only
// reads, or one that goes on writing. The way to the first write does not lead over them either.
var Ends = []Mark{"pod_reads_end", "pod_writes_end", "host_reads_end", "host_writes_end"}

// asides are the marks beside the way.
var asides = append([]Mark{EndpointOut}, Ends...)

// Row is one case.
type Row struct {
	Commit string
	Case
	Timings string
	// T0 is when the power was taken, as the lab's journal of faults has it.
	T0 time.Time
	// LeaseAge is how old the host's lease was then.
	LeaseAge time.Duration
	// Host was lost, NewHost wrote next.
	Host, NewHost string
	// Marks tell how long after T0 something was there.
	Marks   map[Mark]time.Duration
	Outcome Outcome
	// CensoredAt is how long after T0 a censored case was given up.
	CensoredAt time.Duration
	// Interleavings is how often an older writer wrote after a newer one, by the array's log.
	Interleavings int
	// ConfirmAfter is what the guard asks for before a host that hangs is fenced. Zero is not known.
	ConfirmAfter time.Duration
	// Clients is how many of Ends there were to see: connections that stood at T0.
	Clients int
}

// Whole is the time from the fault to the first write elsewhere; ok is false when it was not seen.
func (r Row) Whole() (d time.Duration, ok bool) {
	d, ok = r.Marks[FirstWrite]
	return d, ok && r.Outcome == Recovered
}

// Reset is the time from the proof until the last connection to the lost application had ended, or zero if that was before; ok is false when one was not
// seen to end, or the proof was not seen.
func (r Row) Reset() (d time.Duration, ok bool) {
	proven, ok := r.Marks[Proven]
	ended := 0
	for _, m := range Ends {
		if at, seen := r.Marks[m]; seen {
			ended, d = ended+1, max(d, at-proven)
		}
	}
	return d, ok && ended == r.Clients
}

// Free is the time from the fault until the application could start elsewhere: its pod is bound to another host, and its volume let go of the lost one.
// What is left until Whole is its start there. ok is false when that was not seen.
func (r Row) Free() (d time.Duration, ok bool) {
	if _, ok := r.Whole(); !ok {
		return 0, false
	}
	bound, ok1 := r.Marks[Bound]
	detached, ok2 := r.Marks[Detached]
	return max(bound, detached), ok1 && (ok2 || r.Kind == Unattached)
}

func header() []string {
	head := []string{"commit", "seed", "kind", "case", "timings", "t0", "lease_age_ms", "renewals", "host", "new_host"}
	for _, m := range Marks {
		head = append(head, string(m)+"_ms")
	}
	head = append(head, "outcome", "censored", "censored_at_ms", "interleavings", "confirm_after_ms", "clients")
	for _, m := range asides {
		head = append(head, string(m)+"_ms")
	}
	return head
}

func (r Row) record() []string {
	out := []string{r.Commit, strconv.FormatUint(r.Seed, 10), string(r.Kind), strconv.Itoa(r.Number), r.Timings, r.T0.UTC().Format(time.RFC3339Nano),
		millis(r.LeaseAge), strconv.Itoa(r.Renewals), r.Host, r.NewHost}
	for _, m := range Marks {
		out = append(out, r.mark(m))
	}
	censored := r.Outcome == Censored
	at, confirm := "", ""
	if censored {
		at = millis(r.CensoredAt)
	}
	if r.ConfirmAfter > 0 {
		confirm = millis(r.ConfirmAfter)
	}
	out = append(out, string(r.Outcome), strconv.FormatBool(censored), at, strconv.Itoa(r.Interleavings), confirm, strconv.Itoa(r.Clients))
	for _, m := range asides {
		out = append(out, r.mark(m))
	}
	return out
}

// mark is the field of a mark, which is empty for one that was not seen.
func (r Row) mark(m Mark) string {
	d, ok := r.Marks[m]
	if !ok {
		return ""
	}
	return millis(d)
}

func millis(d time.Duration) string { return strconv.FormatFloat(float64(d)/1e6, 'f', 1, 64) }

// Append adds a row to the file, which is made with its header if need be.
func Append(path string, r Row) (err error) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	stat, err := file.Stat()
	if err != nil {
		return err
	}
	w := csv.NewWriter(file)
	if stat.Size() == 0 {
		if err := w.Write(header()); err != nil {
			return err
		}
	}
	if err := w.Write(r.record()); err != nil {
		return err
	}
	w.Flush()
	return w.Error()
}

// Load reads a file of rows. A file that is not there has none.
func Load(path string) ([]Row, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	rows, err := read(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; mend it, or move it away to begin anew", path, err)
	}
	return rows, nil
}

func read(from io.Reader) ([]Row, error) {
	records, err := csv.NewReader(from).ReadAll()
	if err != nil || len(records) == 0 {
		return nil, err
	}
	if !slices.Equal(records[0], header()) {
		return nil, fmt.Errorf("line 1: columns %q, want %q", records[0], header())
	}
	var rows []Row
	for i, record := range records[1:] {
		r, err := parse(record)
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", i+1, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// fields reads one record from the left; the first thing that cannot be read is kept in err.
type fields struct {
	record, columns []string
	next            int
	err             error
}

func (f *fields) text() string {
	f.next++
	return f.record[f.next-1]
}

func (f *fields) check(err error) {
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("column %s: %w", f.columns[f.next-1], err)
	}
}

func (f *fields) number() int {
	n, err := strconv.Atoi(f.text())
	f.check(err)
	return n
}

func (f *fields) big() uint64 {
	n, err := strconv.ParseUint(f.text(), 10, 64)
	f.check(err)
	return n
}

func (f *fields) time() time.Time {
	t, err := time.Parse(time.RFC3339Nano, f.text())
	f.check(err)
	return t
}

// span reads milliseconds; an empty field is none.
func (f *fields) span() (time.Duration, bool) {
	text := f.text()
	if text == "" {
		return 0, false
	}
	ms, err := strconv.ParseFloat(text, 64)
	f.check(err)
	return time.Duration(ms * 1e6), err == nil
}

func parse(record []string) (Row, error) {
	f := &fields{record: record, columns: header()}
	r := Row{Commit: f.text(), Marks: map[Mark]time.Duration{}}
	r.Seed, r.Kind, r.Number, r.Timings, r.T0 = f.big(), Kind(f.text()), f.number(), f.text(), f.time()
	r.LeaseAge, _ = f.span()
	r.Renewals, r.Host, r.NewHost = f.number(), f.text(), f.text()
	for _, m := range Marks {
		if d, ok := f.span(); ok {
			r.Marks[m] = d
		}
	}
	r.Outcome = Outcome(f.text())
	f.text() // censored says the same for those who count
	r.CensoredAt, _ = f.span()
	r.Interleavings = f.number()
	r.ConfirmAfter, _ = f.span()
	r.Clients = f.number()
	for _, m := range asides {
		if d, ok := f.span(); ok {
			r.Marks[m] = d
		}
	}
	if f.err == nil && r.Outcome != Recovered && r.Outcome != Censored {
		f.err = fmt.Errorf("column outcome: %q is neither %s nor %s", r.Outcome, Recovered, Censored)
	}
	return r, f.err
}
