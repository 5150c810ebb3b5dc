// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/hashicorp/memberlist"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// A member is what the agent's API shows.
var _ api.Sight = (*Member)(nil)

// patience bounds what is awaited; nothing is expected to take this long.
const patience = 90 * time.Second

// circle is some agents on this machine, each at a loopback address of its own.
type circle struct {
	t      *testing.T
	ctx    context.Context
	seeds  string
	keys   string
	key    []byte
	events chan struct{}
	at     int
}

func newCircle(t *testing.T) *circle {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	dir := t.TempDir()
	c := &circle{t: t, ctx: ctx, seeds: filepath.Join(dir, "seeds"), keys: filepath.Join(dir, "keys"), events: make(chan struct{}, 1)}
	if err := os.Mkdir(c.keys, 0o700); err != nil {
		t.Fatal(err)
	}
	c.key = newKey()
	c.putKey(Primary, c.key)
	c.putSeeds()
	return c
}

func newKey() []byte {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key)
	return key
}

// put replaces a file as a whole, as mounted Secrets and ConfigMaps do.
func put(t *testing.T, path string, text string) {
	t.Helper()
	next := filepath.Join(filepath.Dir(path), "..next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func (c *circle) putKey(name string, key []byte) {
	c.t.Helper()
	put(c.t, filepath.Join(c.keys, name), base64.StdEncoding.EncodeToString(key)+"\n")
}

func (c *circle) putSeeds(addresses ...string) {
	c.t.Helper()
	put(c.t, c.seeds, strings.Join(addresses, "\n")+"\n")
}

func (c *circle) happened() { wake(c.events) }

func factsOf(node, boot string) wire.Facts {
	return wire.Facts{Node: node, BootID: boot, SystemUUID: "4c4c4544-0051-3610-8052-b4c04f4d3232", Kubelet: wire.Alive, Revision: 1}
}

// patient has no host suspected that answers at all: what must not happen must not happen because the machine is busy either.
func patient(c *memberlist.Config) {
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = time.Second, 900*time.Millisecond, 30
}

// agent is one of a circle, over a wire that can be cut.
type agent struct {
	*Member
	wire *cutter
	at   string
}

func (c *circle) start(node, boot string, change ...func(*Config)) *agent {
	c.t.Helper()
	c.at++
	return c.startAt(fmt.Sprintf("127.0.1.%d:0", c.at), node, boot, change...)
}

func (c *circle) startAt(at, node, boot string, change ...func(*Config)) *agent {
	c.t.Helper()
	host, portText, _ := net.SplitHostPort(at)
	port, err := net.LookupPort("tcp", portText)
	if err != nil {
		c.t.Fatal(err)
	}
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{host}, BindPort: port, Logger: log.New(c.t.Output(), node+" ", 0)})
	if err != nil {
		c.t.Fatal(err)
	}
	a := &agent{wire: newCutter(inner)}
	config := Config{
		Facts: factsOf(node, boot), BindPort: inner.GetAutoBindPort(), AdvertiseAddress: host, KeyDir: c.keys, SeedsFile: c.seeds,
		Transport: a.wire, Log: logr.Discard(), happened: c.happened,
	}
	for _, f := range change {
		f(&config)
	}
	if a.Member, err = Start(config); err != nil {
		c.t.Fatal(err)
	}
	a.at = a.Address()
	ctx, cancel := context.WithCancel(c.ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for index := a.View().Index; ctx.Err() == nil; c.happened() {
			index = a.Await(ctx, index).Index
		}
	})
	c.t.Cleanup(func() { cancel(); watching.Wait(); _ = a.Close() })
	return a
}

// await goes on when something is so, and looks whenever anything has happened.
func (c *circle) await(what string, is func() bool) {
	c.t.Helper()
	for !is() {
		select {
		case <-c.events:
		case <-c.ctx.Done():
			c.t.Fatalf("%s did not come", what)
		}
	}
}

func of(view wire.View, node string) wire.Host {
	for _, h := range view.Hosts {
		if h.Node == node {
			return h
		}
	}
	return wire.Host{}
}

// sees: in this state, and in this boot.
func (a *agent) sees(node, boot string, state wire.State) bool {
	h := of(a.View(), node)
	return h.State == state && h.BootID == boot
}

// three agents that know each other.
func (c *circle) three(change ...func(*Config)) (a, b, third *agent) {
	c.t.Helper()
	a = c.start("a", "a1", change...)
	c.putSeeds(a.at)
	b, third = c.start("b", "b1", change...), c.start("c", "c1", change...)
	c.await("that all see all", func() bool {
		for _, one := range []*agent{a, b, third} {
			if !one.sees("a", "a1", wire.StateAlive) || !one.sees("b", "b1", wire.StateAlive) || !one.sees("c", "c1", wire.StateAlive) {
				return false
			}
		}
		return true
	})
	return a, b, third
}

