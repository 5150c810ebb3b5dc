// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// silence is a network in which nobody answers and nobody refuses.
func silence(context.Context, string, string) (net.Conn, error) {
	return nil, &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}
}

// mute is a network in which connections are accepted, and then nothing is heard in time.
func mute(context.Context, string, string) (net.Conn, error) {
	here, _ := net.Pipe()
	return here, here.SetDeadline(time.Unix(1, 0))
}

// babble is a network in which every connection is accepted, told something, and ended.
func babble(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	go func() {
		go func() { _, _ = io.Copy(io.Discard, there) }() // ends with the connection
		_, _ = io.WriteString(there, "SSH-2.0-x\r\n")
		_ = there.Close()
	}()
	return here, nil
}

// closed is a port of this machine that nobody listens on.
func closed(t *testing.T) int {
	t.Helper()
	l := listen(t)
	port := portNumber(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return port
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // some tests close it themselves
	return l
}

func portNumber(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

func TestProbes(t *testing.T) {
	status := func(code int) int {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
		t.Cleanup(s.Close)
		return portNumber(s.Listener)
	}
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	t.Cleanup(secure.Close)
	tcp := func(port int) v1alpha1.Probe {
		return v1alpha1.Probe{TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt(port)}}
	}
	web := func(port int, scheme string) v1alpha1.Probe {
		return v1alpha1.Probe{HTTPGet: &v1alpha1.HTTPProbe{Port: intstr.FromInt(port), Scheme: scheme}}
	}
	rpc := func(port int, service string) v1alpha1.Probe {
		return v1alpha1.Probe{GRPC: &v1alpha1.GRPCProbe{Port: intstr.FromInt(port), Service: service}}
	}
	serving := healthServer(t)
	tests := []struct {
		name            string
		probe           v1alpha1.Probe
		dial            Dial
		answers, kernel bool // kernel: the machine lives, whatever the application says
	}{
		{"TCP accepts", tcp(portNumber(listen(t))), dial, true, false},
		{"TCP refuses", tcp(closed(t)), dial, false, true},
		{"TCP silent", tcp(1), silence, false, false},
		{"HTTP 200", web(status(200), ""), dial, true, false},
		{"HTTP 302 is not followed", web(status(302), ""), dial, true, false},
		{"HTTP 503", web(status(503), ""), dial, false, true},
		{"HTTP refuses", web(closed(t), ""), dial, false, true},
		{"HTTP, and nobody speaks", web(1, ""), mute, false, false},
		{"HTTP, and something else is spoken", web(1, ""), babble, false, true},
		{"HTTPS, certificate not judged", web(portNumber(secure.Listener), "HTTPS"), dial, true, false},
		{"gRPC serves", rpc(serving, "well"), dial, true, false},
		{"gRPC serves not", rpc(serving, "ill"), dial, false, true},
		{"gRPC knows no such service", rpc(serving, "none"), dial, false, true},
		{"gRPC refuses", rpc(closed(t), ""), dial, false, true},
		{"gRPC, and the connection ends", rpc(1, ""), babble, false, true},
		{"gRPC silent", rpc(1, ""), silence, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, done := context.WithTimeout(t.Context(), 10*time.Second)
			defer done()
			err := ask(ctx, test.dial, test.probe, Target{IP: "127.0.0.1"})
			if (err == nil) != test.answers || errors.Is(err, errAlive) != test.kernel {
				t.Errorf("answers %v, kernel %v; want %v, %v (%v)", err == nil, errors.Is(err, errAlive), test.answers, test.kernel, err)
			}
		})
	}
}

func healthServer(t *testing.T) int {
	t.Helper()
	l := listen(t)
	server, services := grpc.NewServer(), health.NewServer()
	services.SetServingStatus("well", healthpb.HealthCheckResponse_SERVING)
	services.SetServingStatus("ill", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, services)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return portNumber(l)
}

