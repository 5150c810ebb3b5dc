// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package credential gets the agent its certificate, and a new one in time: docs/spec/witness.md, "Certificates".
package credential

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Requests are the CertificateSigningRequests of the API server, as far as an agent may see them: docs/adr/0013-what-an-agent-is-made-of.md.
type Requests interface {
	// Create asks for a certificate of wire.Signer, for both sides of TLS, with a request as PEM.
	Create(ctx context.Context, name string, request []byte) error
	// Get returns what has become of a request. An error that is ErrLost says that nothing will.
	Get(ctx context.Context, name string) (Answer, error)
}

// Answer is what has become of a request: nothing yet, a certificate as PEM, or why there is none and will be none.
type Answer struct {
	Certificate []byte
	Refused     string
}

// ErrLost is wrapped where the API server says that there is no such request, or that the agent may not see it.
var ErrLost = errors.New("the request is lost")

// Config says whose certificate it is and where it goes.
type Config struct {
	// Node is the name of the Node that the agent is on.
	Node string
	// File is where key and certificate are kept, as PEM in one file, so that there is no moment when they do not fit together.
	File     string
	Requests Requests
	Clock    clock.Clock
	Log      logr.Logger
}

const (
	// lookEvery is how often a request is looked at that is not answered yet, and answerIn how long before that is an error.
	lookEvery = time.Second
	answerIn  = 5 * time.Minute
	// retryFirst and retryMost are how long after a failure it is tried again; each time twice as long.
	retryFirst = 5 * time.Second
	retryMost  = 10 * time.Minute
	// checkEvery is how often the file is looked at, however far off the renewal: a host may sleep, or its clock be set.
	checkEvery = time.Hour
)

// Credential is the agent's certificate. It is used by one goroutine at a time.
type Credential struct {
	Config
	// waiting is the request that was made and is not answered. It is waited for again after a failure, so that requests do not pile up.
	waiting *request
}

type request struct {
	name string
	key  []byte // PEM
}

// New returns a credential that does nothing until it is asked to.
func New(config Config) *Credential { return &Credential{Config: config} }

// Obtain returns when the file has a certificate that is good, or with the context's error. What fails meanwhile is logged and tried again.
func (c *Credential) Obtain(ctx context.Context) error {
	for retry := retryFirst; ; retry = min(2*retry, retryMost) {
		_, until, err := c.read()
		if err == nil && c.Clock.Now().Before(until) {
			return nil
		}
		if err = c.renew(ctx); err == nil {
			return nil
		}
		if err := c.failed(ctx, err, retry); err != nil {
			return err
		}
	}
}

// Keep obtains a certificate, and a new one whenever two thirds of its life are over, until the context ends. Until there is a new one the old one stays,
// whatever fails.
func (c *Credential) Keep(ctx context.Context) error {
	retry := retryFirst
	for {
		if wait := c.wait(); wait > 0 {
			retry = retryFirst
			if err := c.pause(ctx, wait); err != nil {
				return err
			}
			continue
		}
		err := c.renew(ctx)
		if err == nil && c.wait() <= 0 {
			err = errors.New("what was issued has two thirds of its life behind it already: are the clocks right?")
		}
		if err == nil {
			continue
		}
		if err := c.failed(ctx, err, retry); err != nil {
			return err
		}
		retry = min(2*retry, retryMost)
	}
}

// wait is how long nothing is to be done; not above 0 if a certificate is needed now.
func (c *Credential) wait() time.Duration {
	from, until, err := c.read()
	if err != nil {
		return 0
	}
	due := from.Add(until.Sub(from) / 3 * 2)
	return min(due.Sub(c.Clock.Now()), checkEvery)
}

// failed logs, and waits until it is tried again.
func (c *Credential) failed(ctx context.Context, err error, retry time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.Log.Error(err, "no new certificate; the one before, if any, stays", "file", c.File, "again", retry.String())
	return c.pause(ctx, retry)
}

func (c *Credential) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.Clock.After(d):
		return nil
	}
}

// read says from when to when the certificate in the file is good, or why it is none of this agent's.
func (c *Credential) read() (from, until time.Time, err error) {
	text, err := os.ReadFile(c.File)
	if err != nil {
		return from, until, err
	}
	return c.own(text, text)
}

// own says from when to when a certificate is good, if it is of this agent and of that key.
func (c *Credential) own(certificate, key []byte) (from, until time.Time, err error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return from, until, err
	}
	leaf := pair.Leaf
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != wire.WitnessName(c.Node) {
		return from, until, fmt.Errorf("the certificate is of %v, and not of %s", leaf.URIs, wire.WitnessName(c.Node))
	}
	return leaf.NotBefore, leaf.NotAfter, nil
}

// renew asks for a certificate of a new key, waits for it, and writes both.
func (c *Credential) renew(ctx context.Context) error {
	if c.waiting == nil {
		made, err := c.ask(ctx)
		if err != nil {
			return err
		}
		c.waiting = made
	}
	name, key := c.waiting.name, c.waiting.key
	certificate, err := c.answer(ctx, name)
	if !errors.Is(err, errWaiting) {
		c.waiting = nil
	}
	if err != nil {
		return fmt.Errorf("CertificateSigningRequest %s: %w", name, err)
	}
	_, until, err := c.own(certificate, key)
	if err == nil && !c.Clock.Now().Before(until) {
		err = fmt.Errorf("it ended at %s: are the clocks right?", until.Format(time.RFC3339))
	}
	if err != nil {
		return fmt.Errorf("CertificateSigningRequest %s: what was issued: %w", name, err)
	}
	if err := replace(c.File, append(bytes.Clone(key), certificate...)); err != nil {
		return err
	}
	c.Log.Info("a new certificate", "file", c.File, "until", until)
	return nil
}

func (c *Credential) ask(ctx context.Context) (*request, error) {
	private, key, err := authority.NewKey()
	if err != nil {
		return nil, err
	}
	name, err := url.Parse(wire.WitnessName(c.Node))
	if err != nil {
		return nil, err
	}
	wanted, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{name}}, private)
	if err != nil {
		return nil, err
	}
	made := &request{name: "holdfast-witness-" + strings.ToLower(rand.Text()), key: key}
	if err := c.Requests.Create(ctx, made.name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: wanted})); err != nil {
		return nil, fmt.Errorf("create a CertificateSigningRequest: %w", err)
	}
	return made, nil
}

// errWaiting is wrapped while a request may still be answered.
var errWaiting = errors.New("not answered")

// answer waits for the certificate.
func (c *Credential) answer(ctx context.Context, name string) ([]byte, error) {
	end := c.Clock.Now().Add(answerIn)
	for {
		seen, err := c.Requests.Get(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w", errWaiting, ctx.Err())
		case errors.Is(err, ErrLost):
			return nil, err
		case err != nil:
		case seen.Refused != "":
			return nil, errors.New(seen.Refused)
		case len(seen.Certificate) > 0:
			return seen.Certificate, nil
		default:
			err = errors.New("does the manager run, and lead?")
		}
		if !c.Clock.Now().Before(end) {
			return nil, fmt.Errorf("%w in %s: %w", errWaiting, answerIn, err)
		}
		if err := c.pause(ctx, lookEvery); err != nil {
			return nil, fmt.Errorf("%w: %w", errWaiting, err)
		}
	}
}

// replace writes a file at once or not at all.
func replace(path string, text []byte) error {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(filepath.Clean(dir), "."+base+"-*") // for this process only, as os.CreateTemp makes it
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
