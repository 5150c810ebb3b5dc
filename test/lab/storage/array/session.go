// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package array

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/stamp"
	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

// session carries out the requests of one mount.
type session struct {
	volume *volume
	mount  *mount
}

// answer carries out one request; one that must happen once is answered from memory when it is repeated.
func (s session) answer(q *wire.Request) wire.Response {
	if q.Op.Once() {
		return s.mount.once(q.ID, func() wire.Response { return s.do(q) })
	}
	return s.do(q)
}

// do decides, acts and writes the journal in one step under the volume's lock.
func (s session) do(q *wire.Request) wire.Response {
	v := s.volume
	v.mu.Lock()
	defer v.mu.Unlock()
	if q.Op == wire.OpUnmount {
		return failed(s.unmount())
	}
	if !v.admits(s.mount) {
		return s.journaled(q, failed(syscall.EIO), ResultDetached)
	}
	if q.Op == wire.OpWrite && q.Append {
		if err := s.seekEnd(q); err != nil {
			return s.journaled(q, failed(err), ResultError)
		}
	}
	response, err := s.perform(q)
	if err != nil {
		return s.journaled(q, failed(err), ResultError)
	}
	return s.journaled(q, response, ResultOK)
}

func failed(err error) wire.Response {
	return wire.Response{Errno: int32(errnoOf(err))}
}

// journaled writes the line of an attempt to change the volume and passes the response on. A judge that
// cannot write must not let the change count: the host gets EIO.
func (s session) journaled(q *wire.Request, response wire.Response, result Result) wire.Response {
	op, isChange := changeName(q)
	if !isChange {
		return response
	}
	line := Write{
		Stamp: stamp.Now(), Volume: s.volume.record.Name, File: q.Path,
		Host: s.mount.host, Boot: s.mount.boot, Epoch: s.mount.epoch,
		Offset: q.Offset, Length: int64(len(q.Data)), Fsync: q.Op == wire.OpFsync, Result: result, Op: op,
	}
	if op == "truncate" {
		line.Offset = q.Size
	}
	if err := s.volume.array.writes.append(line); err != nil {
		return failed(syscall.EIO)
	}
	return response
}

// changeName tells whether a request tries to change the volume, and its name in the journal.
func changeName(q *wire.Request) (name string, isChange bool) {
	switch q.Op {
	case wire.OpWrite, wire.OpFsync:
		return "", true
	case wire.OpCreate:
		return "create", true
	case wire.OpMkdir:
		return "mkdir", true
	case wire.OpRmdir:
		return "rmdir", true
	case wire.OpUnlink:
		return "unlink", true
	case wire.OpRename:
		return "rename", true
	case wire.OpSetattr:
		return "truncate", q.Valid&wire.SetSize != 0
	default:
		return "", false
	}
}

func (s session) unmount() error {
	s.mount.closeFiles()
	delete(s.volume.mounts, s.mount.id)
	return s.volume.event("unmount", &Holder{Host: s.mount.host, Boot: s.mount.boot})
}

func (s session) perform(q *wire.Request) (wire.Response, error) {
	switch q.Op {
	case wire.OpLookup, wire.OpGetattr:
		return s.getattr(q)
	case wire.OpSetattr:
		return s.setattr(q)
	case wire.OpOpen:
		return s.open(q)
	case wire.OpCreate:
		return s.create(q)
	case wire.OpRelease:
		return s.release(q)
	case wire.OpRead:
		return s.read(q)
	case wire.OpWrite:
		return s.write(q)
	case wire.OpFsync:
		_, err := s.file(q)
		return wire.Response{}, err
	case wire.OpReaddir:
		return s.readdir(q)
	case wire.OpMkdir, wire.OpRmdir, wire.OpUnlink, wire.OpRename:
		return s.changeNames(q)
	case wire.OpStatfs:
		return s.statfs()
	case wire.OpSession:
		return s.describe()
	default:
		return wire.Response{}, syscall.ENOSYS
	}
}

