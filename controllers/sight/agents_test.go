// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// realHost is an agent as it is run, gossip and server, on an address of this machine that stands for its own.
type realHost struct {
	node, address string
	member        *gossip.Member
	kubelet       *httptest.Server
	serves        string
	stop          func()
}

// neighbourhood is some of them.
type neighbourhood struct {
	*testing.T
	ca *authority.Authority

	mu    sync.Mutex
	hosts map[string]*realHost // by address; without those that have died
}

func (n *neighbourhood) at(address string) *realHost {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[address]
}

func (n *neighbourhood) die(address string) {
	n.mu.Lock()
	h := n.hosts[address]
	delete(n.hosts, address)
	n.mu.Unlock()
	h.stop()
}

// dial reaches a host by the address that stands for one of this machine; of a host that is dead nothing comes back.
func (n *neighbourhood) dial(ctx context.Context, network, to string) (net.Conn, error) {
	ip, port, err := net.SplitHostPort(to)
	if err != nil {
		return nil, err
	}
	h := n.at(ip)
	if h == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if port == "10250" {
		to = h.kubelet.Listener.Addr().String()
	} else {
		to = h.serves
	}
	return (&net.Dialer{}).DialContext(ctx, network, to)
}

// ears are a member whose questions go to the address that is meant.
type ears struct {
	*gossip.Member
	of *neighbourhood
}

func (e ears) Ping(ctx context.Context, node, address string) (string, error) {
	if h := e.of.at(address); h != nil {
		return e.Member.Ping(ctx, node, h.member.Address())
	}
	<-ctx.Done()
	return "", ctx.Err()
}

func (n *neighbourhood) who(name string) *identity.Identity {
	n.Helper()
	certificate, key, err := n.ca.Pair(name, time.Now())
	must(n.T, err)
	ca, _, err := n.ca.PEM()
	must(n.T, err)
	who, err := identity.Parse(certificate, key, ca)
	must(n.T, err)
	return who
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newNeighbourhood(t *testing.T, nodes ...string) *neighbourhood {
	t.Helper()
	n := &neighbourhood{T: t, hosts: map[string]*realHost{}}
	var err error
	n.ca, err = authority.New(time.Now())
	must(t, err)
	dir := t.TempDir()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	must(t, os.Mkdir(filepath.Join(dir, "keys"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "keys", gossip.Primary), []byte(base64.StdEncoding.EncodeToString(key)), 0o600))
	seeds := filepath.Join(dir, "seeds")
	var first string
	for i, node := range nodes {
		must(t, os.WriteFile(seeds, []byte(first+"\n"), 0o600))
		h := &realHost{node: node, address: "192.0.2." + string(rune('1'+i)), kubelet: httptest.NewTLSServer(nil)}
		t.Cleanup(h.kubelet.Close)
		h.member, err = gossip.Start(gossip.Config{Facts: wire.Facts{Node: node, BootID: "boot-" + node, Kubelet: wire.Alive, Runtime: wire.Alive, API: wire.Alive,
			Storage: wire.Dead, Memory: wire.Alive, IO: wire.Dead}, BindAddress: "127.0.0." + string(rune('1'+i)), KeyDir: filepath.Join(dir, "keys"), SeedsFile: seeds, Log: logr.Discard()})
		must(t, err)
		if first == "" {
			first = h.member.Address()
		}
		n.serve(h)
		n.hosts[h.address] = h
	}
	return n
}

func (n *neighbourhood) serve(h *realHost) {
	n.Helper()
	l, err := (&net.ListenConfig{}).Listen(n.Context(), "tcp", "127.0.0.1:0")
	must(n.T, err)
	h.serves = l.Addr().String()
	server := api.New(ears{h.member, n}, n.who(wire.WitnessName(h.node)), logr.Discard())
	server.Dial = n.dial
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- server.Serve(ctx, l) }()
	closed := false
	h.stop = func() {
		if closed {
			return
		}
		closed = true
		stop()
		if err := <-over; err != nil {
			n.Error(err)
		}
		if err := h.member.Close(); err != nil {
			n.Error(err)
		}
	}
	n.Cleanup(h.stop)
}

