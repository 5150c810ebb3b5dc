// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/agent/unit"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// What does it can be equipped with.
var _ Kubelet = unit.Unit{}

// fakeTable remembers what it was told.
type fakeTable struct {
	here    []netip.Addr
	hereErr error
	loseErr error
	entered chan struct{} // a value for each Lose, if there is room
	let     chan struct{} // nil: Lose returns at once

	mu   sync.Mutex
	lost map[netip.Addr]time.Duration
	back []netip.Addr
}

func (f *fakeTable) Here(context.Context) ([]netip.Addr, error) { return f.here, f.hereErr }

func (f *fakeTable) Lose(ctx context.Context, addresses []netip.Addr, span time.Duration) (int, error) {
	if f.let != nil {
		f.entered <- struct{}{}
		select {
		case <-f.let:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if f.loseErr != nil {
		return 0, f.loseErr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addresses {
		f.lost[a] = span
	}
	return 3 * len(addresses), nil
}

func (f *fakeTable) Lost(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, is := f.lost[a]
	return is
}

func (f *fakeTable) Back(a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.back = append(f.back, a)
	delete(f.lost, a)
	return nil
}

func addresses(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func withTable(f *fakeTable) func(*Server) {
	f.lost = map[netip.Addr]time.Duration{}
	return func(s *Server) { s.Equip(Hands{Connections: f}) }
}

func TestConnectionsToLostAddressesAreReset(t *testing.T) {
	f := &fakeTable{here: addresses("10.0.0.1", "10.1.0.9")}
	r := newRig(t, withTable(f))
	got := r.must(r.manager(), http.MethodPost, wire.PathReset, `{"lost":["10.2.0.2","fd02::2"],"forMillis":120000,"back":["10.2.0.7"]}`, http.StatusOK)
	var answer wire.ResetAnswer
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil || answer != (wire.ResetAnswer{Node: "a", BootID: "boot-a", Found: 6}) {
		t.Errorf("%+v, %v", answer, err)
	}
	if want := map[netip.Addr]time.Duration{addresses("10.2.0.2")[0]: 2 * time.Minute, addresses("fd02::2")[0]: 2 * time.Minute}; !maps.Equal(f.lost, want) {
		t.Errorf("lost %v", f.lost)
	}
	r.must(r.manager(), http.MethodPost, wire.PathReset, `{"back":["10.2.0.2"]}`, http.StatusOK)
	if !slices.Equal(f.back, addresses("10.2.0.7", "10.2.0.2")) || len(f.lost) != 1 {
		t.Errorf("back %v, and still lost %v", f.back, f.lost)
	}
	if want := map[Deed]uint64{AddressLost: 2, AddressBack: 2}; !maps.Equal(r.server.Deeds(), want) {
		t.Errorf("counted %v", r.server.Deeds())
	}
	if line := <-r.refused; !strings.Contains(line, "10.2.0.2") || !strings.Contains(line, `"found"=6`) {
		t.Errorf("logged %s", line)
	}
}

func TestWhatIsNotReset(t *testing.T) {
	lose := func(address string) string { return fmt.Sprintf(`{"lost":["10.2.0.2",%q],"forMillis":1000}`, address) }
	many, _ := json.Marshal(wire.ResetRequest{Lost: slices.Repeat([]string{"10.2.0.2"}, wire.Addresses), Back: []string{"10.2.0.3"}, ForMillis: 1000})
	for name, test := range map[string]struct {
		body, says string
		kind       Refusal
		status     int
	}{
		"loopback":                        {lose("127.0.0.1"), "lost[1]:", Malformed, http.StatusBadRequest},
		"loopback of IPv6":                {lose("::1"), "lost[1]:", Malformed, http.StatusBadRequest},
		"the metadata service of a cloud": {lose("169.254.169.254"), "lost[1]:", Malformed, http.StatusBadRequest},
		"link-local with a zone":          {lose("fe80::1%eth0"), "lost[1]:", Malformed, http.StatusBadRequest},
		"multicast":                       {lose("ff02::1"), "lost[1]:", Malformed, http.StatusBadRequest},
		"broadcast":                       {lose("255.255.255.255"), "lost[1]:", Malformed, http.StatusBadRequest},
		"unspecified":                     {lose("::"), "lost[1]:", Malformed, http.StatusBadRequest},
		"IPv4 as IPv6":                    {lose("::ffff:10.2.0.3"), "write it as 10.2.0.3", Malformed, http.StatusBadRequest},
		"loopback as IPv6":                {lose("::ffff:127.0.0.1"), "lost[1]:", Malformed, http.StatusBadRequest},
		"a name":                          {lose("db-0.shop"), "lost[1]:", Malformed, http.StatusBadRequest},
		"a prefix":                        {lose("10.2.0.0/24"), "lost[1]:", Malformed, http.StatusBadRequest},
		"an address twice":                {lose("10.2.0.2"), "lost[1]:", Malformed, http.StatusBadRequest},
		"lost and back at a time":         {`{"lost":["10.2.0.2"],"forMillis":1,"back":["10.2.0.2"]}`, "back[0]:", Malformed, http.StatusBadRequest},
		"the address of this host":        {lose("10.0.0.1"), "10.0.0.1", Unfit, http.StatusConflict},
		"a pod that runs here":            {lose("fd01::9"), "fd01::9", Unfit, http.StatusConflict},
		"for no time":                     {`{"lost":["10.2.0.2"]}`, "forMillis:", Malformed, http.StatusBadRequest},
		"for less than no time":           {`{"lost":["10.2.0.2"],"forMillis":-1}`, "forMillis:", Malformed, http.StatusBadRequest},
		"for too long":                    {`{"lost":["10.2.0.2"],"forMillis":120001}`, "forMillis:", Malformed, http.StatusBadRequest},
		"for a time that overflows":       {`{"lost":["10.2.0.2"],"forMillis":9223372036854775807}`, "forMillis:", Malformed, http.StatusBadRequest},
		"back for a time":                 {`{"back":["10.2.0.2"],"forMillis":1}`, "forMillis:", Malformed, http.StatusBadRequest},
		"nothing":                         {`{}`, "lost, back:", Malformed, http.StatusBadRequest},
		"too many":                        {string(many), "lost, back:", Malformed, http.StatusBadRequest},
		"an unknown field":                {`{"lost":["10.2.0.2"],"forMillis":1,"ports":[1]}`, `"ports"`, Malformed, http.StatusBadRequest},
		"no JSON":                         {"10.2.0.2", "body", Malformed, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeTable{here: addresses("10.0.0.1", "fd01::9")}
			r := newRig(t, withTable(f))
			if got := r.must(r.manager(), http.MethodPost, wire.PathReset, test.body, test.status); !strings.Contains(got.body, test.says) {
				t.Errorf("%q does not say %q", got.body, test.says)
			}
			r.counted(test.kind)
			if len(f.lost)+len(f.back) != 0 || len(r.server.Deeds()) != 0 {
				t.Errorf("lost %v, back %v, counted %v", f.lost, f.back, r.server.Deeds())
			}
		})
	}
}

func TestWithoutKnowingWhatLivesHereNothingIsReset(t *testing.T) {
	f := &fakeTable{hereErr: errors.New("the runtime is silent")}
	r := newRig(t, withTable(f))
	if got := r.must(r.manager(), http.MethodPost, wire.PathReset, `{"lost":["10.2.0.2"],"forMillis":1}`, http.StatusInternalServerError); !strings.Contains(got.body, f.hereErr.Error()) {
		t.Errorf("%q", got.body)
	}
	r.counted(Failed)
	if len(f.lost) != 0 {
		t.Errorf("lost %v", f.lost)
	}
	r.must(r.manager(), http.MethodPost, wire.PathReset, `{"back":["10.2.0.2"]}`, http.StatusOK) // letting go needs no such knowledge
}

func TestAResetThatDoesNotWorkSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		kind   Refusal
		status int
	}{
		"the kernel refuses": {syscall.EPERM, Failed, http.StatusInternalServerError},
		"there is no room":   {fmt.Errorf("lose: %w", reset.ErrFull), Flood, http.StatusTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withTable(&fakeTable{loseErr: test.err}))
			if got := r.must(r.manager(), http.MethodPost, wire.PathReset, `{"lost":["10.2.0.2"],"forMillis":1}`, test.status); !strings.Contains(got.body, test.err.Error()) {
				t.Errorf("%q", got.body)
			}
			r.counted(test.kind)
			if len(r.server.Deeds()) != 0 {
				t.Errorf("counted %v", r.server.Deeds())
			}
		})
	}
}

