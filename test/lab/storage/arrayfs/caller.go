// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package arrayfs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// soon fires after a moment in which a dying caller would have been noticed.
func soon() <-chan struct{} {
	c := make(chan struct{})
	time.AfterFunc(100*time.Millisecond, func() { close(c) })
	return c
}

// callerDies reports whether the process that waits for an operation is being killed. A caller that FUSE
// cannot name, because it is in another PID namespace, is taken to live.
func callerDies(ctx context.Context) bool {
	caller, ok := fuse.FromContext(ctx)
	if !ok || caller.Pid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", caller.Pid))
	if err != nil {
		return os.IsNotExist(err)
	}
	return killPending(status)
}

// killPending reads /proc/PID/status: SigPnd are the signals of the thread, ShdPnd those of the process.
func killPending(status []byte) bool {
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
