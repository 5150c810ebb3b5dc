// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package arrayclient

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
)

// Control is a client of the array's control API. Refusals come back as *array.Refusal.
type Control struct{ http *http.Client }

// NewControl speaks with the array whose control socket lies at path.
func NewControl(path string) *Control {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Control{http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial}}}
}

// Healthy returns nil when the array answers.
func (c *Control) Healthy(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/healthz", nil, nil)
}

// CreateVolume makes a volume or accepts an equal one; Name, Class and SizeBytes of r count.
func (c *Control) CreateVolume(ctx context.Context, r array.Record) (array.Record, error) {
	var made array.Record
	err := c.call(ctx, http.MethodPost, "/volumes", r, &made)
	return made, err
}

// DeleteVolume removes a volume; it succeeds when there is none.
func (c *Control) DeleteVolume(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/volumes/"+url.PathEscape(name), nil, nil)
}

// Volume returns one volume.
func (c *Control) Volume(ctx context.Context, name string) (array.Record, error) {
	var r array.Record
	err := c.call(ctx, http.MethodGet, "/volumes/"+url.PathEscape(name), nil, &r)
	return r, err
}

// Attach attaches an enforcing volume to a host.
func (c *Control) Attach(ctx context.Context, name, host string) (array.Record, error) {
	var r array.Record
	err := c.call(ctx, http.MethodPost, "/volumes/"+url.PathEscape(name)+"/attach", map[string]string{"host": host}, &r)
	return r, err
}

// Detach ends the attachment to host, or to any host when host is empty.
func (c *Control) Detach(ctx context.Context, name, host string) (array.Record, error) {
	var r array.Record
	err := c.call(ctx, http.MethodPost, "/volumes/"+url.PathEscape(name)+"/detach", map[string]string{"host": host}, &r)
	return r, err
}

// RegisterHost makes a host known to the array.
func (c *Control) RegisterHost(ctx context.Context, host, boot string) error {
	return c.call(ctx, http.MethodPut, "/hosts/"+url.PathEscape(host), map[string]string{"boot": boot}, nil)
}

// Flush makes the array write out its journals.
func (c *Control) Flush(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/flush", nil, nil)
}

func (c *Control) call(ctx context.Context, method, path string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	q, err := http.NewRequestWithContext(ctx, method, "http://array"+path, &body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(q)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	if resp.StatusCode != http.StatusOK {
		var refused array.ControlError
		if err := json.NewDecoder(resp.Body).Decode(&refused); err != nil {
			return fmt.Errorf("array: %s %s: %s", method, path, resp.Status)
		}
		return &array.Refusal{Kind: refused.Kind, Message: refused.Error}
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
