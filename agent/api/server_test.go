// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// What gossips can be served.
var _ Sight = (*gossip.Member)(nil)

// sky is what the agent of a test sees.
type sky struct {
	mu      sync.Mutex
	view    wire.View
	changed chan struct{}
	entered chan struct{} // a value for each Await that waits
	left    chan error    // and one for each that ended
	ping    func(ctx context.Context, node, address string) (string, error)
}

func newSky() *sky {
	return &sky{
		view:    wire.View{Node: "a", BootID: "boot-a", Index: 7, Hosts: []wire.Host{{Facts: wire.Facts{Node: "a", BootID: "boot-a"}, State: wire.StateAlive}}},
		changed: make(chan struct{}), entered: make(chan struct{}, 100), left: make(chan error, 100),
	}
}

func (s *sky) View() wire.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

func (s *sky) Await(ctx context.Context, index uint64) wire.View {
	s.entered <- struct{}{}
	for {
		s.mu.Lock()
		view, changed := s.view, s.changed
		s.mu.Unlock()
		if view.Index != index {
			s.left <- nil
			return view
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.left <- ctx.Err()
			return view
		}
	}
}

func (s *sky) change() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.Index++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sky) Ping(ctx context.Context, node, address string) (string, error) {
	return s.ping(ctx, node, address)
}

// rig is a server on loopback, with files that the test writes.
type rig struct {
	*testing.T
	server  *Server
	sky     *sky
	ca      *authority.Authority
	files   identity.Files
	address string
	refused chan string // the log of each refusal
	dialled atomic.Int32
	stop    func() error
}

func newRig(t *testing.T, change func(*Server)) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{
		T: t, sky: newSky(), ca: newAuthority(t), refused: make(chan string, 1000),
		files: identity.Files{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Authorities: filepath.Join(dir, "ca.crt")},
	}
	r.write(r.ca, r.ca)
	who, err := identity.Open(r.files)
	if err != nil {
		t.Fatal(err)
	}
	r.server = New(r.sky, who, funcr.New(func(_, args string) { r.refused <- args }, funcr.Options{}))
	at := time.Now()
	r.server.refusals.now = func() time.Time { at = at.Add(logEvery); return at } // each refusal is logged
	dial := r.server.Dial
	r.server.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		r.dialled.Add(1)
		return dial(ctx, network, address)
	}
	if change != nil {
		change(r.server)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.server.Serve(ctx, l) }()
	r.stop = sync.OnceValue(func() error { stop(); return <-over })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return r
}

func newAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	a, err := authority.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// write makes the server's certificate anew, by one authority, and has it believe another.
func (r *rig) write(own, callers *authority.Authority) {
	r.Helper()
	certificate, key, err := own.Pair(wire.WitnessName("a"), time.Now())
	if err != nil {
		r.Fatal(err)
	}
	authorities, _, err := callers.PEM()
	if err != nil {
		r.Fatal(err)
	}
	for path, text := range map[string][]byte{r.files.Certificate: certificate, r.files.Key: key, r.files.Authorities: authorities} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			r.Fatal(err)
		}
	}
}

