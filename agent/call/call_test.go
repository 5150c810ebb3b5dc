// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package call_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/api"
	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

func newAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	a, err := authority.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// made is an identity by one authority that believes another.
func made(t *testing.T, own, others *authority.Authority, name string, at time.Time) *identity.Identity {
	t.Helper()
	certificate, key, err := own.Pair(name, at)
	if err != nil {
		t.Fatal(err)
	}
	authorities, _, err := others.PEM()
	if err != nil {
		t.Fatal(err)
	}
	i, err := identity.Parse(certificate, key, authorities)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// turns is an identity that the test changes.
type turns struct {
	now atomic.Pointer[identity.Identity]
}

func (s *turns) Identity() (*identity.Identity, error) {
	if i := s.now.Load(); i != nil {
		return i, nil
	}
	return nil, errors.New("the Secret is gone")
}

// sky is what the agent sees.
type sky struct{ view wire.View }

func (s sky) View() wire.View { return s.view }

func (s sky) Await(_ context.Context, index uint64) wire.View {
	v := s.view
	v.Index = index + 1
	return v
}

func (s sky) Ping(_ context.Context, node, _ string) (string, error) { return "boot of " + node, nil }

func age(ms int64) *int64 { return &ms }

// seen has everything that a view can have.
func seen(node string) wire.View {
	return wire.View{Node: node, BootID: "boot-a", Index: 41, Hosts: []wire.Host{
		{
			Facts: wire.Facts{Node: "a", BootID: "boot-a", SystemUUID: "u", Kubelet: wire.Alive, Runtime: wire.Dead, Revision: 3},
			State: wire.StateAlive, StateAge: 60000, HeardAge: age(0),
		},
		{Facts: wire.Facts{Node: "b", BootID: "boot-b"}, State: wire.StateDead, StateAge: 1200},
	}}
}

// agent serves as the real one does.
func agent(t *testing.T, who api.Identity, view wire.View) string {
	return equipped(t, who, view, api.Hands{})
}

// equipped serves as the real one does that is set up for more.
func equipped(t *testing.T, who api.Identity, view wire.View, hands api.Hands) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error)
	server := api.New(sky{view}, who, logr.Discard())
	server.Equip(hands)
	go func() { over <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// rogue has a good certificate and answers what the test says. It counts connections.
func rogue(t *testing.T, who *identity.Identity, handler http.HandlerFunc) (address string, connections *atomic.Int32) {
	t.Helper()
	connections = &atomic.Int32{}
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*who.Certificate()}, MinVersion: tls.VersionTLS13}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), connections
}

func client(t *testing.T, who call.Identity) *call.Client {
	t.Helper()
	c := call.New("a", who)
	t.Cleanup(c.Close)
	return c
}

func TestTheManagerAndAnAgentUnderstandEachOther(t *testing.T) {
	ca := newAuthority(t)
	address := agent(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), seen("a"))
	c := client(t, made(t, ca, ca, wire.ManagerName, time.Now()))
	view, err := c.View(t.Context(), address)
	if err != nil || !reflect.DeepEqual(view, seen("a")) {
		t.Errorf("%+v, %v", view, err)
	}
	if view, err := c.Await(t.Context(), address, 41); err != nil || view.Index != 42 {
		t.Errorf("%+v, %v", view, err)
	}
	if view, err := c.Await(t.Context(), address, 0); err != nil || view.Index != 1 {
		t.Errorf("index 0 is no index: %+v, %v", view, err)
	}
	got, err := c.Probe(t.Context(), address, []wire.Question{{Name: "x", Agent: "b", Address: "10.0.0.2"}})
	if err != nil || len(got.Answers) != 1 || got.BootID != "boot-a" || got.Answers[0].Outcome != wire.Answered || got.Answers[0].BootID != "boot of b" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = c.Probe(t.Context(), address, []wire.Question{{Name: "x", Address: "127.0.0.1", Port: 1}})
	var refused *call.Refused
	if !errors.As(err, &refused) || refused.Status != http.StatusBadRequest || !strings.Contains(refused.Why, "questions[0].address") {
		t.Errorf("%v", err)
	}
}

// host is one whose kubelet and connections the agent has in its hands.
type host struct{ lost []netip.Addr }

func (*host) Here(context.Context) ([]netip.Addr, error) { return nil, nil }

func (h *host) Lose(_ context.Context, addresses []netip.Addr, _ time.Duration) (int, error) {
	h.lost = append(h.lost, addresses...)
	return 7, nil
}

func (h *host) Lost(a netip.Addr) bool { return slices.Contains(h.lost, a) }

func (h *host) Back(a netip.Addr) error {
	h.lost = slices.DeleteFunc(h.lost, func(b netip.Addr) bool { return a == b })
	return nil
}

func (*host) String() string { return "a test" }

func (*host) Restart(context.Context) (bool, error) { return true, nil }

