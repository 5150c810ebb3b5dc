// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

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
	// loss is the share of packets that vanish, delay how long the others take at least; they take up to twice that.
	loss  float64
	delay time.Duration

	mu    sync.RWMutex
	hosts map[string]*link
}

func newNetwork(loss float64, delay time.Duration) *network {
	return &network{loss: loss, delay: delay, hosts: map[string]*link{}}
}

// attach connects a host; number tells its address.
func (n *network) attach(number int) *link {
	ip := net.IPv4(10, byte(number>>16), byte(number>>8), byte(number))
	l := &link{network: n, ip: ip, packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn), down: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[l.address()] = l
	return l
}

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

func (n *network) late() time.Duration { return n.delay + rand.N(n.delay+1) } //nolint:gosec // a network's delay, not a secret

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
	if rand.Float64() < l.network.loss { //nolint:gosec // chance, not a secret
		return now, nil
	}
	packet := &memberlist.Packet{Buf: append([]byte(nil), b...), From: &net.UDPAddr{IP: l.ip, Port: port}}
	time.AfterFunc(l.network.late(), func() {
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
	opened := time.NewTimer(2 * l.network.late())
	defer opened.Stop()
	<-opened.C
	select {
	case there.streams <- named{far, l.ip}:
		return &counted{Conn: here, by: l}, nil
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
	by *link
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.by.bytes.Add(int64(n))
	return n, err
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.by.bytes.Add(int64(n))
	return n, err
}
