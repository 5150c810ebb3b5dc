// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Hands are what the agent does on its own host when the manager asks for it. What is nil is refused: this agent is not set up for it.
type Hands struct {
	Connections Connections
	Recycling   Recycling
	Kubelet     Kubelet
}

// Connections ends TCP connections to lost addresses: a [reset.Table], with what it has to know of its host. It is safe for concurrent use.
type Connections interface {
	// Here are the addresses of this host and of the pods that run on it. None of them is ever lost.
	Here(ctx context.Context) ([]netip.Addr, error)
	// Lose, Lost and Back are those of reset.Table.
	Lose(ctx context.Context, addresses []netip.Addr, span time.Duration) (found int, err error)
	Lost(address netip.Addr) bool
	Back(address netip.Addr) error
}

// Kubelet restarts this host's kubelet: a unit.Unit.
type Kubelet interface {
	// String says what does it.
	String() string
	// Restart stops it and starts it again. With done it has ended well; without an error it was begun at least.
	Restart(ctx context.Context) (done bool, err error)
}

// Deed is a kind of thing that the server did on its host.
type Deed string

// Values of Deed.
const (
	// AddressLost and AddressBack: one address each.
	AddressLost Deed = "AddressLost"
	AddressBack Deed = "AddressBack"
	// ConnectionRecycled: it was begun to end one connection to a pod that lives.
	ConnectionRecycled Deed = "ConnectionRecycled"
	// KubeletRestarted: the order was given.
	KubeletRestarted Deed = "KubeletRestarted"
)

// resets is how many reset requests are answered at a time.
const resets = 4

// hands are those of one server.
type hands struct {
	Hands
	resets   chan struct{}
	restarts chan struct{}
	recycles chan struct{}

	mu        sync.Mutex
	deeds     map[Deed]uint64
	restarted time.Time // when it last began; the zero time: never in this life
}

// Equip gives the server hands. It is called before Serve, or not at all.
func (s *Server) Equip(h Hands) { s.hands.Hands = h }

// Deeds returns how often each thing was done since the server was made.
func (s *Server) Deeds() map[Deed]uint64 {
	s.hands.mu.Lock()
	defer s.hands.mu.Unlock()
	return maps.Clone(s.hands.deeds)
}

func (h *hands) did(what Deed, times int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if times > 0 {
		h.deeds[what] += uint64(times)
	}
}

// reset has connections to lost addresses end, or lets addresses go.
func (s *Server) reset(w http.ResponseWriter, r *http.Request) *refusal {
	if s.hands.Connections == nil {
		return &refusal{kind: Unequipped, status: http.StatusNotImplemented, why: "this agent resets no connections; start it with --reset-connections to have it do so"}
	}
	leave, no := enter(s.hands.resets, "reset requests are being answered")
	if no != nil {
		return no
	}
	defer leave()
	var request wire.ResetRequest
	if no := body(w, r, &request); no != nil {
		return no
	}
	order, err := readReset(request)
	if err != nil {
		return &refusal{kind: Malformed, status: http.StatusBadRequest, why: err.Error()}
	}
	ctx, done := context.WithTimeout(r.Context(), wire.ResetMillis*time.Millisecond)
	defer done()
	if no := s.living(ctx, order.lost); no != nil {
		return no
	}
	found, no := s.carryOut(ctx, order)
	if no != nil {
		return no
	}
	self := s.sight.View()
	return s.reply(w, wire.ResetAnswer{Node: self.Node, BootID: self.BootID, Found: found})
}

// carryOut gives addresses back before it loses others, so that there is room.
func (s *Server) carryOut(ctx context.Context, order resetOrder) (found int, no *refusal) {
	for _, a := range order.back {
		if err := s.hands.Connections.Back(a); err != nil {
			return 0, failed(err)
		}
		s.hands.did(AddressBack, 1)
	}
	if len(order.lost) > 0 {
		var err error
		switch found, err = s.hands.Connections.Lose(ctx, order.lost, order.span); {
		case errors.Is(err, reset.ErrFull):
			return 0, &refusal{kind: Flood, status: http.StatusTooManyRequests, why: err.Error(), header: [2]string{"Retry-After", "10"}}
		case err != nil:
			return 0, failed(err)
		}
		s.hands.did(AddressLost, len(order.lost))
	}
	s.log.Info("connections are reset", "lost", order.lost, "for", order.span.String(), "found", found, "back", order.back)
	return found, nil
}

// living refuses addresses that live on this very host.
func (s *Server) living(ctx context.Context, lost []netip.Addr) *refusal {
	if len(lost) == 0 {
		return nil
	}
	here, err := s.hands.Connections.Here(ctx)
	if err != nil {
		return failed(fmt.Errorf("nothing was reset, since nobody says which addresses live here: %w", err))
	}
	for _, a := range lost {
		if slices.Contains(here, a) {
			return &refusal{kind: Unfit, status: http.StatusConflict, why: fmt.Sprintf("lost: %s is an address of this host or of a pod that runs here; leave it out", a)}
		}
	}
	return nil
}

func failed(err error) *refusal {
	return &refusal{kind: Failed, status: http.StatusInternalServerError, why: err.Error()}
}

// resetOrder is a request that was understood.
type resetOrder struct {
	lost, back []netip.Addr
	span       time.Duration
}

