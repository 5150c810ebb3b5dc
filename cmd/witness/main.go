// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command witness is the agent on every host: docs/spec/witness.md.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/facts"
	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/unit"
	"github.com/holdfast-dev/holdfast/agent/watchdog"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// leaveFor is how long an agent that is told to stop takes leave of the others.
const leaveFor = time.Second

// processors is how many of the host's an agent uses at a time. On one it takes a fifth less than on two, because threads that wake one another are most of what
// it costs at rest; and nobody who floods it takes more of the host than one.
const processors = 1

type options struct {
	node       string
	address    string
	gossipPort int
	port       int
	keys       string
	seeds      string
	identity   string
	authority  string
	token      string
	leases     string
	health     string
	bootID     string
	mounts     string
	systemUUID string
	kubelet    string
	runtime    string
	api        string
	apiCA      string
	resets     bool
	restart    string
	bus        string
	letGo      letGo
}

func main() {
	var o options
	flag.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "Node that this agent runs on")
	flag.StringVar(&o.address, "address", os.Getenv("HOST_IP"), "address of this host, on which others reach the agent")
	flag.IntVar(&o.gossipPort, "gossip-port", wire.GossipPort, "UDP and TCP port of the gossip")
	flag.IntVar(&o.port, "port", wire.Port, "TCP port of the agent's API")
	flag.StringVar(&o.keys, "keys", "/etc/holdfast/gossip", "directory with the keys of the gossip")
	flag.StringVar(&o.seeds, "seeds", "/etc/holdfast/seeds", "file with the addresses of other agents to begin with")
	flag.StringVar(&o.identity, "identity", "/var/run/holdfast", "directory with tls.crt, tls.key and ca.crt; with --authority, where the certificate that was asked for is kept")
	flag.StringVar(&o.authority, "authority", "", "file with the authority of the witnesses; with it the agent asks the API server of its cluster for its certificate")
	flag.StringVar(&o.token, "token", "/var/run/secrets/kubernetes.io/serviceaccount/token", "file with the token of the agent's pod, for --authority")
	flag.StringVar(&o.leases, "lease-namespace", "", "namespace of the Lease in which this agent says that it lives while it hears no other; empty: it says so nowhere. With --authority only")
	flag.StringVar(&o.health, "health", "", "address of /healthz and /readyz for the kubelet, as 127.0.0.1:7947; empty: none")
	flag.StringVar(&o.bootID, "boot-id-file", facts.BootIDPath, "file with the boot ID of this host")
	flag.StringVar(&o.systemUUID, "system-uuid-file", facts.SystemUUIDPath, "file with the system UUID of this host; it need not be there")
	flag.StringVar(&o.mounts, "mounts-file", facts.MountsPath, "file with the mounts of this host; it need not be there")
	flag.StringVar(&o.kubelet, "kubelet", facts.KubeletURL, "where the kubelet says that it is well")
	flag.StringVar(&o.runtime, "runtime", facts.RuntimeSocket, "socket of the container runtime")
	flag.StringVar(&o.api, "api", "", "URL at which the API server answers, as https://10.0.0.1:6443/readyz; empty: that of the cluster with --authority, and none without")
	flag.StringVar(&o.apiCA, "api-ca", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "file with the authority of the API server's certificate")
	flag.BoolVar(&o.resets, "reset-connections", false, "reset TCP connections to addresses that the manager says are lost; needs CAP_NET_ADMIN, CAP_NET_RAW and the runtime's socket")
	flag.StringVar(&o.restart, "kubelet-restart", "", "what restarts the kubelet when the manager asks for it: systemd, or systemd:UNIT; empty: nothing does")
	flag.StringVar(&o.bus, "system-bus", unit.Socket, "socket of the system's D-Bus, for --kubelet-restart")
	o.letGo.flags()
	flag.Parse()
	runtime.GOMAXPROCS(processors)
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "witness:", err)
		os.Exit(1)
	}
}

// check names the option that is missing or wrong.
func (o options) check() error {
	switch {
	case o.node == "":
		return errors.New("--node: the name of the Node is missing")
	case net.ParseIP(o.address) == nil:
		return fmt.Errorf("--address %q: an IP address of this host is wanted", o.address)
	default:
		return nil
	}
}

