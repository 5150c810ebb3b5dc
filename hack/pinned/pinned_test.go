// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pinned

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const (
	dir     = "tool"
	goMod   = "module example.test/tool\n\ngo 1.26.0\n"
	mainOK  = "package main\n\nvar word = \"first\"\n\nfunc main() { println(word) }\n"
	mainBad = "package main\n\nfunc main() { println(missing) }\n"
)

// checkout makes a repository with one module and an empty cache.
func checkout(t *testing.T, source string) (root, cache string) {
	t.Helper()
	root, cache = t.TempDir(), t.TempDir()
	t.Setenv("HOLDFAST_CACHE", cache)
	// What the caller's environment says must not reach the builds.
	t.Setenv("GOFLAGS", "-mod=vendor")
	t.Setenv("CGO_ENABLED", "1")
	write(t, filepath.Join(root, dir, "go.mod"), goMod)
	write(t, filepath.Join(root, dir, "main.go"), source)
	return root, cache
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func spec() Spec { return Spec{Name: "tool", Dir: dir, Package: "example.test/tool"} }

// ensure builds one spec and returns the binary's path and the progress.
func ensure(t *testing.T, root string, s Spec) (path, progress string) {
	t.Helper()
	var out bytes.Buffer
	paths, err := Ensure(t.Context(), root, []Spec{s}, &out)
	if err != nil {
		t.Fatal(err)
	}
	return paths[s.Name], out.String()
}

// printed runs a binary and returns what it prints.
func printed(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), path).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, out)
	}
	return strings.TrimSpace(string(out))
}

// entries returns the names in the cache but for the locks, which stay.
func entries(t *testing.T, cache string) []string {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(cache, "pinned"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".lock" {
			names = append(names, f.Name())
		}
	}
	return names
}

func TestASecondCallFindsTheBinaryInTheCache(t *testing.T) {
	root, _ := checkout(t, mainOK)
	first, progress := ensure(t, root, spec())
	if !strings.Contains(progress, "[1/1] tool") || !strings.Contains(progress, "built in ") {
		t.Errorf("the progress of the first call does not tell of a build: %q", progress)
	}
	if got := printed(t, first); got != "first" {
		t.Errorf("the binary printed %q", got)
	}
	second, progress := ensure(t, root, spec())
	if second != first {
		t.Errorf("the second call answered %s, the first %s", second, first)
	}
	if !strings.Contains(progress, "cached") || strings.Contains(progress, "build") {
		t.Errorf("the progress of the second call does not say that the binary was cached: %q", progress)
	}
}

func TestAnotherCheckoutWithTheSameContentFindsTheBinary(t *testing.T) {
	root, cache := checkout(t, mainOK)
	first, _ := ensure(t, root, spec())
	clone, _ := checkout(t, mainOK)
	t.Setenv("HOLDFAST_CACHE", cache)
	second, progress := ensure(t, clone, spec())
	if second != first || !strings.Contains(progress, "cached") {
		t.Errorf("the clone got %s (%q), the first checkout %s", second, progress, first)
	}
}

func TestWhatDecidesTheContentDecidesTheEntry(t *testing.T) {
	root, _ := checkout(t, mainOK)
	base, _ := ensure(t, root, spec())

	flagged := spec()
	flagged.LDFlags = []string{"-X main.word=linked"}
	path, _ := ensure(t, root, flagged)
	if path == base {
		t.Error("other linker flags share an entry")
	}
	if got := printed(t, path); got != "linked" {
		t.Errorf("the linker flag did not reach the build: printed %q", got)
	}

	write(t, filepath.Join(root, dir, "tagged.go"), "//go:build loud\n\npackage main\n\nfunc init() { word = \"LOUD\" }\n")
	tagged := spec()
	tagged.Tags = []string{"loud"}
	if path, _ = ensure(t, root, tagged); printed(t, path) != "LOUD" {
		t.Errorf("the tag did not reach the build: printed %q", printed(t, path))
	}
	if path, _ = ensure(t, root, spec()); printed(t, path) != "first" {
		t.Errorf("the untagged build shares the tagged entry: printed %q", printed(t, path))
	}

	write(t, filepath.Join(root, dir, "main.go"), strings.Replace(mainOK, "first", "changed", 1))
	if path, _ = ensure(t, root, spec()); printed(t, path) != "changed" {
		t.Errorf("a changed file was not rebuilt: printed %q", printed(t, path))
	}

	write(t, filepath.Join(root, dir, "go.sum"), "\n")
	if after, _ := ensure(t, root, spec()); after == path {
		t.Error("another go.sum shares an entry")
	}
}

