// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package array

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/holdfast-dev/holdfast/test/lab/storage/stamp"
	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

// Class says what the array does with a host that is not attached.
type Class string

// The classes of volumes.
const (
	// Enforcing refuses a mount that is not the attached one with EIO.
	Enforcing Class = "enforcing"
	// Permissive serves every mount; the array only writes down who wrote.
	Permissive Class = "permissive"
)

// Holder is who holds a volume. Boot is empty from the attachment to the first mount.
type Holder struct {
	Host string `json:"host"`
	Boot string `json:"boot"`
}

// Record is what the array keeps of a volume and what the control API answers.
type Record struct {
	Name      string `json:"name"`
	Class     Class  `json:"class"`
	SizeBytes int64  `json:"sizeBytes"`
	// Epoch counts attachments: it grows whenever a (host, boot) that is not the holder attaches or mounts.
	Epoch uint64 `json:"epoch"`
	// Holder is nil when nobody is attached (enforcing) or nobody ever mounted (permissive).
	Holder *Holder `json:"holder,omitempty"`
}

// volume is one directory of the array. mu makes the decision to accept a write, the write and its line in
// the journal one step: when detach returns, nothing of the detached host is accepted any more.
type volume struct {
	mu      sync.Mutex
	array   *Array
	dir     string
	root    *os.Root
	record  Record
	mounts  map[string]*mount
	used    int64 // upper bound of the bytes in files, see reserve
	deleted bool
}

func (a *Array) createVolumeDir(r Record) (*volume, error) {
	dir := filepath.Join(a.dir, "volumes", r.Name)
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o777); err != nil {
		return nil, err
	}
	// Any user of a pod may write at the top, as on a freshly exported share.
	if err := os.Chmod(filepath.Join(dir, "data"), 0o777); err != nil {
		return nil, err
	}
	v := &volume{dir: dir, record: r}
	if err := v.persist(); err != nil {
		return nil, err
	}
	return a.openVolumeDir(dir)
}

func (a *Array) openVolumeDir(dir string) (*volume, error) {
	b, err := os.ReadFile(filepath.Join(dir, "volume.json"))
	if err != nil {
		return nil, err
	}
	v := &volume{array: a, dir: dir, mounts: map[string]*mount{}}
	if err := json.Unmarshal(b, &v.record); err != nil {
		return nil, fmt.Errorf("%s/volume.json: %w", dir, err)
	}
	if v.root, err = os.OpenRoot(filepath.Join(dir, "data")); err != nil {
		return nil, err
	}
	v.used, err = v.measure()
	return v, err
}

