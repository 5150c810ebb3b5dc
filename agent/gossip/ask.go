// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// askAgain is how often a question is sent that is not answered, and farewells how often a farewell is said, since nobody answers it.
const (
	askAgain  = 200 * time.Millisecond
	farewells = 2
)

// note is what one agent says to one other. memberlist encrypts it. Its own ping is not used for questions: it does not tell what was answered, and counts
// its questions from one in each life, while these cannot be foreseen and so not be answered by a recording.
type note struct {
	// Ask, Answer and Bye: exactly one is set. An answer repeats the question; a farewell names the boot that goes.
	Ask    string `json:"ask,omitempty"`
	Answer string `json:"answer,omitempty"`
	Bye    string `json:"bye,omitempty"`
	// Node is who is asked, or who speaks. ReplyTo is the address of who asks.
	Node    string `json:"node"`
	BootID  string `json:"boot,omitempty"`
	ReplyTo string `json:"replyTo,omitempty"`
}

// asks are the questions that wait.
type asks struct {
	mu      *sync.Mutex
	waiting map[string]chan note
}

func newAsks() asks { return asks{mu: &sync.Mutex{}, waiting: map[string]chan note{}} }

func (a asks) begin() (question string, answer chan note) {
	question, answer = rand.Text(), make(chan note, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[question] = answer
	return question, answer
}

func (a asks) end(question string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, question)
}

// settle gives an answer to whoever waits for it, the first one only.
func (a asks) settle(n note) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if answer, ok := a.waiting[n.Answer]; ok {
		delete(a.waiting, n.Answer)
		answer <- n
	}
}

// ask sends a question until it is answered by the agent that it is for.
func (m *Member) ask(ctx context.Context, node, address string) (note, error) {
	question, answered := m.asks.begin()
	defer m.asks.end(question)
	again := m.config.Clock.NewTicker(askAgain)
	defer again.Stop()
	for {
		if err := m.say(note{Ask: question, Node: node, ReplyTo: m.own}, node, address); err != nil {
			return note{}, err
		}
		select {
		case got := <-answered:
			return got, nil
		case <-again.C():
		case <-ctx.Done():
			return note{}, ctx.Err()
		}
	}
}

func (m *Member) say(n note, node, address string) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return m.list.Load().SendToAddress(memberlist.Address{Addr: address, Name: node}, raw)
}

// take is told what another agent said. It must not wait.
func (m *Member) take(raw []byte) {
	var n note
	if err := json.Unmarshal(raw, &n); err != nil {
		m.journal.note(kindGarbled, "What another agent says is not understood")
		return
	}
	switch {
	case n.Answer != "":
		m.asks.settle(n)
	case n.Bye != "":
		m.hosts.farewell(n.Node, n.Bye)
	case n.Ask != "" && n.Node == m.config.Facts.Node && m.list.Load() != nil:
		answer := note{Answer: n.Ask, Node: m.config.Facts.Node, BootID: m.config.Facts.BootID}
		if err := m.say(answer, "", n.ReplyTo); err != nil {
			m.config.Log.V(1).Info("A question cannot be answered", "from", n.ReplyTo, "why", err.Error())
		}
	}
}

// takeLeave tells each of the others that this one goes. Whoever does not hear it takes the host for dead, which is the safe mistake.
func (m *Member) takeLeave(list *memberlist.Memberlist) {
	bye := note{Bye: m.config.Facts.BootID, Node: m.config.Facts.Node}
	for range farewells {
		for _, other := range list.Members() {
			if other.Name == m.config.Facts.Node {
				continue
			}
			if err := m.say(bye, other.Name, other.Address()); err != nil {
				m.config.Log.V(1).Info("A host is not told that this one leaves", "host", other.Name, "why", err.Error())
			}
		}
	}
}
