// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/memberlist"
)

// How memberlist seals a packet, in the only version of it that agents speak: one byte of version, the nonce, and AES-GCM's output.
const (
	sealVersion = 1
	nonceBytes  = 12
	tagBytes    = 16
)

// What is let in of that which nobody knows yet.
const (
	// seenPackets is how many packets are remembered, so that none of them is taken twice: more than five minutes of them among a thousand hosts.
	seenPackets = 1 << 15
	// openStreams is how many may be open at a time, and streamBytes how much is read of one: a view of ten thousand hosts.
	openStreams = 16
	streamBytes = 8 << 20
)

type nonce [nonceBytes]byte

// gate stands before memberlist, which itself neither notices a packet that comes a second time nor bounds its streams. What does not decrypt is counted here,
// and goes no further.
type gate struct {
	memberlist.NodeAwareTransport
	ring    *memberlist.Keyring
	journal *journal
	packets chan *memberlist.Packet
	streams chan net.Conn
	open    atomic.Int32
	closed  chan struct{}
	once    sync.Once
	pumps   sync.WaitGroup

	// seen and order are of the one goroutine that takes packets; order is a ring, next its oldest.
	seen  map[nonce]struct{}
	order []nonce
	next  int
}

func newGate(inner memberlist.NodeAwareTransport, ring *memberlist.Keyring, j *journal) *gate {
	g := &gate{
		NodeAwareTransport: inner, ring: ring, journal: j,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), closed: make(chan struct{}),
		seen: map[nonce]struct{}{},
	}
	g.pumps.Go(g.takePackets)
	g.pumps.Go(g.takeStreams)
	return g
}

// PacketCh has the packets that are let in.
func (g *gate) PacketCh() <-chan *memberlist.Packet { return g.packets }

// StreamCh has the streams that are let in.
func (g *gate) StreamCh() <-chan net.Conn { return g.streams }

// Shutdown closes what is inside first: it waits for its listeners, and these for the gate to take what they have.
func (g *gate) Shutdown() error {
	err := g.NodeAwareTransport.Shutdown()
	g.once.Do(func() { close(g.closed) })
	g.pumps.Wait()
	return err
}

func (g *gate) takePackets() {
	for {
		select {
		case p := <-g.NodeAwareTransport.PacketCh():
			if !g.lets(p) {
				continue
			}
			select {
			case g.packets <- p:
			case <-g.closed:
				return
			}
		case <-g.closed:
			return
		}
	}
}

func (g *gate) lets(p *memberlist.Packet) bool {
	if !g.decrypts(p.Buf) {
		g.journal.note(kindUndecryptable, "A packet does not decrypt: its sender has none of the keys", "from", p.From.String())
		return false
	}
	n := nonce(p.Buf[1 : 1+nonceBytes])
	if _, again := g.seen[n]; again {
		g.journal.note(kindReplayed, "A packet came again", "from", p.From.String())
		return false
	}
	// Only now: what does not decrypt must not push out what did.
	g.seen[n] = struct{}{}
	if len(g.order) < seenPackets {
		g.order = append(g.order, n)
		return true
	}
	delete(g.seen, g.order[g.next])
	g.order[g.next] = n
	g.next = (g.next + 1) % seenPackets
	return true
}

func (g *gate) decrypts(packet []byte) bool {
	if len(packet) < 1+nonceBytes+tagBytes || packet[0] != sealVersion {
		return false
	}
	for _, key := range g.ring.GetKeys() {
		if block, err := aes.NewCipher(key); err == nil {
			if seal, err := cipher.NewGCM(block); err == nil {
				if _, err := seal.Open(nil, packet[1:1+nonceBytes], packet[1+nonceBytes:], nil); err == nil {
					return true
				}
			}
		}
	}
	return false
}

func (g *gate) takeStreams() {
	for {
		select {
		case conn := <-g.NodeAwareTransport.StreamCh():
			if g.open.Add(1) > openStreams {
				g.open.Add(-1)
				g.journal.note(kindStream, "Too many streams are open", "from", conn.RemoteAddr().String())
				_ = conn.Close()
				continue
			}
			bounded := &stream{Conn: conn, rest: io.LimitReader(conn, streamBytes), gate: g}
			select {
			case g.streams <- bounded:
			case <-g.closed:
				_ = bounded.Close()
				return
			}
		case <-g.closed:
			return
		}
	}
}

// stream is one that ends after so much.
type stream struct {
	net.Conn
	rest io.Reader
	gate *gate
	once sync.Once
}

func (s *stream) Read(p []byte) (int, error) { return s.rest.Read(p) }

func (s *stream) Close() error {
	s.once.Do(func() { s.gate.open.Add(-1) })
	return s.Conn.Close()
}
