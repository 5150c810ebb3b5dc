// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pinned

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// shownOutput is how much of a failed build's output an error carries, in
// bytes from its end.
const shownOutput = 4096

// build makes the entry's directory. The caller holds the entry's lock.
func (e entry) build(ctx context.Context) error {
	partial := e.dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	if err := e.compile(ctx, filepath.Join(partial, e.spec.Name)); err != nil {
		return err
	}
	if err := os.RemoveAll(e.dir); err != nil {
		return err
	}
	return os.Rename(partial, e.dir)
}

// compile runs go build, at a low priority where nice exists, in a process
// group of its own that ends with ctx.
func (e entry) compile(ctx context.Context, output string) error {
	argv := []string{
		"go", "build", "-trimpath", "-buildvcs=false",
		"-tags=" + strings.Join(e.spec.Tags, ","),
		"-ldflags=" + strings.Join(append([]string{"-s", "-w"}, e.spec.LDFlags...), " "),
		"-o", output, e.spec.Package,
	}
	if _, err := exec.LookPath("nice"); err == nil {
		argv = append([]string{"nice", "-n", "10"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = e.module
	cmd.Env = environ(e.spec.CGO)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("build %s in %s: %w\n%s", e.spec.Package, e.spec.Dir, err, tail(out.Bytes(), shownOutput))
	}
	return nil
}

// environ is the caller's environment with the settings that a pinned build
// must not take from it.
func environ(cgo bool) []string {
	enabled := "CGO_ENABLED=0"
	if cgo {
		enabled = "CGO_ENABLED=1"
	}
	return append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off", enabled)
}

func tail(b []byte, n int) []byte {
	b = bytes.TrimSpace(b)
	if len(b) > n {
		b = append([]byte("…"), b[len(b)-n:]...)
	}
	return b
}