// file returns the open file of q.Handle. A handle that is not known, because the array was started anew,
// is opened again by its path.
func (s session) file(q *wire.Request) (*os.File, error) {
	if f := s.mount.files[q.Handle]; f != nil {
		return f, nil
	}
	if q.Handle == 0 {
		return nil, syscall.EBADF
	}
	f, err := s.volume.root.OpenFile(q.Path, os.O_RDWR, 0)
	if err == nil {
		s.mount.files[q.Handle] = f
	}
	return f, err
}

func (s session) seekEnd(q *wire.Request) error {
	f, err := s.file(q)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		q.Offset = st.Size()
	}
	return err
}

func (s session) getattr(q *wire.Request) (wire.Response, error) {
	if f := s.mount.files[q.Handle]; f != nil {
		st, err := f.Stat()
		return attrOf(st, err)
	}
	return attrOf(s.volume.root.Lstat(q.Path))
}

func attrOf(st os.FileInfo, err error) (wire.Response, error) {
	if err != nil {
		return wire.Response{}, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return wire.Response{}, syscall.EIO
	}
	return wire.Response{Attr: wire.Attr{
		Ino: sys.Ino, Size: sys.Size, Blocks: sys.Blocks, Mode: sys.Mode, Nlink: uint32(sys.Nlink),
		UID: sys.Uid, GID: sys.Gid,
		Atime: sys.Atim.Nano(), Mtime: sys.Mtim.Nano(), Ctime: sys.Ctim.Nano(),
	}}, nil
}

func (s session) setattr(q *wire.Request) (wire.Response, error) {
	root := s.volume.root
	if q.Valid&wire.SetMode != 0 {
		if err := chmod(root, q.Path, q.Mode); err != nil {
			return wire.Response{}, err
		}
	}
	if q.Valid&(wire.SetUID|wire.SetGID) != 0 {
		uid, gid := -1, -1
		if q.Valid&wire.SetUID != 0 {
			uid = int(q.UID)
		}
		if q.Valid&wire.SetGID != 0 {
			gid = int(q.GID)
		}
		if err := root.Lchown(q.Path, uid, gid); err != nil {
			return wire.Response{}, err
		}
	}
	if q.Valid&wire.SetSize != 0 {
		if err := s.truncate(q); err != nil {
			return wire.Response{}, err
		}
	}
	if q.Valid&(wire.SetAtime|wire.SetMtime) != 0 {
		if err := root.Chtimes(q.Path, timeIf(q.Valid&wire.SetAtime, q.Atime), timeIf(q.Valid&wire.SetMtime, q.Mtime)); err != nil {
			return wire.Response{}, err
		}
	}
	return s.getattr(q)
}

