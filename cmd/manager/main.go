// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command manager is Holdfast's manager: it watches guarded apps and their hosts, holds, fences and releases.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/certificate"
	"github.com/holdfast-dev/holdfast/controllers/fencingprofile"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/guardconfig"
	"github.com/holdfast-dev/holdfast/controllers/guardedstatefulapp"
	"github.com/holdfast-dev/holdfast/controllers/hostincident"
	"github.com/holdfast-dev/holdfast/controllers/pod"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/controllers/witness"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/ipmi"
)

// apiTimeout bounds the requests of the fencer and the canary, which watch nothing. For the rest the pings of HTTP/2 notice a dead connection within
// 10 s (requirement B2); a request time-out there would end the watches too.
const apiTimeout = 8 * time.Second

type options struct {
	leaderElect bool
	health      string
	metrics     string
	verbose     bool
	servers     string
	namespace   string
	name        string
	host        string
	witness     string
}

func main() {
	var o options
	flag.BoolVar(&o.leaderElect, "leader-elect", false, "elect a leader among the replicas")
	flag.StringVar(&o.health, "health-probe-bind-address", ":8081", "address of /healthz and /readyz")
	flag.StringVar(&o.metrics, "metrics-bind-address", "0", "address of /metrics, 0 for none")
	flag.BoolVar(&o.verbose, "verbose", false, "log more")
	flag.StringVar(&o.servers, "api-servers", "", "addresses (host:port, comma separated) of API servers that the canary tries one by one; empty: the one that the manager itself uses")
	flag.StringVar(&o.namespace, "namespace", envOr("POD_NAMESPACE", admission.DefaultNamespace), "namespace of Holdfast and of the Secrets of fence devices")
	flag.StringVar(&o.name, "name", envOr("POD_NAME", "manager"), "name of this replica, for the journal")
	flag.StringVar(&o.host, "host", os.Getenv("NODE_NAME"), "Node that this replica runs on")
	flag.StringVar(&o.witness, "witness-image", envOr("RELATED_IMAGE_WITNESS", "holdfast.dev/witness:dev"), "image of the witness agents that the GuardConfig asks for")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// logs sets up zap, through zapr, for controller-runtime and client-go.
func logs(verbose bool) error {
	config := zap.NewProductionConfig()
	config.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	config.Sampling = nil // a journal that leaves lines out is none
	if verbose {
		config.Level = zap.NewAtomicLevelAt(zap.DebugLevel)
	}
	z, err := config.Build()
	if err != nil {
		return err
	}
	log := zapr.NewLogger(z)
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	return nil
}

// noticeDeadPeers sets the pings of HTTP/2, which client-go reads from the environment when a transport is made. Defaults there are 30 and 15 s.
func noticeDeadPeers() error {
	for k, v := range map[string]string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS": "3", "HTTP2_PING_TIMEOUT_SECONDS": "3"} {
		if os.Getenv(k) != "" {
			continue
		}
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return nil
}

func run(o options) error {
	if err := logs(o.verbose); err != nil {
		return fmt.Errorf("set up logs: %w", err)
	}
	if err := noticeDeadPeers(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctrl.SetupSignalHandler())
	defer stop()
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	config.QPS, config.Burst = 100, 200
	if err := awaitAPI(ctx, config, o.health); ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}
	held, err := newTerm(config, o.namespace)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, managerOptions(o, scheme, held))
	if err != nil {
		return err
	}
	held.announce(mgr.GetEventRecorderFor(held.Identity())) //nolint:staticcheck // the only kind that the lock takes
	if err := hostincident.Index(ctx, mgr); err != nil {
		return err
	}
	stepsDown := false
	down := func() { stepsDown = true; stop() }
	if err := assemble(mgr, o, config, leadership{held.Led, down}); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("healthz", healthz.Ping); err != nil {
		return err
	}
	if err := warm(ctx, mgr); err != nil {
		return err
	}
	if err := mgr.Start(ctx); err != nil || !stepsDown {
		return err
	}
	return again()
}

// leadership is for how long this replica leads, and how it stops to in good order.
type leadership struct {
	led  func() time.Duration
	down func()
}

func managerOptions(o options, scheme *runtime.Scheme, held *term) ctrl.Options {
	lease, renew, retry, warm := leaseDuration, renewDeadline, retryPeriod, true
	return ctrl.Options{
		Scheme: scheme, HealthProbeBindAddress: o.health, Metrics: metricsserver.Options{BindAddress: o.metrics},
		LeaderElection: o.leaderElect, LeaderElectionResourceLockInterface: held,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
		// Where nothing is under way any more: see term.
		LeaderElectionReleaseOnCancel: true,
		// A standby reads and watches all that a leader does, so that it can begin at once. What it sees is no evidence before it leads: that is kept by what runs on the leader only.
		Controller: ctrlconfig.Controller{EnableWarmup: &warm},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{corev1.NamespaceNodeLease: {}, manifest.Namespace: {}}},
			// Of certificate requests, only those for our signer.
			&certificatesv1.CertificateSigningRequest{}: {Field: fields.OneTermEqualSelector("spec.signerName", wire.Signer)},
		}},
	}
}

