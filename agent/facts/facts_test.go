// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// host is a host with real listeners, whose time goes on when the test says so.
type host struct {
	t     *testing.T
	clock *clocktesting.FakeClock
	local *Local
	// asks has what each ask came to; changes what was announced.
	asks    chan ask
	mu      sync.Mutex
	changes []wire.Facts
}

type ask struct {
	what  string
	pulse wire.Pulse
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newHost has a boot and a UUID, and nothing that answers.
func newHost(t *testing.T, change func(*Config)) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, clock: clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)), asks: make(chan ask)}
	config := Config{
		Node:           "node-1",
		BootIDPath:     write(t, filepath.Join(dir, "boot_id"), "2f8a4c1e-6a39-4ad8-9a3e-0a7f5e0b7c11\n"),
		SystemUUIDPath: write(t, filepath.Join(dir, "product_uuid"), "4C4C4544-0051-3610-8052-B4C04F4D3232\n"),
		KubeletURL:     "http://" + deaf(t) + "/healthz",
		RuntimeSocket:  filepath.Join(dir, "cri.sock"),
		MountsPath:     filepath.Join(dir, "mounts"),
		PressurePath:   filepath.Join(dir, "pressure"),
		Clock:          h.clock,
		Changed: func(f wire.Facts) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.changes = append(h.changes, f)
		},
	}
	change(&config)
	local, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	local.asked = func(what string, pulse wire.Pulse) {
		select {
		case h.asks <- ask{what, pulse}:
		case <-ctx.Done():
		}
	}
	h.local = local
	var running sync.WaitGroup
	running.Go(func() { local.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return h
}

// deaf is an address where nobody listens.
func deaf(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// mute accepts connections, reads, and never says anything.
func mute(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// next is what the next ask about something comes to. Asks about others go by.
func (h *host) next(what string) wire.Pulse {
	h.t.Helper()
	for {
		select {
		case a := <-h.asks:
			if a.what == what {
				return a.pulse
			}
		case <-h.t.Context().Done():
			h.t.Fatalf("the %s was not asked", what)
		}
	}
}

// later is next, and lets time go by until it is there.
func (h *host) later(what string) wire.Pulse {
	h.t.Helper()
	for {
		select {
		case a := <-h.asks:
			if a.what == what {
				return a.pulse
			}
		case <-h.t.Context().Done():
			h.t.Fatalf("the %s was not asked", what)
		default:
			h.clock.Step(100 * time.Millisecond)
		}
	}
}

// again lets one period go by, and no more than that: what answers at all is in time.
func (h *host) again(what string, period time.Duration) wire.Pulse {
	h.t.Helper()
	h.clock.Step(period)
	return h.next(what)
}

func (h *host) want(what string, got, want wire.Pulse) {
	h.t.Helper()
	if got != want {
		h.t.Fatalf("the %s is %q, want %q", what, got, want)
	}
}

func TestWhatIsReadOnce(t *testing.T) {
	h := newHost(t, func(*Config) {})
	got := h.local.Facts()
	if got.Node != "node-1" || got.BootID != "2f8a4c1e-6a39-4ad8-9a3e-0a7f5e0b7c11" || got.SystemUUID != "4c4c4544-0051-3610-8052-b4c04f4d3232" {
		t.Fatalf("facts are %+v", got)
	}
}

func TestAHostWithoutABootHasNothingToSay(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "two words": "a b\n"} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(Config{Node: "node-1", BootIDPath: write(t, filepath.Join(dir, "boot"), text)}); err == nil || !strings.Contains(err.Error(), "boot ID") {
				t.Fatalf("New says %v", err)
			}
		})
	}
	if _, err := New(Config{BootIDPath: write(t, filepath.Join(dir, "boot"), "b1")}); err == nil || !strings.Contains(err.Error(), "spec.nodeName") {
		t.Fatalf("New says %v without a name", err)
	}
}

func TestAnUnreadableUUIDIsEmpty(t *testing.T) {
	h := newHost(t, func(c *Config) { c.SystemUUIDPath = filepath.Join(t.TempDir(), "none") })
	if got := h.local.Facts().SystemUUID; got != "" {
		t.Fatalf("system UUID is %q", got)
	}
}

func TestAKubeletThatAnswersIsAliveWhateverItSays(t *testing.T) {
	for name, code := range map[string]int{"well": 200, "unwell": 500, "elsewhere": 302} {
		t.Run(name, func(t *testing.T) {
			kubelet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(code)
			}))
			t.Cleanup(kubelet.Close)
			h := newHost(t, func(c *Config) { c.KubeletURL = kubelet.URL + "/healthz" })
			h.want("kubelet", h.next("kubelet"), wire.Alive)
		})
	}
}

