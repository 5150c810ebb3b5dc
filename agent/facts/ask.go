// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reply is what came of one ask.
type reply int

const (
	// unclear: something came of it that is neither of the others.
	unclear reply = iota
	// answered: as it does when it lives.
	answered
	// refused: the kernel says that nobody is there.
	refused
	// silent: nothing came.
	silent
)

// web asks over HTTP.
type web struct {
	url    string
	client *http.Client
}

// How connections are used. Over a kept one thousands of agents cost the API server no handshakes; one that has died is given up with the first silence.
const (
	fresh = true
	kept  = false
)

func overHTTP(url string, tlsConfig *tls.Config, disableKeepAlives bool) web {
	return web{url: url, client: &http.Client{
		Transport: &http.Transport{
			// HTTP/1.1 alone: a request that is given up closes its connection, and the next one has another.
			TLSClientConfig: tlsConfig, ForceAttemptHTTP2: false, DisableKeepAlives: disableKeepAlives, MaxIdleConnsPerHost: 1,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// ask takes any answer of an HTTP server for one: whoever says that it is unwell speaks.
func (w web) ask(ctx context.Context) reply {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return unclear
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return ofError(ctx, err)
	}
	defer resp.Body.Close()
	// The rest of the answer is read for the connection's sake, and not more of it than a health check says.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return answered
}

func (w web) close() { w.client.CloseIdleConnections() }

// ofError tells who refused from who is silent. No route is silence: nothing of the host that was asked is in it.
func ofError(ctx context.Context, err error) reply {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return refused
	case ctx.Err() != nil,
		errors.As(err, &timeout) && timeout.Timeout(),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EAGAIN):
		return silent
	default:
		return unclear
	}
}

// overCRI asks a container runtime for its version.
func overCRI(socket string) func(context.Context) reply {
	return func(ctx context.Context) reply {
		client, end, err := dialCRI(ctx, socket)
		if err != nil {
			return ofError(ctx, err)
		}
		defer end()
		_, err = client.Version(ctx, &cri.VersionRequest{})
		switch {
		case err == nil:
			return answered
		case ctx.Err() != nil, status.Code(err) == codes.DeadlineExceeded:
			return silent
		default:
			return unclear
		}
	}
}

// dialCRI opens a connection, a new one each time: a kept one would be tried again later and later while the runtime is gone.
func dialCRI(ctx context.Context, socket string) (cri.RuntimeServiceClient, func(), error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, nil, err
	}
	client, err := grpc.NewClient("passthrough:///runtime",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return cri.NewRuntimeServiceClient(client), func() {
		_ = client.Close()
		_ = conn.Close()
	}, nil
}

// Pods are the addresses of the pods that run on this host, as its container runtime knows them.
func Pods(ctx context.Context, socket string) ([]netip.Addr, error) {
	client, end, err := dialCRI(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("ask the container runtime for its pods: %w", err)
	}
	defer end()
	ready := &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}
	list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: ready})
	if err != nil {
		return nil, fmt.Errorf("ask the container runtime for its pods: %w", err)
	}
	var pods []netip.Addr
	for _, pod := range list.GetItems() {
		said, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod.GetId()})
		if status.Code(err) == codes.NotFound { // it ended meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("ask the container runtime for the address of %s: %w", pod.GetMetadata().GetName(), err)
		}
		network := said.GetStatus().GetNetwork()
		for _, text := range append([]string{network.GetIp()}, further(network)...) {
			if ip, err := netip.ParseAddr(text); err == nil { // one on the host's network has none
				pods = append(pods, ip.Unmap())
			}
		}
	}
	return pods, nil
}

func further(network *cri.PodSandboxNetworkStatus) (addresses []string) {
	for _, more := range network.GetAdditionalIps() {
		addresses = append(addresses, more.GetIp())
	}
	return addresses
}
