// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Recycling ends connections of this host's clients to pods that live, some of them, one by one: a [reset.Table], with what it has to know of its host. It is
// safe for concurrent use.
type Recycling interface {
	// Here are the addresses of this host and of the pods that run on it: its clients.
	Here(ctx context.Context) ([]netip.Addr, error)
	// Look and Recycle are those of reset.Table.
	Look(name string, l reset.Look) (found int, err error)
	Recycle(ctx context.Context, name string, most, perSecond int) (begun, left int, err error)
}

// recycle looks for connections to pods that live, or ends some of those that were looked for.
func (s *Server) recycle(w http.ResponseWriter, r *http.Request) *refusal {
	if s.hands.Recycling == nil {
		return &refusal{kind: Unequipped, status: http.StatusNotImplemented, why: "this agent ends no connections; start it with --reset-connections to have it do so"}
	}
	leave, no := enter(s.hands.recycles, "recycle request is being answered")
	if no != nil {
		return no
	}
	defer leave()
	var request wire.RecycleRequest
	if no := body(w, r, &request); no != nil {
		return no
	}
	look, err := readRecycle(request)
	if err != nil {
		return &refusal{kind: Malformed, status: http.StatusBadRequest, why: err.Error()}
	}
	ctx, done := context.WithTimeout(r.Context(), wire.RecycleMillis*time.Millisecond)
	defer done()
	self := s.sight.View()
	answer := wire.RecycleAnswer{Node: self.Node, BootID: self.BootID}
	if request.Most == 0 {
		answer.Found, no = s.look(ctx, request.Round, look)
	} else {
		answer.Begun, answer.Left, no = s.end(ctx, request)
	}
	if no != nil {
		return no
	}
	return s.reply(w, answer)
}

func (s *Server) look(ctx context.Context, round string, look reset.Look) (found int, no *refusal) {
	var err error
	if look.Here, err = s.hands.Recycling.Here(ctx); err != nil {
		return 0, failed(fmt.Errorf("nothing was looked for, since nobody says which clients live here: %w", err))
	}
	switch found, err = s.hands.Recycling.Look(round, look); {
	case errors.Is(err, reset.ErrOwn):
		return 0, &refusal{kind: Unfit, status: http.StatusConflict, why: "servers: " + err.Error()}
	case err != nil:
		return 0, failed(err)
	}
	s.log.Info("connections to pods that live were looked for", "round", round, "servers", look.Servers, "found", found)
	return found, nil
}

func (s *Server) end(ctx context.Context, request wire.RecycleRequest) (begun, left int, no *refusal) {
	begun, left, err := s.hands.Recycling.Recycle(ctx, request.Round, request.Most, request.PerSecond)
	s.hands.did(ConnectionRecycled, begun)
	switch {
	case errors.Is(err, reset.ErrUnknownRound):
		return 0, 0, &refusal{kind: Unfit, status: http.StatusConflict, why: "round: " + err.Error()}
	case err != nil:
		return 0, 0, failed(fmt.Errorf("%d connections were begun to be ended: %w", begun, err))
	}
	s.log.Info("connections to pods that live are ended", "round", request.Round, "begun", begun, "left", left)
	return begun, left, nil
}

// readRecycle says which field is wrong and what it should be.
func readRecycle(r wire.RecycleRequest) (look reset.Look, err error) {
	looks, ends := len(r.Servers)+len(r.Except) > 0, r.Most != 0 || r.PerSecond != 0
	switch {
	case r.Round == "" || len(r.Round) > wire.RoundBytes:
		return look, fmt.Errorf("round: it has %d bytes; give it a name of 1 to %d", len(r.Round), wire.RoundBytes)
	case looks == ends:
		return look, errors.New("servers, most: give servers to look for their connections, or most and perSecond to end some of those that were looked for, and not both")
	case ends && (r.PerSecond < 1 || r.PerSecond > wire.RecyclePerSecond):
		return look, fmt.Errorf("perSecond: %d; give 1 to %d", r.PerSecond, wire.RecyclePerSecond)
	case ends && (r.Most < 1 || r.Most > wire.RecycleSeconds*r.PerSecond):
		return look, fmt.Errorf("most: %d; give 1 to %d, which is %d times perSecond", r.Most, wire.RecycleSeconds*r.PerSecond, wire.RecycleSeconds)
	case ends:
		return look, nil
	case len(r.Servers) < 1 || len(r.Servers) > wire.Servers:
		return look, fmt.Errorf("servers: %d are named; name 1 to %d at a time", len(r.Servers), wire.Servers)
	case len(r.Except) > wire.Servers:
		return look, fmt.Errorf("except: %d are named; name at most %d", len(r.Except), wire.Servers)
	}
	for n, text := range r.Servers {
		server, err := netip.ParseAddrPort(text)
		if err != nil || server.Port() == 0 {
			return look, fmt.Errorf("servers[%d]: %q is no IP address with a port; write it as 10.2.0.2:5432 or [fd00::2]:5432", n, text)
		}
		if err := own(server.Addr()); err != nil {
			return look, fmt.Errorf("servers[%d]: %w", n, err)
		}
		look.Servers = append(look.Servers, server)
	}
	for n, text := range r.Except {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return look, fmt.Errorf("except[%d]: %q is no IP address; names are not looked up here", n, text)
		}
		if err := own(address); err != nil {
			return look, fmt.Errorf("except[%d]: %w", n, err)
		}
		look.Except = append(look.Except, address)
	}
	return look, nil
}

// own refuses what is no pod's own address.
func own(a netip.Addr) error {
	if a.Is4In6() {
		return fmt.Errorf("%s is an IPv4 address as IPv6; write it as %s", a, a.Unmap())
	}
	return unicast(a.String())
}
