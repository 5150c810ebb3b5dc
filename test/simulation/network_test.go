// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestPacketsArriveAsOftenAsTheNetworkSays(t *testing.T) {
	const sent = 200 // fewer than a socket holds
	for loss, want := range map[float64][2]int{0: {sent, sent}, 0.5: {sent / 4, 3 * sent / 4}, 1: {0, 0}} {
		n := newNetwork(0)
		n.worsen(loss)
		a, b := n.attach(1), n.attach(2)
		for range sent {
			if _, err := a.WriteTo([]byte("word"), b.address()); err != nil {
				t.Fatal(err)
			}
		}
		n.worsen(0)
		n.delay = 100 * time.Millisecond // the last one comes after those that are under way
		if _, err := a.WriteTo([]byte("end"), b.address()); err != nil {
			t.Fatal(err)
		}
		arrived := 0
		for p := range b.packets {
			if string(p.Buf) == "end" {
				break
			}
			arrived++
		}
		if arrived < want[0] || arrived > want[1] {
			t.Errorf("with a loss of %v %d of %d packets arrived", loss, arrived, sent)
		}
		if packets, bytes := a.sent.Load(), a.bytes.Load(); packets != sent+1 || bytes != sent*(4+headers)+3+headers {
			t.Errorf("%d packets of %d bytes were counted", packets, bytes)
		}
	}
}

// TestAPulledCableIsSilence: whoever sends to it is told nothing, and whoever opens a stream waits in vain.
func TestAPulledCableIsSilence(t *testing.T) {
	n := newNetwork(0)
	a, b := n.attach(1), n.attach(2)
	go func() {
		c := <-b.streams
		_, _ = c.Write([]byte("heard"))
		_ = c.Close()
	}()
	c, err := a.DialTimeout(b.address(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(c); err != nil || string(text) != "heard" {
		t.Errorf("the stream said %q (%v)", text, err)
	}
	b.pull()
	if _, err := a.WriteTo([]byte("word"), b.address()); err != nil {
		t.Errorf("a packet into the void: %v", err)
	}
	if _, err := a.DialTimeout(b.address(), 10*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), b.address()) {
		t.Errorf("a stream into the void: %v", err)
	}
	if _, err := b.WriteTo([]byte("word"), a.address()); err != nil || b.sent.Load() != 0 {
		t.Errorf("a packet from the void: %v, %d sent", err, b.sent.Load())
	}
}

// TestWhatIsWrittenBeforeTheEndIsRead: whoever closes a connection at once has said what it said.
func TestWhatIsWrittenBeforeTheEndIsRead(t *testing.T) {
	here, far := pipe()
	for range 3 {
		if _, err := here.Write([]byte("word ")); err != nil {
			t.Fatal(err)
		}
	}
	if err := here.Close(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(far); err != nil || string(text) != "word word word " {
		t.Errorf("%q was read (%v)", text, err)
	}
	if _, err := here.Write([]byte("late")); err == nil {
		t.Error("a connection that is closed took a word")
	}
	if _, err := here.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that is closed gave a word")
	}
	if err := far.Close(); err != nil {
		t.Error(err)
	}
}
