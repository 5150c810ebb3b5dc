// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package call is how the manager asks an agent: the other side of package api. See docs/spec/witness.md, "The API of the agent".
package call

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Identity is the caller's certificate, and the authorities that the agents' come from: an [identity.Source] or [identity.Identity]. It returns the same
// pointer as long as nothing changed: with another one all connections are made anew. With an error it may still return what it was before.
type Identity interface {
	Identity() (*identity.Identity, error)
}

// Refused is an agent's answer that is no answer.
type Refused struct {
	Status int
	Why    string
	// After is when to ask again, if the agent says so.
	After time.Duration
}

// Error implements error.
func (r *Refused) Error() string {
	return fmt.Sprintf("refused: %d %s: %s", r.Status, http.StatusText(r.Status), r.Why)
}

// Is implements what errors.Is asks: a refusal is [wire.ErrNothingDone], unless the agent says that it tried, and [wire.ErrUnfit] where it says so.
func (r *Refused) Is(target error) bool {
	return target == wire.ErrNothingDone && r.Status != http.StatusInternalServerError || target == wire.ErrUnfit && r.Status == http.StatusConflict
}

const (
	// connectFor bounds opening a connection, and then the handshake. An agent on the same network takes milliseconds.
	connectFor = 3 * time.Second
	// spare is what an answer may take beyond what the agent gives itself.
	spare = 3 * time.Second
	// answerBytes is more than the view of 5,000 hosts takes.
	answerBytes = 8 << 20
)

// Client asks the agent of one Node, whatever its address is. It is safe for concurrent use.
type Client struct {
	// Dial opens connections. It is not changed once the client is used.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	node     string
	identity Identity
	now      func() time.Time
	http     *http.Client

	mu   sync.Mutex
	last *identity.Identity
}

// New returns a client of the agent of a Node. Nobody else is believed to be it.
func New(node string, who Identity) *Client {
	c := &Client{Dial: (&net.Dialer{Timeout: connectFor}).DialContext, node: node, identity: who, now: time.Now}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return c.Dial(ctx, network, address)
			},
			TLSHandshakeTimeout: connectFor, TLSClientConfig: c.config(),
			MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// Close ends the connections that nobody uses.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// View asks what the agent at the address (IP address and port) sees now.
func (c *Client) View(ctx context.Context, address string) (wire.View, error) {
	return c.view(ctx, address, "", 0)
}

// Await asks what it sees, once the view's index is another one, or after wire.WaitMillis.
func (c *Client) Await(ctx context.Context, address string, index uint64) (wire.View, error) {
	return c.view(ctx, address, "index="+strconv.FormatUint(index, 10), wire.WaitMillis*time.Millisecond)
}

func (c *Client) view(ctx context.Context, address, query string, wait time.Duration) (wire.View, error) {
	ctx, done := context.WithTimeout(ctx, wait+spare)
	defer done()
	var view wire.View
	if err := c.ask(ctx, http.MethodGet, url.URL{Host: address, Path: wire.PathView, RawQuery: query}, nil, &view); err != nil {
		return wire.View{}, err
	}
	err := c.speaksFor(view.Node, view.BootID)
	for _, h := range view.Hosts {
		if h.StateAge < 0 || h.HeardAge != nil && *h.HeardAge < 0 {
			err = errors.Join(err, fmt.Errorf("the agent of %s dates what it knows of %q in the future", c.node, h.Node))
		}
	}
	if err != nil {
		return wire.View{}, err
	}
	return view, nil
}

// Probe has the agent try questions. There is one answer to each, in their order.
func (c *Client) Probe(ctx context.Context, address string, questions []wire.Question) (wire.ProbeAnswer, error) {
	var answer wire.ProbeAnswer
	request := wire.ProbeRequest{Questions: questions}
	if err := c.order(ctx, url.URL{Host: address, Path: wire.PathProbe}, wire.ProbeMillis*time.Millisecond, request, &answer); err != nil {
		return wire.ProbeAnswer{}, err
	}
	if err := errors.Join(c.speaksFor(answer.Node, answer.BootID), c.answers(questions, answer.Answers)); err != nil {
		return wire.ProbeAnswer{}, err
	}
	return answer, nil
}

// Reset has the agent end connections to lost addresses, and let others go. It returns once that is done. An error that is [wire.ErrNothingDone] says that it did
// nothing.
func (c *Client) Reset(ctx context.Context, address string, request wire.ResetRequest) (wire.ResetAnswer, error) {
	var answer wire.ResetAnswer
	err := c.order(ctx, url.URL{Host: address, Path: wire.PathReset}, wire.ResetMillis*time.Millisecond, request, &answer)
	if err == nil {
		err = c.speaksFor(answer.Node, answer.BootID)
	}
	if err != nil {
		return wire.ResetAnswer{}, err
	}
	return answer, nil
}

// Recycle has the agent look for connections to pods that live, or end some of those that it looked for. An error that is [wire.ErrNothingDone] says that it ended
// none.
func (c *Client) Recycle(ctx context.Context, address string, request wire.RecycleRequest) (wire.RecycleAnswer, error) {
	var answer wire.RecycleAnswer
	err := c.order(ctx, url.URL{Host: address, Path: wire.PathRecycle}, wire.RecycleMillis*time.Millisecond, request, &answer)
	if err == nil {
		err = c.speaksFor(answer.Node, answer.BootID)
	}
	if err == nil && (answer.Found < 0 || answer.Left < 0 || answer.Begun < 0 || answer.Begun > request.Most) {
		err = fmt.Errorf("the agent of %s was asked to end %d connections, and says that it ended %d of %d, with %d left", c.node, request.Most, answer.Begun, answer.Found, answer.Left)
	}
	if err != nil {
		return wire.RecycleAnswer{}, err
	}
	return answer, nil
}

