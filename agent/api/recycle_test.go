// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dev/holdfast/agent/reset"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// fakeRecycler remembers what it was told.
type fakeRecycler struct {
	here             []netip.Addr
	hereErr, lookErr error
	endErr           error
	entered, let     chan struct{} // let nil: Recycle returns at once

	looks map[string]reset.Look
	ended []string
}

func (f *fakeRecycler) Here(context.Context) ([]netip.Addr, error) { return f.here, f.hereErr }

func (f *fakeRecycler) Look(name string, l reset.Look) (int, error) {
	if f.lookErr != nil {
		return 0, f.lookErr
	}
	f.looks[name] = l
	return 7, nil
}

func (f *fakeRecycler) Recycle(_ context.Context, name string, most, perSecond int) (begun, left int, err error) {
	if f.let != nil {
		f.entered <- struct{}{}
		<-f.let
	}
	f.ended = append(f.ended, fmt.Sprintf("%s: %d, %d per second", name, most, perSecond))
	if f.endErr != nil {
		return 1, 0, f.endErr
	}
	return most, 3, nil
}

func withRecycler(f *fakeRecycler) func(*Server) {
	f.looks = map[string]reset.Look{}
	return func(s *Server) { s.Equip(Hands{Recycling: f}) }
}

func TestConnectionsToPodsThatLiveAreLookedForAndEnded(t *testing.T) {
	f := &fakeRecycler{here: addresses("10.0.0.1", "10.1.0.9")}
	r := newRig(t, withRecycler(f))
	for _, step := range []struct {
		body string
		want wire.RecycleAnswer
	}{
		{`{"round":"1","servers":["10.2.0.2:5432","[fd02::2]:5432"],"except":["10.2.0.3"]}`, wire.RecycleAnswer{Node: "a", BootID: "boot-a", Found: 7}},
		{`{"round":"1","most":10,"perSecond":2}`, wire.RecycleAnswer{Node: "a", BootID: "boot-a", Begun: 10, Left: 3}},
	} {
		got := r.must(r.manager(), http.MethodPost, wire.PathRecycle, step.body, http.StatusOK)
		var answer wire.RecycleAnswer
		if err := json.Unmarshal([]byte(got.body), &answer); err != nil || answer != step.want {
			t.Errorf("%s: %+v, %v", step.body, answer, err)
		}
		if line := <-r.refused; !strings.Contains(line, `"round"="1"`) {
			t.Errorf("logged %s", line)
		}
	}
	want := reset.Look{Here: f.here, Except: addresses("10.2.0.3"), Servers: []netip.AddrPort{netip.MustParseAddrPort("10.2.0.2:5432"), netip.MustParseAddrPort("[fd02::2]:5432")}}
	if !reflect.DeepEqual(f.looks["1"], want) || !slices.Equal(f.ended, []string{"1: 10, 2 per second"}) || r.server.Deeds()[ConnectionRecycled] != 10 {
		t.Errorf("%+v, %v, %v", f.looks, f.ended, r.server.Deeds())
	}
}