func TestAKubeletThatIsGoneIsDeadAtOnce(t *testing.T) {
	kubelet := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	h := newHost(t, func(c *Config) { c.KubeletURL = kubelet.URL })
	h.want("kubelet", h.next("kubelet"), wire.Alive)
	kubelet.Close()
	h.want("kubelet", h.again("kubelet", KubeletPeriod), wire.Dead)
}

func TestOneSilenceIsNoDeathAndTwoAre(t *testing.T) {
	l := mute(t, "tcp", "127.0.0.1:0")
	h := newHost(t, func(c *Config) { c.KubeletURL = "http://" + l.Addr().String() })
	h.want("kubelet", h.later("kubelet"), wire.Unread)
	h.want("kubelet", h.later("kubelet"), wire.Dead)
	h.want("kubelet", h.later("kubelet"), wire.Dead)
}

func TestTheRule(t *testing.T) {
	for name, c := range map[string]struct {
		reply    reply
		silences int
		want     wire.Pulse
	}{
		"an answer is life":                    {answered, 0, wire.Alive},
		"a refusal is death":                   {refused, 0, wire.Dead},
		"the first silence is neither":         {silent, 1, wire.Unread},
		"the second silence in a row is death": {silent, 2, wire.Dead},
		"and so is the third":                  {silent, 3, wire.Dead},
		"what is not understood is neither":    {unclear, 0, wire.Unread},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge(c.reply, c.silences); got != c.want {
				t.Fatalf("judged %q, want %q", got, c.want)
			}
		})
	}
}

func TestAnAPIThatNobodyKnowsIsUnread(t *testing.T) {
	unknown := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(unknown.Close)
	h := newHost(t, func(c *Config) { c.APIURL, c.APITLS = unknown.URL, &tls.Config{RootCAs: x509.NewCertPool()} })
	for range 3 {
		h.want("api", h.next("api"), wire.Unread)
		h.clock.Step(APIPeriod)
	}
}

func TestAKubeletThatHangsUpIsUnread(t *testing.T) {
	hangsUp := mute(t, "tcp", "127.0.0.1:0")
	go func() {
		for {
			conn, err := hangsUp.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	h := newHost(t, func(c *Config) { c.KubeletURL = "http://" + hangsUp.Addr().String() })
	for range 3 {
		h.want("kubelet", h.next("kubelet"), wire.Unread)
		h.clock.Step(KubeletPeriod)
	}
}

func TestAnAPIThatRefusesTheCallerAnswers(t *testing.T) {
	paths := make(chan string, 1)
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case paths <- r.URL.Path:
		default:
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(api.Close)
	roots := x509.NewCertPool()
	roots.AddCert(api.Certificate())
	h := newHost(t, func(c *Config) { c.APIURL, c.APITLS = api.URL+"/readyz", &tls.Config{RootCAs: roots} })
	h.want("api", h.next("api"), wire.Alive)
	if path := <-paths; path != "/readyz" {
		t.Fatalf("%s was asked", path)
	}
}

// runtimeServer is a container runtime that is asked for its version and its pods.
type runtimeServer struct {
	cri.UnimplementedRuntimeServiceServer
	err error
}

func (r runtimeServer) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "containerd", RuntimeApiVersion: "v1"}, r.err
}

func serveCRI(t *testing.T, socket string, err error) *grpc.Server {
	t.Helper()
	l, listenErr := net.Listen("unix", socket)
	if listenErr != nil {
		t.Fatal(listenErr)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, runtimeServer{err: err})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return server
}

func TestARuntimeComesAndGoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	h := newHost(t, func(c *Config) { c.RuntimeSocket = socket })
	h.want("runtime", h.next("runtime"), wire.Dead)
	server := serveCRI(t, socket, nil)
	h.want("runtime", h.again("runtime", RuntimePeriod), wire.Alive)
	server.Stop()
	h.want("runtime", h.again("runtime", RuntimePeriod), wire.Dead)
	// A stale socket file, as a runtime leaves that was killed.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	h.want("runtime", h.again("runtime", RuntimePeriod), wire.Dead)
}

func TestARuntimeThatHangsIsSilent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	mute(t, "unix", socket)
	h := newHost(t, func(c *Config) { c.RuntimeSocket = socket })
	h.want("runtime", h.later("runtime"), wire.Unread)
	h.want("runtime", h.later("runtime"), wire.Dead)
}

