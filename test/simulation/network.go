// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// port is everybody's.
const port = 7946

// network carries packets and streams between hosts in this process. A packet arrives late, and some do not; streams are late and whole.
type network struct {
	mu sync.RWMutex
	// loss is the share of packets that vanish, delay how long the others take at least; they take up to twice that.
	loss  float64
	delay time.Duration
	hosts map[string]*link

	// chance is drawn from by all, one after the other.
	drawing sync.Mutex
	chance  *rand.Rand
}

// newNetwork loses nothing.
func newNetwork(delay time.Duration) *network {
	n := &network{delay: delay, hosts: map[string]*link{}}
	n.draw(0)
	return n
}

// draw has chances drawn anew from a seed.
func (n *network) draw(seed uint64) {
	n.drawing.Lock()
	defer n.drawing.Unlock()
	n.chance = rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a network's chances, not a secret
}

// worsen sets the share of packets that vanish from now on.
func (n *network) worsen(loss float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = loss
}

// attach connects a host, or the next boot of one; number tells its address.
func (n *network) attach(number int) *link {
	l := &link{network: n, ip: ip(number), packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn), down: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[l.address()] = l
	return l
}

func ip(number int) net.IP { return net.IPv4(10, byte(number>>16), byte(number>>8), byte(number)) }

// to is the host at the address, or nil if nobody is there who hears.
func (n *network) to(address string) *link {
	n.mu.RLock()
	defer n.mu.RUnlock()
	l := n.hosts[address]
	if l == nil || l.isDown() {
		return nil
	}
	return l
}

// fate is how late the next packet is, and whether it is lost.
func (n *network) fate() (late time.Duration, lost bool) {
	n.mu.RLock()
	loss, delay := n.loss, n.delay
	n.mu.RUnlock()
	n.drawing.Lock()
	defer n.drawing.Unlock()
	return delay + time.Duration(n.chance.Int64N(int64(delay)+1)), n.chance.Float64() < loss
}

// link is one host's way to the others: a memberlist.NodeAwareTransport.
type link struct {
	network *network
	ip      net.IP
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    chan struct{}
	once    sync.Once

	sent, bytes, overrun atomic.Int64
}

func (l *link) address() string { return net.JoinHostPort(l.ip.String(), strconv.Itoa(port)) }

func (l *link) isDown() bool {
	select {
	case <-l.down:
		return true
	default:
		return false
	}
}

// pull takes the cable out: nothing comes or goes any more.
func (l *link) pull() { l.once.Do(func() { close(l.down) }) }

func (l *link) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return l.ip, port, nil }

func (l *link) PacketCh() <-chan *memberlist.Packet { return l.packets }
func (l *link) StreamCh() <-chan net.Conn           { return l.streams }

func (l *link) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	return l.WriteTo(b, to.Addr)
}

func (l *link) WriteTo(b []byte, address string) (time.Time, error) {
	now := time.Now()
	if l.isDown() {
		return now, nil
	}
	l.sent.Add(1)
	l.bytes.Add(int64(len(b)) + headers)
	late, lost := l.network.fate()
	if lost {
		return now, nil
	}
	packet := &memberlist.Packet{Buf: append([]byte(nil), b...), From: &net.UDPAddr{IP: l.ip, Port: port}}
	time.AfterFunc(late, func() {
		there := l.network.to(address)
		if there == nil {
			return
		}
		packet.Timestamp = time.Now()
		select {
		case there.packets <- packet:
		default: // a socket whose buffer is full drops
			there.overrun.Add(1)
		}
	})
	return now, nil
}

// headers of Ethernet, IPv4 and UDP.
const headers = 14 + 20 + 8

func (l *link) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return l.DialTimeout(to.Addr, timeout)
}

func (l *link) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	end := time.NewTimer(timeout)
	defer end.Stop()
	there := l.network.to(address)
	if there == nil || l.isDown() {
		select {
		case <-end.C:
		case <-l.down:
		}
		return nil, fmt.Errorf("dial %s: %w", address, os.ErrDeadlineExceeded)
	}
	here, far := net.Pipe()
	late, _ := l.network.fate()
	opened := time.NewTimer(2 * late)
	defer opened.Stop()
	<-opened.C
	select {
	case there.streams <- named{far, l.ip}:
		return &counted{Conn: here, bytes: &l.bytes}, nil
	case <-there.down:
	case <-end.C:
	}
	return nil, errors.Join(fmt.Errorf("dial %s: %w", address, os.ErrDeadlineExceeded), here.Close(), far.Close())
}

// Shutdown is memberlist's word for the end.
func (l *link) Shutdown() error { l.pull(); return nil }

// named is a connection that knows who it is from.
type named struct {
	net.Conn
	from net.IP
}

func (n named) RemoteAddr() net.Addr { return &net.TCPAddr{IP: n.from, Port: port} }

// counted counts what its opener writes and reads.
type counted struct {
	net.Conn
	bytes *atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.bytes.Add(int64(n))
	return n, err
}