// readReset says which field is wrong and what it should be.
func readReset(r wire.ResetRequest) (resetOrder, error) {
	order := resetOrder{span: time.Duration(r.ForMillis) * time.Millisecond}
	if n := len(r.Lost) + len(r.Back); n < 1 || n > wire.Addresses {
		return order, fmt.Errorf("lost, back: they name %d addresses; name 1 to %d at a time", n, wire.Addresses)
	}
	if len(r.Lost) == 0 && r.ForMillis != 0 {
		return order, errors.New("forMillis: there is nothing lost that it could be for; leave it out")
	}
	if len(r.Lost) > 0 && (r.ForMillis < 1 || r.ForMillis > wire.LoseMillis) {
		return order, fmt.Errorf("forMillis: %d; give 1 to %d", r.ForMillis, wire.LoseMillis)
	}
	named := map[netip.Addr]bool{}
	for _, list := range []struct {
		field string
		texts []string
		into  *[]netip.Addr
	}{{"lost", r.Lost, &order.lost}, {"back", r.Back, &order.back}} {
		for n, text := range list.texts {
			if err := unicast(text); err != nil {
				return order, fmt.Errorf("%s[%d]: %w", list.field, n, err)
			}
			address := netip.MustParseAddr(text) // unicast parsed it
			switch {
			case address.Is4In6():
				return order, fmt.Errorf("%s[%d]: %s is an IPv4 address as IPv6; write it as %s", list.field, n, text, address.Unmap())
			case named[address]:
				return order, fmt.Errorf("%s[%d]: %s is named twice; name it once, as lost or as back", list.field, n, text)
			}
			named[address] = true
			*list.into = append(*list.into, address)
		}
	}
	return order, nil
}

// restart restarts the kubelet, in one boot and once in a window.
func (s *Server) restart(w http.ResponseWriter, r *http.Request) *refusal {
	if s.hands.Kubelet == nil {
		return &refusal{kind: Unequipped, status: http.StatusNotImplemented, why: "this agent restarts no kubelet; start it with --kubelet-restart to have it do so"}
	}
	leave, no := enter(s.hands.restarts, "restart is under way")
	if no != nil {
		return no
	}
	defer leave()
	var request wire.RestartRequest
	if no := body(w, r, &request); no != nil {
		return no
	}
	window, err := readRestart(request)
	if err != nil {
		return &refusal{kind: Malformed, status: http.StatusBadRequest, why: err.Error()}
	}
	self := s.sight.View()
	if request.BootID != self.BootID {
		return &refusal{kind: Unfit, status: http.StatusConflict, why: fmt.Sprintf("bootID: %s is meant, and this is %s; look at the host again", request.BootID, self.BootID)}
	}
	if no := s.hands.mayRestart(s.now(), window); no != nil {
		return no
	}
	s.log.Info("the kubelet is restarted", "by", s.hands.Kubelet.String(), "reason", request.Reason)
	ctx, over := context.WithTimeout(r.Context(), wire.RestartMillis*time.Millisecond)
	defer over()
	done, err := s.hands.Kubelet.Restart(ctx)
	if err != nil {
		return failed(err)
	}
	s.hands.did(KubeletRestarted, 1)
	state := wire.RestartBegun
	if done {
		state = wire.RestartDone
	}
	s.log.Info("the kubelet was restarted", "by", s.hands.Kubelet.String(), "state", state)
	return s.reply(w, wire.RestartAnswer{Node: self.Node, BootID: self.BootID, State: state, By: s.hands.Kubelet.String()})
}

func readRestart(r wire.RestartRequest) (window time.Duration, err error) {
	if r.WindowMillis == 0 {
		r.WindowMillis = wire.WindowMillis
	}
	switch {
	case r.BootID == "":
		return 0, errors.New("bootID: it is missing; give that of the boot that is meant")
	case r.Reason == "" || len(r.Reason) > wire.ReasonBytes:
		return 0, fmt.Errorf("reason: it has %d bytes; say in 1 to %d why the kubelet is restarted", len(r.Reason), wire.ReasonBytes)
	case r.WindowMillis < wire.LeastWindowMillis || r.WindowMillis > wire.MostWindowMillis:
		return 0, fmt.Errorf("windowMillis: %d; give %d to %d, or leave it out for %d", r.WindowMillis, wire.LeastWindowMillis, wire.MostWindowMillis, wire.WindowMillis)
	}
	return time.Duration(r.WindowMillis) * time.Millisecond, nil
}

// mayRestart takes the window. One whose restart then fails is taken as well: nobody tries again and again.
func (h *hands) mayRestart(now time.Time, window time.Duration) *refusal {
	h.mu.Lock()
	defer h.mu.Unlock()
	if left := window - now.Sub(h.restarted); !h.restarted.IsZero() && left > 0 {
		seconds := int64((left + time.Second - 1) / time.Second)
		return &refusal{
			kind: Unfit, status: http.StatusConflict, why: fmt.Sprintf("windowMillis: a restart was begun %s ago; come back in %ds", now.Sub(h.restarted).Round(time.Second), seconds),
			header: [2]string{"Retry-After", fmt.Sprint(seconds)},
		}
	}
	h.restarted = now
	return nil
}
