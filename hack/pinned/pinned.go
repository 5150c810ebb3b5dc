// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pinned builds commands from pinned Go modules into a cache outside
// the checkout, so that a fresh clone and a second lab find them ready.
//
// A pinned module is a directory with its own go.mod and go.sum. They fix the
// version and the content of everything that goes into its commands, so their
// hash together with the build's settings names the result (see [Spec]).
package pinned

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Spec says how one command is built.
type Spec struct {
	// Name is the file name of the binary. It is unique among the specs of one call.
	Name string
	// Dir is the pinned module's directory, relative to the repository's root.
	// Every file in it counts towards the cache key.
	Dir string
	// Package is the import path of the command.
	Package string
	// Tags are build tags.
	Tags []string
	// LDFlags are linker flags in addition to -s -w, such as "-X main.version=v1".
	LDFlags []string
	// CGO links with the C compiler; without it the binary is static.
	CGO bool
}

// Ensure returns the absolute path of every spec's binary by name, building
// those that the cache under [CacheRoot] does not hold. root is the
// repository's root. Concurrent callers, also in other processes, build each
// binary once: the others wait for the first.
//
// progress gets a line when a build starts and one when a binary is there.
// The error of a build that fails ends with what the build printed last, and
// leaves no cache entry.
func Ensure(ctx context.Context, root string, specs []Spec, progress io.Writer) (map[string]string, error) {
	cache, err := CacheRoot()
	if err != nil {
		return nil, err
	}
	entries, err := resolve(ctx, root, cache, specs)
	if err != nil {
		return nil, err
	}
	paths := make(map[string]string, len(entries))
	for i, e := range entries {
		report := func(format string, args ...any) {
			label := fmt.Sprintf("[%d/%d] %s %s", i+1, len(entries), e.spec.Name, e.version)
			fmt.Fprintf(progress, "%-42s %s\n", label, fmt.Sprintf(format, args...))
		}
		if err := e.ensure(ctx, report); err != nil {
			return nil, err
		}
		paths[e.spec.Name] = e.binary()
	}
	return paths, nil
}

// Lookup is Ensure without the builds: it returns where every spec's binary
// is or would be, and its module's version.
func Lookup(ctx context.Context, root string, specs []Spec) ([]Found, error) {
	cache, err := CacheRoot()
	if err != nil {
		return nil, err
	}
	entries, err := resolve(ctx, root, cache, specs)
	if err != nil {
		return nil, err
	}
	found := make([]Found, 0, len(entries))
	for _, e := range entries {
		found = append(found, Found{Name: e.spec.Name, Version: e.version, Path: e.binary(), Cached: e.cached()})
	}
	return found, nil
}

// Found is one spec's place in the cache.
type Found struct {
	Name    string
	Version string // of the module that holds the command, such as "v1.37.1"
	Path    string // absolute
	Cached  bool   // whether the binary is there
}

// CacheRoot is the directory that holds the binaries: $HOLDFAST_CACHE, or
// "holdfast" in the user's cache directory.
func CacheRoot() (string, error) {
	if dir := os.Getenv("HOLDFAST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory for the pinned binaries: %w; set HOLDFAST_CACHE", err)
	}
	return filepath.Join(dir, "holdfast"), nil
}

// Select returns the specs with the given names, in their order, or all of
// them when there are no names.
func Select(specs []Spec, names []string) ([]Spec, error) {
	if len(names) == 0 {
		return specs, nil
	}
	selected := make([]Spec, 0, len(names))
	for _, name := range names {
		i := slices.IndexFunc(specs, func(s Spec) bool { return s.Name == name })
		if i < 0 {
			known := make([]string, 0, len(specs))
			for _, s := range specs {
				known = append(known, s.Name)
			}
			return nil, fmt.Errorf("no pinned command is named %q; there are %v", name, known)
		}
		selected = append(selected, specs[i])
	}
	return selected, nil
}

// Install puts a symbolic link to every binary of Ensure's answer into a
// directory, making the directory and replacing what has the same name.
func Install(binaries map[string]string, into string) error {
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	for name, path := range binaries {
		link := filepath.Join(into, name)
		fresh := fmt.Sprintf("%s.%d.new", link, os.Getpid())
		if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink(path, fresh); err != nil {
			return err
		}
		if err := os.Rename(fresh, link); err != nil {
			return err
		}
	}
	return nil
}

// ensure builds the entry's binary unless it is there. report takes the words
// of one progress line.
func (e entry) ensure(ctx context.Context, report func(format string, args ...any)) error {
	if e.cached() {
		report("cached")
		return nil
	}
	unlock, err := lock(ctx, e.dir+".lock", func() { report("another process builds it, waiting") })
	if err != nil {
		return fmt.Errorf("lock the cache entry of %s: %w", e.spec.Name, err)
	}
	defer unlock()
	if e.cached() {
		report("cached")
		return nil
	}
	report("building")
	began := time.Now()
	if err := e.build(ctx); err != nil {
		return err
	}
	report("built in %.0f s", time.Since(began).Seconds())
	return nil
}