func TestTheManagerHasThingsDone(t *testing.T) {
	ca, h := newAuthority(t), &host{}
	address := equipped(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), seen("a"), api.Hands{Connections: h, Kubelet: h})
	c := client(t, made(t, ca, ca, wire.ManagerName, time.Now()))
	got, err := c.Reset(t.Context(), address, wire.ResetRequest{Lost: []string{"10.2.0.2", "10.2.0.3"}, ForMillis: 60000})
	if err != nil || got != (wire.ResetAnswer{Node: "a", BootID: "boot-a", Found: 7}) || len(h.lost) != 2 {
		t.Errorf("%+v, %v; lost %v", got, err, h.lost)
	}
	if _, err := c.Reset(t.Context(), address, wire.ResetRequest{Back: []string{"10.2.0.2"}}); err != nil || len(h.lost) != 1 {
		t.Errorf("%v; lost %v", err, h.lost)
	}
	restart := wire.RestartRequest{BootID: "boot-a", Reason: "a test"}
	done, err := c.Restart(t.Context(), address, restart)
	if err != nil || done != (wire.RestartAnswer{Node: "a", BootID: "boot-a", State: wire.RestartDone, By: "a test"}) {
		t.Errorf("%+v, %v", done, err)
	}
	var refused *call.Refused
	if _, err := c.Restart(t.Context(), address, restart); !errors.As(err, &refused) || refused.Status != http.StatusConflict || refused.After <= 9*time.Minute || !errors.Is(err, wire.ErrNothingDone) || !errors.Is(err, wire.ErrUnfit) {
		t.Errorf("a second restart: %v", err)
	}
}

// Whoever says that it tried may have done something.
func TestAnAgentThatTriedMayHaveDoneSomething(t *testing.T) {
	ca := newAuthority(t)
	for status, nothing := range map[int]bool{http.StatusForbidden: true, http.StatusConflict: true, http.StatusTooManyRequests: true, http.StatusNotImplemented: true,
		http.StatusServiceUnavailable: true, http.StatusInternalServerError: false} {
		address, _ := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", status) })
		_, err := client(t, made(t, ca, ca, wire.ManagerName, time.Now())).Restart(t.Context(), address, wire.RestartRequest{BootID: "boot-a", Reason: "a test"})
		if err == nil || errors.Is(err, wire.ErrNothingDone) != nothing {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestWhatIsDoneInAnothersName(t *testing.T) {
	ca := newAuthority(t)
	for name, says := range map[string]any{
		"another host":   map[string]any{"node": "b", "bootID": "boot-a", "state": "Done"},
		"another boot":   map[string]any{"node": "a", "bootID": "boot-z", "state": "Done"},
		"no boot at all": map[string]any{"node": "a", "state": "Done"},
	} {
		t.Run(name, func(t *testing.T) {
			address, _ := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(says)
			})
			c := client(t, made(t, ca, ca, wire.ManagerName, time.Now()))
			if got, err := c.Restart(t.Context(), address, wire.RestartRequest{BootID: "boot-a", Reason: "a test"}); err == nil {
				t.Errorf("taken: %+v", got)
			}
		})
	}
}

func TestNobodyElseIsBelievedToBeTheAgent(t *testing.T) {
	ca := newAuthority(t)
	for name, test := range map[string]struct {
		server *identity.Identity
		says   string
	}{
		"of another authority": {made(t, newAuthority(t), ca, wire.WitnessName("a"), time.Now()), "unknown authority"},
		"expired":              {made(t, ca, ca, wire.WitnessName("a"), time.Now().Add(-authority.Life-time.Hour)), "expired"},
		"another host's":       {made(t, ca, ca, wire.WitnessName("b"), time.Now()), `"holdfast:witness/b"`},
		"the manager's":        {made(t, ca, ca, wire.ManagerName, time.Now()), `"holdfast:manager"`},
		"without a name":       {made(t, ca, ca, "", time.Now()), `""`},
	} {
		t.Run(name, func(t *testing.T) {
			asked := false
			address, _ := rogue(t, test.server, func(w http.ResponseWriter, _ *http.Request) {
				asked = true
				_ = json.NewEncoder(w).Encode(seen("a"))
			})
			view, err := client(t, made(t, ca, ca, wire.ManagerName, time.Now())).View(t.Context(), address)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v, %v; want an error that says %s", view, err, test.says)
			}
			if asked {
				t.Error("it was asked before it was known")
			}
		})
	}
}

