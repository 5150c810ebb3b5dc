// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayclient"
	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayfs"
)

const (
	mountTimeout = 15 * time.Second
	retryEvery   = time.Second
)

// NodeConfig says which host this is. All fields are required but IOTimeout.
type NodeConfig struct {
	Class      array.Class
	Array      string // host:port
	Host, Boot string
	KubeletDir string        // the kubelet's --root-dir
	IOTimeout  time.Duration // see arrayclient.Config
}

// pluginDir is where the driver keeps its socket and its records. It and the names of the sockets are short
// because a socket's path must fit into 107 bytes.
func (c NodeConfig) pluginDir() string {
	return filepath.Join(c.KubeletDir, "plugins", string(c.Class))
}

// Node is the CSI Node service of one class on one host. It mounts a volume anew for every target path;
// the mounts of one host share one epoch.
type Node struct {
	csi.UnimplementedNodeServer
	config    NodeConfig
	published *records

	mu     sync.Mutex
	mounts map[string]*arrayfs.Mounted // by target path
	busy   map[string]bool             // target paths on which a call is at work
}

// NewNode makes the node service.
func NewNode(config NodeConfig) *Node {
	return &Node{config: config, mounts: map[string]*arrayfs.Mounted{}, busy: map[string]bool{},
		published: &records{dir: filepath.Join(config.pluginDir(), "published")}}
}

// NodeGetCapabilities offers nothing beyond publishing.
func (n *Node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

// NodeGetInfo names the host as the array knows it.
func (n *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.config.Host}, nil
}

// NodePublishVolume mounts the volume at the target path.
func (n *Node) NodePublishVolume(ctx context.Context, q *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	switch {
	case q.GetVolumeId() == "":
		return nil, status.Error(codes.InvalidArgument, "volume_id: missing")
	case q.GetTargetPath() == "":
		return nil, status.Error(codes.InvalidArgument, "target_path: missing")
	}
	if err := checkCapability(n.config.Class, q.GetVolumeCapability()); err != nil {
		return nil, err
	}
	r := record{Volume: q.GetVolumeId(), Target: q.GetTargetPath(), ReadOnly: q.GetReadonly(), Boot: n.config.Boot}
	if err := n.publish(ctx, r); err != nil {
		return nil, grpcError(err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume takes the volume out of the target path and removes that directory. It never asks
// the array, so that it works on a host whose storage is cut or detached.
func (n *Node) NodeUnpublishVolume(_ context.Context, q *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	switch {
	case q.GetVolumeId() == "":
		return nil, status.Error(codes.InvalidArgument, "volume_id: missing")
	case q.GetTargetPath() == "":
		return nil, status.Error(codes.InvalidArgument, "target_path: missing")
	}
	if err := n.unpublish(q.GetTargetPath()); err != nil {
		return nil, grpcError(err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// begin claims a target path for one call.
func (n *Node) begin(target string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy[target] {
		return status.Errorf(codes.Aborted, "target_path %s: another call is at work on it", target)
	}
	n.busy[target] = true
	return nil
}

func (n *Node) end(target string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.busy, target)
}

func (n *Node) publish(ctx context.Context, r record) error {
	if err := n.begin(r.Target); err != nil {
		return err
	}
	defer n.end(r.Target)
	if n.live(r.Target) {
		return nil
	}
	// What a former run of this program mounted there is dead. A lazy unmount never asks the array.
	if err := arrayfs.Detach(r.Target); err != nil {
		return err
	}
	if err := os.MkdirAll(r.Target, 0o750); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	session, err := arrayclient.Mount(ctx, arrayclient.Config{Address: n.config.Array, Host: n.config.Host,
		Boot: n.config.Boot, Volume: r.Volume, IOTimeout: n.config.IOTimeout})
	if err != nil {
		return err
	}
	m, err := arrayfs.Mount(r.Target, session, r.ReadOnly)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.mounts[r.Target] = m
	n.mu.Unlock()
	return n.published.keep(r)
}

// live reports whether this process serves a mount at target.
func (n *Node) live(target string) bool {
	n.mu.Lock()
	m := n.mounts[target]
	n.mu.Unlock()
	if m == nil {
		return false
	}
	select {
	case <-m.Ended():
		return false
	default:
	}
	mounted, err := mountedAt(target)
	return err == nil && mounted
}

func (n *Node) unpublish(target string) error {
	if err := n.begin(target); err != nil {
		return err
	}
	defer n.end(target)
	if err := arrayfs.Detach(target); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.mounts, target)
	n.mu.Unlock()
	// Only the empty directory goes, never what lies in it.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("target_path: %w: empty the directory", err)
	}
	return n.published.drop(target)
}

// mountedAt reports whether mountinfo lists a mount of this driver at target. It does not touch target,
// which could hang.
func mountedAt(target string) (bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if len(fields) > 4 && unescape(fields[4]) == filepath.Clean(target) && strings.HasPrefix(after, arrayfs.FSType+" ") {
			return true, nil
		}
	}
	return false, lines.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// restore mounts again what a former run of this program had mounted during this boot, so that containers
// which start from now on find their volume and not the empty directory below the mount. It tries until
// the array answers or ctx is done.
func (n *Node) restore(ctx context.Context) {
	all, err := n.published.all()
	if err != nil {
		slog.Error("reading what was published", "err", err)
	}
	for _, r := range all {
		if r.Boot != n.config.Boot { // that boot's mounts died with it
			if err := n.published.drop(r.Target); err != nil {
				slog.Error("forgetting a publication of another boot", "target", r.Target, "err", err)
			}
			continue
		}
		go n.restoreOne(ctx, r)
	}
}

func (n *Node) restoreOne(ctx context.Context, r record) {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		err := n.publish(ctx, r)
		if err == nil {
			slog.Info("mounted again", "volume", r.Volume, "target", r.Target)
			return
		}
		var refused *arrayclient.MountError
		if errors.As(err, &refused) {
			slog.Warn("not mounted again", "volume", r.Volume, "target", r.Target, "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
