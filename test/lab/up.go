// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/cgroup"
	"github.com/holdfast-dev/holdfast/test/lab/journal"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// upTimeout bounds the time between the programs being there and the last Node being Ready.
const upTimeout = 4 * time.Minute

// Up makes a lab and returns when all its Nodes are Ready. When it fails, what it made stays for a look at
// the logs until Down.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab makes namespaces, mounts and cgroups: run it as root")
	}
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	if err := preflight(o); err != nil {
		return nil, err
	}
	l, lock, err := create(o)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := l.up(ctx, o); err != nil {
		return nil, fmt.Errorf("%w\nlogs are in %s; %s removes what was made", err, l.path("logs"), command("down", o.Name))
	}
	return l, nil
}

// create claims the lab's name: the directory, the lock on it, the journal, and the description.
func create(o Options) (*Lab, *os.File, error) {
	l := &Lab{dir: filepath.Join(Home(), o.Name), progress: o.Progress}
	if err := os.MkdirAll(Home(), 0o755); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(l.dir, 0o755); errors.Is(err, os.ErrExist) {
		return nil, nil, alreadyThere(o.Name)
	} else if err != nil {
		return nil, nil, err
	}
	lock, err := lockLab(l.dir)
	if err != nil {
		return nil, nil, err
	}
	if err := l.describe(o); err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return l, lock, nil
}

func alreadyThere(name string) error {
	existing, err := Open(name)
	if err == nil && existing.state.Phase == phaseUp {
		return fmt.Errorf("lab %q is already up: %s shows it, %s removes it", name, command("status", name), command("down", name))
	}
	return fmt.Errorf("lab %q is being made, or was left half-made; %s removes it", name, command("down", name))
}

func (l *Lab) describe(o Options) error {
	boot, err := kernelBoot()
	if err != nil {
		return err
	}
	if l.cgroups, err = cgroup.Detect(); err != nil {
		return err
	}
	if err := journal.Create(l.journalPath()); err != nil {
		return err
	}
	l.state = description{
		Name: o.Name, Phase: phaseStarting, Timings: o.Timings, Root: o.Root, KernelBoot: boot, Storage: true,
	}
	for n := 1; n <= o.APIServers; n++ {
		l.state.APIServers = append(l.state.APIServers, apiServer{Address: apiAddress(n)})
	}
	for n := 1; n <= o.Hosts; n++ {
		l.state.Hosts = append(l.state.Hosts, hostEntry{Name: hostName(n), Number: n, MachineID: newMachineID()})
	}
	for _, dir := range []string{"bin", "pki", "logs", "audit", "hosts", "bmc", "array", "events", "images"} {
		if err := os.Mkdir(l.path(dir), 0o755); err != nil {
			return err
		}
	}
	return l.save()
}

func (l *Lab) up(ctx context.Context, o Options) error {
	if err := l.step("programs", func() error { return l.installPrograms(ctx, o) }); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	if err := l.step("network", l.prepare); err != nil {
		return err
	}
	var ids identities
	err := l.step("certificates and access", func() (err error) {
		ids, err = l.openAccess(ctx)
		return err
	})
	if err != nil {
		return err
	}
	// Hosts boot while the control plane starts: kubelets keep asking for it.
	parts, ctxParts := errgroup.WithContext(ctx)
	parts.Go(func() error { return l.step("storage array", func() error { return l.startArray(ctxParts) }) })
	parts.Go(func() error {
		return l.step("control plane", func() error { return l.startControlPlane(ctxParts, ids) })
	})
	parts.Go(func() error { return l.step("hosts have power", func() error { return l.bootHosts(ctxParts) }) })
	parts.Go(func() error { return l.step("BMCs", func() error { return l.startBMCs(ctxParts) }) })
	if err := parts.Wait(); err != nil {
		return err
	}
	if err := l.step("nodes are Ready", func() error { return l.awaitNodes(ctx) }); err != nil {
		return err
	}
	l.state.Phase = phaseUp
	return l.save()
}

func (l *Lab) startBMCs(ctx context.Context) error {
	starts, ctx := errgroup.WithContext(ctx)
	for _, h := range l.Hosts() {
		starts.Go(func() error { return h.BMC().Start(ctx) })
	}
	return starts.Wait()
}

func (l *Lab) awaitNodes(ctx context.Context) error {
	nodes, ctx := errgroup.WithContext(ctx)
	for _, h := range l.Hosts() {
		nodes.Go(func() error { return h.WaitReady(ctx) })
	}
	return nodes.Wait()
}

// step tells how a step of Up went.
func (l *Lab) step(what string, do func() error) error {
	begin := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintf(l.progress, "%-28s %5.1fs\n", what, time.Since(begin).Seconds())
	return nil
}

func (l *Lab) prepare() error {
	raised, err := raiseInotify()
	if err != nil {
		return err
	}
	if raised {
		fmt.Fprintf(l.progress, "fs.inotify.max_user_instances is now %d on this machine\n", maxInotify)
	}
	record := journal.Record{Kind: journal.Cgroup, Name: "lab", Path: l.cgroupName()}
	if err := journal.Append(l.journalPath(), record); err != nil {
		return err
	}
	if err := l.cgroups.Make(l.cgroupName("control")); err != nil {
		return err
	}
	return l.makeNetwork()
}

