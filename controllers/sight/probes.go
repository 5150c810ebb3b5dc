// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// errAlive: somebody at the other end answered, if only to refuse or to say that all is not well. It is no answer of a serving application, but it is
// a sign of life: a database that answers 503 because it lost its peers is not a dead host.
var errAlive = errors.New("answered")

// Dial opens a connection, as net.Dialer does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// ask puts one probe to one address. nil means that the application answered and is well; errAlive is wrapped when anything else came back.
func ask(ctx context.Context, dial Dial, p v1alpha1.Probe, addr string) error {
	switch {
	case p.HTTPGet != nil:
		return askHTTP(ctx, dial, p.HTTPGet, addr)
	case p.GRPC != nil:
		return askGRPC(ctx, dial, p.GRPC, addr)
	case p.TCPSocket != nil:
		conn, err := dial(ctx, "tcp", addr)
		if err != nil {
			return kernel(err)
		}
		return conn.Close()
	default:
		return fmt.Errorf("probe %s has no handler", p.Name)
	}
}

// portOf is the address that a probe of the target is put to.
func portOf(p v1alpha1.Probe, t Target) string {
	var port intstr.IntOrString
	switch {
	case p.HTTPGet != nil:
		port = p.HTTPGet.Port
	case p.GRPC != nil:
		port = p.GRPC.Port
	case p.TCPSocket != nil:
		port = p.TCPSocket.Port
	}
	n := port.IntVal
	if port.Type == intstr.String {
		n = t.Ports[port.StrVal] // an unknown name gives port 0, which nobody answers
	}
	return net.JoinHostPort(t.IP, strconv.Itoa(int(n)))
}

func kernel(err error) error {
	var alert tls.AlertError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.As(err, &alert), errors.As(err, &record):
		return fmt.Errorf("%w: %w", errAlive, err)
	default:
		return err
	}
}

func askHTTP(ctx context.Context, dial Dial, p *v1alpha1.HTTPProbe, addr string) error {
	scheme := "http"
	if p.Scheme == "HTTPS" {
		scheme = "https"
	}
	path := p.Path
	if path == "" {
		path = "/"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "holdfast-probe")
	transport := &http.Transport{
		DialContext:       dial,
		DisableKeepAlives: true, // every probe is a new connection, as a new client's would be
		// A probe asks whether the application answers; like the kubelet's own, it does not judge its certificate.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return kernel(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("%w: status %d", errAlive, resp.StatusCode)
	}
	return nil
}

func askGRPC(ctx context.Context, dial Dial, p *v1alpha1.GRPCProbe, addr string) error {
	var mu sync.Mutex
	var refused error // gRPC tells a failed dial in words only
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) {
			conn, err := dial(ctx, "tcp", a)
			mu.Lock()
			defer mu.Unlock()
			if refused = nil; err != nil {
				refused = kernel(err)
			}
			return conn, err
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: p.Service})
	if err != nil {
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled: // gRPC's own words for silence, or for a dial that failed
			mu.Lock()
			defer mu.Unlock()
			return errors.Join(err, refused)
		default:
			return fmt.Errorf("%w: %w", errAlive, err)
		}
	}
	if answer.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("%w: gRPC health %s", errAlive, answer.Status)
	}
	return nil
}

// askPort asks a kubelet's port: who answers, the kernel or a process?
func askPort(ctx context.Context, dial Dial, addr string) evidence.Answer {
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		switch {
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
			return evidence.AnswerReset
		case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
			return evidence.AnswerUnreachable
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
			return evidence.AnswerNone
		default:
			return evidence.AnswerUnread // ENETUNREACH and the like: the question did not leave
		}
	}
	defer conn.Close()
	// Any TLS answer is a process speaking, also a refusal of our certificate; its name is not ours to check, and nothing is sent.
	shake := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // see above
	if err := shake.HandshakeContext(ctx); err != nil {
		var alert tls.AlertError
		if errors.As(err, &alert) {
			return evidence.AnswerSpoke
		}
		return evidence.AnswerAccepted
	}
	return evidence.AnswerSpoke
}

// tally counts successes and failures of one probe in a row, by the probe's own thresholds.
type tally struct {
	row     int32 // successes in a row if positive, failures if negative
	verdict evidence.Serving
}

func (t *tally) count(ok bool, p v1alpha1.Probe) {
	switch {
	case ok && t.row > 0:
		t.row++
	case ok:
		t.row = 1
	case t.row < 0:
		t.row--
	default:
		t.row = -1
	}
	if t.row >= max(1, p.SuccessThreshold) {
		t.verdict = evidence.ServingYes
	}
	if -t.row >= max(1, p.FailureThreshold) {
		t.verdict = evidence.ServingNo
	}
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }
