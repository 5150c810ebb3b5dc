// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
)

// TestSanity runs the CSI project's sanity suite against both drivers. What it skips is what the drivers
// do not claim to offer: snapshots, expansion, staging, listing.
func TestSanity(t *testing.T) {
	if count := flag.Lookup("test.count").Value.String(); count != "1" {
		t.Fatalf("-count=%s: Ginkgo runs a suite once per process; use -count=1", count) // else it would exit, and leave things behind
	}
	a := startArray(t, shortDir(t), "127.0.0.1:0")
	for _, class := range []array.Class{array.Enforcing, array.Permissive} {
		config := sanityConfig(t, a, class)
		ginkgo.Describe(string(class), func() { sanity.GinkgoTest(&config) })
	}
	passed := map[string]int{}
	ginkgo.ReportAfterEach(func(r ginkgo.SpecReport) {
		if r.State.Is(types.SpecStatePassed) {
			passed[r.FullText()]++
		}
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct = true
	ginkgo.RunSpecs(t, "the lab's CSI drivers", suite, reporter)
	for _, spec := range []string{
		"enforcing Node Service should be idempotent",
		"enforcing Controller Service [Controller Server] volume lifecycle should be idempotent",
		"permissive Node Service should be idempotent",
	} {
		if passed[spec] != 1 {
			t.Errorf("%q did not run: a driver lost a capability. Passed: %v", spec, passed)
		}
	}
}

func sanityConfig(t *testing.T, a *arrayProcess, class array.Class) sanity.TestConfig {
	t.Helper()
	dir := shortDir(t)
	// The suite looks at the target path itself, so this host shares the test's mount namespace.
	node := exec.Command(filepath.Join(programs, "lab-csi"), "node", "--class", string(class), "--array", a.address,
		"--host", "host-1", "--kubelet-dir", dir)
	start(t, node)
	endpoint := filepath.Join(dir, "controller.sock")
	start(t, exec.Command(filepath.Join(programs, "lab-csi"), "controller", "--class", string(class),
		"--control", filepath.Join(a.dir, "control.sock"), "--endpoint", "unix://"+endpoint))
	config := sanity.NewTestConfig()
	config.Address = "unix://" + filepath.Join(dir, "plugins", string(class), "csi.sock")
	config.ControllerAddress = "unix://" + endpoint
	config.TargetPath = filepath.Join(dir, "target")
	config.StagingPath = filepath.Join(dir, "staging")
	config.TestVolumeSize = 1 << 20
	for _, address := range []string{config.Address, config.ControllerAddress} { // the suite does not dial twice
		eventually(t, address+" answers", func() bool {
			c, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
			if err != nil {
				return false
			}
			must(t, c.Close())
			return true
		})
	}
	return config
}
