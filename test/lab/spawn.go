// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/cgroup"
	"github.com/holdfast-dev/holdfast/test/lab/journal"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// Process is a process of the lab that outlives the command which starts it.
type Process struct {
	// Name is unique among the processes that run at one time. The log is logs/<name>.log.
	Name string
	// Args are the program, by absolute path or found in the lab's bin directory or on PATH, and its arguments.
	Args []string
	// NetNS is the path of a network namespace; empty is the machine's.
	NetNS string
	// Cgroup is the name of a cgroup below the lab's that exists.
	Cgroup string
	// Files are passed on as descriptors 4, 5, …
	Files []*os.File
	// Log is the file for its output. Default logs/<name>.log.
	Log string
	// boots says that the process is PID 1 of new PID, mount and UTS namespaces.
	boots bool
}

// Spawn starts a process through the shim "lab spawn", which records it and then becomes it. Spawn returns
// when the program was executed, or with the reason why it was not.
func (l *Lab) Spawn(ctx context.Context, p Process) (process.ID, error) {
	if err := ctx.Err(); err != nil {
		return process.ID{}, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return process.ID{}, err
	}
	defer read.Close()
	cmd, err := l.shim(p, write)
	if err != nil {
		write.Close()
		return process.ID{}, err
	}
	err = cmd.Start()
	write.Close()
	cmd.Stdout.(*os.File).Close() //nolint:forcetypeassert // shim opened it
	if err != nil {
		return process.ID{}, fmt.Errorf("start %s: %w", p.Name, err)
	}
	id, findErr := process.Find(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // so that it does not stay a zombie; whoever cares watches the pid
	// The pipe ends without a word when the shim becomes the program.
	reason, err := io.ReadAll(read)
	if err != nil {
		return process.ID{}, fmt.Errorf("start %s: %w", p.Name, err)
	}
	if len(reason) > 0 {
		return process.ID{}, fmt.Errorf("start %s: %s", p.Name, reason)
	}
	return id, findErr
}

func (l *Lab) shim(p Process, status *os.File) (*exec.Cmd, error) {
	logFile := p.Log
	if logFile == "" {
		logFile = l.logPath(p.Name)
	}
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	args := []string{"spawn", "--journal", l.journalPath(), "--name", p.Name, "--kernel-boot", l.state.KernelBoot}
	if p.NetNS != "" {
		args = append(args, "--netns", p.NetNS)
	}
	if p.Cgroup != "" {
		args = append(args, "--cgroup", p.Cgroup)
	}
	cmd := exec.Command(l.program("lab"), append(append(args, "--"), p.Args...)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.Env = []string{"PATH=" + l.searchPath(), "HOME=" + os.Getenv("HOME"), "HOLDFAST_LAB_HOME=" + filepath.Dir(l.dir)}
	cmd.ExtraFiles = append([]*os.File{status}, p.Files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.boots {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS
	}
	return cmd, nil
}

func (l *Lab) searchPath() string { return l.path("bin") + ":/usr/sbin:/usr/bin:/sbin:/bin" }

// statusFD is the descriptor on which the shim tells why it could not become the program.
const statusFD = 3

// Shim is what "lab spawn" does in the new process: record, join, become the program.
type Shim struct {
	// Journal is where the process is recorded under Name. Empty means that its parent waits for it and the
	// record can be done without.
	Journal, Name, KernelBoot string
	NetNS, Cgroup             string
	Args                      []string
}

// Run returns only when the program could not be executed. For a recorded process, the reason is also
// written to statusFD.
func (s Shim) Run() error {
	runtime.LockOSThread() // the thread that enters the namespace is the one that becomes the program
	if s.Journal == "" {
		return s.become()
	}
	unix.CloseOnExec(statusFD)
	err := s.record()
	if err == nil {
		err = s.become()
	}
	_, writeErr := unix.Write(statusFD, []byte(err.Error()))
	return errors.Join(err, writeErr)
}

func (s Shim) record() error {
	id, err := process.Self()
	if err != nil {
		return err
	}
	return journal.Append(s.Journal, journal.Record{Kind: journal.Process, Name: s.Name, ID: id, KernelBoot: s.KernelBoot})
}

func (s Shim) become() error {
	if len(s.Args) == 0 {
		return errors.New("spawn: name a program after --")
	}
	path, err := exec.LookPath(s.Args[0])
	if err != nil {
		return err
	}
	if s.Cgroup != "" {
		tree, err := cgroup.Detect()
		if err != nil {
			return err
		}
		if err := tree.Join(s.Cgroup); err != nil {
			return err
		}
	}
	if s.NetNS != "" {
		if err := netns.Enter(s.NetNS); err != nil {
			return err
		}
	}
	return fmt.Errorf("execute %s: %w", path, syscall.Exec(path, s.Args, os.Environ()))
}

// tail returns the last lines of a log, to say why a process ended.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}
