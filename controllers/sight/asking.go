// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/agent/probe"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Complaint is a kind of thing that did not go as it should with agents.
type Complaint string

// Values of Complaint.
const (
	// Unanswered: no connection, or no answer in time.
	Unanswered Complaint = "Unanswered"
	// Misspoken: an answer that is none, in another's name, of the future, or that contradicts itself; or a refusal. Nothing of it is taken.
	Misspoken Complaint = "Misspoken"
	// Unread: which hosts there are could not be read; what was read before is used.
	Unread Complaint = "Unread"
	// Unaskable: a guarded pod's probe that no agent would try.
	Unaskable Complaint = "Unaskable"
	// Unreset: an agent that did not reset connections, or did not let an address go.
	Unreset Complaint = "Unreset"
)

const (
	// roundEvery is how often a suspect host is looked for. An answer that takes the whole of wire.ProbeMillis is then three seconds old when the next is here,
	// which leaves two of evidence.WordSpan.
	roundEvery = time.Second
	// viewFor bounds the view of a round: with less, a busy machine would look like one that is cut off from all agents.
	viewFor = evidence.WordSpan / 2
	// probeFor bounds a probe request: what the agent gives itself, and a way there and back.
	probeFor = wire.ProbeMillis*time.Millisecond + time.Second
	// lanes is how many probe requests are made of an agent at a time; it answers four.
	lanes = 3
	// breath is the least time between two awaited views.
	breath = 250 * time.Millisecond
	// retryFirst and retryMost are how long after a question in vain an agent is asked again while nobody is under suspicion.
	retryFirst = time.Second
	retryMost  = 15 * time.Second
	// complainEvery is how often a complaint of one kind is logged.
	complainEvery = time.Minute
)

// asker asks one agent. Its vantage point is guarded by mu, like all of Witnesses.
type asker struct {
	*Witnesses
	vantage *vantage
	node    string
	address string
	agent   Agent
	poke    chan struct{}
}

func (a *asker) ask(ctx context.Context) {
	defer a.agent.Close()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { a.follow(ctx) })
	a.rounds(ctx)
}

// follow awaits one view after the other, so that a change is known at once.
func (a *asker) follow(ctx context.Context) {
	var index uint64
	retry, known := retryFirst, false
	for ctx.Err() == nil {
		asked := a.clock.Instant()
		view, err := a.next(ctx, index, known)
		if ctx.Err() != nil {
			return
		}
		if a.hearView(view, err, asked, true) {
			index, known, retry = view.Index, true, retryFirst
			a.pause(ctx, breath-a.clock.Instant().Sub(asked))
			continue
		}
		known = false
		a.pause(ctx, retry)
		retry = min(2*retry, retryMost)
	}
}

func (a *asker) next(ctx context.Context, index uint64, known bool) (wire.View, error) {
	if known {
		return a.agent.Await(ctx, a.address, index)
	}
	return a.agent.View(ctx, a.address)
}

func (a *asker) pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := a.clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C():
	}
}

// rounds has it look for the hosts under suspicion, as long as there are any.
func (a *asker) rounds(ctx context.Context) {
	tick := a.clock.NewTicker(roundEvery)
	defer tick.Stop()
	looking, probing := make(chan struct{}, 1), make(chan struct{}, lanes)
	free := make(chan struct{}, 1)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	var left errands
	for {
		doubted := false
		select {
		case <-ctx.Done():
			return
		case <-free:
		case <-tick.C():
			doubted = left.tick(a.requests())
		case <-a.poke:
			doubted = left.poke(a.requests())
		}
		if doubted && enter(looking) {
			tasks.Go(func() { defer leave(looking); a.look(ctx) })
		}
		for !left.none() && enter(probing) {
			request := left.next()
			tasks.Go(func() {
				a.probe(ctx, request)
				leave(probing)
				enter(free)
			})
		}
	}
}

// errands are the requests that an agent has still to be asked. Hosts go before pods, which may be many on each: whether a host is lost is decided by what is heard of it. But
// one in every podsTurn is of pods, because an endpoint's end waits for what is heard of them.
type errands struct {
	hosts, pods [][]asking
	turn        int
}

const podsTurn = 3

// tick begins a round, and reports whether any host is under suspicion in it. What the round before has not come to yet goes on.
func (e *errands) tick(hosts, pods [][]asking) (doubted bool) {
	doubted = len(hosts)+len(pods) > 0
	if len(e.hosts) == 0 || !doubted {
		e.hosts = hosts
	}
	if len(e.pods) == 0 || !doubted {
		e.pods = pods
	}
	return doubted
}

// poke begins one anew, because another host is suspect.
func (e *errands) poke(hosts, pods [][]asking) (doubted bool) {
	e.hosts, e.pods = nil, nil
	return e.tick(hosts, pods)
}

func (e *errands) none() bool { return len(e.hosts)+len(e.pods) == 0 }