// Restart has the agent restart its kubelet. An error that is [wire.ErrNothingDone] says that it did not; after any other it may have.
func (c *Client) Restart(ctx context.Context, address string, request wire.RestartRequest) (wire.RestartAnswer, error) {
	var answer wire.RestartAnswer
	err := c.order(ctx, url.URL{Host: address, Path: wire.PathRestart}, wire.RestartMillis*time.Millisecond, request, &answer)
	if err == nil {
		err = c.speaksFor(answer.Node, answer.BootID)
	}
	if err == nil && answer.BootID != request.BootID {
		err = fmt.Errorf("the agent of %s restarted its kubelet in boot %q, and %q was meant", c.node, answer.BootID, request.BootID)
	}
	if err != nil {
		return wire.RestartAnswer{}, err
	}
	return answer, nil
}

// order has something done that the agent gives itself so long for.
func (c *Client) order(ctx context.Context, to url.URL, patience time.Duration, request, into any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, done := context.WithTimeout(ctx, patience+spare)
	defer done()
	return c.ask(ctx, http.MethodPost, to, body, into)
}

// answers says what keeps the answers from being those to the questions.
func (c *Client) answers(questions []wire.Question, answers []wire.Answer) error {
	if len(answers) != len(questions) {
		return fmt.Errorf("the agent of %s gives %d answers to %d questions", c.node, len(answers), len(questions))
	}
	for n, a := range answers {
		if a.Name != questions[n].Name {
			return fmt.Errorf("the agent of %s answers %q where %q was asked", c.node, a.Name, questions[n].Name)
		}
		if a.Age < 0 {
			return fmt.Errorf("the agent of %s dates its answer to %q in the future", c.node, a.Name)
		}
	}
	return nil
}

// speaksFor refuses what an agent says in another Node's name than its certificate's, which is the client's: the connection saw to that.
func (c *Client) speaksFor(node, boot string) error {
	if node != c.node {
		return fmt.Errorf("the agent of %s answers in the name of %q", c.node, node)
	}
	if boot == "" {
		return fmt.Errorf("the agent of %s does not say in which boot it answers", c.node)
	}
	return nil
}

// ask asks once. A connection that is open already is used again, as long as its certificate would still be taken.
func (c *Client) ask(ctx context.Context, method string, to url.URL, body []byte, into any) error {
	if err := c.own(); err != nil {
		return err
	}
	to.Scheme = "https"
	request, err := http.NewRequestWithContext(ctx, method, to.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", "holdfast-manager")
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask the agent of %s: %w", c.node, err)
	}
	defer response.Body.Close()
	if err := c.verify(*response.TLS); err != nil {
		c.Close()
		return fmt.Errorf("ask the agent of %s: %w", c.node, err)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, answerBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the answer of the agent of %s: %w", c.node, err)
	case len(text) > answerBytes:
		return fmt.Errorf("the answer of the agent of %s is larger than %d bytes", c.node, answerBytes)
	case response.StatusCode != http.StatusOK:
		seconds, _ := strconv.Atoi(response.Header.Get("Retry-After")) // it is optional
		why := strings.TrimSpace(string(text[:min(len(text), 1000)]))
		return fmt.Errorf("ask the agent of %s: %w", c.node, &Refused{Status: response.StatusCode, Why: why, After: time.Duration(seconds) * time.Second})
	}
	if err := json.Unmarshal(text, into); err != nil { // fields of a newer agent are passed over
		return fmt.Errorf("read the answer of the agent of %s: %w", c.node, err)
	}
	return nil
}

// own leaves the connections of an identity that is not the caller's any more.
func (c *Client) own() error {
	own, err := c.identity.Identity()
	if own == nil {
		return fmt.Errorf("there is no certificate to ask agents with: %w", err)
	}
	c.mu.Lock()
	changed := c.last != own
	c.last = own
	c.mu.Unlock()
	if changed {
		c.Close()
	}
	return nil
}

func (c *Client) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Time: c.now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			own, err := c.identity.Identity()
			if own == nil {
				return nil, err
			}
			return own.Certificate(), nil
		},
		// crypto/tls can compare DNS names and addresses only, and agents are named by a URI. VerifyConnection, which crypto/tls calls for every
		// connection, does all that it would do, by the authorities of now, and compares the URI.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection:   c.verify,
	}
}

func (c *Client) verify(state tls.ConnectionState) error {
	own, err := c.identity.Identity()
	if own == nil {
		return err
	}
	name, err := own.Name(state.PeerCertificates, x509.ExtKeyUsageServerAuth, c.now())
	switch {
	case err != nil:
		return fmt.Errorf("its certificate: %w", err)
	case name != wire.WitnessName(c.node):
		return fmt.Errorf("its certificate is that of %q, and not of %q", name, wire.WitnessName(c.node))
	default:
		return nil
	}
}