func TestConcurrentCallersBuildOnce(t *testing.T) {
	root, cache := checkout(t, mainOK)
	const callers = 4
	var progress [callers]bytes.Buffer
	var errs [callers]error
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			_, errs[i] = Ensure(t.Context(), root, []Spec{spec()}, &progress[i])
		})
	}
	group.Wait()
	built := 0
	for i := range callers {
		if errs[i] != nil {
			t.Errorf("caller %d: %v", i, errs[i])
		}
		built += strings.Count(progress[i].String(), "built in ")
	}
	if built != 1 {
		t.Errorf("%d of %d callers built; one should", built, callers)
	}
	if got := entries(t, cache); len(got) != 1 {
		t.Errorf("the cache has %v; one entry should be left", got)
	}
}

func TestAFailedBuildSaysWhyAndLeavesNoEntry(t *testing.T) {
	root, cache := checkout(t, mainBad)
	_, err := Ensure(t.Context(), root, []Spec{spec()}, &bytes.Buffer{})
	if err == nil {
		t.Fatal("a module that does not compile was built")
	}
	for _, want := range []string{"example.test/tool", "main.go:3", "undefined: missing"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
	if got := entries(t, cache); len(got) != 0 {
		t.Errorf("the failed build left %v", got)
	}
	write(t, filepath.Join(root, dir, "main.go"), mainOK)
	if path, _ := ensure(t, root, spec()); printed(t, path) != "first" {
		t.Error("the mended module does not build")
	}
}

func TestTheRestOfABuildThatDiedIsReplaced(t *testing.T) {
	root, cache := checkout(t, mainOK)
	path, _ := ensure(t, root, spec())
	if err := os.Rename(filepath.Dir(path), filepath.Dir(path)+".partial"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(path)+".partial/tool", "half a binary")
	again, progress := ensure(t, root, spec())
	if !strings.Contains(progress, "built in ") || printed(t, again) != "first" {
		t.Errorf("the half-built entry was taken for a binary: %q", progress)
	}
	if got := entries(t, cache); len(got) != 1 {
		t.Errorf("the cache has %v; one entry should be left", got)
	}
}

func TestAWaitingCallerGivesUpWithItsContext(t *testing.T) {
	root, cache := checkout(t, mainOK)
	found, err := Lookup(t.Context(), root, []Spec{spec()})
	if err != nil {
		t.Fatal(err)
	}
	if found[0].Cached {
		t.Fatal("an empty cache holds the binary")
	}
	unlock, err := lock(t.Context(), filepath.Dir(found[0].Path)+".lock", func() { t.Error("the lock was not free") })
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	// The caller gives up as soon as it says that it waits.
	_, err = Ensure(ctx, root, []Spec{spec()}, writerFunc(func(line string) {
		if strings.Contains(line, "waiting") {
			cancel()
		}
	}))
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	if got := entries(t, cache); len(got) != 0 {
		t.Errorf("the caller that gave up left %v", got)
	}
}

type writerFunc func(string)

func (f writerFunc) Write(p []byte) (int, error) { f(string(p)); return len(p), nil }

func TestABuildEndsWithItsContext(t *testing.T) {
	root, cache := checkout(t, mainOK)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Ensure(ctx, root, []Spec{spec()}, writerFunc(func(line string) {
		if strings.Contains(line, "building") {
			cancel()
		}
	}))
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	if got := entries(t, cache); len(got) != 0 {
		t.Errorf("the cancelled build left %v", got)
	}
}

func TestTheLockIsFreeWhenItsHolderIsDone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	unlock, err := lock(t.Context(), path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("the file is not locked: %v", err)
	}
	unlock()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("the file is still locked: %v", err)
	}
}

