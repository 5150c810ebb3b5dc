// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package envtest gives tests an API server: etcd and kube-apiserver as plain processes, with Holdfast's kinds
// installed from config/crd/bases and nothing behind them (no controllers, no kubelets).
//
// A package that needs one starts it in its TestMain and shares it between its tests:
//
//	func TestMain(m *testing.M) { os.Exit(envtest.Main(m, &cluster)) }
package envtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/hack/pinned"
	"github.com/holdfast-dev/holdfast/test/lab/components"
)

// startTimeout bounds the start of one process. It is long because a test machine may be building something else.
const startTimeout = 2 * time.Minute

// Cluster is a running API server.
type Cluster struct {
	// Config is an administrator's.
	Config *rest.Config
	// Client is an administrator's; it knows the kinds of Kubernetes and of Holdfast.
	Client client.Client

	env *envtest.Environment
}

// Main starts a cluster, lets *use point at it, runs the tests and stops the cluster. It returns the exit code.
// flags are further flags of kube-apiserver as "name=value".
func Main(m *testing.M, use **Cluster, flags ...string) int {
	cluster, err := Start(context.Background(), flags...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "envtest:", err)
		return 1
	}
	*use = cluster
	code := m.Run()
	if err := cluster.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "envtest:", err)
		return 1
	}
	return code
}

// Start starts a cluster. The binaries come from $KUBEBUILDER_ASSETS if that is set, and otherwise from the pinned
// components of the lab, which the first call ever builds. flags are further flags of kube-apiserver as "name=value".
func Start(ctx context.Context, flags ...string) (*Cluster, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	env := &envtest.Environment{
		Scheme:                   Scheme(),
		CRDDirectoryPaths:        []string{filepath.Join(root, "config", "crd", "bases")},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: startTimeout,
		ControlPlaneStopTimeout:  startTimeout,
	}
	if err := findBinaries(ctx, root, env); err != nil {
		return nil, err
	}
	args := env.ControlPlane.GetAPIServer().Configure()
	for _, flag := range flags {
		name, value, ok := strings.Cut(flag, "=")
		if !ok {
			return nil, fmt.Errorf("flag %q of kube-apiserver: write it as name=value", flag)
		}
		args.Append(strings.TrimLeft(name, "-"), value)
	}
	config, err := env.Start()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the API server: %w", err), env.Stop())
	}
	admin, err := client.New(config, client.Options{Scheme: env.Scheme})
	if err != nil {
		return nil, errors.Join(err, env.Stop())
	}
	return &Cluster{Config: config, Client: admin, env: env}, nil
}

// Stop ends the processes and removes what they wrote.
func (c *Cluster) Stop() error { return c.env.Stop() }

// As returns a configuration that authenticates as the given user by a client certificate.
func (c *Cluster) As(user string, groups ...string) (*rest.Config, error) {
	u, err := c.env.AddUser(envtest.User{Name: user, Groups: groups}, nil)
	if err != nil {
		return nil, fmt.Errorf("adding user %s: %w", user, err)
	}
	return u.Config(), nil
}

// Scheme returns a scheme with the kinds of Kubernetes and of Holdfast.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(scheme.AddToScheme(s))
	utilruntime.Must(apiextensionsv1.AddToScheme(s))
	utilruntime.Must(v1alpha1.AddToScheme(s))
	return s
}

// Root is the root of the checkout that the working directory is in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "config", "crd", "bases")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no config/crd/bases in %s or above: run in a checkout of Holdfast", dir)
		}
	}
}

func findBinaries(ctx context.Context, root string, env *envtest.Environment) error {
	if os.Getenv("KUBEBUILDER_ASSETS") != "" {
		return nil // env looks there itself
	}
	specs, err := pinned.Select(components.Specs(), []string{"etcd", "kube-apiserver"})
	if err != nil {
		return err
	}
	paths, err := pinned.Ensure(ctx, root, specs, os.Stderr)
	if err != nil {
		return err
	}
	env.ControlPlane.GetAPIServer().Path = paths["kube-apiserver"]
	env.ControlPlane.Etcd = &envtest.Etcd{Path: paths["etcd"]}
	env.ControlPlane.KubectlPath = "kubectl" // nobody here runs it
	return nil
}
