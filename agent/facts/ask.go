// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
)

// reply is what came of one ask.
type reply int

const (
	// unclear: something came of it that is neither of the others.
	unclear reply = iota
	// answered: as it does when it lives.
	answered
	// refused: the kernel says that nobody is there.
	refused
	// silent: nothing came.
	silent
)

// web asks over HTTP.
type web struct {
	url    string
	client *http.Client
}

// How connections are used. Over a kept one thousands of agents cost the API server no handshakes; one that has died is given up with the first silence.
const (
	fresh = true
	kept  = false
)

func overHTTP(url string, tlsConfig *tls.Config, disableKeepAlives bool) web {
	return web{url: url, client: &http.Client{
		Transport: &http.Transport{
			// HTTP/1.1 alone: a request that is given up closes its connection, and the next one has another.
			TLSClientConfig: tlsConfig, ForceAttemptHTTP2: false, DisableKeepAlives: disableKeepAlives, MaxIdleConnsPerHost: 1,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// ask takes any answer of an HTTP server for one: whoever says that it is unwell speaks.
func (w web) ask(ctx context.Context) reply {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return unclear
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return ofError(ctx, err)
	}
	defer resp.Body.Close()
	// The rest of the answer is read for the connection's sake, and not more of it than a health check says.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return answered
}

func (w web) close() { w.client.CloseIdleConnections() }

// ofError tells who refused from who is silent. No route is silence: nothing of the host that was asked is in it.
func ofError(ctx context.Context, err error) reply {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return refused
	case ctx.Err() != nil,
		errors.As(err, &timeout) && timeout.Timeout(),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EAGAIN):
		return silent
	default:
		return unclear
	}
}
