// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire is the data protocol between a host and the storage array of the lab.
//
// One TCP connection carries one mount of one volume. The client sends a Hello, the array answers with a
// Welcome; from then on the client sends Requests without waiting and the array answers each with the
// Response of the same ID, in any order. Every message is one gob value, and gob delimits them.
package wire

// Op names what a Request asks for.
type Op uint8

// The operations. Those that change something and would do so twice when repeated are named by Op.Once.
const (
	OpLookup  Op = iota + 1 // Path → Attr
	OpGetattr               // Path, Handle → Attr
	OpSetattr               // Path, Handle, Valid and the fields it names → Attr
	OpOpen                  // Path, Handle, Flags
	OpCreate                // Path, Handle, Flags, Mode, UID, GID → Attr
	OpRelease               // Handle
	OpRead                  // Path, Handle, Offset, Size → Data
	OpWrite                 // Path, Handle, Offset or Append, Data → Size
	OpFsync                 // Path, Handle
	OpReaddir               // Path → Entries
	OpMkdir                 // Path, Mode, UID, GID → Attr
	OpRmdir                 // Path
	OpUnlink                // Path
	OpRename                // Path, NewPath
	OpStatfs                // → Statfs
	OpSession               // → Data: the JSON of a SessionRecord
	OpUnmount               // the mount ends; the array forgets its handles
)

// Once reports whether an operation must not be carried out a second time when the client repeats its
// request over a new connection.
func (o Op) Once() bool {
	switch o {
	case OpWrite, OpCreate, OpMkdir, OpRmdir, OpUnlink, OpRename:
		return true
	default:
		return false
	}
}

// The bits of Request.Valid for OpSetattr.
const (
	SetMode uint32 = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
)

// Hello opens a connection.
type Hello struct {
	Host, Boot string
	// Volume is empty when the host only makes itself known to the array.
	Volume string
	// Mount is a random name of the mount, the same for every connection of it.
	Mount string
	// Epoch is 0 for a new mount; a mount that reconnects names the epoch that it was given.
	Epoch uint64
}

// Welcome answers a Hello. Errno is a Linux errno, 0 for success; Message says what to do about it.
type Welcome struct {
	Errno   int32
	Message string
	// Instance names one run of the array. Another instance does not remember what it has answered.
	Instance  string
	Class     string
	Epoch     uint64
	SizeBytes int64
}

// Request asks for one operation. Paths are relative to the volume's root, "." is the root itself.
type Request struct {
	ID            uint64
	Op            Op
	Path, NewPath string
	// Handle is chosen by the client, unique within a mount. 0 is no handle. The array opens Path anew when
	// it does not know the handle.
	Handle uint64
	Offset int64
	Append bool
	Size   int64
	Data   []byte
	Flags  uint32
	Mode   uint32
	UID    uint32
	GID    uint32
	Valid  uint32
	// Atime and Mtime are nanoseconds since 1970.
	Atime, Mtime int64
}

// Response answers the Request with the same ID. Errno is a Linux errno, 0 for success.
type Response struct {
	ID      uint64
	Errno   int32
	Attr    Attr
	Size    int64
	Data    []byte
	Entries []Entry
	Statfs  Statfs
}

// Attr is what stat(2) says. Times are nanoseconds since 1970; Mode holds the file type too.
type Attr struct {
	Ino                 uint64
	Size                int64
	Blocks              int64
	Mode                uint32
	Nlink               uint32
	UID, GID            uint32
	Atime, Mtime, Ctime int64
}

// Entry is one name of a directory.
type Entry struct {
	Name string
	Ino  uint64
	Mode uint32
}

// Statfs counts bytes.
type Statfs struct {
	TotalBytes, FreeBytes int64
}

// SessionRecord is what a host reads in the file .array/session of a mounted volume.
type SessionRecord struct {
	Volume string `json:"volume"`
	Class  string `json:"class"`
	Host   string `json:"host"`
	Boot   string `json:"boot"`
	Epoch  uint64 `json:"epoch"`
}