func (e *errands) next() (request []asking) {
	e.turn++
	from := &e.hosts
	if len(e.hosts) == 0 || (len(e.pods) > 0 && e.turn%podsTurn == 0) {
		from = &e.pods
	}
	request, *from = (*from)[0], (*from)[1:]
	return request
}

func enter(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

func leave(places chan struct{}) { <-places }

func (a *asker) look(ctx context.Context) {
	call, done := context.WithTimeout(ctx, viewFor)
	defer done()
	asked := a.clock.Instant()
	view, err := a.agent.View(call, a.address)
	if ctx.Err() == nil {
		a.hearView(view, err, asked, false)
	}
}

// hearView takes a view, or that there was none, and reports whether it was one. Of two that were under way at a time, the one that was awaited may be the
// newer, whichever was asked for first.
func (a *asker) hearView(view wire.View, err error, asked evidence.Instant, awaited bool) bool {
	if err == nil {
		err = twice(view)
	}
	if err != nil {
		a.complain(kind(err), a.node, err)
	}
	a.mu.Lock()
	v, arrived := a.vantage, a.clock.Instant()
	was := v.answered
	v.answered, v.tried = err == nil, max(v.tried, asked)
	var news []string
	switch {
	case err != nil:
		if !v.fails {
			v.fails, v.failing = true, arrived
		}
	case !awaited && v.awaited > asked:
		v.answeredOnce, v.fails, v.last = true, false, arrived
	default:
		v.answeredOnce, v.fails, v.last, v.latest = true, false, arrived, arrived
		if awaited {
			v.awaited = arrived
		}
		news = v.take(view, asked, arrived, a.wanted)
	}
	if was != v.answered {
		news = append(news, slices.Collect(maps.Keys(a.suspects))...)
	}
	close(a.news)
	a.news = make(chan struct{})
	a.mu.Unlock()
	a.tell(news)
	return err == nil
}

// wanted reports whether what is said of a host is kept; mu is held.
func (a *asker) wanted(host string) bool {
	_, listed := a.hosts[host]
	_, suspect := a.suspects[host]
	return listed || suspect
}

func (a *asker) tell(hosts []string) {
	slices.Sort(hosts)
	for _, host := range slices.Compact(hosts) {
		a.changed(host)
	}
}

// asking is what one question is about: a host's agent or port, or a pod there.
type asking struct {
	host, pod string
	agent     bool
	question  wire.Question
}

// requests are what it is asked in one round, each one for one request: of every suspect host but its own the agent and the kubelet's port, and the
// guarded pods. No request has both, so that a pod's odd probe does not keep a host from being looked for.
func (a *asker) requests() (ofHosts, ofPods [][]asking) {
	a.mu.Lock()
	var suspects []Host
	for _, h := range slices.SortedFunc(maps.Values(a.suspects), byName) {
		if h.Node != a.node && askable(wire.Question{Address: h.Address, Port: kubeletPort}) == nil {
			suspects = append(suspects, h)
		}
	}
	a.mu.Unlock()
	var hosts, pods [][]asking
	for _, h := range suspects {
		hosts = append(hosts, []asking{
			{host: h.Node, agent: true, question: wire.Question{Agent: h.Node, Address: h.Address}},
			{host: h.Node, question: wire.Question{Address: h.Address, Port: kubeletPort, TLS: true}},
		})
		for _, t := range a.Targets(h.Node) {
			if all := a.ofPod(h.Node, t); len(all) > 0 {
				pods = append(pods, all)
			}
		}
	}
	return packed(hosts), packed(pods)
}

// ofPod are the questions of a pod's probes: all of them, or none.
func (a *asker) ofPod(host string, t Target) []asking {
	var out []asking
	for _, p := range t.Health.Probes {
		question, err := questionOf(p, t)
		if err == nil {
			err = askable(question)
		}
		if err != nil {
			a.complain(Unaskable, t.Pod, err)
			return nil
		}
		out = append(out, asking{host: host, pod: t.UID, question: question})
	}
	if len(out) > wire.Questions {
		a.complain(Unaskable, t.Pod, errors.New("it has more probes than an agent tries at a time"))
		return nil
	}
	return out
}

// packed puts as many into one request as it may hold, and none of them into two.
func packed(groups [][]asking) [][]asking {
	var out [][]asking
	for _, g := range groups {
		if last := len(out) - 1; last >= 0 && len(out[last])+len(g) <= wire.Questions {
			out[last] = append(out[last], g...)
			continue
		}
		out = append(out, slices.Clone(g))
	}
	return out
}

// askable says why no agent would try a question: one such has it refuse the whole request.
func askable(q wire.Question) error {
	ip, err := netip.ParseAddr(q.Address)
	if err != nil {
		return err
	}
	ip = ip.Unmap()
	if ip.Zone() != "" || !ip.IsGlobalUnicast() || (ip.Is4() && ip.As4()[0] == 0) {
		return errors.New(q.Address + " is not the unicast address of a host or pod")
	}
	if q.Port < 1 || q.Port > 65535 {
		return errors.New(strconv.Itoa(int(q.Port)) + " is no TCP port")
	}
	return probe.Check(q)
}

func (a *asker) probe(ctx context.Context, request []asking) {
	questions := make([]wire.Question, len(request))
	for i, r := range request {
		questions[i] = r.question
		questions[i].Name = strconv.Itoa(i)
	}
	call, done := context.WithTimeout(ctx, probeFor)
	defer done()
	asked := a.clock.Instant()
	answer, err := a.agent.Probe(call, a.address, questions)
	if ctx.Err() != nil {
		return
	}
	if err == nil && len(answer.Answers) != len(request) {
		err = errors.New("it does not answer what was asked")
	}
	if err != nil {
		a.complain(kind(err), a.node, err)
		return
	}
	a.mu.Lock()
	arrived := a.clock.Instant()
	news := a.vantage.found(request, answer.Answers, asked, arrived)
	a.mu.Unlock()
	a.tell(news)
}

// found takes the answers to one request, and names the hosts of which they say something new. The questions were not asked before the request was, and what
// answered had done so when the answer arrived.
func (v *vantage) found(request []asking, answers []wire.Answer, asked, arrived evidence.Instant) (news []string) {
	sign := evidence.Sign{Heard: true, NotBefore: asked, NotAfter: arrived}
	pods := map[[2]string][]wire.Outcome{} // by host and pod
	for i, r := range request {
		s, answer := v.about(r.host), answers[i]
		switch {
		case r.pod != "":
			key := [2]string{r.host, r.pod}
			pods[key] = append(pods[key], answer.Outcome)
		case r.agent:
			if answer.Outcome == wire.Answered && boot(answer.BootID) != "" {
				s.said(sign, answer.BootID)
			}
		case s.port(answerOf(answer.Outcome), sign):
			news = append(news, r.host)
		}
	}
	for key, outcomes := range pods {
		if v.about(key[0]).pod(key[1], outcomes, sign) {
			news = append(news, key[0])
		}
	}
	return news
}

// port takes how the kubelet's port answered, and reports whether that is another answer than before.
func (s *seen) port(answer evidence.Answer, sign evidence.Sign) bool {
	if answer.Rank() != evidence.RankNone {
		s.PortHeard = latest(s.PortHeard, sign)
	}
	if sign.NotBefore < s.PortAsked { // a later question was answered sooner
		return false
	}
	was := s.Port
	s.Port, s.PortAsked = answer, sign.NotBefore
	return was != answer
}

// pod takes what came of all probes of a pod, and reports whether that is another answer than before.
func (s *seen) pod(uid string, outcomes []wire.Outcome, sign evidence.Sign) bool {
	i := slices.IndexFunc(s.Apps, func(a evidence.AppThere) bool { return a.PodUID == uid })
	if i < 0 {
		s.Apps, i = append(s.Apps, evidence.AppThere{PodUID: uid}), len(s.Apps)
	}
	there := &s.Apps[i]
	for _, o := range outcomes {
		switch o {
		case wire.Answered:
			there.Answered, there.Replied = latest(there.Answered, sign), latest(there.Replied, sign)
		case wire.Failed, wire.Refused:
			there.Replied = latest(there.Replied, sign)
		}
	}
	if sign.NotBefore < there.Asked {
		return false
	}
	was := there.Says
	there.Says, there.Asked = thereOf(outcomes), sign.NotBefore
	return was != there.Says
}

// thereOf joins the probes of one pod: all must be answered, and one that is not is enough, unless it was not asked.
func thereOf(outcomes []wire.Outcome) evidence.There {
	has := func(which ...wire.Outcome) bool {
		return slices.ContainsFunc(outcomes, func(o wire.Outcome) bool { return slices.Contains(which, o) })
	}
	fails := has(wire.Failed, wire.Refused, wire.Silent, wire.Unreachable)
	switch {
	case fails && has(wire.Answered, wire.Failed):
		return evidence.ThereFailed
	case fails && has(wire.Refused):
		return evidence.ThereRefused
	case fails:
		return evidence.ThereSilent
	case slices.ContainsFunc(outcomes, func(o wire.Outcome) bool { return o != wire.Answered }):
		return evidence.ThereUnread
	default:
		return evidence.ThereAnswered
	}
}

// kind is what a question in vain is counted as.
func kind(err error) Complaint {
	var network *net.OpError
	switch {
	case errors.As(err, &network), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Unanswered
	default:
		return Misspoken
	}
}

// complain counts, and logs the first of each kind in a minute.
func (w *Witnesses) complain(kind Complaint, about string, err error) {
	w.mu.Lock()
	w.counts[kind]++
	count, now := w.counts[kind], w.clock.Instant()
	last, before := w.told[kind]
	loud := !before || now.Sub(last) >= complainEvery
	if loud {
		w.told[kind] = now
	}
	w.mu.Unlock()
	if loud {
		w.Log.Info("witness agents are not asked as they should be", "kind", kind, "about", about, "why", err.Error(), "countOfThisKind", count)
	}
}

// Counts are how often each kind of complaint came.
func (w *Witnesses) Counts() map[Complaint]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.counts)
}
