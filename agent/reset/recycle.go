// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package reset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Bounds of recycling, whoever asks.
const (
	// Rate is how many connections are ended per second at most.
	Rate = 20
	// MostRounds is how many rounds are known at a time, the oldest being forgotten for another one, and RoundFor how long each is after its look.
	MostRounds = 4
	RoundFor   = 15 * time.Minute
	// MostOpen is how many connections of a look are remembered. More are counted, and left alone.
	MostOpen = 4096
	// answers is how long what the last round provoked may be on its way.
	answers = 200 * time.Millisecond
	// cutFor is how long after it was begun to end a connection the kernel answers what still comes of it, should nobody tell it to stop. It is more than a
	// turn of five seconds and all rounds take.
	cutFor = 10 * time.Second
)

var (
	// ErrUnknownRound: nobody has looked under that name, in this life of the agent, or it was too long ago, or others have since. Which connections are old enough is
	// not known.
	ErrUnknownRound = errors.New("this agent has not looked for a round of that name, or too long ago; begin another one")
	// ErrOwn is what an address of this host itself gets.
	ErrOwn = errors.New("the address is this host's own; that of a pod on a network of its own is wanted")
)

// round is what is left of one look.
type round struct {
	at    time.Time
	found int
	open  []flow // in the order in which they are taken
}

// recycling is the part of a Table that ends connections to pods that live.
type recycling struct {
	cut4, cut6 *nftables.Set // nil until the first connection is ended: nobody's packets are looked up for what nobody asked for

	busy   sync.Mutex // one turn at a time; it guards next
	next   time.Time  // no connection is ended before
	mu     sync.Mutex // guards rounds
	rounds map[string]*round
}

// Look says whose connections a round is about.
type Look struct {
	// Servers are the pods, and the ports there.
	Servers []netip.AddrPort
	// Here are the addresses of this host and its pods. Connections of other clients are those of their own hosts' agents.
	Here []netip.Addr
	// Except are clients that are left alone.
	Except []netip.Addr
}

// prepare makes the sets of connections that are being ended, and the rules that answer what still comes of them, from either side, with a RST. Sockets of the host
// itself are ended directly.
func (t *Table) prepare() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.recycling.cut4 != nil {
		return nil
	}
	ours := t.v4.Table
	forward := t.conn.AddChain(chain(ours, "recycle", nftables.ChainHookForward))
	next := recycling{}
	if err := next.sets(t.conn, ours, forward); err != nil {
		return err
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("nftables chain %s of table %s: %w", forward.Name, table, err)
	}
	t.recycling.cut4, t.recycling.cut6 = next.cut4, next.cut6
	return nil
}

func (r *recycling) sets(conn *nftables.Conn, table *nftables.Table, forward *nftables.Chain) error {
	for _, f := range []struct {
		into    **nftables.Set
		name    string
		address nftables.SetDatatype
		family  byte
		source  uint32 // where the header has it; the destination stands behind it
	}{{&r.cut4, "cut4", nftables.TypeIPAddr, unix.NFPROTO_IPV4, 12}, {&r.cut6, "cut6", nftables.TypeIP6Addr, unix.NFPROTO_IPV6, 8}} {
		key, err := nftables.ConcatSetType(f.address, nftables.TypeInetService, f.address, nftables.TypeInetService)
		if err != nil {
			return fmt.Errorf("nftables set %s: %w", f.name, err)
		}
		*f.into = &nftables.Set{Table: table, Name: f.name, KeyType: key, Concatenation: true, HasTimeout: true}
		if err := conn.AddSet(*f.into, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", f.name, err)
		}
		for _, fromServer := range []bool{false, true} {
			conn.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: cut(*f.into, f.family, f.source, f.address.Bytes, fromServer)})
		}
	}
	return nil
}

// firstWord is the first of the registers that hold four bytes (NFT_REG32_00).
const firstWord = 8

