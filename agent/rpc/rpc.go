// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rpc makes gRPC calls of one message each way, over net/http's own HTTP/2 and without generated code: docs/adr/0013-what-an-agent-is-made-of.md.
// What goes over the wire is https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, and the messages are https://protobuf.dev/programming-guides/encoding.
package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// NotFound is gRPC's code for what is not there.
const NotFound = 5

const (
	mime = "application/grpc"
	// prefix is what stands before a message: whether it is compressed, and its length.
	prefix = 5
	// messageBytes is how long an answer may be, as gRPC's own clients have it.
	messageBytes = 4 << 20
)

// Status is what a server answers that does not do what it was asked.
type Status struct {
	Code    int
	Message string
}

func (s *Status) Error() string { return fmt.Sprintf("gRPC status %d: %q", s.Code, s.Message) }

// Client makes calls over one connection, one after the other.
type Client struct {
	conn      net.Conn
	authority string
	transport *http.Transport
}

// New returns a client that has the connection for itself until it is closed. The authority is whom the server is told that it is.
func New(conn net.Conn, authority string) *Client {
	given := make(chan net.Conn, 1)
	given <- conn
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true) // and no other: it is spoken from the first byte on
	return &Client{conn: conn, authority: authority, transport: &http.Transport{
		Protocols: protocols, DisableCompression: true, MaxResponseHeaderBytes: 1 << 16,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case conn := <-given:
				return conn, nil
			default:
				return nil, errors.New("the connection ended")
			}
		},
	}}
}

// Close closes the connection.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	_ = c.conn.Close() // which may have been closed by then
}

// Call calls a method, as /grpc.health.v1.Health/Check, with a message, and returns the message that is answered. A *Status is the server's refusal; any other error
// says that it was not understood, or not heard until the context ended.
func (c *Client) Call(ctx context.Context, method string, message []byte) ([]byte, error) {
	body := make([]byte, prefix, prefix+len(message))
	binary.BigEndian.PutUint32(body[1:], uint32(len(message))) //nolint:gosec // ours, and short
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.authority+method, bytes.NewReader(append(body, message...)))
	if err != nil {
		return nil, err
	}
	request.Header = http.Header{"Content-Type": {mime}, "Te": {"trailers"}, "User-Agent": {"holdfast"}}
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || !strings.HasPrefix(kind, mime) {
		return nil, fmt.Errorf("HTTP status %d with %q is no answer of gRPC", response.StatusCode, kind)
	}
	answer, err := read(response.Body)
	if err != nil {
		return nil, err
	}
	trailer := response.Trailer
	if response.Header.Get("Grpc-Status") != "" { // a refusal without a message may come at once
		trailer = response.Header
	}
	if err := status(trailer); err != nil {
		return nil, err
	}
	if len(answer) < prefix {
		return nil, errors.New("a good status without a message")
	}
	return answer[prefix:], nil
}

// read returns one message with its prefix, or nothing where there is none, and has read the trailers.
func read(body io.Reader) ([]byte, error) {
	answer, err := io.ReadAll(io.LimitReader(body, prefix+messageBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(answer) == 0:
		return nil, nil
	case len(answer) < prefix:
		return nil, errors.New("half a message")
	case answer[0] != 0:
		return nil, errors.New("a compressed message, which was not asked for")
	}
	if said := int64(binary.BigEndian.Uint32(answer[1:])); said != int64(len(answer)-prefix) {
		return nil, fmt.Errorf("%d bytes where one message of %d is said to be, and at most %d", len(answer)-prefix, said, messageBytes)
	}
	return answer, nil
}

// status is nil if all is well.
func status(from http.Header) error {
	text := from.Get("Grpc-Status")
	code, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("an answer with the gRPC status %q", text)
	}
	if code == 0 {
		return nil
	}
	message := from.Get("Grpc-Message")
	if plain, err := url.PathUnescape(message); err == nil {
		message = plain
	}
	return &Status{code, message}
}
