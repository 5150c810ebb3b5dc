// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package reset

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

// onHost is the host's table for a server whose threads are not on the host.
type onHost struct{ *world }

func (h onHost) Here(context.Context) (own []netip.Addr, err error) {
	err = netns.Do(h.host, func() error {
		own, err = reset.Own()
		return err
	})
	return own, err
}

func (h onHost) Lose(ctx context.Context, addresses []netip.Addr, span time.Duration) (found int, err error) {
	err = netns.Do(h.host, func() error {
		found, err = h.table.Lose(ctx, addresses, span)
		return err
	})
	return found, err
}

func (h onHost) Lost(a netip.Addr) bool { return h.table.Lost(a) }

func (h onHost) Back(a netip.Addr) error {
	return netns.Do(h.host, func() error { return h.table.Back(a) })
}

// nobody is what an agent sees that hears no other.
type nobody struct{}

func (nobody) View() wire.View { return wire.View{Node: "host", BootID: "boot"} }

func (nobody) Await(context.Context, uint64) wire.View { return nobody{}.View() }

func (nobody) Ping(context.Context, string, string) (string, error) {
	return "", errors.New("there is no gossip here")
}

// agent serves the host's table as the agent does, and returns how the manager asks it.
func (w *world) agent(t *testing.T) (*call.Client, string) {
	t.Helper()
	return w.agentWith(t, api.Hands{Connections: onHost{w}})
}

func (w *world) agentWith(t *testing.T, hands api.Hands) (*call.Client, string) {
	t.Helper()
	ca, err := authority.New(time.Now())
	must(t, err)
	named := func(name string) *identity.Identity {
		certificate, key, err := ca.Pair(name, time.Now())
		must(t, err)
		authorities, _, err := ca.PEM()
		must(t, err)
		who, err := identity.Parse(certificate, key, authorities)
		must(t, err)
		return who
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := api.New(nobody{}, named(wire.WitnessName("host")), logr.Discard())
	server.Equip(hands)
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error)
	go func() { over <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		must(t, <-over)
	})
	client := call.New("host", named(wire.ManagerName))
	t.Cleanup(client.Close)
	return client, l.Addr().String()
}

func TestTheManagerHasConnectionsReset(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		manager, agent := w.agent(t)
		direct := netip.AddrPortFrom(w.lost, port)
		clients := []net.Conn{dial(t, w.pod, w.service), dial(t, w.host, direct)}
		got, err := manager.Reset(t.Context(), agent, wire.ResetRequest{Lost: []string{w.lost.String()}, ForMillis: wire.LoseMillis})
		if err != nil || got.Found != len(clients) {
			t.Errorf("%+v, %v", got, err)
		}
		for _, c := range clients {
			ended(t, c)
		}
		if _, err := manager.Reset(t.Context(), agent, wire.ResetRequest{Back: []string{w.lost.String()}}); err != nil {
			t.Error(err)
		}
		w.reach(t)
	})
}

func TestTheHostItselfIsNeverLost(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		manager, agent := w.agent(t)
		own, err := onHost{w}.Here(t.Context())
		must(t, err)
		tried := 0
		for _, a := range own {
			if a.IsLoopback() || a.IsLinkLocalUnicast() {
				continue
			}
			tried++
			_, err := manager.Reset(t.Context(), agent, wire.ResetRequest{Lost: []string{w.lost.String(), a.String()}, ForMillis: 1000})
			var refused *call.Refused
			if !errors.As(err, &refused) || refused.Status != http.StatusConflict || !strings.Contains(refused.Why, a.String()) {
				t.Errorf("%s: %v", a, err)
			}
		}
		if tried < 2 || w.table.Lost(w.lost) {
			t.Errorf("%d addresses of the host were tried; lost: %v", tried, w.table.Lost(w.lost))
		}
	})
}

func TestThereIsAMostThatIsLost(t *testing.T) {
	w := build(t, families[0])
	lose := func(from, n int, span time.Duration) (err error) {
		var addresses []netip.Addr
		for i := range n {
			addresses = append(addresses, netip.MustParseAddr(fmt.Sprintf("10.3.%d.%d", (from+i)/250, 1+(from+i)%250)))
		}
		must(t, netns.Do(w.host, func() error {
			_, err = w.table.Lose(t.Context(), addresses, span)
			return nil
		}))
		return err
	}
	must(t, lose(0, reset.Most, time.Minute))
	must(t, lose(0, reset.Most, time.Minute)) // the same ones take no more room
	if err := lose(reset.Most, 1, time.Minute); !errors.Is(err, reset.ErrFull) {
		t.Errorf("one more: %v", err)
	}
	w.inHost(t, func() error { return w.table.Back(netip.MustParseAddr("10.3.0.1")) })
	must(t, lose(reset.Most, 1, time.Minute))
}

// What comes back while its clients are still made to speak is left alone: those that the host has by then are of whoever has the address now.
func TestAnAddressThatIsBackIsNotLostInTheNextRound(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		first := dial(t, w.host, netip.AddrPortFrom(w.lost, port))
		over := make(chan error)
		go func() {
			over <- netns.Do(w.host, func() error {
				_, err := w.table.Lose(t.Context(), []netip.Addr{w.lost}, time.Minute)
				return err
			})
		}()
		ended(t, first)
		w.inHost(t, func() error { return w.table.Back(w.lost) })
		second := dial(t, w.host, netip.AddrPortFrom(w.lost, port))
		must(t, <-over)
		echo(t, second)
	})
}