// timeIf returns the zero time, which Chtimes leaves alone, when the bit is not set.
func timeIf(bit uint32, nanos int64) time.Time {
	if bit == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

// chmod takes the permission bits as stat(2) writes them.
func chmod(root *os.Root, name string, mode uint32) error {
	m := os.FileMode(mode & 0o777)
	if mode&syscall.S_ISUID != 0 {
		m |= os.ModeSetuid
	}
	if mode&syscall.S_ISGID != 0 {
		m |= os.ModeSetgid
	}
	if mode&syscall.S_ISVTX != 0 {
		m |= os.ModeSticky
	}
	return root.Chmod(name, m)
}

func (s session) truncate(q *wire.Request) error {
	st, err := s.volume.root.Lstat(q.Path)
	if err != nil {
		return err
	}
	if err := s.volume.reserve(q.Size - st.Size()); err != nil {
		return err
	}
	f, err := s.volume.root.OpenFile(q.Path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing is buffered in it
	return f.Truncate(q.Size)
}

func (s session) open(q *wire.Request) (wire.Response, error) {
	flags := os.O_RDWR
	if q.Flags&syscall.O_TRUNC != 0 {
		flags |= os.O_TRUNC
	}
	f, err := s.volume.root.OpenFile(q.Path, flags, 0)
	if err != nil {
		return wire.Response{}, err
	}
	s.keep(q.Handle, f)
	return wire.Response{}, nil
}

// keep replaces what a repeated open left under the handle.
func (s session) keep(handle uint64, f *os.File) {
	if old := s.mount.files[handle]; old != nil {
		_ = old.Close()
	}
	s.mount.files[handle] = f
}

func (s session) create(q *wire.Request) (wire.Response, error) {
	root := s.volume.root
	_, err := root.Lstat(q.Path)
	isNew := err != nil
	f, err := root.OpenFile(q.Path, os.O_RDWR|os.O_CREATE|int(q.Flags)&(os.O_EXCL|os.O_TRUNC), 0o600)
	if err != nil {
		return wire.Response{}, err
	}
	if isNew {
		if err := s.own(q); err != nil {
			_ = f.Close()
			return wire.Response{}, err
		}
	}
	s.keep(q.Handle, f)
	return attrOf(f.Stat())
}

// own gives a new file or directory to the user who made it.
func (s session) own(q *wire.Request) error {
	if err := s.volume.root.Lchown(q.Path, int(q.UID), int(q.GID)); err != nil {
		return err
	}
	return chmod(s.volume.root, q.Path, q.Mode)
}

func (s session) release(q *wire.Request) (wire.Response, error) {
	if f := s.mount.files[q.Handle]; f != nil {
		delete(s.mount.files, q.Handle)
		return wire.Response{}, f.Close()
	}
	return wire.Response{}, nil
}

func (s session) read(q *wire.Request) (wire.Response, error) {
	f, err := s.file(q)
	if err != nil {
		return wire.Response{}, err
	}
	buf := make([]byte, q.Size)
	n, err := f.ReadAt(buf, q.Offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return wire.Response{Data: buf[:n]}, err
}

func (s session) write(q *wire.Request) (wire.Response, error) {
	f, err := s.file(q)
	if err != nil {
		return wire.Response{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return wire.Response{}, err
	}
	if err := s.volume.reserve(q.Offset + int64(len(q.Data)) - st.Size()); err != nil {
		return wire.Response{}, err
	}
	n, err := f.WriteAt(q.Data, q.Offset)
	return wire.Response{Size: int64(n)}, err
}

func (s session) readdir(q *wire.Request) (wire.Response, error) {
	f, err := s.volume.root.Open(q.Path)
	if err != nil {
		return wire.Response{}, err
	}
	defer func() { _ = f.Close() }() // nothing is buffered in it
	infos, err := f.Readdir(-1)
	if err != nil {
		return wire.Response{}, err
	}
	entries := make([]wire.Entry, 0, len(infos))
	for _, st := range infos {
		r, err := attrOf(st, nil)
		if err != nil {
			return wire.Response{}, err
		}
		entries = append(entries, wire.Entry{Name: st.Name(), Ino: r.Attr.Ino, Mode: r.Attr.Mode})
	}
	return wire.Response{Entries: entries}, nil
}

func (s session) changeNames(q *wire.Request) (wire.Response, error) {
	root := s.volume.root
	switch q.Op {
	case wire.OpMkdir:
		if err := root.Mkdir(q.Path, 0o700); err != nil {
			return wire.Response{}, err
		}
		if err := s.own(q); err != nil {
			return wire.Response{}, err
		}
		return attrOf(root.Lstat(q.Path))
	case wire.OpRename:
		return wire.Response{}, root.Rename(path.Clean(q.Path), path.Clean(q.NewPath))
	}
	st, err := root.Lstat(q.Path)
	switch {
	case err != nil:
		return wire.Response{}, err
	case q.Op == wire.OpRmdir && !st.IsDir():
		return wire.Response{}, syscall.ENOTDIR
	case q.Op == wire.OpUnlink && st.IsDir():
		return wire.Response{}, syscall.EISDIR
	}
	return wire.Response{}, root.Remove(q.Path)
}

func (s session) statfs() (wire.Response, error) {
	var err error
	if s.volume.used, err = s.volume.measure(); err != nil {
		return wire.Response{}, err
	}
	size := s.volume.record.SizeBytes
	return wire.Response{Statfs: wire.Statfs{TotalBytes: size, FreeBytes: max(0, size-s.volume.used)}}, nil
}

func (s session) describe() (wire.Response, error) {
	b, err := json.Marshal(wire.SessionRecord{
		Volume: s.volume.record.Name, Class: string(s.volume.record.Class),
		Host: s.mount.host, Boot: s.mount.boot, Epoch: s.mount.epoch,
	})
	return wire.Response{Data: append(b, '\n')}, err
}