func TestMoreResetsThanThatAreTurnedAway(t *testing.T) {
	f := &fakeTable{entered: make(chan struct{}, 100), let: make(chan struct{})}
	r := newRig(t, withTable(f))
	c, body := r.manager(), `{"lost":["10.2.0.2"],"forMillis":1}`
	answers := make(chan said, resets)
	for range resets {
		go func() {
			got, err := r.do(t.Context(), c, http.MethodPost, wire.PathReset, body)
			if err != nil {
				t.Error(err)
			}
			answers <- got
		}()
		<-f.entered
	}
	if got := r.must(c, http.MethodPost, wire.PathReset, body, http.StatusTooManyRequests); got.header.Get("Retry-After") == "" {
		t.Error("it does not say when to come back")
	}
	r.counted(Flood)
	close(f.let)
	for range resets {
		if got := <-answers; got.status != http.StatusOK {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
}

// What seems to answer at a lost address is this host's own reset, and would be taken for the kernel of the one that is lost.
func TestALostAddressIsNoVantagePointsWord(t *testing.T) {
	f := &fakeTable{}
	r := newRig(t, withTable(f))
	r.server.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	r.must(r.manager(), http.MethodPost, wire.PathReset, `{"lost":["10.2.0.2"],"forMillis":60000}`, http.StatusOK)
	ask := questions(t, wire.Question{Name: "lost", Address: "10.2.0.2", Port: 1}, wire.Question{Name: "lost, as IPv6", Address: "::ffff:10.2.0.2", Port: 1},
		wire.Question{Name: "another", Address: "10.2.0.3", Port: 1})
	want := []wire.Outcome{wire.NotAsked, wire.NotAsked, wire.Refused}
	for n, a := range answers(t, r.must(r.manager(), http.MethodPost, wire.PathProbe, ask, http.StatusOK)) {
		if a.Outcome != want[n] {
			t.Errorf("%s: %s (%s)", a.Name, a.Outcome, a.Why)
		}
	}
	r.must(r.manager(), http.MethodPost, wire.PathReset, `{"back":["10.2.0.2"]}`, http.StatusOK)
	if got := answers(t, r.must(r.manager(), http.MethodPost, wire.PathProbe, ask, http.StatusOK)); got[0].Outcome != wire.Refused {
		t.Errorf("an address that is back: %+v", got[0])
	}
}

// fakeKubelet counts its restarts.
type fakeKubelet struct {
	done    bool
	err     error
	entered chan struct{}
	let     chan struct{} // nil: a restart ends at once
	times   atomic.Int32
}

func (*fakeKubelet) String() string { return "systemd unit kubelet.service" }

func (f *fakeKubelet) Restart(ctx context.Context) (bool, error) {
	f.times.Add(1)
	if f.let != nil {
		f.entered <- struct{}{}
		select {
		case <-f.let:
		case <-ctx.Done():
		}
	}
	return f.done, f.err
}

const restartBody = `{"bootID":"boot-a","reason":"the lease is late and the kubelet is well"}`

func withKubelet(f *fakeKubelet, at *atomic.Int64) func(*Server) {
	return func(s *Server) {
		s.Equip(Hands{Kubelet: f})
		began := time.Now()
		s.now = func() time.Time { return began.Add(time.Duration(at.Load())) }
	}
}

func TestAKubeletIsRestartedOnceInAWindow(t *testing.T) {
	f, at := &fakeKubelet{done: true}, &atomic.Int64{}
	r := newRig(t, withKubelet(f, at))
	restart := func(body string, status int) said {
		t.Helper()
		return r.must(r.manager(), http.MethodPost, wire.PathRestart, body, status)
	}
	var answer wire.RestartAnswer
	if err := json.Unmarshal([]byte(restart(restartBody, http.StatusOK).body), &answer); err != nil ||
		answer != (wire.RestartAnswer{Node: "a", BootID: "boot-a", State: wire.RestartDone, By: f.String()}) {
		t.Errorf("%+v, %v", answer, err)
	}
	if line := <-r.refused; !strings.Contains(line, "the lease is late") {
		t.Errorf("logged %s", line)
	}
	at.Store(int64(10*time.Minute) - int64(time.Second))
	if got := restart(restartBody, http.StatusConflict); got.header.Get("Retry-After") != "1" || !strings.Contains(got.body, "windowMillis:") {
		t.Errorf("%s %s", got.header.Get("Retry-After"), got.body)
	}
	restart(`{"bootID":"boot-a","reason":"x","windowMillis":1200000}`, http.StatusConflict)
	at.Store(int64(10 * time.Minute))
	restart(`{"bootID":"boot-a","reason":"x","windowMillis":1200000}`, http.StatusConflict) // the caller's window, and not that of the one before
	if f.times.Load() != 1 {
		t.Errorf("restarted %d times", f.times.Load())
	}
	restart(restartBody, http.StatusOK)
	if f.times.Load() != 2 || r.server.Deeds()[KubeletRestarted] != 2 || r.server.Counts()[Unfit] != 3 {
		t.Errorf("restarted %d times, counted %v and %v", f.times.Load(), r.server.Deeds(), r.server.Counts())
	}
}

func TestARestartThatFailsTakesTheWindow(t *testing.T) {
	f := &fakeKubelet{err: unit.ErrStopped}
	r := newRig(t, withKubelet(f, &atomic.Int64{}))
	if got := r.must(r.manager(), http.MethodPost, wire.PathRestart, restartBody, http.StatusInternalServerError); !strings.Contains(got.body, unit.ErrStopped.Error()) {
		t.Errorf("%s", got.body)
	}
	r.must(r.manager(), http.MethodPost, wire.PathRestart, restartBody, http.StatusConflict)
	if counts := r.server.Counts(); f.times.Load() != 1 || counts[Failed] != 1 || counts[Unfit] != 1 || len(r.server.Deeds()) != 0 {
		t.Errorf("tried %d times, counted %v and %v", f.times.Load(), counts, r.server.Deeds())
	}
}

func TestARestartThatIsNotOverWasBegun(t *testing.T) {
	r := newRig(t, withKubelet(&fakeKubelet{}, &atomic.Int64{}))
	if got := r.must(r.manager(), http.MethodPost, wire.PathRestart, restartBody, http.StatusOK); !strings.Contains(got.body, `"state":"Begun"`) {
		t.Errorf("%s", got.body)
	}
}

func TestTwoRestartsAreNotUnderWay(t *testing.T) {
	f := &fakeKubelet{done: true, entered: make(chan struct{}), let: make(chan struct{})}
	r := newRig(t, withKubelet(f, &atomic.Int64{}))
	first := make(chan said)
	go func() {
		got, err := r.do(t.Context(), r.manager(), http.MethodPost, wire.PathRestart, restartBody)
		if err != nil {
			t.Error(err)
		}
		first <- got
	}()
	<-f.entered
	r.must(r.manager(), http.MethodPost, wire.PathRestart, restartBody, http.StatusTooManyRequests)
	close(f.let)
	if got := <-first; got.status != http.StatusOK || f.times.Load() != 1 {
		t.Errorf("%d %s, restarted %d times", got.status, got.body, f.times.Load())
	}
}

func TestWhatRestartsNothing(t *testing.T) {
	for name, test := range map[string]struct {
		body, says string
		kind       Refusal
		status     int
	}{
		"another boot":       {`{"bootID":"boot-z","reason":"x"}`, "bootID:", Unfit, http.StatusConflict},
		"no boot":            {`{"reason":"x"}`, "bootID:", Malformed, http.StatusBadRequest},
		"no reason":          {`{"bootID":"boot-a"}`, "reason:", Malformed, http.StatusBadRequest},
		"too much reason":    {`{"bootID":"boot-a","reason":"` + strings.Repeat("x", wire.ReasonBytes+1) + `"}`, "reason:", Malformed, http.StatusBadRequest},
		"a window too short": {`{"bootID":"boot-a","reason":"x","windowMillis":59999}`, "windowMillis:", Malformed, http.StatusBadRequest},
		"a window below":     {`{"bootID":"boot-a","reason":"x","windowMillis":-1}`, "windowMillis:", Malformed, http.StatusBadRequest},
		"a window too long":  {`{"bootID":"boot-a","reason":"x","windowMillis":86400001}`, "windowMillis:", Malformed, http.StatusBadRequest},
		"another unit":       {`{"bootID":"boot-a","reason":"x","unit":"sshd.service"}`, `"unit"`, Malformed, http.StatusBadRequest},
		"nothing":            {"", "body", Malformed, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeKubelet{done: true}
			r := newRig(t, withKubelet(f, &atomic.Int64{}))
			if got := r.must(r.manager(), http.MethodPost, wire.PathRestart, test.body, test.status); !strings.Contains(got.body, test.says) {
				t.Errorf("%q does not say %q", got.body, test.says)
			}
			r.counted(test.kind)
			if f.times.Load() != 0 {
				t.Error("it was restarted")
			}
			r.must(r.manager(), http.MethodPost, wire.PathRestart, restartBody, http.StatusOK) // the window was not taken
		})
	}
}

func TestAnAgentWithoutHandsDoesNothing(t *testing.T) {
	for path, body := range map[string]string{wire.PathReset: `{"lost":["10.2.0.2"],"forMillis":1}`, wire.PathRestart: restartBody, wire.PathRecycle: "{}"} {
		r := newRig(t, nil)
		if got := r.must(r.manager(), http.MethodPost, path, body, http.StatusNotImplemented); !strings.Contains(got.body, "--") {
			t.Errorf("%s: %q does not name the option", path, got.body)
		}
		r.counted(Unequipped)
	}
}

func TestOnlyTheManagerHasThingsDone(t *testing.T) {
	table, kubelet, recycler := &fakeTable{lost: map[netip.Addr]time.Duration{}}, &fakeKubelet{done: true}, &fakeRecycler{}
	for path, body := range map[string]string{wire.PathReset: `{"lost":["10.2.0.2"],"forMillis":1}`, wire.PathRestart: restartBody,
		wire.PathRecycle: `{"round":"1","most":1,"perSecond":1}`} {
		for name, kind := range map[string]Refusal{wire.WitnessName("b"): Forbidden, wire.WitnessName("a"): Forbidden, "spiffe://cluster/manager": Stranger} {
			r := newRig(t, func(s *Server) { s.Equip(Hands{Connections: table, Kubelet: kubelet, Recycling: recycler}) })
			r.must(r.caller(r.ca, name, time.Now()), http.MethodPost, path, body, http.StatusForbidden)
			r.counted(kind)
		}
	}
	if len(table.lost)+len(recycler.ended) != 0 || kubelet.times.Load() != 0 {
		t.Errorf("lost %v, recycled %v, restarted %d times", table.lost, recycler.ended, kubelet.times.Load())
	}
}
