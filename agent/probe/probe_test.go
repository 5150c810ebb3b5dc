// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package probe_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/holdfast-dev/holdfast/agent/probe"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

func port(a net.Addr) int32 { return int32(a.(*net.TCPAddr).Port) }

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // some tests close it themselves
	return l
}

// closed is a port that nobody listens on.
func closed(t *testing.T) int32 {
	l := listen(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return port(l.Addr())
}

// hangUp is a port where every connection is accepted and ended at once, after saying a few words.
func hangUp(t *testing.T, words string) int32 {
	l := listen(t)
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, words)
			_ = conn.Close()
		}
	}()
	return port(l.Addr())
}

func website(t *testing.T, secure bool) int32 {
	mux := http.NewServeMux()
	mux.HandleFunc("/well", func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() != "holdfast-probe" {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/nowhere", http.StatusFound) })
	mux.HandleFunc("/ill", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	s := httptest.NewUnstartedServer(mux)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return port(s.Listener.Addr())
}

func healthServer(t *testing.T) int32 {
	l := listen(t)
	server, services := grpc.NewServer(), health.NewServer()
	services.SetServingStatus("well", healthpb.HealthCheckResponse_SERVING)
	services.SetServingStatus("ill", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, services)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return port(l.Addr())
}

// picky is a TLS server that ends every handshake without a client certificate, in the version of TLS where the client learns of it in the handshake.
func picky(t *testing.T) int32 {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12} //nolint:gosec // on purpose
	s.StartTLS()
	t.Cleanup(s.Close)
	return port(s.Listener.Addr())
}

func TestWhatWasHeardIsWhatIsSaid(t *testing.T) {
	plain, secure, rpc, mute := website(t, false), website(t, true), healthServer(t), port(listen(t).Addr())
	path := func(port int32, path string) wire.Question { return wire.Question{Port: port, HTTP: &path} }
	https := func(port int32, path string) wire.Question { return wire.Question{Port: port, HTTP: &path, TLS: true} }
	check := func(port int32, service string) wire.Question { return wire.Question{Port: port, GRPC: &service} }
	hello := func(port int32) wire.Question { return wire.Question{Port: port, TLS: true} }
	tests := []struct {
		name string
		ask  wire.Question
		want wire.Outcome
		mute bool
	}{
		{"TCP is accepted", wire.Question{Port: mute}, wire.Answered, false},
		{"TCP is refused", wire.Question{Port: closed(t)}, wire.Refused, false},
		{"TLS answers", hello(secure), wire.Answered, false},
		{"TLS wants our certificate", hello(picky(t)), wire.Answered, false},
		{"TLS is refused", hello(closed(t)), wire.Refused, false},
		{"TLS is asked where plain text is spoken", hello(plain), wire.Failed, false},
		{"TLS is asked where nobody speaks", hello(mute), wire.Failed, true},
		{"TLS is asked where the connection is ended", hello(hangUp(t, "")), wire.Failed, false},
		{"HTTP 200", path(plain, "/well"), wire.Answered, false},
		{"HTTP without a path", path(plain, ""), wire.Failed, false}, // 404
		{"HTTP 302 is not followed", path(plain, "/moved"), wire.Answered, false},
		{"HTTP 503", path(plain, "/ill"), wire.Failed, false},
		{"HTTP is refused", path(closed(t), "/"), wire.Refused, false},
		{"HTTP is asked where nobody speaks", path(mute, "/"), wire.Failed, true},
		{"HTTP is asked where something else is spoken", path(hangUp(t, "SSH-2.0-x\r\n"), "/"), wire.Failed, false},
		{"HTTPS, the certificate not judged", https(secure, "/well"), wire.Answered, false},
		{"HTTPS 503", https(secure, "/ill"), wire.Failed, false},
		{"HTTPS is asked where nobody speaks", https(mute, "/"), wire.Failed, true},
		{"gRPC serves", check(rpc, "well"), wire.Answered, false},
		{"gRPC serves not", check(rpc, "ill"), wire.Failed, false},
		{"gRPC knows no such service", check(rpc, "none"), wire.Failed, false},
		{"gRPC is asked of a website", check(plain, ""), wire.Failed, false},
		{"gRPC is refused", check(closed(t), ""), wire.Refused, false},
		{"gRPC is asked where nobody speaks", check(mute, ""), wire.Failed, true},
		{"gRPC is asked where the connection is ended", check(hangUp(t, ""), ""), wire.Failed, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			patience := 20 * time.Second // of a busy machine, not of the test
			if test.mute {
				patience = 100 * time.Millisecond
			}
			ctx, done := context.WithTimeout(t.Context(), patience)
			defer done()
			test.ask.Address = "127.0.0.1"
			got, err := probe.Ask(ctx, (&net.Dialer{}).DialContext, test.ask)
			if got != test.want || errors.Is(err, probe.ErrMute) != test.mute || (err == nil) != (got == wire.Answered) {
				t.Errorf("%s (%v), want %s, mute %v", got, err, test.want, test.mute)
			}
		})
	}
}

func TestAConnectionThatIsNotOpened(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want wire.Outcome
	}{
		{"RST", syscall.ECONNREFUSED, wire.Refused},
		{"RST in the middle", syscall.ECONNRESET, wire.Refused},
		{"no neighbour, or a router's word", syscall.EHOSTUNREACH, wire.Unreachable},
		{"the host is known to be down", syscall.EHOSTDOWN, wire.Unreachable},
		{"no packet, by the kernel's patience", syscall.ETIMEDOUT, wire.Silent},
		{"no packet, by ours", context.DeadlineExceeded, wire.Silent},
		{"no packet, by the socket's", os.ErrDeadlineExceeded, wire.Silent},
		{"no route from here", syscall.ENETUNREACH, wire.NotAsked},
		{"forbidden here", syscall.EPERM, wire.NotAsked},
		{"no more sockets here", syscall.EMFILE, wire.NotAsked},
		{"whoever asked went away", context.Canceled, wire.NotAsked},
	}
	web, service := "/", ""
	for _, test := range tests {
		for kind, q := range map[string]wire.Question{"TCP": {}, "TLS": {TLS: true}, "HTTP": {HTTP: &web}, "gRPC": {GRPC: &service}} {
			t.Run(test.name+" "+kind, func(t *testing.T) {
				asked := ""
				dial := func(_ context.Context, network, address string) (net.Conn, error) {
					asked += network + " " + address
					return nil, &net.OpError{Op: "dial", Err: test.err}
				}
				q.Address, q.Port = "fd00::7", 5432
				got, err := probe.Ask(t.Context(), dial, q)
				if got != test.want || !errors.Is(err, test.err) {
					t.Errorf("%s (%v), want %s", got, err, test.want)
				}
				if asked != "tcp [fd00::7]:5432" {
					t.Errorf("dialled %q; one connection is one question", asked)
				}
			})
		}
	}
}

