// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package array is the storage array of the lab: it serves volumes over TCP, knows which host is attached
// to which, and writes down every attempt to change one. See docs/spec/lab.md, "Storage".
//
// What the array accepted survives the death of the array's process, because it lies in the page cache of
// the machine, which plays the part of an array's battery-backed cache. An fsync therefore is a round trip
// and no disk flush.
package array

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"github.com/google/uuid"
)

// Kind classes the refusals of the array.
type Kind string

// The kinds of refusals.
const (
	KindInvalid  Kind = "invalid"  // the request makes no sense
	KindNotFound Kind = "notFound" // no such volume or host
	KindConflict Kind = "conflict" // another state is in the way; the message names it
	KindDetached Kind = "detached" // the host is not attached
)

// Refusal is an answer "no" of the array, with what to do about it.
type Refusal struct {
	Kind    Kind
	Message string
}

func (r *Refusal) Error() string { return r.Message }

func refuse(kind Kind, format string, args ...any) error {
	return &Refusal{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func errGone(volume string) error {
	return refuse(KindNotFound, "volume %q does not exist: create it, or see the list of volumes for its right name", volume)
}

// Array serves the volumes of one directory. Its methods may be called concurrently.
type Array struct {
	dir            string
	instance       string
	writes, events *journal

	mu      sync.Mutex
	volumes map[string]*volume
	hosts   map[string]string // host → boot ID that it last named
	conns   map[net.Conn]struct{}
	closed  bool
	serving sync.WaitGroup
}

// Open takes over the directory dir, which no other array may use:
//
//	volumes/NAME/volume.json   a Record
//	volumes/NAME/data/         the files
//	hosts.json                 host → boot ID
//	writes.jsonl, events.jsonl lines of Write and of Event
func Open(dir string) (*Array, error) {
	if err := os.MkdirAll(filepath.Join(dir, "volumes"), 0o755); err != nil {
		return nil, err
	}
	a := &Array{dir: dir, instance: uuid.NewString(), volumes: map[string]*volume{},
		hosts: map[string]string{}, conns: map[net.Conn]struct{}{}}
	if err := a.load(); err != nil {
		return nil, err
	}
	var err error
	if a.writes, err = openJournal(filepath.Join(dir, "writes.jsonl")); err != nil {
		return nil, err
	}
	a.events, err = openJournal(filepath.Join(dir, "events.jsonl"))
	return a, err
}

func (a *Array) load() error {
	b, err := os.ReadFile(filepath.Join(a.dir, "hosts.json"))
	if err == nil {
		err = json.Unmarshal(b, &a.hosts)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("hosts.json: %w", err)
	}
	dirs, err := os.ReadDir(filepath.Join(a.dir, "volumes"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := filepath.Join(a.dir, "volumes", d.Name())
		v, err := a.openVolumeDir(dir)
		if errors.Is(err, fs.ErrNotExist) { // died while it was created or deleted
			err = os.RemoveAll(dir)
		} else if err == nil {
			a.volumes[d.Name()] = v
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Flush writes out what the journals still buffer.
func (a *Array) Flush() error {
	return errors.Join(a.writes.flush(), a.events.flush())
}

// Close cuts all connections, waits until nothing is served any more and flushes the journals.
func (a *Array) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	for c := range a.conns {
		_ = c.Close() // its reader reports
	}
	a.mu.Unlock()
	a.serving.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range a.volumes {
		v.mu.Lock()
		v.deleted = true
		v.closeAll()
		v.mu.Unlock()
	}
	return errors.Join(a.writes.close(), a.events.close())
}

var volumeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// CreateVolume makes a volume, or accepts the one that exists when it has the same class and size.
// Name, Class and SizeBytes of r count.
func (a *Array) CreateVolume(r Record) (Record, error) {
	switch {
	case !volumeName.MatchString(r.Name):
		return Record{}, refuse(KindInvalid, "name %q: use 1 to 128 letters, digits, dots, dashes and underscores, beginning with a letter or digit", r.Name)
	case r.Class != Enforcing && r.Class != Permissive:
		return Record{}, refuse(KindInvalid, "class %q: use %q or %q", r.Class, Enforcing, Permissive)
	case r.SizeBytes <= 0:
		return Record{}, refuse(KindInvalid, "sizeBytes %d: use a positive number of bytes", r.SizeBytes)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := a.volumes[r.Name]; v != nil {
		have := v.snapshot()
		if have.Class != r.Class || have.SizeBytes != r.SizeBytes {
			return have, refuse(KindConflict, "volume %q exists with class %s and %d bytes: delete it or choose another name", r.Name, have.Class, have.SizeBytes)
		}
		return have, nil
	}
	v, err := a.createVolumeDir(Record{Name: r.Name, Class: r.Class, SizeBytes: r.SizeBytes})
	if err != nil {
		return Record{}, err
	}
	a.volumes[r.Name] = v
	return v.snapshot(), v.event("create", nil)
}

// DeleteVolume removes a volume and its files. One that is not there is deleted already.
func (a *Array) DeleteVolume(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.volumes[name]
	if v == nil {
		return nil
	}
	if err := v.remove(); err != nil {
		return err
	}
	delete(a.volumes, name)
	return nil
}

// Volume returns one volume.
func (a *Array) Volume(name string) (Record, error) {
	v, err := a.find(name)
	if err != nil {
		return Record{}, err
	}
	return v.snapshot(), nil
}

// Volumes returns all volumes by name.
func (a *Array) Volumes() []Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]Record, 0, len(a.volumes))
	for _, v := range a.volumes {
		all = append(all, v.snapshot())
	}
	slices.SortFunc(all, func(x, y Record) int { return cmp.Compare(x.Name, y.Name) })
	return all
}

// Attach attaches an enforcing volume to a host that the array knows.
func (a *Array) Attach(name, host string) (Record, error) {
	v, err := a.find(name)
	if err != nil {
		return Record{}, err
	}
	if !a.knows(host) {
		return Record{}, refuse(KindNotFound, "host %q is not known to the array: start its CSI node plugin, or register it", host)
	}
	if err := v.attach(host); err != nil {
		return Record{}, err
	}
	return v.snapshot(), nil
}

// Detach ends the attachment to a host, whichever it is when host is empty. From its return on, nothing
// that the host sends is accepted.
func (a *Array) Detach(name, host string) (Record, error) {
	v, err := a.find(name)
	if err != nil {
		return Record{}, err
	}
	if err := v.detach(host); err != nil {
		return Record{}, err
	}
	return v.snapshot(), nil
}

// RegisterHost makes a host known, with the boot ID that it named; boot may be empty.
func (a *Array) RegisterHost(host, boot string) error {
	if host == "" {
		return refuse(KindInvalid, "host: name the host")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	have, known := a.hosts[host]
	if known && (boot == "" || have == boot) {
		return nil
	}
	a.hosts[host] = boot
	b, err := json.MarshalIndent(a.hosts, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(a.dir, "hosts.json")
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Hosts returns the boot ID that each known host last named.
func (a *Array) Hosts() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make(map[string]string, len(a.hosts))
	for h, b := range a.hosts {
		all[h] = b
	}
	return all
}

func (a *Array) knows(host string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.hosts[host]
	return ok
}

func (a *Array) find(name string) (*volume, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := a.volumes[name]; v != nil {
		return v, nil
	}
	return nil, errGone(name)
}