// cut answers TCP between client and server of an element with a RST. Packets from the server have the two the other way round.
func cut(set *nftables.Set, family byte, source, length uint32, fromServer bool) []expr.Any {
	client, clientPort, server, serverPort := source, uint32(0), source+length, uint32(2)
	if fromServer {
		client, clientPort, server, serverPort = server, serverPort, client, clientPort
	}
	words := length / 4
	rule := equals(expr.MetaKeyNFPROTO, []byte{family})
	rule = append(rule, equals(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP})...)
	return append(rule,
		&expr.Payload{DestRegister: firstWord, Base: expr.PayloadBaseNetworkHeader, Offset: client, Len: length},
		&expr.Payload{DestRegister: firstWord + words, Base: expr.PayloadBaseTransportHeader, Offset: clientPort, Len: 2},
		&expr.Payload{DestRegister: firstWord + words + 1, Base: expr.PayloadBaseNetworkHeader, Offset: server, Len: length},
		&expr.Payload{DestRegister: firstWord + 2*words + 1, Base: expr.PayloadBaseTransportHeader, Offset: serverPort, Len: 2},
		&expr.Lookup{SourceRegister: firstWord, SetName: set.Name, SetID: set.ID},
		&expr.Counter{},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

// Look notes which connections there are now, for a round of that name, and ends none. It returns how many. What is opened afterwards is no part of the round.
// A name that is known already is not looked for again.
func (t *Table) Look(name string, l Look) (found int, err error) {
	r := &t.recycling
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(r.rounds, func(_ string, old *round) bool { return now.Sub(old.at) > RoundFor })
	if known := r.rounds[name]; known != nil {
		return known.found, nil
	}
	own, err := Own()
	if err != nil {
		return 0, err
	}
	for _, s := range l.Servers {
		if _, err := t.set(s.Addr()); err != nil {
			return 0, err
		}
		if slices.Contains(own, s.Addr()) {
			return 0, fmt.Errorf("%s: %w", s.Addr(), ErrOwn)
		}
	}
	flows, err := tracked(l.Servers)
	if err != nil {
		return 0, err
	}
	flows = slices.DeleteFunc(flows, func(f flow) bool {
		return !slices.Contains(l.Here, f.client.Addr()) || slices.Contains(l.Except, f.client.Addr()) || f.client.Addr() == f.server.Addr()
	})
	next := &round{at: now, found: len(flows), open: spread(flows)}
	next.open = slices.Clone(next.open[:min(len(next.open), MostOpen)])
	r.forget(MostRounds - 1)
	r.rounds[name] = next
	return next.found, nil
}

// forget keeps so many rounds, the youngest ones; r.mu is held.
func (r *recycling) forget(most int) {
	names := slices.SortedFunc(maps.Keys(r.rounds), func(a, b string) int { return r.rounds[b].at.Compare(r.rounds[a].at) })
	for _, name := range names[min(most, len(names)):] {
		delete(r.rounds, name)
	}
}

// tracked are the established connections to servers that connection tracking knows. What is missing now is left alone.
func tracked(servers []netip.AddrPort) (open []flow, err error) {
	addresses := make([]netip.Addr, len(servers))
	for i, s := range servers {
		addresses[i] = s.Addr()
	}
	err = eachFlow(addresses, func(f flow) {
		if slices.Contains(servers, f.server) {
			open = append(open, f)
		}
	})
	if err != nil {
		return nil, err
	}
	return open, nil
}

// spread orders connections so that the first of them, however many are taken, come from all servers alike, and at each server from all its clients alike.
func spread(open []flow) []flow {
	slices.SortFunc(open, func(a, b flow) int { return cmp.Or(a.server.Compare(b.server), a.client.Compare(b.client)) })
	type pair struct {
		server netip.AddrPort
		client netip.Addr
	}
	// turn is the how many-th of its pair a connection is, and rank the how many-th of its server, once those of a server stand by their turns.
	turn, rank := map[flow]int{}, map[flow]int{}
	ofPair, ofServer := map[pair]int{}, map[netip.AddrPort]int{}
	for _, f := range open {
		p := pair{f.server, f.client.Addr()}
		turn[f] = ofPair[p]
		ofPair[p]++
	}
	slices.SortStableFunc(open, func(a, b flow) int { return cmp.Compare(turn[a], turn[b]) })
	for _, f := range open {
		rank[f] = ofServer[f.server]
		ofServer[f.server]++
	}
	slices.SortStableFunc(open, func(a, b flow) int { return cmp.Compare(rank[a], rank[b]) })
	return open
}

// Recycle ends at most so many connections of a round that was looked for, each once, and no more than perSecond in a second (0 < perSecond <= [Rate]), whoever else asks.
// It returns how many it has begun to end, also with an error, and how many of the round are left.
//
// What the client or the server of such a connection still sends is answered with a RST, and both are made to send, as [Table.Lose] does. Sockets of this
// host are ended directly, and the kernel tells the other side.
func (t *Table) Recycle(ctx context.Context, name string, most, perSecond int) (begun, left int, err error) {
	if most < 1 || perSecond < 1 || perSecond > Rate {
		return 0, 0, fmt.Errorf("%d connections, %d per second: give at least one, and 1 to %d per second", most, perSecond, Rate)
	}
	r := &t.recycling
	r.busy.Lock()
	defer r.busy.Unlock()
	if err := r.refresh(name); err != nil {
		return 0, 0, err
	}
	if err := t.prepare(); err != nil {
		return 0, 0, err
	}
	var cuts []flow
	for begun < most && err == nil {
		f, ok := r.take(name)
		if !ok {
			break
		}
		if err = until(ctx, r.next); err != nil {
			r.giveBack(name, f)
			break
		}
		r.next = time.Now().Add(time.Second / time.Duration(perSecond))
		begun++
		var again bool
		if again, err = t.cut(f); again {
			cuts = append(cuts, f)
		}
	}
	err = errors.Join(err, t.settle(ctx, cuts))
	return begun, r.left(name), err
}

// refresh strikes off what has ended by itself: another connection between the same ports is a young one.
func (r *recycling) refresh(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.rounds[name]
	if known == nil || time.Since(known.at) > RoundFor {
		return ErrUnknownRound
	}
	open, err := still(known.open)
	if err != nil {
		return err
	}
	known.open = open
	return nil
}

// still are those that are established yet, in their order.
func still(of []flow) ([]flow, error) {
	var servers []netip.AddrPort
	for _, f := range of {
		if !slices.Contains(servers, f.server) {
			servers = append(servers, f.server)
		}
	}
	now, err := tracked(servers)
	if err != nil {
		return nil, err
	}
	is := map[flow]bool{}
	for _, f := range now {
		is[f] = true
	}
	return slices.DeleteFunc(slices.Clone(of), func(f flow) bool { return !is[f] }), nil
}

func (r *recycling) take(name string) (f flow, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.rounds[name]
	if known == nil || len(known.open) == 0 {
		return flow{}, false
	}
	f, known.open = known.open[0], known.open[1:]
	return f, true
}

func (r *recycling) giveBack(name string, f flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.rounds[name]; known != nil {
		known.open = slices.Insert(known.open, 0, f)
	}
}

func (r *recycling) left(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.rounds[name]; known != nil {
		return len(known.open)
	}
	return 0
}

// until waits for a moment.
func until(ctx context.Context, moment time.Time) error {
	pause := time.NewTimer(time.Until(moment))
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cut begins to end one connection: a socket of this host directly, any other by having both sides speak, which is to be done again then.
func (t *Table) cut(f flow) (again bool, err error) {
	here, err := sockets()
	if err != nil {
		return false, err
	}
	if s, ok := here[connection{client: f.client, server: f.asked}]; ok {
		return false, destroy{s}.do()
	}
	if err := t.element(f, (*nftables.Conn).SetAddElements); err != nil {
		return false, fmt.Errorf("end the connection of %s to %s: %w", f.client, f.server, err)
	}
	return true, f.provoke()
}

// provoke has both sides speak.
func (f flow) provoke() error {
	return errors.Join(speak(connection{client: f.client, server: f.asked}), speak(connection{client: f.server, server: f.seen}))
}

// settle has both sides speak again, whatever connection tracking says by then: it takes a connection for over when one of them was told. Then it lets go. Without it,
// as when the caller hangs up, the kernel does so after cutFor.
func (t *Table) settle(ctx context.Context, cuts []flow) (err error) {
	if len(cuts) == 0 {
		return nil
	}
	for range rounds - 1 {
		if err := until(ctx, time.Now().Add(between)); err != nil {
			return err
		}
		for _, f := range cuts {
			err = errors.Join(err, f.provoke())
		}
	}
	if stopped := until(ctx, time.Now().Add(answers)); stopped != nil {
		return errors.Join(err, stopped)
	}
	for _, f := range cuts {
		err = errors.Join(err, t.element(f, (*nftables.Conn).SetDeleteElements))
	}
	return err
}

// element puts a connection into its set, or takes it out. One that is there, or gone, already is no error.
func (t *Table) element(f flow, change func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	set, e := t.recycling.cut4, nftables.SetElement{Timeout: cutFor}
	if f.client.Addr().Is6() {
		set = t.recycling.cut6
	}
	for _, side := range []netip.AddrPort{f.client, f.server} {
		e.Key = append(e.Key, side.Addr().AsSlice()...)
		e.Key = append(e.Key, byte(side.Port()>>8), byte(side.Port()), 0, 0)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := change(t.conn, set, []nftables.SetElement{e}); err != nil {
		return err
	}
	if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