func TestARuntimeThatIsNotReadyIsUnread(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	serveCRI(t, socket, status.Error(codes.Unknown, "server is not initialized yet"))
	h := newHost(t, func(c *Config) { c.RuntimeSocket = socket })
	h.want("runtime", h.next("runtime"), wire.Unread)
}

func TestEachChangeIsToldOnceAndInOrder(t *testing.T) {
	kubelet := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	h := newHost(t, func(c *Config) { c.KubeletURL = kubelet.URL })
	h.want("kubelet", h.next("kubelet"), wire.Alive)
	h.want("kubelet", h.again("kubelet", KubeletPeriod), wire.Alive)
	h.want("kubelet", h.again("kubelet", KubeletPeriod), wire.Alive)
	kubelet.Close()
	h.want("kubelet", h.again("kubelet", KubeletPeriod), wire.Dead)
	h.mu.Lock()
	defer h.mu.Unlock()
	kubelets := []wire.Pulse{wire.Unread}
	for i, f := range h.changes {
		// The first revision is what New read.
		if f.Revision != uint64(i)+2 {
			t.Fatalf("change %d has revision %d", i, f.Revision)
		}
		if last := kubelets[len(kubelets)-1]; f.Kubelet != last {
			kubelets = append(kubelets, f.Kubelet)
		}
	}
	if len(kubelets) != 3 || kubelets[1] != wire.Alive || kubelets[2] != wire.Dead {
		t.Fatalf("the kubelet was told to be %q", kubelets)
	}
}

// pods of a runtime; one of them has gone when it is looked at.
func (r runtimeServer) ListPodSandbox(_ context.Context, request *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	if state := request.GetFilter().GetState(); state == nil || state.GetState() != cri.PodSandboxState_SANDBOX_READY {
		return nil, status.Error(codes.InvalidArgument, "dead pods have no addresses")
	}
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{
		{Id: "two", Metadata: &cri.PodSandboxMetadata{Name: "db-0"}, Labels: map[string]string{"app": "db"}, CreatedAt: 1 << 60}, {Id: "gone"}, {Id: "host"},
	}}, r.err
}

func (r runtimeServer) PodSandboxStatus(_ context.Context, request *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	network := map[string]*cri.PodSandboxNetworkStatus{
		"two":  {Ip: "10.1.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd01::2"}}},
		"host": {},
	}[request.GetPodSandboxId()]
	if network == nil {
		return nil, status.Error(codes.NotFound, "it ended")
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Network: network}}, nil
}

func TestTheAddressesOfPods(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	if pods, err := Pods(t.Context(), socket); err == nil {
		t.Errorf("without a runtime: %v", pods)
	}
	serveCRI(t, socket, nil)
	want := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")}
	if pods, err := Pods(t.Context(), socket); err != nil || !slices.Equal(pods, want) {
		t.Errorf("%v, %v", pods, err)
	}
}

// Only an answer is told, and it is told of the question.
func TestTheAPIsAnswersAreTold(t *testing.T) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	roots := x509.NewCertPool()
	roots.AddCert(api.Certificate())
	var asked, answers int
	h := newHost(t, func(c *Config) {
		c.APIURL, c.APITLS = api.URL, &tls.Config{RootCAs: roots}
		c.AskingAPI = func() func() { asked++; return func() { answers++ } }
	})
	h.want("api", h.next("api"), wire.Alive)
	if asked != 1 || answers != 1 {
		t.Errorf("asked %d times, answered %d times", asked, answers)
	}
	api.Close()
	h.want("api", h.again("api", APIPeriod), wire.Dead)
	if asked != 2 || answers != 1 {
		t.Errorf("asked %d times, answered %d times, the second time by nobody", asked, answers)
	}
}

func TestABoundIsAFactRoundedUp(t *testing.T) {
	h := newHost(t, func(*Config) {})
	for bound, want := range map[time.Duration]int64{36*time.Second + 1: 37, 36 * time.Second: 36, 0: 0} {
		before := h.local.Facts().Revision
		h.local.FencesItself(bound)
		h.local.FencesItself(bound)
		if f := h.local.Facts(); f.SelfFenceSeconds != want || f.Revision > before+1 {
			t.Errorf("after %s it is %d, revision %d after %d", bound, f.SelfFenceSeconds, f.Revision, before)
		}
	}
}

func TestARuntimeThatDoesNotSayItsPods(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	serveCRI(t, socket, status.Error(codes.Unknown, "server is not initialized yet"))
	if pods, err := Pods(t.Context(), socket); err == nil || len(pods) != 0 {
		t.Errorf("%v, %v", pods, err)
	}
}
