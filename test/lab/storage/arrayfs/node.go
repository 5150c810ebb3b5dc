// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package arrayfs

import (
	"context"
	"path"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayclient"
	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

// volume is what all nodes of a mount share.
type volume struct {
	session *arrayclient.Session
	handles atomic.Uint64
}

// do carries out one operation for the process that ctx stands for.
func (v *volume) do(ctx context.Context, q *wire.Request) (wire.Response, syscall.Errno) {
	call := v.session.Start(q)
	r, answered := call.Wait(ctx.Done())
	for !answered {
		// Some signal arrived. Only one that kills the caller may end the wait: a caller that lives on would
		// repeat a write which the array may have done already.
		if callerDies(ctx) {
			call.Abandon()
		}
		r, answered = call.Wait(soon())
	}
	return r, syscall.Errno(r.Errno)
}

// node is a file or directory of the volume.
type node struct {
	fs.Inode
	volume *volume
}

// handle is an open file. Its number is the array's name for it.
type handle struct {
	number     uint64
	appendOnly bool
}

var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeReleaser  = (*node)(nil)
	_ fs.NodeReaddirer = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
)

// path returns where the node is in the volume, "." for the root.
func (n *node) path() string {
	if n.IsRoot() {
		return "."
	}
	return n.Path(n.Root())
}

func (n *node) child(name string) string { return path.Join(n.path(), name) }

// request names the node and, when there is one, the open file.
func (n *node) request(op wire.Op, f fs.FileHandle) *wire.Request {
	q := &wire.Request{Op: op, Path: n.path()}
	if h, ok := f.(*handle); ok {
		q.Handle = h.number
	}
	return q
}

func (n *node) newHandle(flags uint32) *handle {
	return &handle{number: n.volume.handles.Add(1), appendOnly: flags&syscall.O_APPEND != 0}
}

// adopt makes the inode of a name that the array has just described.
func (n *node) adopt(ctx context.Context, a wire.Attr, out *fuse.Attr) *fs.Inode {
	fill(out, a)
	return n.NewInode(ctx, &node{volume: n.volume}, fs.StableAttr{Mode: a.Mode & syscall.S_IFMT, Ino: a.Ino})
}

func fill(out *fuse.Attr, a wire.Attr) {
	out.Ino, out.Size, out.Blocks, out.Mode, out.Nlink = a.Ino, uint64(a.Size), uint64(a.Blocks), a.Mode, a.Nlink
	out.Owner = fuse.Owner{Uid: a.UID, Gid: a.GID}
	out.Atime, out.Atimensec = uint64(a.Atime/1e9), uint32(a.Atime%1e9)
	out.Mtime, out.Mtimensec = uint64(a.Mtime/1e9), uint32(a.Mtime%1e9)
	out.Ctime, out.Ctimensec = uint64(a.Ctime/1e9), uint32(a.Ctime%1e9)
	out.Blksize = 4096
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.IsRoot() && name == arrayDir {
		return n.lookupArrayDir(ctx, out), 0
	}
	r, errno := n.volume.do(ctx, &wire.Request{Op: wire.OpLookup, Path: n.child(name)})
	if errno != 0 {
		return nil, errno
	}
	return n.adopt(ctx, r.Attr, &out.Attr), 0
}

func (n *node) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	r, errno := n.volume.do(ctx, n.request(wire.OpGetattr, f))
	if errno == 0 {
		fill(&out.Attr, r.Attr)
	}
	return errno
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	q := n.request(wire.OpSetattr, f)
	if mode, ok := in.GetMode(); ok {
		q.Mode, q.Valid = mode, q.Valid|wire.SetMode
	}
	if uid, ok := in.GetUID(); ok {
		q.UID, q.Valid = uid, q.Valid|wire.SetUID
	}
	if gid, ok := in.GetGID(); ok {
		q.GID, q.Valid = gid, q.Valid|wire.SetGID
	}
	if size, ok := in.GetSize(); ok {
		q.Size, q.Valid = int64(size), q.Valid|wire.SetSize
	}
	if t, ok := in.GetATime(); ok {
		q.Atime, q.Valid = t.UnixNano(), q.Valid|wire.SetAtime
	}
	if t, ok := in.GetMTime(); ok {
		q.Mtime, q.Valid = t.UnixNano(), q.Valid|wire.SetMtime
	}
	r, errno := n.volume.do(ctx, q)
	if errno == 0 {
		fill(&out.Attr, r.Attr)
	}
	return errno
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h := n.newHandle(flags)
	q := n.request(wire.OpOpen, h)
	q.Flags = flags
	if _, errno := n.volume.do(ctx, q); errno != 0 {
		return nil, 0, errno
	}
	return h, fuse.FOPEN_DIRECT_IO, 0
}