func TestBadSpecsAreRefused(t *testing.T) {
	root, _ := checkout(t, mainOK)
	write(t, filepath.Join(root, "local", "go.mod"), "module example.test/local\n\nreplace example.test/tool => ../tool\n")
	for name, tt := range map[string]struct {
		specs []Spec
		want  string
	}{
		"a name with a slash":                 {[]Spec{{Name: "a/b", Dir: dir, Package: "p"}}, `"a/b" is not a file name`},
		"no name":                             {[]Spec{{Dir: dir, Package: "p"}}, `"p": the name "" is not a file name`},
		"a name twice":                        {[]Spec{spec(), spec()}, "tool is specified twice"},
		"a directory outside the repository":  {[]Spec{{Name: "x", Dir: "../x", Package: "p"}}, `"../x" is not inside`},
		"a directory without a module":        {[]Spec{{Name: "x", Dir: "absent", Package: "p"}}, "absent/go.mod"},
		"a module replaced by a directory":    {[]Spec{{Name: "x", Dir: "local", Package: "p"}}, "replaces example.test/tool by the directory ../tool"},
		"a package that the module lacks":     {[]Spec{{Name: "x", Dir: dir, Package: "example.test/other"}}, "example.test/other"},
		"a package of an unpinned dependency": {[]Spec{{Name: "x", Dir: dir, Package: "example.com/x/y"}}, "providing package example.com/x/y"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Ensure(t.Context(), root, tt.specs, &bytes.Buffer{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestTheVersionIsThatOfTheModuleWithThePackage(t *testing.T) {
	requires, err := parseGoMod(`module m // a comment
go 1.26.0
tool example.test/a/cmd/x
require example.test/single v0.1.0
require (
	example.test/a v1.2.3
	example.test/a/api v1.9.0 // indirect
	// example.test/gone v9.9.9
)
replace example.test/b => example.test/c v0.0.1
`)
	if err != nil {
		t.Fatal(err)
	}
	m := module{requires: requires}
	for pkg, want := range map[string]string{
		"example.test/a/cmd/x":  "v1.2.3",
		"example.test/a":        "v1.2.3",
		"example.test/a/api/v1": "v1.9.0",
		"example.test/single":   "v0.1.0",
		"example.test/gone":     "",
		"m":                     "",
	} {
		if got := m.versionOf(pkg); got != want {
			t.Errorf("the version of %s is %q, want %q", pkg, got, want)
		}
	}
}

func TestInstallLinksAndReplaces(t *testing.T) {
	root, _ := checkout(t, mainOK)
	path, _ := ensure(t, root, spec())
	bin := filepath.Join(t.TempDir(), "bin")
	write(t, filepath.Join(bin, "tool"), "an old copy")
	if err := Install(map[string]string{"tool": path}, bin); err != nil {
		t.Fatal(err)
	}
	if got := printed(t, filepath.Join(bin, "tool")); got != "first" {
		t.Errorf("the link runs something else: %q", got)
	}
	files, err := os.ReadDir(bin)
	if err != nil || len(files) != 1 {
		t.Errorf("the directory has %v (%v); one link should be there", files, err)
	}
}

func TestSelectKeepsTheOrderOfTheNames(t *testing.T) {
	specs := []Spec{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	got, err := Select(specs, []string{"c", "a"})
	if err != nil || len(got) != 2 || got[0].Name != "c" || got[1].Name != "a" {
		t.Errorf("got %v, %v", got, err)
	}
	if got, _ := Select(specs, nil); len(got) != 3 {
		t.Errorf("no names selected %v; they mean all", got)
	}
	if _, err := Select(specs, []string{"d"}); err == nil || !strings.Contains(err.Error(), `"d"`) || !strings.Contains(err.Error(), "a b c") {
		t.Errorf("an unknown name answered %v", err)
	}
}
