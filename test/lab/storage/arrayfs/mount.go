// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package arrayfs mounts a volume of the storage array through FUSE.
//
// Nothing is cached: every lookup, read and write asks the array, and every answer is its answer of that
// moment. A host that is detached therefore gets EIO at its next operation, whatever that is.
package arrayfs

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayclient"
)

// FSType is the type by which mountinfo lists these mounts.
const FSType = "fuse.labarray"

// Mounted is a volume mounted at a directory.
type Mounted struct {
	target  string
	session *arrayclient.Session
	server  *fuse.Server
	ended   chan struct{}
}

// Mount mounts the session's volume at target, an existing directory, for all users. It needs root and
// /dev/fuse. The session belongs to the mount and is closed with it,
// also when Mount fails.
func Mount(target string, session *arrayclient.Session, readOnly bool) (*Mounted, error) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		session.Close()
		return nil, fmt.Errorf("mounting %s: %w: the kernel needs FUSE; try modprobe fuse", target, err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	root := &node{volume: &volume{session: session}}
	fresh := time.Duration(0)
	server, err := fs.Mount(target, root, &fs.Options{
		EntryTimeout: &fresh, AttrTimeout: &fresh, NegativeTimeout: &fresh, NullPermissions: true,
		Logger: log.New(slogWriter{}, "", 0),
		MountOptions: fuse.MountOptions{
			AllowOther: true, Options: []string{"default_permissions"}, FsName: "labarray", Name: "labarray",
			DirectMount: true, DirectMountStrict: true, DirectMountFlags: flags,
			MaxWrite: 1 << 20, DisableXAttrs: true, DisableReadDirPlus: true,
			Logger: log.New(slogWriter{}, "", 0),
		},
	})
	if err != nil {
		session.Close()
		return nil, fmt.Errorf("mounting %s (this needs root): %w", target, errors.Join(err, Detach(target)))
	}
	m := &Mounted{target: target, session: session, server: server, ended: make(chan struct{})}
	go func() {
		server.Wait()
		session.Close()
		close(m.ended)
	}()
	return m, nil
}

// Ended is closed when the last user of the mount is gone and the array knows.
func (m *Mounted) Ended() <-chan struct{} { return m.ended }

// Unmount takes the volume out of the tree. Whoever still has files open on it keeps them, as with umount -l.
func (m *Mounted) Unmount() error { return Detach(m.target) }

// Detach lazily unmounts whatever is mounted at target, and succeeds when nothing is. It works on mounts
// whose server is gone.
func Detach(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil: // there may be another below
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return fmt.Errorf("unmounting %s: %w", target, err)
		}
	}
}

// slogWriter gives the lines of go-fuse to slog.
type slogWriter struct{}

func (slogWriter) Write(line []byte) (int, error) {
	slog.Info("fuse", "says", string(line))
	return len(line), nil
}
