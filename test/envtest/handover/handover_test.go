// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package handover measures how long nobody leads when a leader dies, and how long a manager listens to an API server that fell silent.
package handover

import (
	"bytes"
	"context"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

const (
	namespace = "holdfast-system"
	// leaseDuration is that of the managers' Lease, which has it from cmd/manager.
	leaseDuration = 4 * time.Second
	// stalled is longer than one request may take, and leaves a busy machine a second for the next. The ADR's 2 s leave half a second.
	stalled = 1500 * time.Millisecond
)

var (
	cluster *envtest.Cluster
	binary  string
)

func TestMain(m *testing.M) { os.Exit(built(m)) }

func built(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-handover-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "manager")
	build := exec.Command("go", "build", "-o", binary, "github.com/holdfast-dev/holdfast/cmd/manager")
	if output, err := build.CombinedOutput(); err != nil {
		panic(string(output))
	}
	return envtest.Main(m, &cluster)
}

// kubeconfig is that of the manager's service account; server is the API server's address, or a proxy's.
func kubeconfig(t *testing.T, server string) string {
	t.Helper()
	if _, err := cluster.Apply(t.Context(), "manager", "rbac"); err != nil {
		t.Fatal(err)
	}
	config, err := cluster.As("system:serviceaccount:"+namespace+":holdfast-manager", "system:serviceaccounts", "system:serviceaccounts:"+namespace)
	if err != nil {
		t.Fatal(err)
	}
	if server == "" {
		server = config.Host
	}
	file := clientcmdapi.NewConfig()
	file.Clusters["c"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: config.CAData}
	file.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	file.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	file.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*file, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// run starts a manager, which is killed at the end of the test at the latest.
func run(t *testing.T, name, kubeconfig string, args ...string) *replica {
	t.Helper()
	output := &replica{}
	command := exec.Command(binary, append(args, "--health-probe-bind-address", "0")...)
	command.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "POD_NAMESPACE="+namespace, "POD_NAME="+name)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stdout, command.Stderr = output, output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill() // some tests have done so already
		_ = command.Wait()         // it was killed
		if t.Failed() {
			lines := strings.Split(output.text(), "\n")
			t.Logf("%s said:\n%s", name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	output.Cmd = command
	return output
}

// replica is a running manager and what it said.
type replica struct {
	*exec.Cmd

	mu  sync.Mutex
	log bytes.Buffer
}

func (r *replica) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *replica) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func (r *replica) said(words string) bool { return strings.Contains(strings.ToLower(r.text()), words) }

// await polls until something is so, and returns how long it took.
func await(t *testing.T, what string, patience time.Duration, is func(ctx context.Context) (bool, error)) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, patience, true, is); err != nil {
		t.Fatalf("waiting %s for %s: %v", patience, what, err)
	}
	return time.Since(begin)
}

// leads is true once the manager's controllers work: a standby's do not.
func (r *replica) leads(context.Context) (bool, error) { return r.said("starting workers"), nil }

// holds is true once the manager has the lease.
func (r *replica) holds(context.Context) (bool, error) {
	return r.said("successfully acquired lease"), nil
}

// two are a leader and a standby that is warm. The leader reaches the API server at the address given, or as the standby does.
func two(t *testing.T, server string) (leader, standby *replica) {
	t.Helper()
	leader = run(t, "first", kubeconfig(t, server), "--leader-elect")
	await(t, "the first to lead", time.Minute, leader.leads)
	standby = run(t, "second", kubeconfig(t, ""), "--leader-elect")
	await(t, "the second to be ready to lead", time.Minute, func(context.Context) (bool, error) { return standby.said("attempting to acquire leader lease"), nil })
	t.Cleanup(func() { // the next test begins with a lease that nobody holds
		_ = standby.Process.Signal(syscall.SIGTERM)
		_ = standby.Wait()
	})
	return leader, standby
}

// takes waits for the standby to lead, and says how long that took: docs/adr/0014-a-hand-over-within-five-seconds.md has what is promised.
func (r *replica) takes(t *testing.T) (lease time.Duration) {
	t.Helper()
	took := await(t, "the second to have the lease", time.Minute, r.holds)
	warmed := await(t, "the second to lead", time.Minute, r.leads)
	t.Logf("the second had the lease after %s, and worked %s later", took.Round(time.Millisecond), warmed.Round(time.Millisecond))
	return took
}

func TestAnotherReplicaLeadsSoonAfterALeaderWasKilled(t *testing.T) {
	first, second := two(t, "")
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	second.takes(t)
}

func TestALeaderThatIsStoppedHandsOverAtOnce(t *testing.T) {
	first, second := two(t, "")
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if took := second.takes(t); took >= leaseDuration {
		t.Errorf("the lease was not given back: it ran out after %s", took)
	}
}