// server is how the API server is known.
func (o options) server() (*tls.Config, error) {
	if o.api == "" {
		return nil, nil
	}
	text, err := os.ReadFile(o.apiCA)
	if err != nil {
		return nil, fmt.Errorf("--api-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--api-ca: there is no certificate in %s", o.apiCA)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, nil
}

func run(o options) error {
	if err := o.check(); err != nil {
		return err
	}
	log := logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, nil))
	ctx, quit := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer quit()
	self, err := o.self(log)
	if err != nil {
		return err
	}
	server, err := o.server()
	if err != nil {
		return err
	}
	if err := o.letGo.check(o.api, o.leases); err != nil {
		return err
	}
	life, stop := context.WithCancel(ctx)
	defer stop()
	var member *gossip.Member
	var local *facts.Local
	leash := o.leash(self.leases, func() *gossip.Member { return member }, func() *facts.Local { return local }, log)
	var untold error // of facts that were not said to the others
	local, err = facts.New(facts.Config{Node: o.node, BootIDPath: o.bootID, SystemUUIDPath: o.systemUUID, KubeletURL: o.kubelet, RuntimeSocket: o.runtime,
		MountsPath: o.mounts, APIURL: o.api, APITLS: server, Changed: func(f wire.Facts) {
			if err := member.Tell(f); err != nil {
				untold = err
				stop()
			}
		}, AskingAPI: o.asking(leash)})
	if err != nil {
		return err
	}
	member, err = gossip.Start(gossip.Config{Facts: local.Facts(), BindAddress: o.address, BindPort: o.gossipPort, AdvertiseAddress: o.address,
		KeyDir: o.keys, SeedsFile: o.seeds, Log: log.WithName("gossip")})
	if err != nil {
		return err
	}
	hands, let, err := o.hands()
	if err != nil {
		return errors.Join(err, member.Close())
	}
	agent := &agent{options: o, missed: make(chan struct{}, 1), boot: local.Facts().BootID, self: self, hands: hands, member: member, leash: leash, log: log}
	tasks, life := errgroup.WithContext(life)
	tasks.Go(func() error { local.Run(life); return nil })
	tasks.Go(func() error { return agent.answer(life) })
	tasks.Go(func() error { agent.speak(life); return nil })
	tasks.Go(func() error { return agent.tellHealth(life) })
	if leash != nil {
		tasks.Go(func() error { leash.Run(life); return nil })
		let = both(leash.Close, let)
	}
	err = tasks.Wait()
	last, done := context.WithTimeout(context.Background(), leaveFor)
	defer done()
	return errors.Join(err, untold, let(), member.Leave(last))
}

func both(first, then func() error) func() error {
	return func() error { return errors.Join(first(), then()) }
}

// asking is what the facts tell of the API's answers, if anybody counts on them. They leave no trace where the manager looks, as the words of the Lease do.
func (o options) asking(leash *watchdog.Leash) func() (answered func()) {
	if leash == nil || !o.letGo.majority {
		return nil
	}
	return leash.Asking
}

// agent is what answers; gossip and facts go on without it.
type agent struct {
	options
	boot string
	// missed is told that the manager had a host looked for that did not answer.
	missed  chan struct{}
	self    self
	hands   api.Hands
	member  *gossip.Member
	leash   *watchdog.Leash
	log     logr.Logger
	answers atomic.Bool
}

// answer answers the manager from when the agent has a certificate until ctx ends.
func (a *agent) answer(ctx context.Context) error {
	who, err := a.self.identity(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(a.address, strconv.Itoa(a.port)))
	if err != nil {
		return fmt.Errorf("--port: %w", err)
	}
	served := api.New(looking{a.member, a.missed}, who, a.log.WithName("api"))
	served.Equip(a.hands)
	a.answers.Store(true)
	tasks, life := errgroup.WithContext(ctx)
	tasks.Go(func() error { return served.Serve(life, listener) })
	tasks.Go(func() error { return a.self.keep(life) })
	return tasks.Wait()
}