// openAccess issues the certificates and starts what carries the machine's ports into the lab.
func (l *Lab) openAccess(ctx context.Context) (identities, error) {
	listeners := make([]*net.TCPListener, len(l.state.APIServers))
	for n := range l.state.APIServers {
		listener, port, err := listenLoopback()
		if err != nil {
			return identities{}, err
		}
		defer listener.Close()
		listeners[n], l.state.APIServers[n].Port = listener, port
	}
	if err := l.save(); err != nil {
		return identities{}, err
	}
	for n, listener := range listeners {
		if err := l.startForwarder(ctx, n+1, listener); err != nil {
			return identities{}, err
		}
	}
	if err := os.WriteFile(l.path("audit", "policy.yaml"), []byte(auditPolicy), 0o644); err != nil {
		return identities{}, err
	}
	return l.issue()
}

func (l *Lab) startForwarder(ctx context.Context, n int, listener *net.TCPListener) error {
	file, err := listener.File()
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = l.Spawn(ctx, Process{
		Name: fmt.Sprintf("forwarder-%d", n), Cgroup: l.cgroupName("control"), Files: []*os.File{file},
		Args: []string{
			l.program("lab"), "forward", "--listener-fd", "4", "--netns", l.NetNS(controlNS),
			"--to", strings.TrimPrefix(apiURL(n), "https://"),
		},
	})
	return err
}

func (l *Lab) startControlPlane(ctx context.Context, ids identities) error {
	if _, err := l.control(ctx, "etcd", l.etcdArgs()); err != nil {
		return err
	}
	for n := range l.state.APIServers {
		name := fmt.Sprintf("kube-apiserver-%d", n+1)
		id, err := l.control(ctx, name, l.apiServerArgs(n+1, ids))
		if err != nil {
			return err
		}
		if err := l.awaitAPI(ctx, n+1, name, id); err != nil {
			return err
		}
	}
	for _, args := range [][]string{l.controllerManagerArgs(ids), l.schedulerArgs()} {
		if _, err := l.control(ctx, args[0], args); err != nil {
			return err
		}
	}
	client, err := l.Client()
	if err != nil {
		return err
	}
	if err := l.installObjects(ctx, client); err != nil {
		return err
	}
	return l.startCSIControllers(ctx)
}

// control starts a process in the control namespace.
func (l *Lab) control(ctx context.Context, name string, args []string) (process.ID, error) {
	args[0] = l.program(args[0])
	return l.Spawn(ctx, Process{Name: name, NetNS: l.NetNS(controlNS), Cgroup: l.cgroupName("control"), Args: args})
}

// Client is the administrator's client of the first API server.
func (l *Lab) Client() (kubernetes.Interface, error) {
	config, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

func (l *Lab) awaitAPI(ctx context.Context, n int, name string, id process.ID) error {
	kubeconfig, err := l.KubeconfigOf(n)
	if err != nil {
		return err
	}
	client, err := clientFrom(kubeconfig)
	if err != nil {
		return err
	}
	return untilAPI(ctx, name+" to be ready", func() (bool, error) {
		if !id.Alive() {
			return false, fmt.Errorf("%s ended:\n%s", name, tail(l.logPath(name)))
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil, nil
	})
}

func (l *Lab) bootHosts(ctx context.Context) error {
	if err := l.makePauseImage(); err != nil {
		return err
	}
	boots, ctx := errgroup.WithContext(ctx)
	for _, h := range l.Hosts() {
		if err := h.configure(); err != nil {
			return err
		}
		boots.Go(func() error { return h.PowerOn(ctx) })
	}
	return boots.Wait()
}

// WaitReady returns when the host's Node is Ready and was so in this boot.
func (h *Host) WaitReady(ctx context.Context) error {
	client, err := h.lab.Client()
	if err != nil {
		return err
	}
	boot, err := h.BootID()
	if err != nil {
		return err
	}
	return untilAPI(ctx, "Node "+h.entry.Name+" to be Ready", func() (bool, error) {
		if !h.Powered() {
			return false, fmt.Errorf("%w; see %s", h.isOff(), h.lab.logPath(h.entry.Name))
		}
		node, err := client.CoreV1().Nodes().Get(ctx, h.entry.Name, metav1.GetOptions{})
		if err != nil {
			return false, nil //nolint:nilerr // not registered yet, or the API server is still to come
		}
		return node.Status.NodeInfo.BootID == boot && nodeReady(node) == corev1.ConditionTrue, nil
	})
}

// nodeReady is the status of the Ready condition; empty when there is none.
func nodeReady(node *corev1.Node) corev1.ConditionStatus {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status
		}
	}
	return ""
}

// apiInterval is how often an API server is asked for what nothing announces.
const apiInterval = 100 * time.Millisecond

// untilAPI is await.Until for questions that cost an API server something.
func untilAPI(ctx context.Context, what string, reached func() (bool, error)) error {
	return await.Every(ctx, apiInterval, what, reached)
}
