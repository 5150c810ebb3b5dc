// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package reset

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

// ends are how the servers of a world learnt that connections had ended, by the client's address and port as the server saw it.
type ends struct {
	mu    sync.Mutex
	by    map[string]error
	moved chan struct{}
}

// serving echoes on an address and port, and notes how each connection ends there.
func (w *world) serving(t testing.TB, on netip.AddrPort) *ends {
	t.Helper()
	e := &ends{by: map[string]error{}, moved: make(chan struct{}, 1000)}
	l, err := netns.Listen(w.there, "tcp", on.String())
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				quiet(t, c)
				for b := make([]byte, 1); err == nil; {
					if _, err = c.Read(b); err == nil {
						_, err = c.Write(b)
					}
				}
				e.mu.Lock()
				e.by[c.RemoteAddr().String()] = err
				e.mu.Unlock()
				e.moved <- struct{}{}
			}()
		}
	}()
	return e
}

// quiet keeps a side from finding out by itself.
func quiet(t testing.TB, c net.Conn) net.Conn {
	t.Helper()
	if err := c.(*net.TCPConn).SetKeepAlive(false); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	return c
}

// learnt waits until the server has ended so many, and says how many of them were reset.
func (e *ends) learnt(t testing.TB, want int) {
	t.Helper()
	over := time.After(within)
	for {
		e.mu.Lock()
		n := 0
		for _, err := range e.by {
			if errors.Is(err, syscall.ECONNRESET) {
				n++
			}
		}
		all := len(e.by)
		e.mu.Unlock()
		if n == want && all == want {
			return
		}
		select {
		case <-e.moved:
		case <-over:
			t.Fatalf("servers learnt of %d ends, %d of them resets; want %d", all, n, want)
		}
	}
}

// strict has the servers' own host track connections too, and drop what belongs to none, as kube-proxy has hosts do.
func (w *world) strict(t testing.TB) {
	t.Helper()
	filter(t, w.there, "ct state invalid drop")
}

// filter puts a rule before whatever comes in.
func filter(t testing.TB, path, rule string) {
	t.Helper()
	must(t, netns.Do(path, func() error {
		command := exec.CommandContext(t.Context(), "nft", "-f", "-")
		command.Stdin = strings.NewReader("table inet test {\n chain in { type filter hook input priority 0\n " + rule + "\n}\n}\n")
		out, err := command.CombinedOutput()
		if err != nil {
			t.Log(string(out))
		}
		return err
	}))
}

// here are the host's addresses and its pod's.
func (w *world) here(t testing.TB) (out []netip.Addr) {
	t.Helper()
	for _, path := range []string{w.host, w.pod} {
		must(t, netns.Do(path, func() error {
			own, err := reset.Own()
			out = append(out, own...)
			return err
		}))
	}
	return out
}

func (w *world) look(t testing.TB, round string, servers ...netip.AddrPort) (found int) {
	t.Helper()
	here := w.here(t)
	w.inHost(t, func() (err error) {
		found, err = w.table.Look(round, reset.Look{Servers: servers, Here: here})
		return err
	})
	return found
}

func (w *world) recycle(t testing.TB, round string, most, perSecond int) (begun, left int) {
	t.Helper()
	w.inHost(t, func() (err error) {
		begun, left, err = w.table.Recycle(t.Context(), round, most, perSecond)
		return err
	})
	return begun, left
}

// alive says whether a connection still goes both ways.
func alive(t testing.TB, c net.Conn) bool {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(within)))
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	_, err := c.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s to %s: nothing comes, and nobody says that it has ended", c.LocalAddr(), c.RemoteAddr())
	}
	return err == nil
}

// living counts the connections that do.
func living(t testing.TB, all []net.Conn) (n int) {
	t.Helper()
	for _, c := range all {
		if alive(t, c) {
			n++
		}
	}
	return n
}

const further = 9090

