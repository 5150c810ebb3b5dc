// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package api is the agent's HTTPS server: docs/spec/witness.md, "The API of the agent".
package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/probe"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Sight is what the agent sees of the other hosts, and how it asks their agents. Its methods are safe for concurrent use.
type Sight interface {
	// View returns what is known now.
	View() wire.View
	// Await returns the view as soon as its index is another one, or as it is when the context ends.
	Await(ctx context.Context, index uint64) wire.View
	// Ping asks the agent of a host and returns the boot ID that it answers with. No answer in time is an error that is context.DeadlineExceeded; what the
	// network says is one that wraps the kernel's. It ends with the context.
	Ping(ctx context.Context, node, address string) (bootID string, err error)
}

// Identity is the server's certificate, and the authorities that its callers' come from. With an error it may still return what it was before.
type Identity interface {
	Identity() (*identity.Identity, error)
}

const (
	// polls is how many may await a view at a time, and probes how many probe requests are answered at a time.
	polls  = 16
	probes = 4
	// bodyFor is how long a caller may take to send a body.
	bodyFor = 2 * time.Second
	// graceFor is what requests have left when the server ends.
	graceFor = time.Second
)

// Server answers the manager.
type Server struct {
	// Dial reaches what is asked about. It is not changed once the server serves.
	Dial probe.Dial

	sight    Sight
	identity Identity
	log      logr.Logger
	refusals *refusals

	now    func() time.Time
	wait   time.Duration
	polls  chan struct{}
	probes chan struct{}
	hands  hands
}

// New returns a server that answers nobody until it serves.
func New(sight Sight, who Identity, log logr.Logger) *Server {
	return &Server{
		sight: sight, identity: who, Dial: (&net.Dialer{}).DialContext, log: log, now: time.Now, wait: wire.WaitMillis * time.Millisecond,
		refusals: &refusals{log: log, now: time.Now, counts: map[Refusal]uint64{}, logged: map[Refusal]time.Time{}},
		polls:    make(chan struct{}, polls), probes: make(chan struct{}, probes),
		hands: hands{resets: make(chan struct{}, resets), restarts: make(chan struct{}, 1), recycles: make(chan struct{}, 1), deeds: map[Deed]uint64{}},
	}
}

// Serve answers on the listener until the context ends, and closes it. It returns nil if it ended with the context.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if _, err := s.own(); err != nil {
		return err
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler: http.HandlerFunc(s.serve), BaseContext: func(net.Listener) context.Context { return ctx }, Protocols: protocols,
		ReadHeaderTimeout: handshakeFor, WriteTimeout: s.wait + 10*time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.New(lines{s.log}, "", 0),
	}
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		last, done := context.WithTimeout(context.WithoutCancel(ctx), graceFor)
		defer done()
		if server.Shutdown(last) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(newGate(ctx, l, s.config, s.refusals.note))
	if stop() { // it ended of itself
		_ = server.Close()
		return err
	}
	<-over
	return nil
}

// lines are what net/http has to say.
type lines struct{ log logr.Logger }

func (l lines) Write(p []byte) (int, error) {
	l.log.Info("the server says", "line", strings.TrimSpace(string(p)))
	return len(p), nil
}

// own is the identity now. What it was before does, if it cannot be read again.
func (s *Server) own() (*identity.Identity, error) {
	own, err := s.identity.Identity()
	if own == nil {
		return nil, fmt.Errorf("the agent has no certificate: %w", err)
	}
	if err != nil {
		s.refusals.note(Unread, "", err.Error())
	}
	return own, nil
}

// config is for one connection, so that each begins with the certificate and the authorities of its time.
func (s *Server) config() *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Time: s.now,
		ClientAuth: tls.RequireAndVerifyClientCert,
		// Nobody comes back with a ticket from before the authorities changed.
		SessionTicketsDisabled: true,
	}
	if own, err := s.own(); err == nil { // without, each handshake fails
		config.Certificates, config.ClientCAs = []tls.Certificate{*own.Certificate()}, own.Authorities()
	}
	return config
}

// caller is what a certificate's name stands for.
type caller string

const (
	manager caller = "manager"
	witness caller = "witness"
)

func callerOf(name string) (caller, bool) {
	node, isWitness := strings.CutPrefix(name, wire.WitnessName(""))
	switch {
	case name == wire.ManagerName:
		return manager, true
	case isWitness && node != "":
		return witness, true
	default:
		return "", false
	}
}

// verb is one thing that can be asked for, and who may.
type verb struct {
	may    []caller
	answer func(*Server, http.ResponseWriter, *http.Request) *refusal
}

// verbs are by path and method.
var verbs = map[string]map[string]verb{
	wire.PathView:    {http.MethodGet: {may: []caller{manager}, answer: (*Server).view}},
	wire.PathProbe:   {http.MethodPost: {may: []caller{manager}, answer: (*Server).probe}},
	wire.PathReset:   {http.MethodPost: {may: []caller{manager}, answer: (*Server).reset}},
	wire.PathRecycle: {http.MethodPost: {may: []caller{manager}, answer: (*Server).recycle}},
	wire.PathRestart: {http.MethodPost: {may: []caller{manager}, answer: (*Server).restart}},
}

// refusal is why a request is not answered.
type refusal struct {
	kind   Refusal // empty: it is not the caller's fault, and not counted
	status int
	why    string
	header [2]string
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	name, no := s.name(r)
	if no == nil {
		no = s.answer(w, r, name)
	}
	if no == nil {
		return
	}
	why := shorten(no.why)
	if no.kind != "" {
		s.refusals.note(no.kind, strings.TrimSpace(name+" "+r.RemoteAddr), why)
	}
	if no.header[0] != "" {
		w.Header().Set(no.header[0], no.header[1])
	}
	http.Error(w, why, no.status)
}

