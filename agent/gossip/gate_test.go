// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"io"
	"log"
	"net"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/hashicorp/memberlist"
	"k8s.io/utils/clock"
)

// entrance is a gate with what is before it.
func entrance(t *testing.T) (*gate, *circle, string) {
	t.Helper()
	c := newCircle(t)
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{"127.0.2.1"}, Logger: log.New(t.Output(), "", 0)})
	if err != nil {
		t.Fatal(err)
	}
	ring, err := memberlist.NewKeyring(nil, c.key)
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(inner, ring, newJournal(logr.Discard(), clock.RealClock{}))
	t.Cleanup(func() { _ = g.Shutdown() })
	return g, c, (&net.TCPAddr{IP: net.IPv4(127, 0, 2, 1), Port: inner.GetAutoBindPort()}).String()
}

func packet(raw []byte) *memberlist.Packet {
	return &memberlist.Packet{Buf: raw, From: &net.UDPAddr{}, Timestamp: time.Now()}
}

func TestAPacketIsTakenOnce(t *testing.T) {
	g, c, _ := entrance(t)
	first := c.seal([]byte("one"))
	if !g.lets(packet(first)) || g.lets(packet(first)) {
		t.Fatal("a packet is taken once, and not a second time")
	}
	// What does not decrypt pushes nothing out, however much of it comes, and whatever nonce it has.
	fresh := c.seal([]byte("two"))
	forgery := append([]byte{}, fresh...)
	forgery[len(forgery)-1]++
	for range seenPackets {
		if g.lets(packet(forgery)) {
			t.Fatal("a forgery is taken")
		}
	}
	if g.lets(packet(first)) {
		t.Fatal("forgeries made room for a packet that had come")
	}
	if !g.lets(packet(fresh)) {
		t.Fatal("forgeries kept out the packet whose nonce they had")
	}
	if counts := g.journal.counted(); counts.Replayed != 2 || counts.Undecryptable != seenPackets {
		t.Fatalf("counted %+v", counts)
	}
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	g, c, _ := entrance(t)
	first := c.seal(nil)
	g.lets(packet(first))
	for range seenPackets - 1 {
		g.lets(packet(c.seal(nil)))
	}
	if g.lets(packet(first)) {
		t.Fatal("the oldest of those remembered is forgotten")
	}
	g.lets(packet(c.seal(nil)))
	if !g.lets(packet(first)) || len(g.seen) != seenPackets || len(g.order) != seenPackets {
		t.Fatalf("%d are remembered, %d in order", len(g.seen), len(g.order))
	}
}

func TestStreamsAreBounded(t *testing.T) {
	g, c, address := entrance(t)
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	taken := func() net.Conn {
		select {
		case conn := <-g.StreamCh():
			return conn
		case <-c.ctx.Done():
			t.Fatal("no stream is let in")
			return nil
		}
	}
	var one net.Conn
	for range openStreams {
		dial()
		one = taken()
	}
	if _, err := dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("one too many reads %v", err)
	}
	if counts := g.journal.counted(); counts.Streams != 1 {
		t.Fatalf("counted %+v", counts)
	}
	// One that ends makes room for one, however often it is closed.
	_, _ = one.Close(), one.Close()
	dial()
	taken()
	if _, err := dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("one too many reads %v", err)
	}
}