// TestRealAgentsAreAsked: gossip, certificates, servers and clients are those that run in a cluster.
func TestRealAgentsAreAsked(t *testing.T) {
	n := newNeighbourhood(t, "h", "x", "y")
	changed := make(chan string, 10000)
	w := NewWitnesses(NewClock(clock.RealClock{}), func(host string) { changed <- host })
	manager := n.who(wire.ManagerName)
	w.Reach = func(node string) Agent {
		c := call.New(node, manager)
		c.Dial = n.dial
		return c
	}
	w.Targets = func(string) []Target { return nil }
	w.Roll = func(context.Context) (Roll, error) {
		roll := Roll{On: true, Port: wire.Port}
		for address, h := range map[string]string{"192.0.2.1": "h", "192.0.2.2": "x", "192.0.2.3": "y"} {
			roll.Hosts = append(roll.Hosts, Host{Node: h, Address: address, Ready: true})
		}
		return roll, nil
	}
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- w.Start(ctx) }()
	t.Cleanup(func() { stop(); <-over })
	of := func() evidence.Snapshot {
		s := evidence.Snapshot{Host: evidence.Host{Node: "h", BootID: "boot-h"}, Witnesses: w.Of("h"), At: w.clock.Instant()}
		s.Cluster.Observing = time.Duration(s.At)
		return s
	}
	waitUntil(t, "x and y to hear h", func() bool {
		s := of()
		return s.Witnesses.Expected == 2 && vantageOf(s, "x").State == evidence.GossipAlive && vantageOf(s, "y").State == evidence.GossipAlive
	})
	w.Suspect(t.Context(), "h")
	waitUntil(t, "h to be found well", func() bool {
		s := of()
		rank, _ := s.WitnessLife()
		report, ok := s.ReportNow()
		x, y := vantageOf(s, "x"), vantageOf(s, "y")
		said := "kubelet alive, runtime alive, API alive, a volume's device completes nothing, its processes wait for storage"
		return rank == evidence.RankUserspace && ok && report.String() == said && x.Port == evidence.AnswerSpoke && y.Port == evidence.AnswerSpoke &&
			x.AgentBoot == "boot-h" && y.AgentBoot == "boot-h"
	})
	before := w.clock.Instant()
	if s := of(); s.LastLife() > before || s.WitnessesCallItDead() {
		t.Errorf("%+v", s.Witnesses)
	}
	n.die("192.0.2.1")
	died := w.clock.Instant()
	waitUntil(t, "h to be given up", func() bool { s := of(); return s.WitnessesCallItDead() })
	waitUntil(t, "both to have looked for h", func() bool { s := of(); return s.WitnessesSearched() == 2 && s.WitnessQuorum() })
	s := of()
	if last := s.LastLife(); last > died+evidence.Instant(time.Second) {
		t.Errorf("it showed life at %s, and died at %s", time.Duration(last), time.Duration(died))
	}
	if _, spoke := s.AgentSpoke(before - evidence.Instant(10*time.Second)); !spoke {
		t.Error("it was heard, and that is forgotten")
	}
	var told []string
	for len(changed) > 0 {
		told = append(told, <-changed)
	}
	if !strings.Contains(strings.Join(told, " "), "h") {
		t.Errorf("looks were asked for at %v", told)
	}
	t.Logf("given up after %s", time.Duration(w.clock.Instant()-died))
}

// TestWhatIsSaidInAnothersNameOrOfTheFutureIsNotTaken: by real clients, of an agent with a good certificate.
func TestWhatIsSaidInAnothersNameOrOfTheFutureIsNotTaken(t *testing.T) {
	future := int64(-1)
	for what, view := range map[string]wire.View{
		"another's name":  {Node: "b", BootID: "x", Hosts: []wire.Host{{Facts: wire.Facts{Node: "h", BootID: "b1"}, State: wire.StateDead}}},
		"of the future":   {Node: "a", BootID: "x", Hosts: []wire.Host{{Facts: wire.Facts{Node: "h", BootID: "b1"}, State: wire.StateDead, HeardAge: &future}}},
		"without a boot":  {Node: "a", Hosts: []wire.Host{{Facts: wire.Facts{Node: "h", BootID: "b1"}, State: wire.StateDead}}},
		"dead since soon": {Node: "a", BootID: "x", Hosts: []wire.Host{{Facts: wire.Facts{Node: "h", BootID: "b1"}, State: wire.StateDead, StateAge: -1}}},
	} {
		t.Run(what, func(t *testing.T) {
			n := newNeighbourhood(t)
			rogue := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if err := json.NewEncoder(w).Encode(view); err != nil {
					t.Error(err)
				}
			}))
			rogue.TLS = &tls.Config{Certificates: []tls.Certificate{*n.who(wire.WitnessName("a")).Certificate()}, MinVersion: tls.VersionTLS13}
			rogue.StartTLS()
			t.Cleanup(rogue.Close)
			w := NewWitnesses(NewClock(clock.RealClock{}), func(string) { t.Error("a look is asked for on such a word") })
			manager := n.who(wire.ManagerName)
			w.Reach = func(node string) Agent {
				c := call.New(node, manager)
				c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, rogue.Listener.Addr().String())
				}
				return c
			}
			w.Targets = func(string) []Target { return nil }
			w.Roll = func(context.Context) (Roll, error) {
				return Roll{On: true, Port: wire.Port, Hosts: []Host{{Node: "a", Address: "192.0.2.2", Ready: true}, {Node: "h", Ready: true}}}, nil
			}
			ctx, stop := context.WithCancel(t.Context())
			over := make(chan error, 1)
			go func() { over <- w.Start(ctx) }()
			t.Cleanup(func() { stop(); <-over })
			waitUntil(t, "it to be refused", func() bool { return w.Counts()[Misspoken] > 0 })
			if of := w.Of("h"); of.Expected != 0 || len(of.Vantages) != 0 || of.Report.Heard || w.Doubted("h") {
				t.Errorf("something of it was taken: %+v", of)
			}
		})
	}
}
