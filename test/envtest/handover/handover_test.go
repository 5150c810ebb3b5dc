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

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

const (
	namespace = "holdfast-system"
	// The two bounds that are promised.
	handOver = 8 * time.Second
	deadPeer = 10 * time.Second
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

func TestAnotherReplicaLeadsSoonAfterALeaderWasKilled(t *testing.T) {
	config := kubeconfig(t, "")
	first := run(t, "first", config, "--leader-elect")
	await(t, "the first to lead", time.Minute, first.leads)
	second := run(t, "second", config, "--leader-elect")
	await(t, "the second to be ready to lead", time.Minute, func(context.Context) (bool, error) { return second.said("attempting to acquire leader lease"), nil })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	took := await(t, "the second to lead", time.Minute, second.leads)
	t.Logf("the second led %s after the first was killed", took.Round(time.Millisecond))
	if took > handOver {
		t.Errorf("nobody led for %s, more than %s", took, handOver)
	}
}

// proxy forwards connections until it falls silent: then those that are open stay open and carry nothing, and new ones are forwarded again.
type proxy struct {
	listener net.Listener
	to       string

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
	p := &proxy{listener: l, to: to, silent: make(chan struct{})}
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
		go carry(ours, theirs, silent)
		go carry(theirs, ours, silent)
	}
}

// carry copies until either end closes; from silent on it reads nothing and closes nothing.
func carry(from, to net.Conn, silent chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
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

// answered is true once the manager has seen the app and said what it thinks of it.
func answered(name string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		g := app(name)
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(g), g)
		return meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionAccepted) != nil, err
	}
}

func TestADeadPeerIsNoticed(t *testing.T) {
	address, err := url.Parse(cluster.Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	host := address.Host
	if host == "" {
		host = cluster.Config.Host
	}
	p := newProxy(t, host)
	run(t, "alone", kubeconfig(t, "https://"+p.listener.Addr().String()))
	if err := cluster.Client.Create(t.Context(), app("before")); err != nil {
		t.Fatal(err)
	}
	await(t, "the manager to see an app", time.Minute, answered("before"))
	p.fallSilent()
	if err := cluster.Client.Create(t.Context(), app("after")); err != nil {
		t.Fatal(err)
	}
	took := await(t, "the manager to see an app again", time.Minute, answered("after"))
	t.Logf("seen %s after the connections fell silent, over %d new ones", took.Round(time.Millisecond), p.since())
	if took > deadPeer || p.since() == 0 {
		t.Errorf("it took %s, more than %s, over %d new connections", took, deadPeer, p.since())
	}
}
