// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package arrayfs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/holdfast-dev/holdfast/test/lab/storage/wire"
)

// arrayDir is a directory at the top of every mount that no listing shows. Its only file, session, holds the
// JSON of a wire.SessionRecord: with which host, boot and epoch the array knows this mount.
const (
	arrayDir    = ".array"
	sessionFile = "session"
)

const (
	arrayDirMode = syscall.S_IFDIR | 0o555
	sessionMode  = syscall.S_IFREG | 0o444
)

type sessionDir struct {
	fs.Inode
	volume *volume
}

type sessionNode struct {
	fs.Inode
	volume *volume
}

var (
	_ fs.NodeLookuper  = (*sessionDir)(nil)
	_ fs.NodeGetattrer = (*sessionDir)(nil)
	_ fs.NodeGetattrer = (*sessionNode)(nil)
	_ fs.NodeOpener    = (*sessionNode)(nil)
	_ fs.NodeReader    = (*sessionNode)(nil)
)

func (n *node) lookupArrayDir(ctx context.Context, out *fuse.EntryOut) *fs.Inode {
	out.Mode, out.Nlink = arrayDirMode, 2
	return n.NewInode(ctx, &sessionDir{volume: n.volume}, fs.StableAttr{Mode: syscall.S_IFDIR})
}

func (d *sessionDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if name != sessionFile {
		return nil, syscall.ENOENT
	}
	out.Mode, out.Nlink = sessionMode, 1
	return d.NewInode(ctx, &sessionNode{volume: d.volume}, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

func (d *sessionDir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Nlink = arrayDirMode, 2
	return 0
}

func (s *sessionNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Nlink = sessionMode, 1
	return 0
}

func (s *sessionNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EACCES
	}
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (s *sessionNode) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	r, errno := s.volume.do(ctx, &wire.Request{Op: wire.OpSession})
	if errno != 0 {
		return nil, errno
	}
	from := min(off, int64(len(r.Data)))
	return fuse.ReadResultData(r.Data[from:min(from+int64(len(dest)), int64(len(r.Data)))]), 0
}