func TestWhatAnAgentMayNotSay(t *testing.T) {
	ca := newAuthority(t)
	question := []wire.Question{{Name: "x", Address: "10.0.0.1", Port: 1}}
	future := seen("a")
	future.Hosts = []wire.Host{{Facts: wire.Facts{Node: "b"}, HeardAge: age(-1)}}
	futureState := seen("a")
	futureState.Hosts = []wire.Host{{Facts: wire.Facts{Node: "b"}, StateAge: -1}}
	noBoot := seen("a")
	noBoot.BootID = ""
	answer := func(node string, answers ...wire.Answer) wire.ProbeAnswer {
		return wire.ProbeAnswer{Node: node, BootID: "boot-a", Answers: answers}
	}
	for name, test := range map[string]struct {
		says  any
		probe bool
		want  string
	}{
		"a view in another's name":          {seen("b"), false, `in the name of "b"`},
		"a view in no name":                 {seen(""), false, `in the name of ""`},
		"a view of no boot":                 {noBoot, false, "which boot"},
		"a sign of life of the future":      {future, false, "in the future"},
		"a change of the future":            {futureState, false, "in the future"},
		"nothing of it":                     {"hello", false, "read the answer"},
		"answers in another's name":         {answer("b", wire.Answer{Name: "x"}), true, `in the name of "b"`},
		"no answer to a question":           {answer("a"), true, "0 answers to 1"},
		"an answer to what was not asked":   {answer("a", wire.Answer{Name: "y"}), true, `answers "y"`},
		"an answer of the future":           {answer("a", wire.Answer{Name: "x", Age: -1}), true, "in the future"},
		"more answers than there were asks": {answer("a", wire.Answer{Name: "x"}, wire.Answer{Name: "x"}), true, "2 answers to 1"},
		"more than fits":                    {strings.Repeat("x", 9<<20), false, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			address, _ := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(test.says) // the client may have had enough
			})
			c := client(t, made(t, ca, ca, wire.ManagerName, time.Now()))
			var err error
			var got any
			if test.probe {
				got, err = c.Probe(t.Context(), address, question)
			} else {
				got, err = c.View(t.Context(), address)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !reflect.ValueOf(got).IsZero() {
				t.Errorf("%+v, %v; want an error that says %s", got, err, test.want)
			}
		})
	}
}

func TestARefusalSaysWhyAndWhenToComeBack(t *testing.T) {
	ca := newAuthority(t)
	address, _ := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		http.Error(w, "too many", http.StatusTooManyRequests)
	})
	_, err := client(t, made(t, ca, ca, wire.ManagerName, time.Now())).View(t.Context(), address)
	var refused *call.Refused
	if !errors.As(err, &refused) || *refused != (call.Refused{Status: http.StatusTooManyRequests, Why: "too many", After: 7 * time.Second}) {
		t.Errorf("%v", err)
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	ca := newAuthority(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	t.Cleanup(elsewhere.Close)
	address, _ := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	if view, err := client(t, made(t, ca, ca, wire.ManagerName, time.Now())).View(t.Context(), address); err == nil {
		t.Errorf("%+v", view)
	}
}

func TestConnectionsAreUsedAgainWhileTheyAreGood(t *testing.T) {
	ca := newAuthority(t)
	address, connections := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(seen("a")); err != nil {
			t.Error(err)
		}
	})
	own := &turns{}
	own.now.Store(made(t, ca, ca, wire.ManagerName, time.Now()))
	c := client(t, own)
	ask := func(want int32, wantErr string) {
		t.Helper()
		_, err := c.View(t.Context(), address)
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("%v, want %q", err, wantErr)
		}
		if got := connections.Load(); got != want {
			t.Errorf("%d connections, want %d", got, want)
		}
	}
	ask(1, "")
	ask(1, "")
	own.now.Store(made(t, ca, ca, wire.ManagerName, time.Now()))
	ask(2, "") // with the new certificate
	ask(2, "")
	own.now.Store(made(t, ca, newAuthority(t), wire.ManagerName, time.Now()))
	ask(3, "unknown authority")
	own.now.Store(nil)
	ask(3, "the Secret is gone")
}

func TestAnAnswerIsNotTakenFromWhoIsNotBelievedAnyMore(t *testing.T) {
	ca := newAuthority(t)
	own := &turns{}
	own.now.Store(made(t, ca, ca, wire.ManagerName, time.Now()))
	next := made(t, ca, newAuthority(t), wire.ManagerName, time.Now())
	address, _ := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(w http.ResponseWriter, _ *http.Request) {
		own.now.Store(next) // while the agent is asked
		if err := json.NewEncoder(w).Encode(seen("a")); err != nil {
			t.Error(err)
		}
	})
	if view, err := client(t, own).View(t.Context(), address); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("%+v, %v", view, err)
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	ca := newAuthority(t)
	entered := make(chan struct{})
	address, _ := rogue(t, made(t, ca, ca, wire.WitnessName("a"), time.Now()), func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	ctx, leave := context.WithCancel(t.Context())
	c := client(t, made(t, ca, ca, wire.ManagerName, time.Now()))
	over := make(chan error)
	go func() {
		_, err := c.Await(ctx, address, 1)
		over <- err
	}()
	<-entered
	leave()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestAnAddressThatIsNone(t *testing.T) {
	ca := newAuthority(t)
	c := client(t, made(t, ca, ca, wire.ManagerName, time.Now()))
	for _, address := range []string{"", "a b:1", "10.0.0.1:x"} {
		if _, err := c.View(t.Context(), address); err == nil {
			t.Errorf("%q is asked", address)
		}
	}
}
