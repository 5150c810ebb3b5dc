// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package reset ends the TCP connections that a host's clients still hold to an address behind which nobody is any more, so that they fail over at once and
// not when their own timers end, which may be in fifteen minutes or never. It works in the network namespace of the calling thread: for pods whose
// traffic this host forwards, and for what runs on the host's own network. Nothing that goes to other addresses is touched.
//
// Two things are done, for a bounded time. The kernel answers whatever is still sent to the address with a RST: a set in nftables whose elements the kernel
// itself forgets, also when the agent is dead by then. And clients that send nothing, because they wait, are made to: see [Table.Lose]. The reasons are in
// docs/adr/0010-resetting-connections-to-a-lost-address.md.
//
// And it ends some connections, one by one, to pods that live, so that their clients connect anew and find pods that have come since: see [Table.Recycle], and
// docs/adr/0016-recycling-connections-to-pods-that-live.md.
package reset

import (
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

const (
	// table is ours alone.
	table = "holdfast_witness"
	// mark is on the packets that this package itself sends, so that connection tracking leaves them alone. It has none of the bits that kube-proxy
	// (0xc000), Calico (0xffff0000) and Cilium (0x0f00) give a meaning to.
	mark = 0x48
	// MaxSpan bounds how long an address may be lost at a time: an address may be given to another pod.
	MaxSpan = 2 * time.Minute
	// rounds is how often clients are made to speak, and between is the pause after each. The kernel of a client answers one such packet per connection and
	// half a second at most (net.ipv4.tcp_invalid_ratelimit).
	rounds  = 3
	between = 600 * time.Millisecond
	// lag is how late the kernel may forget an address.
	lag = time.Second
	// Most bounds how many addresses are lost at a time: twice the pods that a host has by default.
	Most = 256
)

// ErrFull is what more than [Most] addresses get.
var ErrFull = fmt.Errorf("more than %d addresses would be lost at a time; wait for some to be over, or take some back", Most)

// Before the filters of others, after their translation of destinations: a client that speaks to a Service speaks to the lost address by then.
const priority = -10

// Table is our table in nftables, in the network namespace of the thread that opened it. It is safe for concurrent use, from threads in that namespace.
type Table struct {
	v4 *nftables.Set
	v6 *nftables.Set

	mu   sync.Mutex // also for what conn has not sent yet
	conn *nftables.Conn
	lost map[netip.Addr]time.Time // until when

	recycling recycling
}

// Open makes the table, empty. One that is there already, of an agent before this one, is replaced, and what it had lost is forgotten. It needs CAP_NET_ADMIN.
func Open() (*Table, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	ours := &nftables.Table{Family: nftables.TableFamilyINet, Name: table}
	conn.AddTable(ours)
	conn.DelTable(ours)
	ours = conn.AddTable(ours)
	t := &Table{conn: conn, lost: map[netip.Addr]time.Time{},
		v4: &nftables.Set{Table: ours, Name: "lost4", KeyType: nftables.TypeIPAddr, HasTimeout: true},
		v6: &nftables.Set{Table: ours, Name: "lost6", KeyType: nftables.TypeIP6Addr, HasTimeout: true},
	}
	t.recycling.rounds = map[string]*round{}
	for _, set := range []*nftables.Set{t.v4, t.v6} {
		if err := conn.AddSet(set, nil); err != nil {
			return nil, fmt.Errorf("nftables set %s: %w", set.Name, err)
		}
	}
	for name, hook := range map[string]*nftables.ChainHook{"forward": nftables.ChainHookForward, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(chain(ours, name, hook))
		conn.AddRule(&nftables.Rule{Table: ours, Chain: chain, Exprs: refuse(t.v4, unix.NFPROTO_IPV4, 16, 4)})
		conn.AddRule(&nftables.Rule{Table: ours, Chain: chain, Exprs: refuse(t.v6, unix.NFPROTO_IPV6, 24, 16)})
	}
	own := conn.AddChain(&nftables.Chain{Table: ours, Name: "own", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw})
	conn.AddRule(&nftables.Rule{Table: ours, Chain: own, Exprs: append(equals(expr.MetaKeyMARK, []byte{mark, 0, 0, 0}), &expr.Notrack{})})
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("nftables table %s (it needs CAP_NET_ADMIN): %w", table, err)
	}
	return t, nil
}

