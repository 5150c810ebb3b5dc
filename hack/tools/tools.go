// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tools lists the programs that generate, check and test this
// project. Each is pinned in a module of its own below this directory,
// because their requirements clash.
package tools

import "github.com/holdfast-dev/holdfast/hack/pinned"

// Specs returns the tools, quick builds first.
func Specs() []pinned.Spec {
	return []pinned.Spec{
		{
			Name:    "controller-gen",
			Dir:     "hack/tools/controller-gen",
			Package: "sigs.k8s.io/controller-tools/cmd/controller-gen",
		},
		{
			Name:    "kustomize",
			Dir:     "hack/tools/kustomize",
			Package: "sigs.k8s.io/kustomize/kustomize/v5",
		},
		{
			Name:    "gotestsum",
			Dir:     "hack/tools/gotestsum",
			Package: "gotest.tools/gotestsum",
		},
		{
			Name:    "golangci-lint",
			Dir:     "hack/tools/golangci-lint",
			Package: "github.com/golangci/golangci-lint/v2/cmd/golangci-lint",
		},
		{
			Name:    "kubebuilder",
			Dir:     "hack/tools/kubebuilder",
			Package: "sigs.k8s.io/kubebuilder/v4",
		},
		{
			Name:    "operator-sdk",
			Dir:     "hack/tools/operator-sdk",
			Package: "github.com/operator-framework/operator-sdk/cmd/operator-sdk",
			// Without the tag its image library wants C code for signatures.
			Tags: []string{"containers_image_openpgp"},
			// The bundle's annotations name the version of the tool.
			LDFlags: []string{
				"-X github.com/operator-framework/operator-sdk/internal/version.Version=v1.42.2",
				"-X github.com/operator-framework/operator-sdk/internal/version.GitVersion=v1.42.2",
				"-X github.com/operator-framework/operator-sdk/internal/version.ImageVersion=v1.42.2",
			},
		},
	}
}