func TestWhatIsNotRecycled(t *testing.T) {
	look := func(server string) string { return fmt.Sprintf(`{"round":"1","servers":["10.2.0.2:1",%q]}`, server) }
	many := func(r wire.RecycleRequest) string {
		r.Round = "1"
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	for name, test := range map[string]struct{ body, says string }{
		"no name":                       {`{"servers":["10.2.0.2:1"]}`, "round:"},
		"a name without end":            {`{"round":"` + strings.Repeat("x", 65) + `","servers":["10.2.0.2:1"]}`, "round:"},
		"nothing":                       {`{"round":"1"}`, "servers, most:"},
		"both":                          {`{"round":"1","servers":["10.2.0.2:1"],"most":1,"perSecond":1}`, "servers, most:"},
		"too many servers":              {many(wire.RecycleRequest{Servers: slices.Repeat([]string{"10.2.0.2:1"}, wire.Servers+1)}), "servers:"},
		"too many exceptions":           {many(wire.RecycleRequest{Servers: []string{"10.2.0.2:1"}, Except: slices.Repeat([]string{"10.2.0.2"}, wire.Servers+1)}), "except:"},
		"only exceptions":               {`{"round":"1","except":["10.2.0.2"]}`, "servers:"},
		"loopback":                      {look("127.0.0.1:1"), "servers[1]:"},
		"IPv4 as IPv6":                  {look("[::ffff:10.2.0.3]:1"), "write it as 10.2.0.3"},
		"a name for an address":         {look("db-0.shop:1"), "servers[1]:"},
		"no port":                       {look("10.2.0.3"), "servers[1]:"},
		"port zero":                     {look("10.2.0.3:0"), "servers[1]:"},
		"an exception that is none":     {`{"round":"1","servers":["10.2.0.2:1"],"except":["x"]}`, "except[0]:"},
		"without a rate":                {`{"round":"1","most":1}`, "perSecond:"},
		"too fast":                      {`{"round":"1","most":1,"perSecond":21}`, "perSecond:"},
		"more than may be at that rate": {`{"round":"1","most":11,"perSecond":2}`, "most:"},
		"less than none":                {`{"round":"1","most":-1,"perSecond":2}`, "most:"},
		"an unknown field":              {`{"round":"1","most":1,"perSecond":1,"all":true}`, `"all"`},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeRecycler{}
			r := newRig(t, withRecycler(f))
			if got := r.must(r.manager(), http.MethodPost, wire.PathRecycle, test.body, http.StatusBadRequest); !strings.Contains(got.body, test.says) {
				t.Errorf("%q does not say %q", got.body, test.says)
			}
			r.counted(Malformed)
			if len(f.looks)+len(f.ended) != 0 {
				t.Errorf("looked %v, ended %v", f.looks, f.ended)
			}
		})
	}
}

func TestRecyclingThatDoesNotWorkSaysWhy(t *testing.T) {
	const look, end = `{"round":"1","servers":["10.2.0.2:1"]}`, `{"round":"1","most":2,"perSecond":1}`
	for name, test := range map[string]struct {
		fake   fakeRecycler
		body   string
		kind   Refusal
		status int
	}{
		"nobody says who lives here":  {fakeRecycler{hereErr: errors.New("the runtime is silent")}, look, Failed, http.StatusInternalServerError},
		"a server is this host":       {fakeRecycler{lookErr: fmt.Errorf("10.2.0.2: %w", reset.ErrOwn)}, look, Unfit, http.StatusConflict},
		"nobody looked for the round": {fakeRecycler{endErr: reset.ErrUnknownRound}, end, Unfit, http.StatusConflict},
		"the kernel refuses":          {fakeRecycler{endErr: syscall.EPERM}, end, Failed, http.StatusInternalServerError},
	} {
		t.Run(name, func(t *testing.T) {
			f := &test.fake
			r := newRig(t, withRecycler(f))
			r.must(r.manager(), http.MethodPost, wire.PathRecycle, test.body, test.status)
			r.counted(test.kind)
			if len(f.looks) != 0 {
				t.Errorf("looked %v", f.looks)
			}
		})
	}
}

func TestWhoMayRecycleAndHowManyAtATime(t *testing.T) {
	const end = `{"round":"1","most":2,"perSecond":1}`
	bare := newRig(t, nil)
	bare.must(bare.manager(), http.MethodPost, wire.PathRecycle, end, http.StatusNotImplemented)
	bare.counted(Unequipped)

	f := &fakeRecycler{entered: make(chan struct{}), let: make(chan struct{})}
	r := newRig(t, withRecycler(f))
	over := make(chan said)
	go func() {
		got, err := r.do(t.Context(), r.manager(), http.MethodPost, wire.PathRecycle, end)
		if err != nil {
			t.Error(err)
		}
		over <- got
	}()
	<-f.entered
	r.must(r.manager(), http.MethodPost, wire.PathRecycle, end, http.StatusTooManyRequests)
	r.counted(Flood)
	close(f.let)
	if got := <-over; got.status != http.StatusOK {
		t.Errorf("%d %s", got.status, got.body)
	}
}
