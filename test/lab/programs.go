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
	"syscall"

	"github.com/holdfast-dev/holdfast/test/lab/components"
	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
)

// installPrograms fills the lab's bin directory: links to the components, and copies of what the checkout
// builds, so that a later build does not change a lab that runs.
func (l *Lab) installPrograms(ctx context.Context, o Options) error {
	paths, err := components.Ensure(ctx, o.Root, o.Progress)
	if err != nil {
		return err
	}
	for name, path := range paths {
		if err := placedProgram(path); err != nil {
			return err
		}
		if err := os.Symlink(path, l.program(name)); err != nil {
			return err
		}
	}
	if err := buildStatic(ctx, o.Root, l.program("pause"), "./test/lab/cmd/pause"); err != nil {
		return err
	}
	if o.Binary != "" {
		err = copyFile(o.Binary, l.program("lab"))
	} else {
		err = build(ctx, o.Root, l.program("lab"), "./test/lab/cmd/lab")
	}
	if err != nil {
		return err
	}
	return l.buildStorage(ctx, o.Root)
}

// buildStorage builds the programs of the storage, which are a module of their own.
func (l *Lab) buildStorage(ctx context.Context, root string) error {
	for _, name := range []string{"lab-array", "lab-csi"} {
		if err := buildStatic(ctx, filepath.Join(root, "test/lab/storage"), l.program(name), "./cmd/"+name); err != nil {
			return err
		}
	}
	return nil
}

// placedProgram checks that hosts see a component.
func placedProgram(path string) error {
	for _, hidden := range hostinit.Hidden {
		if rel, err := filepath.Rel(hidden, path); err == nil && filepath.IsLocal(rel) {
			return fmt.Errorf("component %s: hosts have a %s of their own; set XDG_CACHE_HOME to a directory elsewhere", path, hidden)
		}
	}
	return nil
}

// buildStatic compiles a program of the module in dir that needs nothing of the machine it runs on.
func buildStatic(ctx context.Context, dir, output, pkg string) error {
	return build(ctx, dir, output, pkg, "CGO_ENABLED=0")
}

// build compiles a program of the module in dir.
func build(ctx context.Context, dir, output, pkg string, env ...string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", output, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nobody would find it after a crash of this command
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
