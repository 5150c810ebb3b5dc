// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package components lists the programs of which the lab's cluster consists:
// etcd, Kubernetes, the container runtime, the network plugins and the CSI
// attacher. Each group is pinned in a module of its own below this directory,
// because their requirements clash.
package components

import (
	"context"
	"io"

	"github.com/holdfast-dev/holdfast/hack/pinned"
)

// KubernetesVersion is what the control plane and the kubelets report. It is
// the version in kubernetes/go.mod.
const KubernetesVersion = "v1.37.1"

const containerdVersion = "v2.4.2"

// Ensure returns the path of every component by name, building what the cache
// does not hold; see [pinned.Ensure]. A first call takes about a quarter of
// an hour on two cores.
func Ensure(ctx context.Context, root string, progress io.Writer) (map[string]string, error) {
	return pinned.Ensure(ctx, root, Specs(), progress)
}

// Specs returns the components. kube-apiserver and etcd come first: the rest
// of the module shares most of their code.
func Specs() []pinned.Spec {
	return []pinned.Spec{
		kubernetes("kube-apiserver"),
		{Name: "etcd", Dir: "test/lab/components/kubernetes", Package: "go.etcd.io/etcd/server/v3"},
		{Name: "etcdctl", Dir: "test/lab/components/kubernetes", Package: "go.etcd.io/etcd/etcdctl/v3"},
		kubernetes("kube-controller-manager"),
		kubernetes("kube-scheduler"),
		kubernetes("kubectl"),
		kubernetes("kubelet"),
		kubernetes("kube-proxy"),
		containerd("containerd"),
		containerd("containerd-shim-runc-v2"),
		containerd("ctr"),
		{
			Name:    "runc",
			Dir:     "test/lab/components/runc",
			Package: "github.com/opencontainers/runc",
			// containerd asks for a seccomp profile; libseccomp is a C library.
			Tags: []string{"seccomp", "urfave_cli_no_docs"},
			CGO:  true,
		},
		plugin("ptp", "main"),
		plugin("loopback", "main"),
		plugin("host-local", "ipam"),
		{
			Name:    "csi-attacher",
			Dir:     "test/lab/components/csi-attacher",
			Package: "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
			LDFlags: []string{"-X main.version=v4.13.0"},
		},
	}
}

// kubernetes is one of the commands of k8s.io/kubernetes. They take their
// version from the linker and do not work without: clients and operators
// refuse a server of version v0.0.0. A module from the proxy does not tell
// its commit, so the commit says where the source is from instead.
func kubernetes(name string) pinned.Spec {
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, setting := range []string{
			"gitVersion=" + KubernetesVersion,
			"gitMajor=1",
			"gitMinor=37",
			"gitTreeState=clean",
			"gitCommit=module-proxy",
			"buildDate=2026-09-23T17:06:22Z", // the date of the tag
		} {
			flags = append(flags, "-X "+pkg+"."+setting)
		}
	}
	return pinned.Spec{
		Name:    name,
		Dir:     "test/lab/components/kubernetes",
		Package: "k8s.io/kubernetes/cmd/" + name,
		LDFlags: flags,
	}
}

func containerd(name string) pinned.Spec {
	const module = "github.com/containerd/containerd/v2"
	return pinned.Spec{
		Name:    name,
		Dir:     "test/lab/components/containerd",
		Package: module + "/cmd/" + name,
		// The snapshotters that the lab has no devices for.
		Tags:    []string{"no_btrfs", "no_devmapper", "no_zfs", "urfave_cli_no_docs"},
		LDFlags: []string{"-X " + module + "/version.Version=" + containerdVersion},
	}
}

func plugin(name, kind string) pinned.Spec {
	const module = "github.com/containernetworking/plugins"
	return pinned.Spec{
		Name:    name,
		Dir:     "test/lab/components/cni",
		Package: module + "/plugins/" + kind + "/" + name,
		LDFlags: []string{"-X " + module + "/pkg/utils/buildversion.BuildVersion=v1.9.0"},
	}
}