func TestANamedPortIsLookedUp(t *testing.T) {
	p := v1alpha1.Probe{TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromString("sql")}}
	got, err := questionOf(p, Target{IP: "fd00::1", Ports: map[string]int32{"sql": 5432}})
	if err != nil || got.Address != "fd00::1" || got.Port != 5432 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestAskPortTellsKernelFromProcess(t *testing.T) {
	mute := listen(t) // the kernel accepts, nobody speaks
	spoken := listen(t)
	server := &http.Server{TLSConfig: &tls.Config{ClientAuth: tls.RequireAnyClientCert}, ReadHeaderTimeout: time.Second, Handler: http.NotFoundHandler()}
	fixture := httptest.NewTLSServer(nil)
	t.Cleanup(fixture.Close)
	server.TLSConfig.Certificates = fixture.TLS.Certificates
	go func() { _ = server.ServeTLS(spoken, "", "") }() // ends with Close
	t.Cleanup(func() { _ = server.Close() })
	fails := func(err error) Dial {
		return func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: err}
		}
	}
	tests := []struct {
		name string
		dial Dial
		port int
		want evidence.Answer
	}{
		{"closed", dial, closed(t), evidence.AnswerReset},
		{"listening but mute", dial, portNumber(mute), evidence.AnswerAccepted},
		{"TLS that wants our certificate", dial, portNumber(spoken), evidence.AnswerSpoke},
		{"no packet comes back", silence, 1, evidence.AnswerNone},
		{"our own patience ends", fails(context.DeadlineExceeded), 1, evidence.AnswerNone},
		{"a neighbour says no such host", fails(syscall.EHOSTUNREACH), 1, evidence.AnswerUnreachable},
		{"the question did not leave", fails(syscall.ENETUNREACH), 1, evidence.AnswerUnread},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, done := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer done()
			if got := askPort(ctx, test.dial, "127.0.0.1", int32(test.port)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// rig is a board whose only pod is answered by what the test says.
type rig struct {
	board   *Board
	source  *clocktesting.FakeClock
	answer  atomic.Pointer[error]
	asked   chan struct{}
	changed chan string
}

const podUID = "uid-1"

func newRig(t *testing.T, startup int32, probes ...v1alpha1.Probe) *rig {
	t.Helper()
	return newRigThat(t, func(*rig) {}, startup, probes...)
}

// newRigThat is prepared before its pod is asked for the first time.
func newRigThat(t *testing.T, prepare func(*rig), startup int32, probes ...v1alpha1.Probe) *rig {
	t.Helper()
	source, clock := stepped()
	r := &rig{source: source, asked: make(chan struct{}, 100), changed: make(chan string, 100)}
	prepare(r)
	r.board = NewBoard(clock, func(host string) { r.changed <- host })
	r.board.Dial = func(context.Context, string, string) (net.Conn, error) {
		defer func() { r.asked <- struct{}{} }()
		if err := r.answer.Load(); err != nil {
			return nil, *err
		}
		a, b := net.Pipe()
		_ = b.Close() // nobody reads there
		return a, nil
	}
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- r.board.Start(ctx) }()
	t.Cleanup(func() { stop(); <-over })
	waitUntil(t, "the board to run", func() bool { r.board.mu.Lock(); defer r.board.mu.Unlock(); return r.board.ctx != nil })
	r.board.Set("shop/db", []Target{{App: "shop/db", Pod: "shop/db-0", UID: podUID, Host: "a", IP: "10.0.0.1", Health: v1alpha1.Health{StartupSeconds: startup, Probes: probes}}})
	return r
}

func (r *rig) fail(err error) { r.answer.Store(&err) }

// round steps the clock by a period and waits until the probe was asked and counted.
func (r *rig) round(t *testing.T) evidence.App {
	t.Helper()
	waitUntil(t, "the probe to wait for its period", r.source.HasWaiters)
	for len(r.asked) > 0 {
		<-r.asked
	}
	before := r.row("sql")
	r.source.Step(time.Second)
	<-r.asked
	waitUntil(t, "the answer to be counted", func() bool { return r.row("sql") != before })
	a, _ := r.board.App(podUID)
	return a
}

func (r *rig) row(probe string) int32 {
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	return r.board.pods[podUID].tally[probe].row
}

func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

func sql(success, failure int32) v1alpha1.Probe {
	return v1alpha1.Probe{Name: "sql", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt(5432)}, PeriodSeconds: 1, TimeoutSeconds: 1,
		SuccessThreshold: success, FailureThreshold: failure}
}

func first(t *testing.T, r *rig) evidence.App {
	t.Helper()
	<-r.asked
	waitUntil(t, "the first answer to be counted", func() bool { return r.row("sql") != 0 })
	a, _ := r.board.App(podUID)
	return a
}

