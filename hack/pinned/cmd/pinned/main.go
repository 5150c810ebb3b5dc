// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command pinned builds the project's pinned commands and links them into a
// directory:
//
//	go run ./hack/pinned/cmd/pinned -set tools -into bin controller-gen kustomize
//
// Without names it takes the whole set. -list shows what a set has and what
// of it the cache holds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/holdfast-dev/holdfast/hack/pinned"
	"github.com/holdfast-dev/holdfast/hack/tools"
	"github.com/holdfast-dev/holdfast/test/lab/components"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "pinned:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("pinned", flag.ContinueOnError)
	set := flags.String("set", "tools", "the set of commands: tools or lab")
	into := flags.String("into", "", "link the binaries into this `directory`; without it, print name=path lines")
	list := flags.Bool("list", false, "list the set with versions and paths, and build nothing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	root, err := findRoot()
	if err != nil {
		return err
	}
	specs, err := specsOf(*set)
	if err != nil {
		return err
	}
	if specs, err = pinned.Select(specs, flags.Args()); err != nil {
		return err
	}
	if *list {
		return show(ctx, os.Stdout, root, specs)
	}
	binaries, err := pinned.Ensure(ctx, root, specs, os.Stderr)
	if err != nil {
		return err
	}
	if *into != "" {
		return pinned.Install(binaries, *into)
	}
	for _, s := range specs {
		fmt.Printf("%s=%s\n", s.Name, binaries[s.Name])
	}
	return nil
}

func specsOf(set string) ([]pinned.Spec, error) {
	switch set {
	case "tools":
		return tools.Specs(), nil
	case "lab":
		return components.Specs(), nil
	}
	return nil, fmt.Errorf("-set %q: the sets are tools and lab", set)
}

func show(ctx context.Context, w io.Writer, root string, specs []pinned.Spec) error {
	found, err := pinned.Lookup(ctx, root, specs)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range found {
		state := "not built"
		if f.Cached {
			state = f.Path
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Name, f.Version, state)
	}
	return table.Flush()
}

// findRoot returns the repository's root: the nearest directory above the
// working directory whose go.mod is the project's own.
func findRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module github.com/holdfast-dev/holdfast\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of Holdfast", wd)
		}
	}
}
