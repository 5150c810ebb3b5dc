// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"

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
		config, node, controller := sanityConfig(t, a, class)
		// The suite is given its connections: its own way to connect misses, now and then, that it succeeded.
		ginkgo.Describe(string(class), func() {
			suite := sanity.GinkgoTest(&config)
			suite.Conn, suite.ControllerConn = node, controller
		})
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

// sanityConfig starts a driver and connects to its node plugin and to its controller.
func sanityConfig(t *testing.T, a *arrayProcess, class array.Class) (config sanity.TestConfig, node, controller *grpc.ClientConn) {
	t.Helper()
	dir := shortDir(t)
	// The suite looks at the target path itself, so this host shares the test's mount namespace.
	start(t, exec.Command(filepath.Join(programs, "lab-csi"), "node", "--class", string(class), "--array", a.address,
		"--host", "host-1", "--kubelet-dir", dir))
	endpoint := filepath.Join(dir, "controller.sock")
	start(t, exec.Command(filepath.Join(programs, "lab-csi"), "controller", "--class", string(class),
		"--control", filepath.Join(a.dir, "control.sock"), "--endpoint", "unix://"+endpoint))
	config = sanity.NewTestConfig()
	config.TargetPath = filepath.Join(dir, "target")
	config.StagingPath = filepath.Join(dir, "staging")
	config.TestVolumeSize = 1 << 20
	return config, connect(t, filepath.Join(dir, "plugins", string(class), "csi.sock")), connect(t, endpoint)
}

// connect returns a connection to a socket on which CSI's Identity service answers.
func connect(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn := dial(t, socket)
	eventually(t, socket+" answers", func() bool {
		_, err := csi.NewIdentityClient(conn).Probe(t.Context(), &csi.ProbeRequest{})
		return err == nil
	})
	return conn
}