// still is what must not change when something is refused.
func still(view wire.View) string {
	var out []string
	for _, h := range view.Hosts {
		out = append(out, fmt.Sprint(h.Facts, h.State, h.HeardAge != nil))
	}
	return strings.Join(out, "\n")
}

// cutter is a transport that can be cut: nothing comes in, and nothing goes out.
type cutter struct {
	*memberlist.NetTransport
	cut     atomic.Bool
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once

	mu   sync.Mutex
	sent [][]byte
}

func newCutter(inner *memberlist.NetTransport) *cutter {
	c := &cutter{NetTransport: inner, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{})}
	go func() {
		for {
			select {
			case p := <-inner.PacketCh():
				if !c.cut.Load() {
					select {
					case c.packets <- p:
					case <-c.done:
						return
					}
				}
			case conn := <-inner.StreamCh():
				if c.cut.Load() {
					_ = conn.Close()
					continue
				}
				select {
				case c.streams <- conn:
				case <-c.done:
					return
				}
			case <-c.done:
				return
			}
		}
	}()
	return c
}

func (c *cutter) PacketCh() <-chan *memberlist.Packet { return c.packets }
func (c *cutter) StreamCh() <-chan net.Conn           { return c.streams }

func (c *cutter) WriteToAddress(raw []byte, to memberlist.Address) (time.Time, error) {
	if c.cut.Load() {
		return time.Now(), nil
	}
	c.mu.Lock()
	c.sent = append(c.sent, slices.Clone(raw))
	c.mu.Unlock()
	return c.NetTransport.WriteToAddress(raw, to)
}

func (c *cutter) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if c.cut.Load() {
		return nil, errors.New("cut")
	}
	return c.NetTransport.DialAddressTimeout(to, timeout)
}

func (c *cutter) Shutdown() error {
	err := c.NetTransport.Shutdown()
	c.once.Do(func() { close(c.done) })
	return err
}

func (c *cutter) recorded() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent)
}

// send puts a packet on the wire that no agent has sent.
func (c *circle) send(to string, packet []byte) {
	c.t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(packet); err != nil {
		c.t.Fatal(err)
	}
}

// seal is what a holder of the key can do.
func (c *circle) seal(message []byte) []byte {
	c.t.Helper()
	block, err := aes.NewCipher(c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		c.t.Fatal(err)
	}
	head := make([]byte, 1+nonceBytes)
	head[0] = sealVersion
	_, _ = rand.Read(head[1:])
	return gcm.Seal(head, head[1:], message, nil)
}

// forged is a message of memberlist, which is a byte for its type and a map in msgpack: numbers of 32 bits, strings and bytes alike.
func forged(kind byte, fields ...any) []byte {
	out := []byte{kind, 0x80 | byte(len(fields)/2)}
	for _, f := range fields {
		switch f := f.(type) {
		case int:
			out = binary.BigEndian.AppendUint32(append(out, 0xce), uint32(f))
		case string:
			out = append(binary.BigEndian.AppendUint16(append(out, 0xda), uint16(len(f))), f...)
		}
	}
	return out
}

const (
	suspectMessage = 3
	aliveMessage   = 4
	deadMessage    = 5
)

func aliveFrom(at *agent, node, meta string) []byte {
	host, port, _ := net.SplitHostPort(at.at)
	n, _ := net.LookupPort("udp", port)
	return forged(aliveMessage, "Incarnation", 1000, "Node", node, "Addr", string(net.ParseIP(host).To4()), "Port", n, "Meta", meta, "Vsn", "\x01\x05\x02\x00\x00\x00")
}

// What others count on: nobody is given up sooner than an agent that is cut off takes itself for that (ADR 9); a suspicion that nobody else shares lasts no longer than one that is shared; and who
// asks for another says that it heard nothing before the next question.
func TestThePaceOfGossip(t *testing.T) {
	c := new(Member).settings(nil, nil)
	if soonest := c.ProbeInterval + time.Duration(c.SuspicionMult)*c.ProbeInterval; soonest < 1200*time.Millisecond {
		t.Errorf("a host is given up %s after it was last heard, and 1.2 s are wanted", soonest)
	}
	if c.SuspicionMaxTimeoutMult != 1 {
		t.Errorf("a suspicion that nobody shares lasts %d times as long", c.SuspicionMaxTimeoutMult)
	}
	if said := 2 * c.ProbeTimeout; said+50*time.Millisecond > c.ProbeInterval {
		t.Errorf("who asks for another says after %s that it heard nothing, and the next question is after %s", said, c.ProbeInterval)
	}
}