func TestWhatIsNotUnderstoodIsNotAsked(t *testing.T) {
	path, odd, service := "/", "@10.0.0.9/", ""
	broken := "/\n"
	tests := []struct {
		name, says string
		ask        wire.Question
	}{
		{"a name for an address", "address", wire.Question{Address: "db.shop"}},
		{"an agent", "agent", wire.Question{Address: "10.0.0.1", Agent: "a"}},
		{"two handlers", "grpc", wire.Question{Address: "10.0.0.1", GRPC: &service, HTTP: &path}},
		{"gRPC over TLS", "grpc", wire.Question{Address: "10.0.0.1", GRPC: &service, TLS: true}},
		{"a path that names another host", "http", wire.Question{Address: "10.0.0.1", HTTP: &odd}},
		{"a path with a line break", "http", wire.Question{Address: "10.0.0.1", HTTP: &broken}},
	}
	dial := func(context.Context, string, string) (net.Conn, error) {
		t.Error("something was dialled")
		return nil, syscall.ECONNREFUSED
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := probe.Ask(t.Context(), dial, test.ask)
			if got != wire.NotAsked || err == nil || !strings.HasPrefix(err.Error(), test.says+":") {
				t.Errorf("%s, %v", got, err)
			}
			if checked := probe.Check(test.ask); checked == nil || checked.Error() != err.Error() {
				t.Errorf("Check says %v, Ask %v", checked, err)
			}
		})
	}
}