func TestBothSidesOfARecycledConnectionLearnThatItHasEnded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := netip.AddrPortFrom(w.lost, further)
		servers := w.serving(t, server)
		w.strict(t)
		clients := []net.Conn{dial(t, w.pod, server), dial(t, w.pod, server), dial(t, w.host, server), dial(t, w.host, server)}
		for _, c := range clients {
			quiet(t, c)
		}
		if found := w.look(t, "1", server); found != len(clients) {
			t.Fatalf("it found %d connections, want %d", found, len(clients))
		}
		young := dial(t, w.pod, server)
		if begun, left := w.recycle(t, "1", 100, reset.Rate); begun != len(clients) || left != 0 {
			t.Errorf("it began to end %d, and left %d", begun, left)
		}
		for _, c := range clients { // they only read
			ended(t, c)
		}
		servers.learnt(t, len(clients))
		echo(t, young)
		dial(t, w.pod, server)
	})
}

// A client that only reads would wait for ever, once its server has forgotten it.
func TestOneSideLearnsAlsoWhereTheOtherOneLearntFirst(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := netip.AddrPortFrom(w.lost, further)
		servers := w.serving(t, server)
		first := quiet(t, dial(t, w.pod, server))
		const aPacketIsLost = "tcp flags & (syn | ack) == syn limit rate 1/hour burst 1 packets drop"
		filter(t, w.pod, aPacketIsLost)
		w.look(t, "1", server)
		w.recycle(t, "1", 1, 1)
		ended(t, first)
		servers.learnt(t, 1)

		second := quiet(t, dial(t, w.pod, server))
		filter(t, w.there, aPacketIsLost)
		w.look(t, "2", server)
		w.recycle(t, "2", 1, 1)
		ended(t, second)
		servers.learnt(t, 2)
	})
}

func TestAServicesClientsAreRecycledToo(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := netip.AddrPortFrom(w.lost, port)
		w.strict(t)
		clients := []net.Conn{dial(t, w.pod, w.service), dial(t, w.host, w.service)}
		if found := w.look(t, "1", server); found != len(clients) {
			t.Fatalf("it found %d connections", found)
		}
		w.recycle(t, "1", 100, reset.Rate)
		for _, c := range clients {
			ended(t, c)
		}
	})
}

func TestOnlyThoseThatAreChosenEndAndAllServersAndClientsAlike(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		servers := []netip.AddrPort{netip.AddrPortFrom(w.lost, port), netip.AddrPortFrom(w.other, port)}
		apart := dial(t, w.pod, netip.AddrPortFrom(w.other, port)) // of no round, once excepted by its server
		var clients [][]net.Conn
		for _, s := range servers {
			var of []net.Conn
			for range 4 {
				of = append(of, dial(t, w.pod, s), dial(t, w.host, s))
			}
			clients = append(clients, of)
		}
		if found := w.look(t, "lost only", servers[0]); found != 8 {
			t.Fatalf("it found %d connections to one server", found)
		}
		if begun, left := w.recycle(t, "lost only", 4, reset.Rate); begun != 4 || left != 4 {
			t.Errorf("it began to end %d, and left %d", begun, left)
		}
		ofPod, ofHost := 0, 0
		for i, c := range clients[0] {
			if alive(t, c) {
				continue
			}
			if i%2 == 0 {
				ofPod++
			} else {
				ofHost++
			}
		}
		if ofPod != 2 || ofHost != 2 {
			t.Errorf("of the pod's connections %d ended, of the host's %d; want 2 and 2", ofPod, ofHost)
		}
		for _, c := range append(clients[1], apart) {
			if !alive(t, c) {
				t.Errorf("%s to %s was not asked for, and ended", c.LocalAddr(), c.RemoteAddr())
			}
		}
		if begun, left := w.recycle(t, "lost only", 100, reset.Rate); begun != 4 || left != 0 {
			t.Errorf("then it began to end %d, and left %d", begun, left)
		}
		if begun, _ := w.recycle(t, "lost only", 100, reset.Rate); begun != 0 {
			t.Errorf("there was nothing left, and it began to end %d", begun)
		}
	})
}

func TestTheRateIsHeldAlsoFromOneRequestToTheNext(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := netip.AddrPortFrom(w.lost, port)
		for range 6 {
			dial(t, w.host, server) // nothing has to be waited for after these
		}
		w.look(t, "1", server)
		began := time.Now()
		for range 3 {
			w.recycle(t, "1", 2, 2)
		}
		if took := time.Since(began); took < 2500*time.Millisecond {
			t.Errorf("six connections ended within %s: that is more than two per second", took)
		}
	})
}

