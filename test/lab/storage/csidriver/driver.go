// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package csidriver holds the two CSI drivers of the lab, which differ in their class only.
package csidriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
)

const version = "0.1.0"

// maxSocketPath is what fits into sockaddr_un.sun_path with its closing zero.
const maxSocketPath = 107

// Name returns the name of the driver for a class: the class followed by ".lab.holdfast.dev".
func Name(class array.Class) string { return string(class) + ".lab.holdfast.dev" }

// identity is the CSI Identity service. ready returns nil when the driver can work.
type identity struct {
	csi.UnimplementedIdentityServer
	class array.Class
	ready func(context.Context) error
}

func (i *identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name(i.class), VendorVersion: version}, nil
}

func (i *identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{
			Type: csi.PluginCapability_Service_CONTROLLER_SERVICE,
		}},
	}}}, nil
}

func (i *identity) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	if err := i.ready(ctx); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the array: %v", err)
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// checkCapability accepts mounted file systems, and for enforcing volumes one host at a time.
func checkCapability(class array.Class, c *csi.VolumeCapability) error {
	if c == nil {
		return status.Error(codes.InvalidArgument, "volume_capability: missing")
	}
	if c.GetMount() == nil {
		return status.Error(codes.InvalidArgument, "volume_capability.access_type: only mounted file systems are offered, no block devices")
	}
	mode := c.GetAccessMode().GetMode()
	switch {
	case mode == csi.VolumeCapability_AccessMode_UNKNOWN:
		return status.Error(codes.InvalidArgument, "volume_capability.access_mode: missing")
	case class == array.Enforcing && strings.HasPrefix(mode.String(), "MULTI_NODE"):
		return status.Errorf(codes.InvalidArgument, "volume_capability.access_mode %s: an enforcing volume has one host at a time; use a SINGLE_NODE mode", mode)
	}
	return nil
}

// grpcError gives the CSI code of an error of the array.
func grpcError(err error) error {
	if _, isStatus := status.FromError(err); isStatus { // nil is one too
		return err
	}
	var refusal *array.Refusal
	code := codes.Unavailable
	switch {
	case errors.As(err, &refusal):
		code = map[array.Kind]codes.Code{
			array.KindInvalid: codes.InvalidArgument, array.KindNotFound: codes.NotFound,
			array.KindConflict: codes.FailedPrecondition, array.KindDetached: codes.FailedPrecondition,
		}[refusal.Kind]
		if code == codes.OK {
			code = codes.Internal
		}
	case errors.Is(err, syscall.ENOENT):
		code = codes.NotFound
	case errors.Is(err, syscall.EACCES):
		code = codes.FailedPrecondition
	}
	return status.Error(code, err.Error())
}

// listenUnix listens on path and removes the socket of a process that is gone.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %s: %d bytes, but Linux takes %d: use a directory with a shorter path", path, len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return net.Listen("unix", path)
}

// serve answers on l until ctx is done.
func serve(ctx context.Context, l net.Listener, register func(*grpc.Server)) error {
	server := grpc.NewServer(grpc.UnaryInterceptor(logged))
	register(server)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	slog.Info("serving", "socket", l.Addr().String())
	return server.Serve(l)
}

// logged writes a line per call that changes something or fails.
func logged(ctx context.Context, q any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	r, err := next(ctx, q)
	_, method, _ := strings.Cut(strings.TrimPrefix(call.FullMethod, "/"), "/")
	switch {
	case err != nil:
		slog.Warn(method, "request", q, "err", err)
	case strings.Contains(method, "ublish"), strings.Contains(method, "Create"), strings.Contains(method, "Delete"):
		slog.Info(method, "request", q)
	}
	return r, err
}