// caller has a certificate of a name, or none without an authority.
func (r *rig) caller(a *authority.Authority, name string, at time.Time) *http.Client {
	r.Helper()
	config := &tls.Config{InsecureSkipVerify: true} // whom the manager believes is tested with its client
	if a != nil {
		certificate, key, err := a.Pair(name, at)
		if err != nil {
			r.Fatal(err)
		}
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			r.Fatal(err)
		}
		// Also if the server did not ask for one of this authority.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	transport := &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 100}
	r.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (r *rig) manager() *http.Client { return r.caller(r.ca, wire.ManagerName, time.Now()) }

// said is what a server answered.
type said struct {
	status int
	header http.Header
	body   string
}

func (r *rig) do(ctx context.Context, c *http.Client, method, path, body string) (said, error) {
	r.Helper()
	request, err := http.NewRequestWithContext(ctx, method, "https://"+r.address+path, strings.NewReader(body))
	if err != nil {
		return said{}, err
	}
	response, err := c.Do(request)
	if err != nil {
		return said{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return said{response.StatusCode, response.Header, string(text)}, err
}

func (r *rig) must(c *http.Client, method, path, body string, status int) said {
	r.Helper()
	got, err := r.do(r.Context(), c, method, path, body)
	if err != nil {
		r.Fatal(err)
	}
	if got.status != status {
		r.Fatalf("%s %s: %d %s, want %d", method, path, got.status, got.body, status)
	}
	return got
}

// counted waits for the next refusal to be logged, and wants it to be the only one of its kind and any.
func (r *rig) counted(kind Refusal) {
	r.Helper()
	line := <-r.refused
	if !strings.Contains(line, `"kind"="`+string(kind)+`"`) {
		r.Errorf("logged %s, want %s", line, kind)
	}
	total := uint64(0)
	for _, n := range r.server.Counts() {
		total += n
	}
	if r.server.Counts()[kind] != 1 || total != 1 {
		r.Errorf("counted %v, want one %s", r.server.Counts(), kind)
	}
}

func TestWithoutACertificateOfTheAuthorityNothingIsAnswered(t *testing.T) {
	long := time.Now().Add(-authority.Life - time.Hour)
	for name, who := range map[string]func(*rig) *http.Client{
		"no certificate":                       func(r *rig) *http.Client { return r.caller(nil, "", time.Time{}) },
		"the manager's name by another's hand": func(r *rig) *http.Client { return r.caller(newAuthority(t), wire.ManagerName, time.Now()) },
		"expired":                              func(r *rig) *http.Client { return r.caller(r.ca, wire.ManagerName, long) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			if got, err := r.do(t.Context(), who(r), http.MethodGet, wire.PathView, ""); err == nil {
				t.Errorf("answered %d %s", got.status, got.body)
			}
			r.counted(Handshake)
			r.must(r.manager(), http.MethodGet, wire.PathView, "", http.StatusOK)
		})
	}
}

func TestWhoDoesNotSpeakTLS13IsNotAnswered(t *testing.T) {
	r := newRig(t, nil)
	c := r.manager()
	c.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
	if got, err := r.do(t.Context(), c, http.MethodGet, wire.PathView, ""); err == nil {
		t.Errorf("answered %d %s", got.status, got.body)
	}
	r.counted(Handshake)
}

func TestWhoMayDoWhat(t *testing.T) {
	probe := `{"questions":[{"name":"x","address":"192.0.2.1","port":1}]}`
	for _, test := range []struct {
		name, caller, method, path, body string
		want                             int
		kind                             Refusal
	}{
		{"the manager looks", wire.ManagerName, http.MethodGet, wire.PathView, "", http.StatusOK, ""},
		{"the manager asks", wire.ManagerName, http.MethodPost, wire.PathProbe, probe, http.StatusOK, ""},
		{"an agent looks", wire.WitnessName("b"), http.MethodGet, wire.PathView, "", http.StatusForbidden, Forbidden},
		{"an agent asks", wire.WitnessName("b"), http.MethodPost, wire.PathProbe, probe, http.StatusForbidden, Forbidden},
		{"the agent itself asks", wire.WitnessName("a"), http.MethodPost, wire.PathProbe, probe, http.StatusForbidden, Forbidden},
		{"a name that begins like the manager's", wire.ManagerName + "s", http.MethodGet, wire.PathView, "", http.StatusForbidden, Stranger},
		{"an agent of no host", wire.WitnessName(""), http.MethodGet, wire.PathView, "", http.StatusForbidden, Stranger},
		{"another system's name", "spiffe://cluster/manager", http.MethodGet, wire.PathView, "", http.StatusForbidden, Stranger},
		{"another system's name, another path", "spiffe://cluster/manager", http.MethodGet, "/", "", http.StatusForbidden, Stranger},
		{"no such path", wire.ManagerName, http.MethodGet, "/v1/views", "", http.StatusNotFound, NoSuchPath},
		{"a path that would be another, cleaned", wire.ManagerName, http.MethodGet, "/v1//view", "", http.StatusNotFound, NoSuchPath},
		{"the root", wire.ManagerName, http.MethodGet, "/", "", http.StatusNotFound, NoSuchPath},
		{"no such path for an agent", wire.WitnessName("b"), http.MethodGet, "/metrics", "", http.StatusNotFound, NoSuchPath},
		{"a view is not posted", wire.ManagerName, http.MethodPost, wire.PathView, "", http.StatusMethodNotAllowed, NoSuchMethod},
		{"a probe is not got", wire.ManagerName, http.MethodGet, wire.PathProbe, "", http.StatusMethodNotAllowed, NoSuchMethod},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, func(s *Server) {
				s.Dial = func(context.Context, string, string) (net.Conn, error) {
					if test.kind != "" {
						t.Error("something was asked")
					}
					return nil, syscall.ECONNREFUSED
				}
			})
			got := r.must(r.caller(r.ca, test.caller, time.Now()), test.method, test.path, test.body, test.want)
			if test.want == http.StatusMethodNotAllowed && got.header.Get("Allow") == "" {
				t.Error("it does not say what is allowed")
			}
			if test.kind != "" {
				r.counted(test.kind)
			} else if n := len(r.server.Counts()); n != 0 {
				t.Errorf("counted %v", r.server.Counts())
			}
		})
	}
}

