// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"regexp"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayclient"
)

const defaultBytes = 64 << 20

// Controller is the CSI Controller service of one class. It keeps nothing: the array knows.
type Controller struct {
	csi.UnimplementedControllerServer
	class   array.Class
	control *arrayclient.Control
}

// NewController makes the controller of a class over the array's control API.
func NewController(class array.Class, control *arrayclient.Control) *Controller {
	return &Controller{class: class, control: control}
}

// Serve answers on a unix socket until ctx is done.
func (c *Controller) Serve(ctx context.Context, socket string) error {
	l, err := listenUnix(socket)
	if err != nil {
		return err
	}
	return serve(ctx, l, func(s *grpc.Server) {
		csi.RegisterIdentityServer(s, &identity{class: c.class, ready: c.control.Healthy})
		csi.RegisterControllerServer(s, c)
	})
}

// ControllerGetCapabilities offers attaching for the enforcing class only.
func (c *Controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	offered := []csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}
	if c.class == array.Enforcing {
		offered = append(offered, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	}
	r := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range offered {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return r, nil
}

// CreateVolume makes a volume whose ID is its name, or a digest of a name that the array cannot bear.
func (c *Controller) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if q.GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "name: missing")
	}
	if len(q.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume_capabilities: missing")
	}
	for _, one := range q.GetVolumeCapabilities() {
		if err := checkCapability(c.class, one); err != nil {
			return nil, err
		}
	}
	if q.GetVolumeContentSource() != nil {
		return nil, status.Error(codes.InvalidArgument, "volume_content_source: snapshots and clones are not offered")
	}
	size := q.GetCapacityRange().GetRequiredBytes()
	if size == 0 {
		size = defaultBytes
		if limit := q.GetCapacityRange().GetLimitBytes(); limit > 0 {
			size = min(size, limit)
		}
	}
	made, err := c.control.CreateVolume(ctx, array.Record{Name: volumeID(q.GetName()), Class: c.class, SizeBytes: size})
	var refusal *array.Refusal
	if errors.As(err, &refusal) && refusal.Kind == array.KindConflict {
		return nil, status.Error(codes.AlreadyExists, refusal.Message)
	}
	if err != nil {
		return nil, grpcError(err)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: made.Name, CapacityBytes: made.SizeBytes}}, nil
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func volumeID(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "csi-" + hex.EncodeToString(sum[:])
}

// DeleteVolume removes a volume and its files; one that is not there is deleted already.
func (c *Controller) DeleteVolume(ctx context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id: missing")
	}
	return &csi.DeleteVolumeResponse{}, grpcError(c.control.DeleteVolume(ctx, q.GetVolumeId()))
}

// ValidateVolumeCapabilities confirms what checkCapability accepts.
func (c *Controller) ValidateVolumeCapabilities(ctx context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id: missing")
	}
	if len(q.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume_capabilities: missing")
	}
	if _, err := c.control.Volume(ctx, q.GetVolumeId()); err != nil {
		return nil, grpcError(err)
	}
	for _, one := range q.GetVolumeCapabilities() {
		if err := checkCapability(c.class, one); err != nil {
			return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeCapabilities: q.GetVolumeCapabilities(), VolumeContext: q.GetVolumeContext(),
	}}, nil
}

// ControllerPublishVolume attaches a volume to a host.
func (c *Controller) ControllerPublishVolume(ctx context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	switch {
	case q.GetVolumeId() == "":
		return nil, status.Error(codes.InvalidArgument, "volume_id: missing")
	case q.GetNodeId() == "":
		return nil, status.Error(codes.InvalidArgument, "node_id: missing")
	}
	if err := checkCapability(c.class, q.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if _, err := c.control.Attach(ctx, q.GetVolumeId(), q.GetNodeId()); err != nil {
		return nil, grpcError(err)
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

// ControllerUnpublishVolume detaches a volume. From its success on the array refuses the host.
func (c *Controller) ControllerUnpublishVolume(ctx context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id: missing")
	}
	_, err := c.control.Detach(ctx, q.GetVolumeId(), q.GetNodeId())
	var refusal *array.Refusal
	if errors.As(err, &refusal) && refusal.Kind == array.KindNotFound {
		err = nil // a volume that is gone is attached nowhere
	}
	return &csi.ControllerUnpublishVolumeResponse{}, grpcError(err)
}
