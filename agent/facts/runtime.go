// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/holdfast-dev/holdfast/agent/rpc"
)

// What of the CRI is used: https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto. Tests compare it with the CRI's own code.
const (
	criVersion  = "/runtime.v1.RuntimeService/Version"
	criList     = "/runtime.v1.RuntimeService/ListPodSandbox"
	criStatusOf = "/runtime.v1.RuntimeService/PodSandboxStatus"

	listFilter    rpc.Field = 1 // ListPodSandboxRequest.filter
	filterState   rpc.Field = 2 // PodSandboxFilter.state
	listItems     rpc.Field = 1 // ListPodSandboxResponse.items
	sandboxID     rpc.Field = 1 // PodSandbox.id
	statusOfID    rpc.Field = 1 // PodSandboxStatusRequest.pod_sandbox_id
	statusIs      rpc.Field = 1 // PodSandboxStatusResponse.status
	statusNetwork rpc.Field = 5 // PodSandboxStatus.network
	networkIP     rpc.Field = 1 // PodSandboxNetworkStatus.ip
	networkMore   rpc.Field = 2 // PodSandboxNetworkStatus.additional_ips
	moreIP        rpc.Field = 1 // PodIP.ip
)

// overCRI asks a container runtime for its version.
func overCRI(socket string) func(context.Context) reply {
	return func(ctx context.Context) reply {
		client, err := dialCRI(ctx, socket)
		if err != nil {
			return ofError(ctx, err)
		}
		defer client.Close()
		_, err = client.Call(ctx, criVersion, nil)
		switch {
		case err == nil:
			return answered
		case ctx.Err() != nil:
			return silent
		default:
			return unclear
		}
	}
}

// dialCRI opens a connection, a new one each time: a kept one may have died with the runtime before.
func dialCRI(ctx context.Context, socket string) (*rpc.Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return rpc.New(conn, "localhost"), nil // as gRPC names whoever is at a socket
}

// Pods are the addresses of the pods that run on this host, as its container runtime knows them.
func Pods(ctx context.Context, socket string) ([]netip.Addr, error) {
	client, err := dialCRI(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("ask the container runtime for its pods: %w", err)
	}
	defer client.Close()
	ready := rpc.With(nil, filterState, "") // SANDBOX_READY is 0, which is not written
	list, err := client.Call(ctx, criList, rpc.With(nil, listFilter, ready))
	if err != nil {
		return nil, fmt.Errorf("ask the container runtime for its pods: %w", err)
	}
	items, err := rpc.Parts(list, listItems)
	if err != nil {
		return nil, fmt.Errorf("ask the container runtime for its pods: %w", err)
	}
	var pods []netip.Addr
	for _, item := range items {
		id, err := rpc.At(item, sandboxID)
		if err != nil {
			return nil, fmt.Errorf("ask the container runtime for its pods: %w", err)
		}
		its, err := addresses(ctx, client, id)
		if err != nil {
			return nil, fmt.Errorf("ask the container runtime for the addresses of the pod %q: %w", id, err)
		}
		pods = append(pods, its...)
	}
	return pods, nil
}

// addresses are those of one pod. One that ended meanwhile has none, nor has one on the host's network.
func addresses(ctx context.Context, client *rpc.Client, id []byte) (its []netip.Addr, err error) {
	said, err := client.Call(ctx, criStatusOf, rpc.With(nil, statusOfID, id))
	var refusal *rpc.Status
	if errors.As(err, &refusal) && refusal.Code == rpc.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	network, err := rpc.At(said, statusIs, statusNetwork)
	if err != nil {
		return nil, err
	}
	texts, err := rpc.Parts(network, networkIP)
	if err != nil {
		return nil, err
	}
	further, err := rpc.Parts(network, networkMore)
	if err != nil {
		return nil, err
	}
	for _, more := range further {
		text, err := rpc.At(more, moreIP)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	for _, text := range texts {
		if ip, err := netip.ParseAddr(string(text)); err == nil {
			its = append(its, ip.Unmap())
		}
	}
	return its, nil
}