func TestAnAPIServerThatIsSlowForAMomentCostsNoLeadership(t *testing.T) {
	p := newProxy(t, apiServer(t))
	first, second := two(t, "https://"+p.listener.Addr().String())
	for range 3 {
		p.hold(stalled)
		renewed(t)
	}
	if err := first.Process.Signal(syscall.Signal(0)); err != nil || second.said("successfully acquired lease") {
		t.Errorf("the leader did not stay: %v", err)
	}
}

// renewed waits until the leader knows of a renewal that it asks for from now on: until it asks for another. One that is written may be one that it has given up, and two stalls
// would be one to it.
func renewed(t *testing.T) {
	t.Helper()
	last := time.Now()
	for range 2 {
		await(t, "a renewal", time.Minute, func(ctx context.Context) (bool, error) {
			var lease coordinationv1.Lease
			err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: admission.ManagersLease}, &lease)
			if err != nil || !lease.Spec.RenewTime.After(last) {
				return false, err
			}
			last = lease.Spec.RenewTime.Time
			return true, nil
		})
	}
}

func TestALeaderThatIsCutOffEndsBeforeAnotherLeads(t *testing.T) {
	p := newProxy(t, apiServer(t))
	first, second := two(t, "https://"+p.listener.Addr().String())
	ended := make(chan bool, 1) // whether another led by then
	go func() {
		_ = first.Wait() // it says what it thinks of its end in its log
		ended <- second.said("successfully acquired lease")
	}()
	go p.hold(time.Minute) // ends with the test
	second.takes(t)
	select {
	case late := <-ended:
		if late || !first.said("this process ends at once") {
			t.Errorf("another led before it ended: %v", late)
		}
	default:
		t.Error("another leads, and it has not ended")
	}
}

// proxy forwards connections until it falls silent: then those that are open stay open and carry nothing, and new ones are forwarded again.
type proxy struct {
	listener net.Listener
	to       string
	over     <-chan struct{}

	// gate is locked while nothing is carried.
	gate sync.RWMutex

	mu     sync.Mutex
	silent chan struct{} // closed when the present connections fall silent
	after  int           // connections made since
	kept   []net.Conn    // what nobody refers to is closed by the garbage collector
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: to, over: t.Context().Done(), silent: make(chan struct{})}
	t.Cleanup(func() { _ = l.Close() }) // ends serve
	go p.serve()
	return p
}

func (p *proxy) serve() {
	for {
		ours, err := p.listener.Accept()
		if err != nil {
			return
		}
		theirs, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = ours.Close() // the caller sees that
			continue
		}
		p.mu.Lock()
		silent := p.silent
		p.after++
		p.kept = append(p.kept, ours, theirs)
		p.mu.Unlock()
		go p.carry(ours, theirs, silent)
		go p.carry(theirs, ours, silent)
	}
}

// carry copies until either end closes; from silent on it reads nothing and closes nothing.
func (p *proxy) carry(from, to net.Conn, silent chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		p.gate.RLock()   // waits out a hold
		p.gate.RUnlock() //nolint:staticcheck // nothing is done under it
		select {
		case <-silent:
			return
		default:
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = to.Close() // the other end is told that this one has closed
			return
		}
	}
}

func (p *proxy) fallSilent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.silent)
	p.silent, p.after = make(chan struct{}), 0
}

// hold keeps everything back for a while, or until the test ends, and then lets it through.
func (p *proxy) hold(d time.Duration) {
	p.gate.Lock()
	defer p.gate.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.over:
	}
}

func (p *proxy) since() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.after
}

func app(name string) *v1alpha1.GuardedStatefulApp {
	return &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: v1alpha1.GuardedStatefulAppSpec{
		WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "none"},
		Health:      v1alpha1.Health{Probes: []v1alpha1.Probe{{Name: "tcp", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt(1)}}}}}}
}

// create creates an app, and returns its name, which begins as given.
func create(t *testing.T, name string) string {
	t.Helper()
	g := app("")
	g.GenerateName = name + "-"
	if err := cluster.Client.Create(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	return g.Name
}

// answered is true once the manager has seen the app and said what it thinks of it.
func answered(name string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		g := app(name)
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(g), g)
		return meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionAccepted) != nil, err
	}
}

// apiServer is its host and port.
func apiServer(t *testing.T) string {
	t.Helper()
	address, err := url.Parse(cluster.Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	if address.Host == "" {
		return cluster.Config.Host
	}
	return address.Host
}

func TestADeadPeerIsNoticed(t *testing.T) {
	p := newProxy(t, apiServer(t))
	run(t, "alone", kubeconfig(t, "https://"+p.listener.Addr().String()))
	await(t, "the manager to see an app", time.Minute, answered(create(t, "before")))
	p.fallSilent()
	after := create(t, "after")
	// Requirement B2 wants 10 s. Without Holdfast's own settings the kernel gives up after a quarter of an hour.
	took := await(t, "the manager to see an app again", time.Minute, answered(after))
	t.Logf("seen %s after the connections fell silent, over %d new ones", took.Round(time.Millisecond), p.since())
	if p.since() == 0 {
		t.Error("it was seen over no new connection")
	}
}