func TestOneThatStopsAnsweringIsDeadAndComesBackAsAnother(t *testing.T) {
	c := newCircle(t)
	a, b, third := c.three()
	c.await("that c answered both", func() bool {
		return of(a.View(), "c").HeardAge != nil && of(b.View(), "c").HeardAge != nil
	})
	third.wire.cut.Store(true)
	// By memberlist's own line in the log, which is all that it says of a suspicion.
	c.await("that one of them suspects c", func() bool { return a.sees("c", "c1", wire.StateSuspect) || b.sees("c", "c1", wire.StateSuspect) })
	c.await("that c is dead to both", func() bool {
		return a.sees("c", "c1", wire.StateDead) && b.sees("c", "c1", wire.StateDead)
	})
	before := of(a.View(), "c")
	if before.HeardAge == nil {
		t.Fatal("with its death it is forgotten that it was heard")
	}
	// Others go on telling of themselves, and a goes on hearing them: it makes c no younger.
	if _, err := a.Ping(c.ctx, "b", b.at); err != nil {
		t.Fatal(err)
	}
	if after := of(a.View(), "c"); after.HeardAge == nil || *after.HeardAge < *before.HeardAge {
		t.Fatalf("c was heard %v ago, and then %v", before.HeardAge, after.HeardAge)
	}
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	again := c.startAt(third.at, "c", "c2")
	c.await("that c is alive in its second boot", func() bool {
		return a.sees("c", "c2", wire.StateAlive) && b.sees("c", "c2", wire.StateAlive) && again.sees("a", "a1", wire.StateAlive)
	})
	if boot, err := a.Ping(c.ctx, "c", again.at); err != nil || boot != "c2" {
		t.Fatalf("the agent of c says that it is in boot %q, %v", boot, err)
	}
}

func TestOneThatWasCutOffComesBackByItself(t *testing.T) {
	c := newCircle(t)
	// memberlist forgets the dead at once, and there are no seeds any more: only the agents' own memory brings them together.
	a, b, third := c.three(func(config *Config) {
		config.tune = func(m *memberlist.Config) { m.GossipToTheDeadTime = time.Nanosecond }
	})
	c.putSeeds()
	c.await("that nobody has seeds", func() bool {
		for _, one := range []*agent{a, b, third} {
			one.mu.Lock()
			seeds := len(one.seeds)
			one.mu.Unlock()
			if seeds > 0 {
				return false
			}
		}
		return true
	})
	third.wire.cut.Store(true)
	c.await("that c and the others are dead to each other", func() bool {
		return a.sees("c", "c1", wire.StateDead) && b.sees("c", "c1", wire.StateDead) &&
			third.sees("a", "a1", wire.StateDead) && third.sees("b", "b1", wire.StateDead)
	})
	third.wire.cut.Store(false)
	c.await("that they see each other again", func() bool {
		return a.sees("c", "c1", wire.StateAlive) && b.sees("c", "c1", wire.StateAlive) &&
			third.sees("a", "a1", wire.StateAlive) && third.sees("b", "b1", wire.StateAlive)
	})
}

func TestFactsTravel(t *testing.T) {
	c := newCircle(t)
	a, b, third := c.three()
	facts := factsOf("c", "c1")
	facts.Kubelet, facts.Runtime, facts.API, facts.Revision = wire.Dead, wire.Alive, wire.Dead, 7
	facts.Storage, facts.Memory, facts.IO = wire.Dead, wire.Unread, wire.Dead
	if err := third.Tell(facts); err != nil {
		t.Fatal(err)
	}
	c.await("that the others have the facts", func() bool { return of(a.View(), "c").Facts == facts && of(b.View(), "c").Facts == facts })
}

func TestFactsThatAreNotSaid(t *testing.T) {
	c := newCircle(t)
	a := c.start("a", "a1")
	big, other, moved := factsOf("a", "a1"), factsOf("b", "a1"), factsOf("a", "a2")
	big.SystemUUID = strings.Repeat("4", 600)
	if err := a.Tell(big); !errors.Is(err, errTooBig) || !strings.Contains(err.Error(), "system UUID of 600") {
		t.Fatalf("too many bytes: %v", err)
	}
	for _, f := range []wire.Facts{other, moved} {
		if err := a.Tell(f); err == nil || !strings.Contains(err.Error(), "start it anew") {
			t.Fatalf("facts of %s in boot %s: %v", f.Node, f.BootID, err)
		}
	}
	if got := of(a.View(), "a").Facts; got != factsOf("a", "a1") {
		t.Fatalf("the facts are %+v", got)
	}
}

