// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayclient"
)

// registration answers the kubelet, which finds its socket in the directory plugins_registry.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	name, endpoint string
}

func (r *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: r.name, Endpoint: r.endpoint,
		SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		slog.Info("the kubelet has registered the driver", "driver", r.name)
	} else {
		slog.Error("the kubelet did not register the driver and will try again", "driver", r.name, "err", s.GetError())
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// Serve answers the kubelet until ctx is done: CSI on KubeletDir/plugins/CLASS/csi.sock, registration on
// KubeletDir/plugins_registry/CLASS-reg.sock. It also makes the host known to the array.
// The mounts stay when it ends: a dead mount fails, whereas an empty directory in its place would take
// writes that belong to the volume.
func (n *Node) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	endpoint := filepath.Join(n.config.pluginDir(), "csi.sock")
	csiSocket, err := listenUnix(endpoint)
	if err != nil {
		return err
	}
	registrationSocket, err := listenUnix(filepath.Join(n.config.KubeletDir, "plugins_registry", string(n.config.Class)+"-reg.sock"))
	if err != nil {
		return err
	}
	n.restore(ctx)
	go n.introduce(ctx)
	ended := make(chan error, 2)
	go func() {
		ended <- serve(ctx, csiSocket, func(s *grpc.Server) {
			csi.RegisterIdentityServer(s, &identity{class: n.config.Class, ready: func(context.Context) error { return nil }})
			csi.RegisterNodeServer(s, n)
		})
	}()
	go func() {
		ended <- serve(ctx, registrationSocket, func(s *grpc.Server) {
			registerapi.RegisterRegistrationServer(s, &registration{name: Name(n.config.Class), endpoint: endpoint})
		})
	}()
	err = <-ended
	cancel()
	return errors.Join(err, <-ended)
}

// introduce makes the host known to the array, without which nothing can be attached to it.
func (n *Node) introduce(ctx context.Context) {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		err := arrayclient.Register(ctx, arrayclient.Config{Address: n.config.Array, Host: n.config.Host, Boot: n.config.Boot})
		if err == nil {
			return
		}
		slog.Warn("the array does not know this host yet", "array", n.config.Array, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