func (n *node) Create(ctx context.Context, name string, flags uint32, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	h := n.newHandle(flags)
	q := n.creation(ctx, wire.OpCreate, name, mode)
	q.Handle, q.Flags = h.number, flags
	r, errno := n.volume.do(ctx, q)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return n.adopt(ctx, r.Attr, &out.Attr), h, fuse.FOPEN_DIRECT_IO, 0
}

// creation is the request for a new name that will belong to the calling user.
func (n *node) creation(ctx context.Context, op wire.Op, name string, mode uint32) *wire.Request {
	q := &wire.Request{Op: op, Path: n.child(name), Mode: mode}
	if caller, ok := fuse.FromContext(ctx); ok {
		q.UID, q.GID = caller.Uid, caller.Gid
	}
	return q
}

func (n *node) Read(ctx context.Context, f fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	q := n.request(wire.OpRead, f)
	q.Offset, q.Size = off, int64(len(dest))
	r, errno := n.volume.do(ctx, q)
	return fuse.ReadResultData(r.Data), errno
}

func (n *node) Write(ctx context.Context, f fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	q := n.request(wire.OpWrite, f)
	q.Offset = off
	q.Data = slices.Clone(data) // FUSE takes its buffer back when Write returns, perhaps before the request is sent
	if h, ok := f.(*handle); ok {
		q.Append = h.appendOnly
	}
	r, errno := n.volume.do(ctx, q)
	return uint32(r.Size), errno
}

func (n *node) Fsync(ctx context.Context, f fs.FileHandle, _ uint32) syscall.Errno {
	_, errno := n.volume.do(ctx, n.request(wire.OpFsync, f))
	return errno
}

func (n *node) Release(_ context.Context, f fs.FileHandle) syscall.Errno {
	n.volume.session.Start(n.request(wire.OpRelease, f)) // nobody waits for it
	return 0
}

func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	r, errno := n.volume.do(ctx, n.request(wire.OpReaddir, nil))
	if errno != 0 {
		return nil, errno
	}
	entries := make([]fuse.DirEntry, 0, len(r.Entries))
	for _, e := range r.Entries {
		entries = append(entries, fuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Mode})
	}
	return fs.NewListDirStream(entries), 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	r, errno := n.volume.do(ctx, n.creation(ctx, wire.OpMkdir, name, mode))
	if errno != 0 {
		return nil, errno
	}
	return n.adopt(ctx, r.Attr, &out.Attr), 0
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	_, errno := n.volume.do(ctx, &wire.Request{Op: wire.OpRmdir, Path: n.child(name)})
	return errno
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	_, errno := n.volume.do(ctx, &wire.Request{Op: wire.OpUnlink, Path: n.child(name)})
	return errno
}

func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to, ok := parent.(*node)
	if !ok || flags != 0 { // out of .array, or RENAME_EXCHANGE and the like
		return syscall.EINVAL
	}
	_, errno := n.volume.do(ctx, &wire.Request{Op: wire.OpRename, Path: n.child(name), NewPath: to.child(newName)})
	return errno
}

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	r, errno := n.volume.do(ctx, &wire.Request{Op: wire.OpStatfs})
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, 255
	out.Blocks = uint64(r.Statfs.TotalBytes / block)
	out.Bfree = uint64(r.Statfs.FreeBytes / block)
	out.Bavail = out.Bfree
	return errno
}