func TestAViewIsGivenAtOnceOrWhenItChanges(t *testing.T) {
	r := newRig(t, nil)
	c := r.manager()
	index := func(got said) uint64 {
		t.Helper()
		var v wire.View
		if err := json.Unmarshal([]byte(got.body), &v); err != nil || v.Node != "a" || len(v.Hosts) != 1 {
			t.Fatalf("%s: %v", got.body, err)
		}
		return v.Index
	}
	if got := index(r.must(c, http.MethodGet, wire.PathView, "", http.StatusOK)); got != 7 {
		t.Errorf("index %d", got)
	}
	if got := index(r.must(c, http.MethodGet, wire.PathView+"?index=6", "", http.StatusOK)); got != 7 {
		t.Errorf("an index of the past: %d", got)
	}
	<-r.sky.entered
	answers := make(chan said)
	go func() {
		got, err := r.do(t.Context(), c, http.MethodGet, wire.PathView+"?index=7", "")
		if err != nil {
			t.Error(err)
		}
		answers <- got
	}()
	<-r.sky.entered
	select {
	case got := <-answers:
		t.Fatalf("answered before anything changed: %s", got.body)
	default:
	}
	r.sky.change()
	if got := index(<-answers); got != 8 {
		t.Errorf("index %d after the change", got)
	}
}

func TestALongWaitEndsWithTheSameView(t *testing.T) {
	r := newRig(t, func(s *Server) { s.wait = time.Millisecond })
	got := r.must(r.manager(), http.MethodGet, wire.PathView+"?index=7", "", http.StatusOK)
	if !strings.Contains(got.body, `"index":7`) {
		t.Errorf("got %s", got.body)
	}
	if err := <-r.sky.left; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the wait ended by %v", err)
	}
}

// vacant waits until all places are free.
func vacant(places chan struct{}) {
	for range cap(places) {
		places <- struct{}{}
	}
	for range cap(places) {
		<-places
	}
}

func TestAWaitEndsWithItsCaller(t *testing.T) {
	r := newRig(t, nil)
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := r.do(ctx, r.manager(), http.MethodGet, wire.PathView+"?index=7", "")
		gone <- err
	}()
	<-r.sky.entered
	leave()
	if err := <-gone; err == nil {
		t.Error("a caller that left was answered")
	}
	if err := <-r.sky.left; !errors.Is(err, context.Canceled) {
		t.Errorf("the wait ended by %v", err)
	}
	vacant(r.server.polls)
}

func TestAWaitEndsWithTheAgent(t *testing.T) {
	r := newRig(t, nil)
	answers := make(chan said, 1)
	go func() {
		got, err := r.do(context.WithoutCancel(t.Context()), r.manager(), http.MethodGet, wire.PathView+"?index=7", "")
		if err != nil {
			t.Error(err)
		}
		answers <- got
	}()
	<-r.sky.entered
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if got := <-answers; got.status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", got.status, got.body)
	}
	if len(r.server.polls) != 0 {
		t.Error("somebody still waits")
	}
}