func TestTheBoardCountsByTheProbesOwnThresholds(t *testing.T) {
	r := newRig(t, 1, sql(2, 3))
	if a := first(t, r); a.Serving != evidence.ServingUnread || a.Answered != 1 || a.Asked != 1 {
		t.Errorf("one success of two: %+v", a)
	}
	if a := r.round(t); a.Serving != evidence.ServingYes || !a.HasAnswer || a.LastAnswer != at(1) || a.FailingFor != 0 {
		t.Errorf("two of two: %+v", a)
	}
	if host := <-r.changed; host != "a" {
		t.Errorf("told about %s", host)
	}
	r.fail(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	r.round(t)
	if a := r.round(t); a.Serving != evidence.ServingYes || !a.Kernel || a.FailingFor != 2*time.Second {
		t.Errorf("two failures of three: %+v", a)
	}
	if a := r.round(t); a.Serving != evidence.ServingNo || !a.HasKernel || a.LastKernel != at(4) || a.LastAnswer != at(1) {
		t.Errorf("three of three: %+v", a)
	}
	<-r.changed
	r.fail(&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT})
	if a := r.round(t); a.Kernel || !a.HasKernel || a.LastKernel != at(4) {
		t.Errorf("silence is taken for the kernel's refusal, or the refusal is forgotten: %+v", a)
	}
}

func TestTheFirstFailureIsTold(t *testing.T) {
	r := newRig(t, 1, sql(1, 3))
	first(t, r)
	<-r.changed
	r.fail(&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT})
	if a := r.round(t); a.Serving != evidence.ServingYes || a.Answered != 0 || a.Asked != 1 {
		t.Errorf("one failure of three: %+v", a)
	}
	<-r.changed // the test's deadline is the failure
	r.round(t)
	if n := len(r.changed); n != 0 {
		t.Errorf("told %d times more of a probe that goes on failing", n)
	}
}

func TestAStartingPodDoesNotFail(t *testing.T) {
	r := newRigThat(t, func(r *rig) { r.fail(&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}) }, 4, sql(1, 1))
	first(t, r)
	for second := 1; second <= 3; second++ {
		if a := r.round(t); a.Serving != evidence.ServingUnread && second > 1 {
			t.Errorf("%d s after the start: %+v", second, a)
		}
	}
	if a := r.round(t); a.Serving != evidence.ServingNo {
		t.Errorf("4 s after the start: %+v", a)
	}
}

func TestAPodThatIsNotListedIsNotKnown(t *testing.T) {
	r := newRig(t, 1, sql(1, 1))
	first(t, r)
	r.board.Set("shop/other", nil)
	if _, known := r.board.App(podUID); !known {
		t.Error("another app's targets were taken for these")
	}
	r.board.Set("shop/db", nil)
	if _, known := r.board.App(podUID); known {
		t.Error("a pod without target is still known")
	}
}

func TestTheSameTargetKeepsItsAnswersAndAChangedOneDoesNot(t *testing.T) {
	r := newRig(t, 1, sql(1, 1))
	first(t, r)
	target := r.board.pods[podUID].target
	target.Uptime = time.Hour
	r.board.Set("shop/db", []Target{target})
	if a, _ := r.board.App(podUID); !a.HasAnswer {
		t.Error("the same pod, longer up, has lost its answers")
	}
	r.fail(&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT})
	target.IP = "10.0.0.2"
	r.board.Set("shop/db", []Target{target})
	if a, _ := r.board.App(podUID); a.HasAnswer {
		t.Error("answers of one address count for another")
	}
	if q, err := questionOf(target.Health.Probes[0], target); err != nil || q.Address != "10.0.0.2" {
		t.Errorf("asks %+v, %v", q, err)
	}
}

func TestASuspectHostsPortIsAskedUntilItIsNot(t *testing.T) {
	r := newRig(t, 1, sql(1, 1))
	if p := r.board.Port("a"); p.Answer != evidence.AnswerUnread {
		t.Errorf("a port that nobody asked: %+v", p)
	}
	r.fail(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	r.board.WatchPort("a", "10.0.0.9")
	waitUntil(t, "the port's answer", func() bool { return r.board.Port("a").Answer == evidence.AnswerReset })
	r.fail(&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT})
	r.board.WatchPort("a", "") // the Node is gone, and with it its address
	waitUntil(t, "silence", func() bool {
		r.source.Step(portEvery)
		return r.board.Port("a").Answer == evidence.AnswerNone
	})
	if p := r.board.Port("a"); !p.HasAnswer {
		t.Errorf("the answer that was heard is forgotten: %+v", p)
	}
	r.board.UnwatchPort("a")
	if p := r.board.Port("a"); p.Answer != evidence.AnswerUnread || p.HasAnswer {
		t.Errorf("a host that is well keeps old answers: %+v", p)
	}
}
