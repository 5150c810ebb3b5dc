// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

func answers(t *testing.T, got said) []wire.Answer {
	t.Helper()
	var a wire.ProbeAnswer
	if err := json.Unmarshal([]byte(got.body), &a); err != nil || a.Node != "a" || a.BootID != "boot-a" {
		t.Fatalf("%s: %v", got.body, err)
	}
	return a.Answers
}

func TestEachQuestionIsAnsweredInItsPlace(t *testing.T) {
	// All have to be under way before one is answered: they are asked together.
	var together sync.WaitGroup
	together.Add(7)
	meet := func() { together.Done(); together.Wait() }
	r := newRig(t, func(s *Server) {
		s.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
			meet()
			switch address {
			case "10.0.0.1:1":
				here, there := net.Pipe()
				_ = there.Close() // nobody reads there
				return here, nil
			case "10.0.0.1:2":
				return nil, syscall.ECONNREFUSED
			case "[fd00::1]:3":
				return nil, syscall.EHOSTUNREACH
			default:
				return nil, syscall.ENETUNREACH
			}
		}
	})
	r.sky.ping = func(_ context.Context, node, address string) (string, error) {
		meet()
		switch node + " " + address {
		case "b 10.0.0.2":
			return "boot-b", nil
		case "c 10.0.0.3":
			return "", fmt.Errorf("ping: %w", context.DeadlineExceeded)
		default:
			return "boot-x", errors.New("gossip knows no such host")
		}
	}
	got := answers(t, r.must(r.manager(), http.MethodPost, wire.PathProbe, questions(t,
		wire.Question{Name: "accepts", Address: "10.0.0.1", Port: 1}, wire.Question{Name: "refuses", Address: "10.0.0.1", Port: 2},
		wire.Question{Name: "none there", Address: "fd00::1", Port: 3}, wire.Question{Name: "no route", Address: "203.0.113.1", Port: 4},
		wire.Question{Name: "agent b", Agent: "b", Address: "10.0.0.2"}, wire.Question{Name: "agent c", Agent: "c", Address: "10.0.0.3"},
		wire.Question{Name: "agent d", Agent: "d", Address: "10.0.0.4"}), http.StatusOK))
	for n := range got {
		if (got[n].Why == "") != (got[n].Outcome == wire.Answered) {
			t.Errorf("%s: %s because of %q", got[n].Name, got[n].Outcome, got[n].Why)
		}
		if got[n].Age < 1 {
			t.Errorf("%s: age %d; ages are rounded up", got[n].Name, got[n].Age)
		}
		got[n].Why, got[n].Age = "", 0
	}
	if want := []wire.Answer{
		{Name: "accepts", Outcome: wire.Answered}, {Name: "refuses", Outcome: wire.Refused}, {Name: "none there", Outcome: wire.Unreachable},
		{Name: "no route", Outcome: wire.NotAsked}, {Name: "agent b", Outcome: wire.Answered, BootID: "boot-b"},
		{Name: "agent c", Outcome: wire.Silent}, {Name: "agent d", Outcome: wire.NotAsked},
	}; !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestWhatIsNotAskedFromHere(t *testing.T) {
	one := func(q string) string {
		return `{"questions":[{"name":"good","address":"10.0.0.1","port":1},` + q + `]}`
	}
	to := func(address string) string {
		return one(fmt.Sprintf(`{"name":"x","address":%q,"port":1}`, address))
	}
	agent := func(address string) string {
		return one(fmt.Sprintf(`{"name":"x","address":%q,"agent":"b"}`, address))
	}
	const address = "questions[1].address:"
	long := strings.Repeat("x", pathBytes+1)
	for name, test := range map[string]struct{ body, says string }{
		"loopback":                        {to("127.0.0.1"), address},
		"loopback, another":               {to("127.8.8.8"), address},
		"loopback of IPv6":                {to("::1"), address},
		"loopback, as IPv6":               {to("::ffff:127.0.0.1"), address},
		"loopback for an agent":           {agent("127.0.0.1"), address},
		"the metadata service of a cloud": {to("169.254.169.254"), address},
		"link-local of IPv6":              {to("fe80::1"), address},
		"link-local with a zone":          {to("fe80::1%eth0"), address},
		"multicast":                       {to("224.0.0.1"), address},
		"multicast of IPv6":               {to("ff02::1"), address},
		"broadcast":                       {to("255.255.255.255"), address},
		"unspecified":                     {to("0.0.0.0"), address},
		"this network":                    {to("0.1.2.3"), address},
		"unspecified of IPv6":             {to("::"), address},
		"a name":                          {to("kubernetes.default"), address},
		"no address":                      {to(""), address},
		"no port":                         {one(`{"name":"x","address":"10.0.0.1"}`), "questions[1].port:"},
		"a port too high":                 {one(`{"name":"x","address":"10.0.0.1","port":65536}`), "questions[1].port:"},
		"a port below":                    {one(`{"name":"x","address":"10.0.0.1","port":-1}`), "questions[1].port:"},
		"a port in words":                 {one(`{"name":"x","address":"10.0.0.1","port":"ssh"}`), "questions.port"},
		"an agent with a port":            {one(`{"name":"x","address":"10.0.0.1","agent":"b","port":1}`), "questions[1].agent:"},
		"a path of another host":          {one(`{"name":"x","address":"10.0.0.1","port":1,"http":"@10.0.0.2/"}`), "questions[1].http:"},
		"a path without an end":           {one(`{"name":"x","address":"10.0.0.1","port":1,"http":"/` + long + `"}`), "questions[1].http:"},
		"two handlers":                    {one(`{"name":"x","address":"10.0.0.1","port":1,"http":"/","grpc":""}`), "questions[1].grpc:"},
		"a name without an end":           {one(`{"name":"` + long + `","address":"10.0.0.1","port":1}`), "questions[1].name:"},
		"an unknown field":                {one(`{"name":"x","address":"10.0.0.1","port":1,"udp":true}`), `"udp"`},
		"an unknown field outside":        {`{"questions":[],"all":true}`, `"all"`},
		"no questions":                    {`{"questions":[]}`, "questions:"},
		"too many questions":              {questions(t, slices.Repeat([]wire.Question{{Address: "10.0.0.1", Port: 1}}, wire.Questions+1)...), "questions:"},
		"nothing":                         {"", "body"},
		"no JSON":                         {"questions=1", "body"},
		"two requests":                    {questions(t, wire.Question{Address: "10.0.0.1", Port: 1}) + "{}", "body"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.sky.ping = func(context.Context, string, string) (string, error) {
				t.Error("an agent was asked")
				return "", nil
			}
			got := r.must(r.manager(), http.MethodPost, wire.PathProbe, test.body, http.StatusBadRequest)
			if !strings.Contains(got.body, test.says) {
				t.Errorf("%q does not name %q", got.body, test.says)
			}
			if r.dialled.Load() != 0 {
				t.Error("something was asked, if only the good question")
			}
			r.counted(Malformed)
		})
	}
}