// assemble builds the controllers; nothing else knows concrete drivers.
func assemble(mgr ctrl.Manager, o options, config *rest.Config, lead leadership) error {
	watch := sight.NewClock(clock.RealClock{})
	toHosts, toApps := make(chan event.GenericEvent, 1024), make(chan event.GenericEvent, 1024)
	changed := func(host string) {
		node := &corev1.Node{}
		node.Name = host
		for _, to := range []chan event.GenericEvent{toHosts, toApps} {
			select {
			case to <- event.GenericEvent{Object: node}:
			default: // full: the next look comes by itself
			}
		}
	}
	board, sleepers := sight.NewBoard(watch, changed), sight.NewSleepers(watch, changed)
	if err := errors.Join(mgr.Add(board), mgr.Add(sleepers)); err != nil {
		return err
	}
	direct, err := client.New(mgr.GetConfig(), client.Options{Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return err
	}
	people := identities{config: config, namespace: o.namespace, scheme: mgr.GetScheme(), mapper: mgr.GetRESTMapper(), direct: direct}
	secrets, err := people.as("holdfast-fencer", "")
	if err != nil {
		return err
	}
	drivers := fencing.Registry{}
	drivers.Add(ipmi.New())
	devices := &guard.Devices{Secrets: secrets, Namespace: o.namespace, Drivers: drivers}
	self := fmt.Sprintf("%s/%d", o.name, time.Now().UnixNano()%1e9) // tells two lives of one replica apart

	signer, err := people.as("holdfast-authority", "")
	if err != nil {
		return err
	}
	authority := &certificate.Authority{Client: signer, Clock: watch, Secret: types.NamespacedName{Namespace: o.namespace, Name: manifest.Authority}}
	vantages, err := asking(mgr, o, authority, board, sight.NewWitnesses(watch, changed))
	if err != nil {
		return err
	}
	if err := mgr.Add(&doubter{from: mgr.GetClient(), namespace: o.namespace, pod: o.name, host: o.host, outside: vantages.Outside, led: lead.led, clock: clock.RealClock{}, down: lead.down}); err != nil {
		return err
	}
	bolt := &guardconfig.Bolt{Direct: direct, Clock: watch}
	hosts := &hostincident.Reconciler{Bolt: bolt.Arm, Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: mgr.GetEventRecorder("holdfast"),
		Clock: watch, Leases: sight.NewLeases(watch), Powers: sight.NewPowers(watch), Sleepers: sleepers, Board: board, Witnesses: vantages, API: sight.NewAPI(watch), Devices: devices,
		Self: self, OwnHost: o.host, CallDeadline: callDeadline, Resets: sight.NewResets(vantages, changed)}
	hosts.Resets.User = hosts.UserOf
	if err := errors.Join(hosts.SetupWithManager(mgr, toHosts), mgr.Add(hosts.Resets)); err != nil {
		return err
	}
	apps := &guardedstatefulapp.Reconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Clock: watch, Board: board, Devices: devices, Self: self,
		Recycles: sight.NewRecycles(vantages), Events: mgr.GetEventRecorder("holdfast")}
	if err := errors.Join(apps.SetupWithManager(mgr, toApps), mgr.Add(apps.Recycles)); err != nil {
		return err
	}
	gate := &pod.Reconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: mgr.GetEventRecorder("holdfast"), Clock: watch}
	if err := gate.SetupWithManager(mgr); err != nil {
		return err
	}
	profiles := &fencingprofile.Reconciler{Client: mgr.GetClient(), Clock: watch, Devices: devices, CallDeadline: callDeadline}
	if err := profiles.SetupWithManager(mgr); err != nil {
		return err
	}
	servers, err := people.servers(o.servers)
	if err != nil {
		return err
	}
	if err := (&guardconfig.Reconciler{Client: mgr.GetClient(), Direct: direct, Clock: watch, Self: self, Bolt: bolt,
		Identity: admission.Identity{Namespace: o.namespace}, Servers: servers}).SetupWithManager(mgr); err != nil {
		return err
	}
	return witnesses(mgr, o, direct, authority)
}

// witnesses builds what keeps the agents and certifies them. Both rest while the GuardConfig asks for no agents.
func witnesses(mgr ctrl.Manager, o options, direct client.Client, authority *certificate.Authority) error {
	requests := &certificate.Reconciler{Client: mgr.GetClient(), Signer: authority.Client, Clock: authority.Clock, Authority: authority,
		Agent: types.NamespacedName{Namespace: manifest.Namespace, Name: manifest.Name}}
	if err := requests.SetupWithManager(mgr); err != nil {
		return err
	}
	return (&witness.Reconciler{Client: mgr.GetClient(), Direct: direct, Secrets: authority.Client, Clock: authority.Clock, Authority: authority, Image: o.witness}).SetupWithManager(mgr)
}
