// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gossip is how the agents know of each other: hashicorp/memberlist, with keys and seeds from files, facts as metadata, and dates given only to what
// a host's own agent answered. See docs/spec/witness.md#gossip and docs/adr/0011-gossip.md.
package gossip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/hashicorp/memberlist"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// What docs/adr/0011-gossip.md chose, and why.
const (
	probeInterval  = 300 * time.Millisecond
	probeTimeout   = 100 * time.Millisecond
	gossipInterval = 100 * time.Millisecond
	suspicionMult  = 3
	// reclaimAfter is how long a host must be dead before its name can come from another address.
	reclaimAfter = 30 * time.Second
	tcpTimeout   = 2 * time.Second
)

// Paces of what an agent does by itself.
const (
	// joinPeriod is how often one that hears nobody tries the seeds; reachPeriod how often one that hears somebody tries a host that it does not hear, so
	// that two halves find each other again.
	joinPeriod  = 2 * time.Second
	reachPeriod = 10 * time.Second
	joinAtOnce  = 3
	// rereadPeriod is how often files are read that nothing says have changed.
	rereadPeriod = 30 * time.Second
	// announcePatience is how long one change of facts may wait for somebody to take it.
	announcePatience = time.Second
)

// Config of a member.
type Config struct {
	// Facts are what this host says of itself at first; Node and BootID stay.
	Facts wire.Facts
	// BindAddress and BindPort are where to listen: all addresses, and any free port, if empty. AdvertiseAddress is where others reach this host; it has to be
	// given if BindAddress is not one address.
	BindAddress      string
	BindPort         int
	AdvertiseAddress string
	// KeyDir has the keys, SeedsFile the addresses to begin with; a member without seeds waits for others.
	KeyDir    string
	SeedsFile string
	// Unwatched has both read every half minute only: nothing is asked of the kernel, as in a simulation, whose clock no kernel knows.
	Unwatched bool
	// Transport is what carries packets and streams; UDP and TCP if nil.
	Transport memberlist.NodeAwareTransport
	Log       logr.Logger
	Clock     clock.WithTicker

	// tune changes the timings in tests, and happened is told there that something was counted, heard or read.
	tune     func(*memberlist.Config)
	happened func()
}

// Member is this agent among the others.
type Member struct {
	config Config
	port   int
	// own is the address that others are told.
	own     string
	ring    *memberlist.Keyring
	hosts   *hosts
	asks    asks
	journal *journal
	list    atomic.Pointer[memberlist.Memberlist]

	mu    sync.Mutex
	meta  []byte
	seeds []string

	// told and join wake those who announce facts and who join.
	told, join chan struct{}
	stop       context.CancelFunc
	life       context.Context
	tasks      sync.WaitGroup
}

// Start listens, and joins the others when it reaches them. Without keys, or with facts that do not fit, nothing is started.
func Start(config Config) (*Member, error) {
	if config.Clock == nil {
		config.Clock = clock.RealClock{}
	}
	meta, err := pack(config.Facts)
	if err != nil {
		return nil, err
	}
	keys, err := readKeys(config.KeyDir)
	if err != nil {
		return nil, err
	}
	ring, err := memberlist.NewKeyring(keys[1:], keys[0])
	if err != nil {
		return nil, err
	}
	m := &Member{
		config: config, meta: meta, ring: ring, journal: newJournal(config.Log, config.Clock),
		told: make(chan struct{}, 1), join: make(chan struct{}, 1), asks: newAsks(),
	}
	m.journal.suspected = m.suspected
	if config.happened != nil {
		m.journal.happened = config.happened
	}
	m.life, m.stop = context.WithCancel(context.Background())
	if err := m.listen(); err != nil {
		m.stop()
		return nil, err
	}
	m.tasks.Go(m.announce)
	m.tasks.Go(m.reach)
	m.tasks.Go(m.reread)
	return m, nil
}

func (m *Member) listen() error {
	logger := log.New(m.journal, "", 0)
	inner := m.config.Transport
	m.port = m.config.BindPort
	if inner == nil {
		bind := m.config.BindAddress
		if bind == "" {
			bind = "0.0.0.0"
		}
		transport, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{bind}, BindPort: m.port, Logger: logger})
		if err != nil {
			return fmt.Errorf("listen for gossip: %w", err)
		}
		inner, m.port = transport, transport.GetAutoBindPort()
	}
	address, port, err := inner.FinalAdvertiseAddr(m.config.AdvertiseAddress, m.port)
	if err != nil {
		return errors.Join(fmt.Errorf("the address for others to reach this host by: %w", err), inner.Shutdown())
	}
	m.own = net.JoinHostPort(address.String(), strconv.Itoa(port))
	m.hosts = newHosts(m.config.Facts, m.own, m.config.Clock)
	gate := newGate(inner, m.ring, m.journal)
	list, err := memberlist.Create(m.settings(gate, logger))
	if err != nil {
		return errors.Join(fmt.Errorf("begin gossip: %w", err), gate.Shutdown())
	}
	m.list.Store(list)
	return nil
}