func TestOneThatLeavesIsNotDead(t *testing.T) {
	c := newCircle(t)
	a, b, third := c.three()
	if err := third.Leave(c.ctx); err != nil {
		t.Fatal(err)
	}
	c.await("that c is in no view", func() bool { return of(a.View(), "c").Node == "" && of(b.View(), "c").Node == "" })
}

func TestKeysAreChangedUnderLoadAndNobodyFallsOut(t *testing.T) {
	c := newCircle(t)
	a, b, third := c.three(func(config *Config) { config.tune = patient })
	all := []*agent{a, b, third}
	revision := uint64(1)
	// Each step is followed by a change of facts of each that the others must hear: with the keys of the step before it they could not.
	step := func(name string) {
		t.Helper()
		revision++
		for _, one := range all {
			facts := factsOf(one.config.Facts.Node, one.config.Facts.BootID)
			facts.Revision = revision
			if err := one.Tell(facts); err != nil {
				t.Fatal(err)
			}
		}
		c.await(name+": facts", func() bool {
			for _, one := range all {
				for _, h := range one.View().Hosts {
					if h.State != wire.StateAlive || h.Revision != revision {
						return false
					}
				}
			}
			return true
		})
	}
	holds := func(keys ...[]byte) func() bool {
		return func() bool {
			for _, one := range all {
				have := one.ring.GetKeys()
				if len(have) != len(keys) || !bytes.Equal(have[0], keys[0]) {
					return false
				}
			}
			return true
		}
	}
	ctx, stop := context.WithCancel(c.ctx)
	var writers sync.WaitGroup
	for _, one := range all {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				// The question is answered over the wire with the keys of that moment.
				if _, err := one.Ping(ctx, all[i%3].config.Facts.Node, all[i%3].at); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				c.happened()
			}
		})
	}
	old, next := c.key, newKey()
	step("before")
	c.putKey("next", next)
	c.await("that all accept the new key", holds(old, next))
	step("accepted")
	c.putKey("old", old)
	c.putKey(Primary, next)
	c.await("that all send with the new key", holds(next, old))
	step("sent with")
	for _, name := range []string{"next", "old"} {
		if err := os.Remove(filepath.Join(c.keys, name)); err != nil {
			t.Fatal(err)
		}
	}
	c.putKey(Primary, next)
	c.await("that nobody has the old key", holds(next))
	step("after")
	stop()
	writers.Wait()
	for _, one := range all {
		if counts := one.Counts(); counts.Undecryptable != 0 || counts.Replayed != 0 {
			t.Fatalf("%s refused %+v", one.config.Facts.Node, counts)
		}
	}
}

func TestBadKeysChangeNothing(t *testing.T) {
	c := newCircle(t)
	a := c.start("a", "a1")
	for i, bad := range []string{"short", base64.StdEncoding.EncodeToString(make([]byte, 16)), ""} {
		put(t, filepath.Join(c.keys, "next"), bad)
		c.await("that the key is refused", func() bool { return a.Counts().Keys > uint64(i) })
	}
	if keys := a.ring.GetKeys(); len(keys) != 1 || !bytes.Equal(keys[0], c.key) {
		t.Fatalf("the ring has %d keys", len(keys))
	}
	if err := os.Remove(filepath.Join(c.keys, Primary)); err != nil {
		t.Fatal(err)
	}
	if _, err := readKeys(c.keys); err == nil {
		t.Fatal("keys without a primary one are read")
	}
	if _, err := Start(Config{Facts: factsOf("b", "b1"), KeyDir: t.TempDir(), Log: logr.Discard()}); err == nil || !strings.Contains(err.Error(), `no file "primary"`) {
		t.Fatalf("an agent without keys: %v", err)
	}
}