// name is the caller's, by its certificate: with each request again, since connections live longer than certificates and authorities may.
func (s *Server) name(r *http.Request) (string, *refusal) {
	own, err := s.own()
	if err != nil {
		return "", &refusal{status: http.StatusServiceUnavailable, why: err.Error()}
	}
	name, err := own.Name(r.TLS.PeerCertificates, x509.ExtKeyUsageClientAuth, s.now())
	if err != nil {
		return "", &refusal{kind: Stranger, status: http.StatusForbidden, why: err.Error(), header: [2]string{"Connection", "close"}}
	}
	return name, nil
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, name string) *refusal {
	who, known := callerOf(name)
	if !known {
		return &refusal{kind: Stranger, status: http.StatusForbidden, why: fmt.Sprintf("the certificate's name %q is neither the manager's nor an agent's", name)}
	}
	methods, ok := verbs[r.URL.Path]
	if !ok {
		return &refusal{kind: NoSuchPath, status: http.StatusNotFound, why: "there are " + strings.Join([]string{wire.PathView, wire.PathProbe, wire.PathReset, wire.PathRecycle, wire.PathRestart}, ", ")}
	}
	verb, ok := methods[r.Method]
	if !ok {
		var allowed []string
		for method := range methods {
			allowed = append(allowed, method)
		}
		allow := strings.Join(allowed, ", ")
		return &refusal{kind: NoSuchMethod, status: http.StatusMethodNotAllowed, why: r.URL.Path + " answers " + allow, header: [2]string{"Allow", allow}}
	}
	if !slices.Contains(verb.may, who) {
		return &refusal{kind: Forbidden, status: http.StatusForbidden, why: fmt.Sprintf("%s may not %s %s", name, r.Method, r.URL.Path)}
	}
	return verb.answer(s, w, r)
}

func (s *Server) view(w http.ResponseWriter, r *http.Request) *refusal {
	index, wait, err := indexOf(r.URL)
	if err != nil {
		return &refusal{kind: Malformed, status: http.StatusBadRequest, why: err.Error()}
	}
	if !wait {
		return s.reply(w, s.sight.View())
	}
	leave, no := enter(s.polls, "views are awaited")
	if no != nil {
		return no
	}
	defer leave()
	ctx, done := context.WithTimeout(r.Context(), s.wait)
	defer done()
	view := s.sight.Await(ctx, index)
	if r.Context().Err() != nil { // the caller left, or the agent is ending
		return &refusal{status: http.StatusServiceUnavailable, why: "the agent is ending; ask another one"}
	}
	return s.reply(w, view)
}

// indexOf reads the query: an index to wait for the end of, or none.
func indexOf(u *url.URL) (index uint64, wait bool, err error) {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return 0, false, fmt.Errorf("the query cannot be read: %w; it may have an index only", err)
	}
	for name, values := range query {
		if name != "index" || len(values) != 1 {
			return 0, false, fmt.Errorf("%s: it is given %d times; the query may have one index only", name, len(values))
		}
		if index, err = strconv.ParseUint(values[0], 10, 64); err != nil {
			return 0, false, fmt.Errorf("index: %q is no whole number of 64 bits; give that of the last view, or none", values[0])
		}
		wait = true
	}
	return index, wait, nil
}

// enter takes one of the places, or none if all are taken.
func enter(places chan struct{}, what string) (leave func(), no *refusal) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, &refusal{
			kind: Flood, status: http.StatusTooManyRequests, why: fmt.Sprintf("%d %s already; come back when one is answered", cap(places), what),
			header: [2]string{"Retry-After", "1"},
		}
	}
}

func (s *Server) probe(w http.ResponseWriter, r *http.Request) *refusal {
	leave, no := enter(s.probes, "probe requests are being answered")
	if no != nil {
		return no
	}
	defer leave()
	var request wire.ProbeRequest
	if no := body(w, r, &request); no != nil {
		return no
	}
	if err := checkAll(request.Questions); err != nil {
		return &refusal{kind: Malformed, status: http.StatusBadRequest, why: err.Error()}
	}
	self := s.sight.View()
	return s.reply(w, wire.ProbeAnswer{Node: self.Node, BootID: self.BootID, Answers: s.ask(r.Context(), request.Questions)})
}

// body reads the one thing that a request asks for, in time.
func body(w http.ResponseWriter, r *http.Request, into any) *refusal {
	patience := http.NewResponseController(w)
	if err := patience.SetReadDeadline(time.Now().Add(bodyFor)); err != nil {
		return &refusal{status: http.StatusInternalServerError, why: err.Error()}
	}
	err := read(http.MaxBytesReader(w, r.Body, bodyBytes), into)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return &refusal{kind: TooLarge, status: http.StatusRequestEntityTooLarge, why: fmt.Sprintf("the body is larger than %d bytes; ask less at a time", bodyBytes)}
	case err != nil:
		return &refusal{kind: Malformed, status: http.StatusBadRequest, why: err.Error()}
	}
	if err := patience.SetReadDeadline(time.Time{}); err != nil { // or the end of it would look like the caller's leaving
		return &refusal{status: http.StatusInternalServerError, why: err.Error()}
	}
	return nil
}

func (s *Server) reply(w http.ResponseWriter, what any) *refusal {
	body, err := json.Marshal(what)
	if err != nil {
		return &refusal{status: http.StatusInternalServerError, why: err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // whoever does not listen any more misses it
	return nil
}

// shorten bounds what is said again of what a caller, or whoever was asked, sent.
func shorten(why string) string {
	if len(why) <= whyBytes {
		return why
	}
	return strings.ToValidUTF8(why[:whyBytes], "") + "…"
}