func chain(in *nftables.Table, name string, hook *nftables.ChainHook) *nftables.Chain {
	return &nftables.Chain{Table: in, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(priority)}
}

// Close removes the table.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn.DelTable(t.v4.Table)
	return t.conn.Flush()
}

// refuse answers TCP to an address in the set with a RST. The destination stands at that offset in the header of that family, and is so long.
func refuse(set *nftables.Set, family byte, offset, length uint32) []expr.Any {
	rule := equals(expr.MetaKeyNFPROTO, []byte{family})
	rule = append(rule, equals(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP})...)
	return append(rule,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
		&expr.Counter{},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

func equals(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

// Lose has every TCP connection to the addresses end, from now on for that span (0 < span <= [MaxSpan]). It returns how many connections it found. With an error that
// names an address nothing was begun; with another one some of it may have been.
//
// A client that sends is answered with a RST. One that only waits is sent a SYN in the name of what it is connected to: RFC 5961 (section 4) has its kernel answer with an
// acknowledgement of what it expects next, which is sent to the address, and answered. The SYN itself changes nothing for the client.
func (t *Table) Lose(ctx context.Context, addresses []netip.Addr, span time.Duration) (found int, err error) {
	if span <= 0 || span > MaxSpan {
		return 0, fmt.Errorf("span %v: it is more than 0 and at most %v", span, MaxSpan)
	}
	for _, a := range addresses {
		if _, err := t.set(a); err != nil {
			return 0, err
		}
	}
	if err := t.begin(addresses, span); err != nil {
		return 0, err
	}
	return t.provoke(ctx, addresses)
}

// begin has the kernel refuse what is sent to the addresses.
func (t *Table) begin(addresses []netip.Addr, span time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(t.lost, func(_ netip.Addr, until time.Time) bool { return until.Before(now) })
	more := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { _, is := t.lost[a]; return is })
	if len(t.lost)+len(more) > Most {
		return ErrFull
	}
	for _, a := range addresses {
		set, err := t.set(a)
		if err != nil {
			return err
		}
		// An element that is there keeps its old span, so it goes first.
		if err := t.back(set, a); err != nil {
			return err
		}
		if err := t.conn.SetAddElements(set, []nftables.SetElement{{Key: a.AsSlice(), Timeout: span}}); err != nil {
			return err
		}
		t.lost[a] = now.Add(span + lag)
		if err := t.conn.Flush(); err != nil {
			return fmt.Errorf("lose %s: %w", a, err)
		}
	}
	return nil
}

// Lost reports whether an address may be lost at present: whatever seems to answer there is this host itself.
func (t *Table) Lost(address netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, is := t.lost[address]
	return is && !until.Before(time.Now())
}

// Back ends it before its time: the address belongs to somebody again. An address that is not lost is no error.
func (t *Table) Back(address netip.Addr) error {
	set, err := t.set(address)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.back(set, address); err != nil {
		return err
	}
	delete(t.lost, address)
	return nil
}

func (t *Table) back(set *nftables.Set, address netip.Addr) error {
	if err := t.conn.SetDeleteElements(set, []nftables.SetElement{{Key: address.AsSlice()}}); err != nil {
		return err
	}
	if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take %s back: %w", address, err)
	}
	return nil
}

// set is the one for addresses of that family. Addresses that are nobody's own are refused.
func (t *Table) set(address netip.Addr) (*nftables.Set, error) {
	switch {
	case !address.IsValid() || address.Zone() != "" || address.Is4In6():
		return nil, fmt.Errorf("address %q: an IPv4 or IPv6 address without a zone is wanted", address)
	case !address.IsGlobalUnicast():
		return nil, fmt.Errorf("address %s: the address of a pod is wanted", address)
	case address.Is4():
		return t.v4, nil
	default:
		return t.v6, nil
	}
}
