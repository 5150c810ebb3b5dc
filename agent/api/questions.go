// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/agent/probe"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

const (
	// bodyBytes is far more than the questions that may be asked take.
	bodyBytes = 64 << 10
	// nameBytes bounds names, as Kubernetes does; pathBytes a path, as GuardedStatefulApp does.
	nameBytes = 253
	pathBytes = 1024
)

// read reads one request, and nothing but the fields that it has.
func read(body io.Reader, into any) error {
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("the body is no such request: %w; send it with the fields that docs/spec/witness.md names only", err)
	}
	if err := decoder.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return errors.New("the body goes on after the request; send one request and nothing more")
	}
	return nil
}

// checkAll says which field of which question is wrong and what it should be.
func checkAll(questions []wire.Question) error {
	if n := len(questions); n < 1 || n > wire.Questions {
		return fmt.Errorf("questions: there are %d; ask 1 to %d at a time", n, wire.Questions)
	}
	for n, q := range questions {
		if err := check(q); err != nil {
			return fmt.Errorf("questions[%d].%w", n, err)
		}
	}
	return nil
}

// check says what is wrong with a question. Its error begins with the field.
func check(q wire.Question) error {
	if err := unicast(q.Address); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	for _, f := range []struct {
		field, text string
		most        int
	}{{"name", q.Name, nameBytes}, {"agent", q.Agent, nameBytes}, {"grpc", text(q.GRPC), nameBytes}, {"http", text(q.HTTP), pathBytes}} {
		if len(f.text) > f.most {
			return fmt.Errorf("%s: it has %d bytes; at most %d", f.field, len(f.text), f.most)
		}
	}
	if q.Agent != "" {
		if q.Port != 0 || q.HTTP != nil || q.GRPC != nil || q.TLS {
			return errors.New("agent: an agent is asked by gossip; leave out port, http, grpc and tls, or ask two questions")
		}
		return nil
	}
	if q.Port < 1 || q.Port > 65535 {
		return fmt.Errorf("port: %d is no TCP port; give 1 to 65535, or an agent", q.Port)
	}
	return probe.Check(q)
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// unicast refuses whatever is not the address of one host or pod on a network: nobody has an agent reach what listens on its own host only, or a cloud's
// metadata service.
func unicast(address string) error {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("%q is no IP address; names are not looked up here", address)
	}
	kind := ""
	switch ip = ip.Unmap(); {
	case ip.Zone() != "":
		kind = "an address with a zone"
	case ip.IsLoopback():
		kind = "a loopback address"
	case ip.IsUnspecified(), ip.Is4() && ip.As4()[0] == 0:
		kind = "an unspecified address"
	case ip.IsLinkLocalUnicast():
		kind = "a link-local address"
	case ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		kind = "a multicast or broadcast address"
	default:
		return nil
	}
	return fmt.Errorf("%s is %s; give the unicast address of a host or pod", address, kind)
}

// ask tries all questions at a time and answers in their order.
func (s *Server) ask(ctx context.Context, questions []wire.Question) []wire.Answer {
	ctx, done := context.WithTimeout(ctx, wire.ProbeMillis*time.Millisecond)
	defer done()
	answers, sent := make([]wire.Answer, len(questions)), make([]time.Time, len(questions))
	var all sync.WaitGroup
	for n, q := range questions {
		all.Go(func() {
			sent[n] = s.now()
			answers[n] = s.try(ctx, q)
		})
	}
	all.Wait()
	for n := range answers {
		answers[n].Age = wire.Millis(s.now().Sub(sent[n]))
	}
	return answers
}

func (s *Server) try(ctx context.Context, q wire.Question) wire.Answer {
	answer := wire.Answer{Name: q.Name}
	var err error
	switch {
	case q.Agent == "" && s.isLost(q.Address):
		answer.Outcome, err = wire.NotAsked, errors.New("connections to this address are being reset here: what answered would be this host")
	case q.Agent != "":
		soon, done := opening(ctx)
		answer.BootID, err = s.sight.Ping(soon, q.Agent, q.Address)
		done()
		answer.Outcome = probe.Outcome(err)
	default:
		answer.Outcome, err = probe.Ask(ctx, s.open, q)
	}
	if err != nil {
		answer.BootID, answer.Why = "", shorten(err.Error())
	}
	return answer
}

// open opens a connection, or gives up: whoever asks waits for the answers of hosts that are gone.
func (s *Server) open(ctx context.Context, network, address string) (net.Conn, error) {
	soon, done := opening(ctx)
	defer done()
	return s.Dial(soon, network, address)
}

func opening(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, wire.OpenMillis*time.Millisecond)
}

func (s *Server) isLost(address string) bool {
	ip, err := netip.ParseAddr(address)
	return err == nil && s.hands.Connections != nil && s.hands.Connections.Lost(ip.Unmap())
}
