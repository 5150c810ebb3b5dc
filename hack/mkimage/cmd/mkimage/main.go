// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command mkimage writes a container image from files:
//
//	mkimage -o out.tar -t docker.io/holdfast.dev/x:dev -entrypoint /x -user 65532:65532 bin/x:/x:0755
//
// The image can be imported with "ctr -n k8s.io images import out.tar" or "podman load -i out.tar".
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/holdfast-dev/holdfast/hack/mkimage"
)

func main() {
	var i mkimage.Image
	out := flag.String("o", "", "tar to write (required)")
	flag.StringVar(&i.Reference, "t", "", "name with tag (required)")
	entrypoint := flag.String("entrypoint", "", "command, words separated by spaces")
	flag.StringVar(&i.User, "user", "", "UID:GID; empty is root")
	flag.StringVar(&i.Architecture, "arch", "", "architecture as Go names it; empty is that of this machine")
	flag.Func("label", "key=value, may be repeated", func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return errors.New("write key=value")
		}
		if i.Labels == nil {
			i.Labels = map[string]string{}
		}
		i.Labels[key] = value
		return nil
	})
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: mkimage -o OUT.tar -t NAME:TAG [flags] source:/target[:mode] ...")
		flag.PrintDefaults()
	}
	flag.Parse()
	i.Entrypoint = strings.Fields(*entrypoint)
	if err := run(i, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(i mkimage.Image, out string, files []string) error {
	if out == "" || len(files) == 0 {
		return errors.New("-o and at least one source:/target are required")
	}
	for _, s := range files {
		f, err := mkimage.ParseFile(s)
		if err != nil {
			return err
		}
		i.Files = append(i.Files, f)
	}
	return i.WriteFile(out)
}