func TestClientsOfOtherHostsAndThoseThatAreExceptedAreLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := netip.AddrPortFrom(w.lost, port)
		c := dial(t, w.pod, server)
		here := w.here(t)
		client := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		w.inHost(t, func() error {
			if found, err := w.table.Look("nobody lives here", reset.Look{Servers: []netip.AddrPort{server}}); found != 0 || err != nil {
				t.Errorf("of no client of this host it found %d, %v", found, err)
			}
			if found, err := w.table.Look("excepted", reset.Look{Servers: []netip.AddrPort{server}, Here: here, Except: []netip.Addr{client}}); found != 0 || err != nil {
				t.Errorf("of those that are excepted it found %d, %v", found, err)
			}
			own, err := reset.Own()
			must(t, err)
			for _, a := range own {
				if _, err := w.table.Look("own", reset.Look{Servers: []netip.AddrPort{netip.AddrPortFrom(a, port)}, Here: here}); err == nil {
					t.Errorf("%s, which is the host's own, was taken", a)
				}
			}
			return nil
		})
		w.recycle(t, "excepted", 1, 1)
		echo(t, c)
	})
}

func TestWhatIsNotKnownToBeOldIsNotEnded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := dial(t, w.pod, netip.AddrPortFrom(w.lost, port))
		w.look(t, "1", netip.AddrPortFrom(w.lost, port))
		w.inHost(t, func() error { // an agent that starts anew
			var err error
			w.table, err = reset.Open()
			must(t, err)
			if _, _, err := w.table.Recycle(t.Context(), "1", 1, 1); !errors.Is(err, reset.ErrUnknownRound) {
				t.Errorf("a round that nobody looked for: %v", err)
			}
			return nil
		})
		echo(t, c)
	})
}

func TestARoundEndsWithItsRequest(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := netip.AddrPortFrom(w.lost, port)
		var clients []net.Conn
		for range 5 {
			clients = append(clients, dial(t, w.pod, server))
		}
		w.look(t, "1", server)
		ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer stop()
		w.inHost(t, func() error {
			begun, left, err := w.table.Recycle(ctx, "1", 5, 1)
			if begun != 1 || left != 4 || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it began to end %d, left %d, %v", begun, left, err)
			}
			return nil
		})
		if lives := living(t, clients); lives != 4 {
			t.Errorf("%d of 5 live on, want 4", lives)
		}
	})
}

func TestRoundsAreBounded(t *testing.T) {
	w := build(t, families[0])
	server := netip.AddrPortFrom(w.lost, port)
	for i := range reset.MostRounds + 1 {
		w.look(t, string(rune('a'+i)), server)
	}
	w.inHost(t, func() error {
		if _, _, err := w.table.Recycle(t.Context(), "a", 1, 1); !errors.Is(err, reset.ErrUnknownRound) {
			t.Errorf("the oldest of one round too many: %v", err)
		}
		for i := range reset.MostRounds {
			if _, _, err := w.table.Recycle(t.Context(), string(rune('b'+i)), 1, 1); err != nil {
				t.Errorf("one that is known: %v", err)
			}
		}
		for _, wrong := range [][2]int{{0, 1}, {1, 0}, {1, reset.Rate + 1}} {
			if _, _, err := w.table.Recycle(t.Context(), "b", wrong[0], wrong[1]); err == nil {
				t.Errorf("%v was taken", wrong)
			}
		}
		return nil
	})
}

// Whoever has asked for no recycling pays for none: not a packet is looked up for it.
func TestThereIsNoRuleBeforeTheFirstConnectionIsRecycled(t *testing.T) {
	w := build(t, families[0])
	server := netip.AddrPortFrom(w.lost, port)
	dial(t, w.pod, server)
	w.look(t, "1", server)
	const list = "list table inet holdfast_witness"
	if rules := w.nft(t, list); strings.Contains(rules, "cut") || strings.Contains(rules, "chain recycle") {
		t.Errorf("nobody has asked for it, and there is\n%s", rules)
	}
	w.recycle(t, "1", 1, 1)
	if rules := w.nft(t, list); strings.Count(rules, "@cut4")+strings.Count(rules, "@cut6") != 4 {
		t.Errorf("there is\n%s", rules)
	}
}

