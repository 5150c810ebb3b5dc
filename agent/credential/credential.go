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
	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Requests are the CertificateSigningRequests of the API server, as far as an agent may see them. client-go's are.
type Requests interface {
	Create(ctx context.Context, request *certificatesv1.CertificateSigningRequest, options metav1.CreateOptions) (*certificatesv1.CertificateSigningRequest, error)
	Get(ctx context.Context, name string, options metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error)
}

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
	_, err = c.Requests.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: made.name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: wire.Signer, Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: wanted}),
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
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
		seen, err := c.Requests.Get(ctx, name, metav1.GetOptions{})
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w", errWaiting, ctx.Err())
		case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
			return nil, err
		case err == nil:
			if certificate, err := issued(seen); certificate != nil || err != nil {
				return certificate, err
			}
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

// issued returns the certificate, or nothing yet, or why there will be none.
func issued(r *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	for _, condition := range r.Status.Conditions {
		if condition.Type == certificatesv1.CertificateDenied || condition.Type == certificatesv1.CertificateFailed {
			return nil, fmt.Errorf("%s, %s: %s", condition.Type, condition.Reason, condition.Message)
		}
	}
	if len(r.Status.Certificate) == 0 {
		return nil, nil
	}
	return r.Status.Certificate, nil
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
