// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package client is a user of the ledger who stands outside the hosts and keeps every acknowledgement.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger"
	"github.com/holdfast-dev/holdfast/test/lab/storage/stamp"
)

// Config says whom to ask how often.
type Config struct {
	// EndpointsFile holds one host:port per line. It is read before every attempt; an empty or missing file
	// makes the attempt fail.
	EndpointsFile string
	Interval      time.Duration // from the start of one attempt to the next
	Timeout       time.Duration // of one attempt
}

// Ack is one line of the record: the answer came, so the line must never be lost.
type Ack struct {
	stamp.Stamp
	ID       string `json:"id"`
	Seq      uint64 `json:"seq"`
	Host     string `json:"host"`
	Epoch    uint64 `json:"epoch"`
	Endpoint string `json:"endpoint"`
}

// Summary is what the client has seen in the end. MaxGapMillis is the longest time between two
// acknowledgements.
type Summary struct {
	Attempts     int    `json:"attempts"`
	Acked        int    `json:"acked"`
	Failed       int    `json:"failed"`
	MaxGapMillis int64  `json:"maxGapMillis"`
	LastError    string `json:"lastError,omitempty"`
}

type client struct {
	config  Config
	http    *http.Client
	record  io.Writer
	run     string
	summary Summary
	turn    int
	lastAck int64
}

// Run asks, one attempt at a time, until ctx is done, and writes a line of Ack to record for every answer.
func Run(ctx context.Context, config Config, record io.Writer) (Summary, error) {
	// Every attempt dials anew, so that none rides on a connection to an endpoint that is gone.
	dialer := &net.Dialer{Timeout: config.Timeout}
	c := &client{config: config, record: record, run: uuid.NewString()[:8], http: &http.Client{
		Timeout:   config.Timeout,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext},
	}}
	pace := time.NewTicker(config.Interval)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return c.summary, nil
		case <-pace.C:
		}
		if err := c.attempt(ctx); err != nil {
			return c.summary, err
		}
	}
}

// attempt asks once. It returns an error only when the record cannot be kept.
func (c *client) attempt(ctx context.Context) error {
	c.summary.Attempts++
	ack, err := c.ask(ctx, fmt.Sprintf("%s-%d", c.run, c.summary.Attempts))
	if err != nil && ctx.Err() != nil { // cut short by the end of the run
		c.summary.Attempts--
		return nil
	}
	if err != nil {
		c.summary.Failed++
		c.summary.LastError = err.Error()
		return nil
	}
	c.summary.Acked++
	if c.lastAck != 0 {
		c.summary.MaxGapMillis = max(c.summary.MaxGapMillis, (ack.Mono-c.lastAck)/1e6)
	}
	c.lastAck = ack.Mono
	b, err := json.Marshal(ack)
	if err != nil {
		return err
	}
	_, err = c.record.Write(append(b, '\n'))
	return err
}

func (c *client) ask(ctx context.Context, id string) (Ack, error) {
	endpoint, err := c.endpoint()
	if err != nil {
		return Ack{}, err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+endpoint+"/append", strings.NewReader(id))
	if err != nil {
		return Ack{}, err
	}
	resp, err := c.http.Do(q)
	if err != nil {
		return Ack{}, err
	}
	defer func() { _ = resp.Body.Close() }() // read below
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Ack{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Ack{}, fmt.Errorf("%s: %s: %s", endpoint, resp.Status, strings.TrimSpace(string(body)))
	}
	var r ledger.Receipt
	if err := json.Unmarshal(body, &r); err != nil {
		return Ack{}, fmt.Errorf("%s: %w", endpoint, err)
	}
	if r.ID != id {
		return Ack{}, fmt.Errorf("%s: acknowledged %q when asked for %q", endpoint, r.ID, id)
	}
	return Ack{Stamp: stamp.Now(), ID: id, Seq: r.Seq, Host: r.Host, Epoch: r.Epoch, Endpoint: endpoint}, nil
}

// endpoint takes the lines of the file in turn.
func (c *client) endpoint() (string, error) {
	b, err := os.ReadFile(c.config.EndpointsFile)
	if err != nil {
		return "", err
	}
	all := strings.Fields(string(b))
	if len(all) == 0 {
		return "", errors.New(c.config.EndpointsFile + ": no endpoint")
	}
	c.turn++
	return all[c.turn%len(all)], nil
}