func (h onHost) Look(name string, l reset.Look) (found int, err error) {
	err = netns.Do(h.host, func() error {
		found, err = h.table.Look(name, l)
		return err
	})
	return found, err
}

func (h onHost) Recycle(ctx context.Context, name string, most, perSecond int) (begun, left int, err error) {
	err = netns.Do(h.host, func() error {
		begun, left, err = h.table.Recycle(ctx, name, most, perSecond)
		return err
	})
	return begun, left, err
}

// atHome is a host that knows its pod.
type atHome struct {
	onHost
	addresses []netip.Addr
}

func (h atHome) Here(context.Context) ([]netip.Addr, error) { return h.addresses, nil }

func TestTheManagerHasConnectionsRecycled(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		server := netip.AddrPortFrom(w.lost, port)
		manager, agent := w.agentWith(t, api.Hands{Recycling: atHome{onHost{w}, w.here(t)}})
		clients := []net.Conn{dial(t, w.pod, w.service), dial(t, w.pod, w.service), dial(t, w.host, server), dial(t, w.host, server)}
		found, err := manager.Recycle(t.Context(), agent, wire.RecycleRequest{Round: "1", Servers: []string{server.String()}})
		if err != nil || found.Found != len(clients) {
			t.Fatalf("%+v, %v", found, err)
		}
		got, err := manager.Recycle(t.Context(), agent, wire.RecycleRequest{Round: "1", Most: 2, PerSecond: 4})
		if err != nil || got.Begun != 2 || got.Left != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		if lives := living(t, clients); lives != 2 {
			t.Errorf("%d live on, want 2", lives)
		}
		own := netip.AddrPortFrom(w.here(t)[0], port)
		for _, a := range w.here(t) {
			if a.IsGlobalUnicast() {
				own = netip.AddrPortFrom(a, port)
				break
			}
		}
		if _, err := manager.Recycle(t.Context(), agent, wire.RecycleRequest{Round: "2", Servers: []string{own.String()}}); !errors.Is(err, wire.ErrUnfit) {
			t.Errorf("a server that is the host: %v", err)
		}
		if _, err := manager.Recycle(t.Context(), agent, wire.RecycleRequest{Round: "3", Most: 1, PerSecond: 1}); !errors.Is(err, wire.ErrUnfit) {
			t.Errorf("a round that nobody looked for: %v", err)
		}
	})
}

// BenchmarkRecycle measures from the moment that a connection is asked to end until its client, and its server, which both only read, have learnt of it.
func BenchmarkRecycle(b *testing.B) {
	for _, f := range families {
		for from, path := range map[string]func(*world) string{"pod": func(w *world) string { return w.pod }, "host": func(w *world) string { return w.host }} {
			b.Run(f.name+"/"+from, func(b *testing.B) {
				w := build(b, f)
				server := netip.AddrPortFrom(w.lost, further)
				servers := w.serving(b, server)
				w.strict(b)
				here := w.here(b)
				took := map[string][]time.Duration{}
				for b.Loop() {
					c, learnt := quiet(b, dial(b, path(w), server)), make(chan time.Time, 1)
					round := c.LocalAddr().String()
					w.inHost(b, func() error { // as an agent that starts anew: rounds are bounded
						var err error
						if w.table, err = reset.Open(); err != nil {
							return err
						}
						_, err = w.table.Look(round, reset.Look{Servers: []netip.AddrPort{server}, Here: here})
						return err
					})
					began := time.Now()
					go func() {
						_, _ = c.Read(make([]byte, 1)) // the tests say what it returns
						learnt <- time.Now()
					}()
					over := make(chan error, 1)
					go func() {
						over <- netns.Do(w.host, func() error {
							_, _, err := w.table.Recycle(b.Context(), round, 1, reset.Rate)
							return err
						})
					}()
					<-servers.moved
					took["server"] = append(took["server"], time.Since(began))
					took["client"] = append(took["client"], (<-learnt).Sub(began))
					must(b, <-over)
				}
				for side, times := range took {
					slices.Sort(times)
					for name, share := range map[string]float64{"p50": 0.5, "max": 1} {
						at := times[min(len(times)-1, int(share*float64(len(times))))]
						b.ReportMetric(float64(at.Microseconds())/1000, side+"-"+name+"-ms")
					}
				}
			})
		}
	}
}