func (m *Member) settings(transport memberlist.Transport, logger *log.Logger) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.config.Facts.Node
	c.Transport, c.Logger, c.Keyring = transport, logger, m.ring
	c.BindPort, c.AdvertiseAddr, c.AdvertisePort = m.port, m.config.AdvertiseAddress, m.port
	ears := ears{m}
	c.Delegate, c.Events, c.Conflict, c.Ping = ears, ears, ears, ears
	c.ProbeInterval, c.ProbeTimeout, c.GossipInterval = probeInterval, probeTimeout, gossipInterval
	// A suspicion lasts as long whether another host shares it or not: where few are left to share it, it would last six times as long.
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, 1
	c.DeadNodeReclaimTime, c.TCPTimeout = reclaimAfter, tcpTimeout
	// What is said is short; compressing it costs more memory than the agent otherwise needs.
	c.EnableCompression = false
	if m.config.tune != nil {
		m.config.tune(c)
	}
	return c
}

// Address is where others reach this member.
func (m *Member) Address() string { return m.own }

// View is what is known now.
func (m *Member) View() wire.View { return m.hosts.now() }

// Standing is how well an agent hears the others.
type Standing struct {
	// Last is when another agent was last asked something that it answered; zero while none ever did.
	Last time.Time
	// Others are the hosts that gossip knows beside this one, and Heard how many of them it takes for alive. Who died more than a minute ago is not among them, unless
	// so many died at a time that those who are left were no more than half: then they all count for an hour, or until more than half are heard.
	Others, Heard int
}

// Standing is how well the others are heard now.
func (m *Member) Standing() Standing { return m.hosts.standing() }

// Await is the view as soon as its index is not the one given, or as it is when ctx ends.
func (m *Member) Await(ctx context.Context, index uint64) wire.View { return m.hosts.await(ctx, index) }

// Counts are what was refused so far.
func (m *Member) Counts() Counts {
	counts := m.journal.counted()
	counts.Slowness = m.list.Load().GetHealthScore()
	return counts
}

// Tell says facts of this host to all others. What does not fit, or is of another host or boot, is refused, and what was said before stays.
func (m *Member) Tell(facts wire.Facts) error {
	if facts.Node != m.config.Facts.Node || facts.BootID != m.config.Facts.BootID {
		return fmt.Errorf("the facts are of %s in boot %s, and this agent is of %s in boot %s: start it anew",
			facts.Node, facts.BootID, m.config.Facts.Node, m.config.Facts.BootID)
	}
	meta, err := pack(facts)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.meta = meta
	m.mu.Unlock()
	m.hosts.setOwn(facts)
	wake(m.told)
	return nil
}

// Leave takes leave of the others, so that nobody mistakes it for a death, and stops.
func (m *Member) Leave(ctx context.Context) error {
	list := m.list.Load()
	m.takeLeave(list)
	patience := announcePatience
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline))
	}
	return errors.Join(list.Leave(patience), m.Close())
}