func TestABodyBeyondTheLimitIsNotRead(t *testing.T) {
	r := newRig(t, nil)
	body := `{"questions":[{"name":"` + strings.Repeat("x", bodyBytes) + `"}]}`
	r.must(r.manager(), http.MethodPost, wire.PathProbe, body, http.StatusRequestEntityTooLarge)
	r.counted(TooLarge)
	vacant(r.server.probes)
}

func TestAFloodIsTurnedAwayAndTheServerLives(t *testing.T) {
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	var before atomic.Int32
	r := newRig(t, func(s *Server) {
		s.Dial = func(context.Context, string, string) (net.Conn, error) {
			asked <- struct{}{}
			if before.Add(1) <= probes {
				<-answer
			}
			return nil, syscall.ECONNREFUSED
		}
	})
	c, body := r.manager(), questions(t, wire.Question{Name: "x", Address: "10.0.0.1", Port: 1})
	first := make(chan said, probes)
	for range probes {
		go func() {
			got, err := r.do(t.Context(), c, http.MethodPost, wire.PathProbe, body)
			if err != nil {
				t.Error(err)
			}
			first <- got
		}()
		<-asked
	}
	var flood sync.WaitGroup
	const many = 20
	for range many {
		flood.Go(func() {
			got, err := r.do(t.Context(), c, http.MethodPost, wire.PathProbe, body)
			if err != nil || got.status != http.StatusTooManyRequests || got.header.Get("Retry-After") != "1" {
				t.Errorf("%d %s, %v", got.status, got.body, err)
			}
		})
	}
	flood.Wait()
	if got := r.server.Counts()[Flood]; got != many {
		t.Errorf("counted %d of %d", got, many)
	}
	close(answer)
	for range probes {
		if got := answers(t, <-first); len(got) != 1 || got[0].Outcome != wire.Refused {
			t.Errorf("got %+v", got)
		}
	}
	vacant(r.server.probes)
	r.must(c, http.MethodPost, wire.PathProbe, body, http.StatusOK)
	if len(asked) != 1 {
		t.Errorf("%d of the flood were asked", len(asked)-1)
	}
}

func TestQuestionsEndWithTheirCaller(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan error)
	r := newRig(t, func(s *Server) {
		s.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			asked <- struct{}{}
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil, ctx.Err()
		}
	})
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := r.do(ctx, r.manager(), http.MethodPost, wire.PathProbe, questions(t, wire.Question{Name: "x", Address: "10.0.0.1", Port: 1}))
		gone <- err
	}()
	<-asked
	leave()
	if err := <-gone; err == nil {
		t.Error("a caller that left was answered")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the question ended by %v, and not with its caller", err)
	}
	vacant(r.server.probes)
}

func TestQuestionsEndInTime(t *testing.T) {
	r := newRig(t, func(s *Server) {
		s.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			until, ok := ctx.Deadline()
			if left := time.Until(until); !ok || left > wire.OpenMillis*time.Millisecond {
				t.Errorf("a question may take %s", left)
			}
			return nil, context.DeadlineExceeded
		}
	})
	got := answers(t, r.must(r.manager(), http.MethodPost, wire.PathProbe, questions(t, wire.Question{Name: "x", Address: "10.0.0.1", Port: 1}), http.StatusOK))
	if len(got) != 1 || got[0].Outcome != wire.Silent {
		t.Errorf("got %+v", got)
	}
}
