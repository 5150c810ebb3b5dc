// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package probe tries a question from where it runs: the agents for the manager, and the manager for itself. See docs/spec/witness.md.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"github.com/holdfast-dev/holdfast/agent/rpc"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// ErrMute is wrapped where the connection was accepted and nothing more was heard in time: a kernel that accepts is all that is known to live there.
var ErrMute = errors.New("accepted, and then nothing was heard")

// Dial opens a connection, as net.Dialer does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Ask puts one question to an address, by one connection, until the context ends. The error says why it was not Answered, and is nil if it was.
// A question to an agent is not for Ask.
func Ask(ctx context.Context, dial Dial, q wire.Question) (wire.Outcome, error) {
	try, err := way(q)
	if err != nil {
		return wire.NotAsked, err
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(q.Address, strconv.Itoa(int(q.Port))))
	if err != nil {
		return Outcome(err), err
	}
	defer conn.Close()
	switch err := try(ctx, conn); {
	case err == nil:
		return wire.Answered, nil
	case patience(err):
		return wire.Failed, fmt.Errorf("%w: %w", ErrMute, err)
	default:
		return wire.Failed, err
	}
}

// Outcome is what a connection that could not be opened says. ENETUNREACH is NotAsked: without a route the question did not leave.
func Outcome(err error) wire.Outcome {
	switch {
	case err == nil:
		return wire.Answered
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return wire.Refused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		return wire.Unreachable
	case patience(err):
		return wire.Silent
	default:
		return wire.NotAsked
	}
}

// patience reports whether time ran out.
func patience(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}

// way is what is done with the connection.
func way(q wire.Question) (func(context.Context, net.Conn) error, error) {
	if _, err := netip.ParseAddr(q.Address); err != nil {
		return nil, fmt.Errorf("address: %q is no IP address", q.Address)
	}
	switch {
	case q.Agent != "":
		return nil, errors.New("agent: an agent is asked by gossip, not by a connection")
	case q.GRPC != nil && (q.HTTP != nil || q.TLS):
		return nil, errors.New("grpc: it goes neither with http nor with tls; ask two questions")
	case q.GRPC != nil:
		return func(ctx context.Context, conn net.Conn) error { return health(ctx, conn, *q.GRPC) }, nil
	case q.HTTP != nil:
		request, err := get(q)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, conn net.Conn) error { return exchange(request.WithContext(ctx), conn) }, nil
	case q.TLS:
		return hello, nil
	default:
		return func(context.Context, net.Conn) error { return nil }, nil
	}
}

// Check says what is wrong with the handler of a question, naming the field: what Ask would refuse to ask whatever the network is like.
func Check(q wire.Question) error {
	_, err := way(q)
	return err
}

func get(q wire.Question) (*http.Request, error) {
	scheme, path := "http", *q.HTTP
	if q.TLS {
		scheme = "https"
	}
	if path == "" {
		path = "/"
	}
	if path[0] != '/' { // or it would name another host
		return nil, fmt.Errorf("http: the path %q does not begin with /", path)
	}
	request, err := http.NewRequest(http.MethodGet, scheme+"://"+net.JoinHostPort(q.Address, strconv.Itoa(int(q.Port)))+path, nil)
	if err != nil {
		return nil, fmt.Errorf("http: %q is no path of a URL: %w", path, err)
	}
	request.Header.Set("User-Agent", "holdfast-probe")
	return request, nil
}

// only gives out the one connection, and no other.
func only(conn net.Conn) func() (net.Conn, error) {
	given := make(chan net.Conn, 1)
	given <- conn
	return func() (net.Conn, error) {
		select {
		case conn := <-given:
			return conn, nil
		default:
			return nil, errors.New("the connection ended")
		}
	}
}

func exchange(request *http.Request, conn net.Conn) error {
	next := only(conn)
	transport := &http.Transport{
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return next() },
		DisableKeepAlives:      true, // every probe is a new connection, as a new client's would be
		MaxResponseHeaderBytes: 1 << 16,
		// A probe asks whether the application answers; like the kubelet's own, it does not judge its certificate, and it sends nothing secret.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16)) // so that the application does not see its answer cut off
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

// What of gRPC's health protocol is used: https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto.
const (
	healthCheck             = "/grpc.health.v1.Health/Check"
	healthService rpc.Field = 1 // HealthCheckRequest.service
	healthStatus  rpc.Field = 1 // HealthCheckResponse.status
	healthServing           = 1 // HealthCheckResponse.SERVING
)

func health(ctx context.Context, conn net.Conn, service string) error {
	client := rpc.New(conn, conn.RemoteAddr().String())
	defer client.Close()
	answer, err := client.Call(ctx, healthCheck, rpc.With(nil, healthService, service))
	if err != nil {
		return err
	}
	switch is, err := rpc.Number(answer, healthStatus); {
	case err != nil:
		return err
	case is != healthServing:
		return fmt.Errorf("gRPC health status %d", is)
	default:
		return nil
	}
}

// hello says that a process is there: any TLS answer is one speaking, also a refusal of our certificate.
func hello(ctx context.Context, conn net.Conn) error {
	// Whose certificate it is matters not, since nothing is sent.
	err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) //nolint:gosec // see above
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" { // an alert that came from there; crypto/tls exports no type of it but for QUIC
		return nil
	}
	return err
}