// Close stops without a word; the others will find this host dead.
func (m *Member) Close() error {
	m.mu.Lock()
	m.stop()
	m.mu.Unlock()
	err := m.list.Load().Shutdown()
	m.tasks.Wait()
	return err
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// announce says the facts to others when they change.
func (m *Member) announce() {
	for {
		select {
		case <-m.told:
			// Nobody may be there to take it: whoever comes asks for it.
			if err := m.list.Load().UpdateNode(announcePatience); err != nil {
				m.config.Log.V(1).Info("Facts are not taken by anybody yet", "why", err.Error())
			}
		case <-m.life.Done():
			return
		}
	}
}

// reach finds the others, again and again.
func (m *Member) reach() {
	alone := m.config.Clock.NewTicker(joinPeriod)
	defer alone.Stop()
	others := m.config.Clock.NewTicker(reachPeriod)
	defer others.Stop()
	for {
		m.hosts.forget()
		heard := m.hosts.addresses(wire.StateAlive, wire.StateSuspect)
		if len(heard) == 0 {
			m.try(joinAtOnce, nil)
		}
		select {
		case <-m.join:
		case <-alone.C():
		case <-others.C():
			m.try(1, heard)
		case <-m.life.Done():
			return
		}
	}
}

// try joins some that are not heard, any of the seeds and of the dead.
func (m *Member) try(some int, heard []string) {
	m.mu.Lock()
	candidates := slices.Clone(m.seeds)
	m.mu.Unlock()
	candidates = append(candidates, m.hosts.addresses(wire.StateDead)...)
	slices.Sort(candidates)
	candidates = slices.DeleteFunc(slices.Compact(candidates), func(address string) bool { return address == m.own || slices.Contains(heard, address) })
	for ; some > 0 && len(candidates) > 0 && m.life.Err() == nil; some-- {
		i := anyOf(len(candidates))
		if _, err := m.list.Load().Join(candidates[i : i+1]); err != nil {
			m.config.Log.V(1).Info("A host cannot be joined", "address", candidates[i], "why", err.Error())
		}
		candidates = slices.Delete(candidates, i, i+1)
	}
}

func anyOf(n int) int {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		return 0
	}
	return int(i.Int64())
}

// reread follows the files.
func (m *Member) reread() {
	dirs := []string{m.config.KeyDir}
	if m.config.SeedsFile != "" && filepath.Dir(m.config.SeedsFile) != m.config.KeyDir {
		dirs = append(dirs, filepath.Dir(m.config.SeedsFile))
	}
	every := m.config.Clock.NewTicker(rereadPeriod)
	defer every.Stop()
	follow := watch
	if m.config.Unwatched {
		follow = look
	}
	for m.life.Err() == nil {
		if err := follow(m.life, every.C(), dirs, m.read); err != nil {
			m.journal.note(kindFiles, err.Error())
			m.read()
			select {
			case <-every.C():
			case <-m.life.Done():
			}
		}
	}
}

func (m *Member) read() {
	if keys, err := readKeys(m.config.KeyDir); err != nil {
		m.journal.note(kindKeys, err.Error())
	} else if err := setKeys(m.ring, keys); err != nil {
		m.journal.note(kindKeys, err.Error())
	}
	seeds, err := readSeeds(m.config.SeedsFile, m.port)
	if err != nil {
		m.journal.note(kindSeeds, err.Error())
	}
	if err != nil && len(seeds) == 0 {
		return
	}
	m.mu.Lock()
	changed := !slices.Equal(m.seeds, seeds)
	m.seeds = seeds
	m.mu.Unlock()
	if changed {
		wake(m.join)
		m.journal.happened()
	}
}

// suspected is told that memberlist's own probe of a host failed. It is asked again at once, since memberlist comes back to it only after all others.
func (m *Member) suspected(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Not after Close, which ends its life under this lock and then waits for all tasks.
	if m.life.Err() == nil && m.hosts.suspect(node) {
		m.tasks.Go(func() { m.nurse(node) })
	}
}

func (m *Member) nurse(node string) {
	for m.life.Err() == nil {
		state, address := m.hosts.is(node)
		if state != wire.StateSuspect {
			return
		}
		ctx, cancel := context.WithTimeout(m.life, time.Second)
		// An answer is taken by hosts, and ends the suspicion. An error that comes at once, as without a route, must not be asked for in a hurry.
		if _, err := m.Ping(ctx, node, address); err != nil {
			<-ctx.Done()
		}
		cancel()
	}
}

// Ping asks the agent of one host directly, and says in which boot it is. It asks until it is answered or ctx ends; that is the error then, and else what
// the network says. The address is an IP address, with a port if it is not the one of this member.
func (m *Member) Ping(ctx context.Context, node, address string) (bootID string, err error) {
	if ip, err := netip.ParseAddr(address); err == nil {
		address = net.JoinHostPort(ip.String(), strconv.Itoa(m.port))
	}
	asked := m.config.Clock.Now()
	got, err := m.ask(ctx, node, address)
	if err != nil {
		return "", fmt.Errorf("ask the agent of %s at %s: %w", node, address, err)
	}
	m.hear(node, got.BootID, asked)
	return got.BootID, nil
}

// hear is where an answer of a host's own agent becomes a date, and nothing else does.
func (m *Member) hear(node, bootID string, asked time.Time) {
	if !m.hosts.heard(node, bootID, asked) {
		m.journal.count(kindOtherBoot)
		return
	}
	m.journal.happened()
}