func TestWhatIsRefusedIsCountedAndChangesNothing(t *testing.T) {
	c := newCircle(t)
	a, b, _ := c.three(func(config *Config) { config.tune = patient })
	c.await("that b answered", func() bool { return of(a.View(), "b").HeardAge != nil && of(a.View(), "c").HeardAge != nil })
	before := still(a.View())
	unchanged := func(t *testing.T) {
		t.Helper()
		if after := still(a.View()); after != before {
			t.Fatalf("the view was\n%s\nand is\n%s", before, after)
		}
	}
	t.Run("garbage", func(t *testing.T) {
		was := a.Counts().Undecryptable
		for _, garbage := range [][]byte{{0}, {1}, {244, 3, 'x'}, []byte("GET / HTTP/1.1\r\n"), make([]byte, 1400), append([]byte{1}, make([]byte, 28)...), forged(deadMessage, "Incarnation", 9, "Node", "b", "From", "c")} {
			c.send(a.at, garbage)
			was++
			c.await("that it is counted", func() bool { return a.Counts().Undecryptable == was })
		}
		unchanged(t)
	})
	t.Run("a packet that comes again", func(t *testing.T) {
		was := a.Counts().Replayed
		if _, err := b.Ping(c.ctx, "a", a.at); err != nil {
			t.Fatal(err)
		}
		recorded := b.wire.recorded()
		for _, packet := range recorded {
			c.send(a.at, packet)
		}
		// Some of them went to c, and so come to a for the first time; each of them is refused the second time.
		for _, packet := range recorded {
			c.send(a.at, packet)
		}
		c.await("that all are counted", func() bool { return a.Counts().Replayed >= was+uint64(len(recorded)) })
		unchanged(t)
	})
	t.Run("another key", func(t *testing.T) {
		strange := newCircle(t)
		strange.events = c.events
		strange.putSeeds(a.at)
		was := a.Counts()
		x := strange.start("x", "x1")
		c.await("that its stream is counted", func() bool { return a.Counts().Streams > was.Streams })
		ctx, cancel := context.WithCancel(c.ctx)
		go func() { _, _ = x.Ping(ctx, "a", a.at) }()
		c.await("that its packet is counted", func() bool { return a.Counts().Undecryptable > was.Undecryptable })
		cancel()
		if len(x.View().Hosts) != 1 {
			t.Fatalf("it learned of %v", x.View().Hosts)
		}
		unchanged(t)
	})
	t.Run("a name that another host has", func(t *testing.T) {
		was := a.Counts().Claims
		c.start("b", "b666", func(config *Config) { config.tune = patient })
		c.await("that it is counted", func() bool { return a.Counts().Claims > was })
		unchanged(t)
		if boot, err := a.Ping(c.ctx, "b", b.at); err != nil || boot != "b1" {
			t.Fatalf("b is in boot %q, %v", boot, err)
		}
		unchanged(t)
	})
}

func TestFactsThatCannotBeReadAreUnread(t *testing.T) {
	for name, meta := range map[string]string{"oversize": `{"b":"` + strings.Repeat("b", 600) + `"}`, "garbled": "\x00\xff", "no boot": `{"n":3}`} {
		t.Run(name, func(t *testing.T) {
			c := newCircle(t)
			a := c.start("a", "a1", func(config *Config) { config.tune = patient })
			b := c.start("elsewhere", "e1", func(config *Config) { config.tune = patient })
			c.send(a.at, c.seal(aliveFrom(b, "b", meta)))
			c.await("that b is there", func() bool { return of(a.View(), "b").Node == "b" })
			got := of(a.View(), "b")
			if got.Facts != (wire.Facts{Node: "b"}) || got.HeardAge != nil {
				t.Fatalf("b is %+v", got)
			}
			if counts := a.Counts(); counts.Oversize+counts.Garbled == 0 || (counts.Oversize > 0) != (name == "oversize") {
				t.Fatalf("counted %+v", counts)
			}
		})
	}
}

func TestWhoIsCalledDeadByAnotherSpeaksUp(t *testing.T) {
	c := newCircle(t)
	a, _, _ := c.three(func(config *Config) { config.tune = patient })
	c.await("that b answered", func() bool { return of(a.View(), "b").HeardAge != nil })
	index := a.View().Index
	c.send(a.at, c.seal(forged(deadMessage, "Incarnation", 1000, "Node", "b", "From", "c")))
	if view := a.Await(c.ctx, index); of(view, "b").State != wire.StateDead || of(view, "b").HeardAge == nil {
		t.Fatalf("a holder of the key says that b is dead, and it is %+v", of(view, "b"))
	}
	c.await("that b is alive", func() bool { return a.sees("b", "b1", wire.StateAlive) })
}

func TestAQuestionNobodyAnswers(t *testing.T) {
	c := newCircle(t)
	a, b, _ := c.three()
	ctx, cancel := context.WithTimeout(c.ctx, 3*askAgain)
	defer cancel()
	// b's agent is asked as if it were another host's: it has nothing to say for that one.
	if boot, err := a.Ping(ctx, "nobody", b.at); !errors.Is(err, context.DeadlineExceeded) || boot != "" {
		t.Fatalf("answered %q, %v", boot, err)
	}
}
