// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package bmc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// drain throws away the datagrams that wait for the BMC id. ipmi_sim does not
// tell a retransmission from a new request: without this, each one that came
// during a slow request would cost SlowDelay again.
func drain(id process.ID) error {
	sockets, err := udpSockets(id)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return fmt.Errorf("open process of the BMC: %w", err)
	}
	defer unix.Close(pidfd)
	for _, socket := range sockets {
		fd, err := unix.PidfdGetfd(pidfd, socket, 0)
		if err != nil {
			return fmt.Errorf("socket of the BMC: %w", err)
		}
		err = discard(fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("socket of the BMC: %w", err)
		}
	}
	return nil
}

func discard(fd int) error {
	buffer := make([]byte, 2048)
	for {
		_, _, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// udpSockets lists the file descriptors of the process that are UDP sockets.
func udpSockets(id process.ID) ([]int, error) {
	proc := filepath.Join("/proc", strconv.Itoa(id.PID))
	table, err := os.ReadFile(filepath.Join(proc, "net/udp"))
	if err != nil {
		return nil, err
	}
	inodes := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		const inode = 9
		if fields := strings.Fields(line); len(fields) > inode {
			inodes["socket:["+fields[inode]+"]"] = true
		}
	}
	open, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return nil, err
	}
	var sockets []int
	for _, entry := range open {
		target, err := os.Readlink(filepath.Join(proc, "fd", entry.Name()))
		if err != nil || !inodes[target] {
			continue // closed meanwhile, or something else
		}
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, fd)
	}
	return sockets, nil
}