func TestMoreViewsThanThatAreNotAwaited(t *testing.T) {
	r := newRig(t, nil)
	c := r.manager()
	answers := make(chan said, polls)
	for range polls {
		go func() {
			got, err := r.do(t.Context(), c, http.MethodGet, wire.PathView+"?index=7", "")
			if err != nil {
				t.Error(err)
			}
			answers <- got
		}()
		<-r.sky.entered
	}
	if got := r.must(c, http.MethodGet, wire.PathView+"?index=7", "", http.StatusTooManyRequests); got.header.Get("Retry-After") == "" {
		t.Error("it does not say when to come back")
	}
	r.counted(Flood)
	r.must(c, http.MethodGet, wire.PathView, "", http.StatusOK) // what does not wait takes no place
	r.sky.change()
	for range polls {
		if got := <-answers; got.status != http.StatusOK {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
}

func TestAQueryThatIsNotUnderstood(t *testing.T) {
	for query, says := range map[string]string{
		"index=": "index:", "index=x": "index:", "index=-1": "index:", "index=18446744073709551616": "index:",
		"index=1&index=2": "index:", "indx=1": "indx:", "index=%zz": "query", "a;b": "query",
	} {
		t.Run(query, func(t *testing.T) {
			r := newRig(t, nil)
			got := r.must(r.manager(), http.MethodGet, wire.PathView+"?"+query, "", http.StatusBadRequest)
			if !strings.Contains(got.body, says) {
				t.Errorf("%q does not name %q", got.body, says)
			}
			r.counted(Malformed)
		})
	}
}

func TestACertificateThatChangesWhileItServes(t *testing.T) {
	r := newRig(t, nil)
	shown := func(c *http.Client) string {
		t.Helper()
		response, err := c.Get("https://" + r.address + wire.PathView)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		if response.StatusCode != http.StatusOK {
			t.Fatal(response.Status)
		}
		return response.TLS.PeerCertificates[0].SerialNumber.String()
	}
	old := r.manager()
	first := shown(old)
	r.write(r.ca, r.ca)
	if got := shown(old); got != first {
		t.Error("the connection that was open did not go on")
	}
	second := shown(r.manager())
	if second == first {
		t.Error("a new connection is shown the old certificate")
	}

	if err := os.Remove(r.files.Key); err != nil {
		t.Fatal(err)
	}
	if got := shown(r.manager()); got != second {
		t.Error("without its key it does not go on with what it had")
	}
	if line := <-r.refused; !strings.Contains(line, string(Unread)) || !strings.Contains(line, r.files.Key) {
		t.Errorf("logged %s", line)
	}

	next := newAuthority(t)
	r.write(next, next)
	r.must(old, http.MethodGet, wire.PathView, "", http.StatusForbidden) // the open connection too, since its authority is believed no more
	if _, err := r.do(t.Context(), r.manager(), http.MethodGet, wire.PathView, ""); err == nil {
		t.Error("the old authority is still believed")
	}
	third := shown(r.caller(next, wire.ManagerName, time.Now()))
	if third == second {
		t.Error("a new connection is shown the old certificate")
	}
}

func TestACertificateThatExpiresOnAnOpenConnection(t *testing.T) {
	var late atomic.Bool
	r := newRig(t, func(s *Server) {
		s.now = func() time.Time {
			if late.Load() {
				return time.Now().Add(authority.Life + time.Hour)
			}
			return time.Now()
		}
	})
	c := r.manager()
	r.must(c, http.MethodGet, wire.PathView, "", http.StatusOK)
	late.Store(true)
	r.must(c, http.MethodGet, wire.PathView, "", http.StatusForbidden)
	r.counted(Stranger)
}

func TestOneAddressCannotTakeAllConnections(t *testing.T) {
	r := newRig(t, nil)
	from := func(ip string) net.Conn {
		t.Helper()
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext(t.Context(), "tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() }) // the server may have been first
		return conn
	}
	for range connectionsFrom {
		from("127.0.0.2")
	}
	if _, err := from("127.0.0.2").Read(make([]byte, 1)); err == nil {
		t.Error("one more is let in")
	}
	r.counted(Crowd)
	r.must(r.manager(), http.MethodGet, wire.PathView, "", http.StatusOK) // comes from 127.0.0.1
}

func TestWhatIsRefusedIsLoggedOnceAMinuteAndKind(t *testing.T) {
	var log []string
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := &refusals{
		log: funcr.New(func(_, args string) { log = append(log, args) }, funcr.Options{}), now: func() time.Time { return at },
		counts: map[Refusal]uint64{}, logged: map[Refusal]time.Time{},
	}
	for range 5 {
		r.note(Flood, "10.0.0.1", "too many")
	}
	r.note(Stranger, "10.0.0.1", "unknown")
	at = at.Add(logEvery - 1)
	r.note(Flood, "10.0.0.1", "too many")
	if len(log) != 2 || !strings.Contains(log[0], "10.0.0.1") || !strings.Contains(log[0], "too many") {
		t.Errorf("logged %q", log)
	}
	at = at.Add(1)
	r.note(Flood, "10.0.0.1", "too many")
	if len(log) != 3 || !strings.Contains(log[2], `"countOfThisKind"=7`) {
		t.Errorf("logged %q", log)
	}
	if r.counts[Flood] != 7 || r.counts[Stranger] != 1 {
		t.Errorf("counted %v", r.counts)
	}
}

func TestWithoutACertificateItDoesNotServe(t *testing.T) {
	s := New(newSky(), &identity.Source{}, funcr.New(func(string, string) {}, funcr.Options{}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := s.Serve(t.Context(), l); err == nil {
		t.Error("it serves")
	}
}

func questions(t *testing.T, q ...wire.Question) string {
	t.Helper()
	b := &bytes.Buffer{}
	if err := json.NewEncoder(b).Encode(wire.ProbeRequest{Questions: q}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