// persist replaces volume.json in one step. The caller holds mu, or the volume is not shared yet.
func (v *volume) persist() error {
	b, err := json.MarshalIndent(v.record, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(v.dir, "volume.json")
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// change edits the record, makes it durable and writes an event; when the disk refuses, nothing changed.
// The caller holds mu.
func (v *volume) change(event string, edit func(*Record)) error {
	before := v.record
	who := before.Holder
	edit(&v.record) // replaces Holder, never writes through it
	if err := v.persist(); err != nil {
		v.record = before
		return err
	}
	if v.record.Holder != nil {
		who = v.record.Holder
	}
	return v.event(event, who)
}

func (v *volume) event(event string, who *Holder) error {
	e := Event{Stamp: stamp.Now(), Event: event, Volume: v.record.Name, Epoch: v.record.Epoch}
	if who != nil {
		e.Host, e.Boot = who.Host, who.Boot
	}
	return v.array.events.append(e)
}

// attach makes host the holder of an enforcing volume. The boot becomes known at the first mount.
func (v *volume) attach(host string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch h := v.record.Holder; {
	case v.deleted:
		return errGone(v.record.Name)
	case v.record.Class != Enforcing:
		return refuse(KindInvalid, "volume %q is %s: such volumes are mounted without being attached", v.record.Name, v.record.Class)
	case h != nil && h.Host == host:
		return nil
	case h != nil:
		return refuse(KindConflict, "volume %q is attached to host %q: detach it there first", v.record.Name, h.Host)
	}
	return v.change("attach", func(r *Record) {
		r.Epoch++
		r.Holder = &Holder{Host: host}
	})
}

// detach ends the attachment to host, or to whichever host it is when host is empty. It is done when the
// volume is not attached to that host.
func (v *volume) detach(host string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.record.Holder
	switch {
	case v.record.Class != Enforcing:
		return refuse(KindInvalid, "volume %q is %s: it cannot be detached, only isolating the host keeps it away", v.record.Name, v.record.Class)
	case h == nil, host != "" && h.Host != host:
		return nil
	}
	return v.change("detach", func(r *Record) { r.Holder = nil })
}

// admit decides on a new mount by (host, boot) and returns the epoch of the mount.
func (v *volume) admit(host, boot string) (uint64, error) {
	h := v.record.Holder
	switch {
	case v.record.Class == Enforcing && (h == nil || h.Host != host):
		return 0, refuse(KindDetached, "volume %q is not attached to host %q", v.record.Name, host)
	case h != nil && h.Host == host && h.Boot == boot:
		return v.record.Epoch, v.event("mount", h)
	case v.record.Class == Enforcing && h.Boot == "": // the first mount after the attachment
		err := v.change("mount", func(r *Record) { r.Holder = &Holder{Host: host, Boot: boot} })
		return v.record.Epoch, err
	}
	err := v.change("mount", func(r *Record) {
		r.Epoch++
		r.Holder = &Holder{Host: host, Boot: boot}
	})
	return v.record.Epoch, err
}

// admits reports whether the volume serves mount m now. The caller holds mu.
func (v *volume) admits(m *mount) bool {
	if v.deleted {
		return false
	}
	if v.record.Class == Permissive {
		return true
	}
	h := v.record.Holder
	return h != nil && h.Host == m.host && h.Boot == m.boot && m.epoch == v.record.Epoch
}

// mountFor returns the mount that hello speaks of, new or remembered, and cuts the connection that it
// had: what is still unread there must not be carried out after what the new connection brings.
func (v *volume) mountFor(hello wire.Hello) (*mount, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.deleted {
		return nil, errGone(v.record.Name)
	}
	if m := v.mounts[hello.Mount]; m != nil {
		return m, nil
	}
	epoch := hello.Epoch
	if epoch == 0 {
		var err error
		if epoch, err = v.admit(hello.Host, hello.Boot); err != nil {
			return nil, err
		}
		v.forgetOtherBoots(hello.Host, hello.Boot)
	}
	m := &mount{id: hello.Mount, host: hello.Host, boot: hello.Boot, epoch: epoch,
		files: map[uint64]*os.File{}, replies: map[uint64]*reply{}}
	v.mounts[m.id] = m
	return m, nil
}

// forgetOtherBoots closes what earlier boots of a host left open: they cannot come back.
func (v *volume) forgetOtherBoots(host, boot string) {
	for id, m := range v.mounts {
		if m.host == host && m.boot != boot {
			m.closeFiles()
			delete(v.mounts, id)
		}
	}
}

// remove deletes the volume. An attached enforcing volume is kept.
func (v *volume) remove() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.record.Class == Enforcing && v.record.Holder != nil {
		return refuse(KindConflict, "volume %q is attached to host %q: detach it before deleting it", v.record.Name, v.record.Holder.Host)
	}
	v.deleted = true
	v.closeAll()
	return errors.Join(os.RemoveAll(v.dir), v.event("delete", nil))
}

// closeAll ends all mounts. The caller holds mu.
func (v *volume) closeAll() {
	for _, m := range v.mounts {
		m.closeFiles()
		m.replaceConn(nil)
	}
	clear(v.mounts)
	if err := v.root.Close(); err != nil {
		slog.Warn("closing a volume", "volume", v.record.Name, "err", err)
	}
}

func (v *volume) snapshot() Record {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.record
	if r.Holder != nil {
		h := *r.Holder
		r.Holder = &h
	}
	return r
}

// reserve makes room for growth bytes or returns ENOSPC. used may overstate what files hold, because
// deletions are not counted down; it is measured before anything is refused. The caller holds mu.
func (v *volume) reserve(growth int64) error {
	if growth <= 0 {
		return nil
	}
	if v.used+growth > v.record.SizeBytes {
		var err error
		if v.used, err = v.measure(); err != nil {
			return err
		}
		if v.used+growth > v.record.SizeBytes {
			return syscall.ENOSPC
		}
	}
	v.used += growth
	return nil
}

// measure sums the sizes of all files.
func (v *volume) measure() (int64, error) {
	var sum int64
	err := fs.WalkDir(v.root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
