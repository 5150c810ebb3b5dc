// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lab runs a real Kubernetes cluster of several hosts on one Linux machine and breaks it on demand.
// docs/spec/lab.md is its contract.
package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Timings says how soon Kubernetes notices a host that is gone.
type Timings string

const (
	// DefaultTimings are those of Kubernetes.
	DefaultTimings Timings = "default"
	// FastTimings notice in 12 s what takes 50 s by default, and evict after 20 s instead of 300 s.
	FastTimings Timings = "fast"
)

// DefaultName is the lab that commands mean when they are told no other.
const DefaultName = "lab"

// The limits of the address plan: host n is 10.90.0.(100+n), its BMC 10.90.0.(200+n).
const (
	maxHosts      = 50
	maxAPIServers = 2
)

// Options say what lab Up makes. The zero value of a field is its default.
type Options struct {
	// Name tells labs on one machine apart; at most 24 lower-case letters, digits and dashes. Default "lab".
	Name string
	// Hosts is how many hosts run kubelets, 1 to 50. Default 3.
	Hosts int
	// APIServers is how many API servers share the one etcd, 1 or 2. Default 1.
	APIServers int
	Timings    Timings
	// Progress gets a line per step. Default: nothing is told.
	Progress io.Writer
	// Root is the checkout. Default: the one around the working directory or the executable.
	Root string
	// Binary is the lab command. Default: it is built from the checkout.
	Binary string
}

var labName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,22}[a-z0-9])?$`)

// complete fills in defaults and refuses what cannot work.
func (o Options) complete() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Hosts == 0 {
		o.Hosts = 3
	}
	if o.APIServers == 0 {
		o.APIServers = 1
	}
	if o.Timings == "" {
		o.Timings = DefaultTimings
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	switch {
	case !labName.MatchString(o.Name):
		return o, fmt.Errorf("lab name %q: use at most 24 lower-case letters, digits and dashes, a letter first", o.Name)
	case o.Hosts < 1 || o.Hosts > maxHosts:
		return o, fmt.Errorf("hosts %d: use 1 to %d", o.Hosts, maxHosts)
	case o.APIServers < 1 || o.APIServers > maxAPIServers:
		return o, fmt.Errorf("apiservers %d: use 1 or 2", o.APIServers)
	case o.Timings != DefaultTimings && o.Timings != FastTimings:
		return o, fmt.Errorf("timings %q: use default or fast", o.Timings)
	}
	if o.Root == "" {
		root, err := findRoot()
		if err != nil {
			return o, err
		}
		o.Root = root
	}
	return o, nil
}

const modulePath = "github.com/holdfast-dev/holdfast"

// findRoot finds the checkout, which holds the pinned modules of the components.
func findRoot() (string, error) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if executable, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(executable))
	}
	for _, start := range starts {
		for dir := start; ; dir = filepath.Dir(dir) {
			text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(text), "module "+modulePath+"\n") {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", errors.New("no checkout of holdfast around the working directory; run the lab from inside one")
}

// Home is the directory that holds one directory per lab: $HOLDFAST_LAB_HOME or /var/tmp/holdfast-lab.
func Home() string {
	if home := os.Getenv("HOLDFAST_LAB_HOME"); home != "" {
		return filepath.Clean(home)
	}
	return "/var/tmp/holdfast-lab"
}
