// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package rpc_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-dev/holdfast/agent/rpc"
)

const method = "/runtime.v1.RuntimeService/Version"

// echo is gRPC's own server: it answers with the version that it is asked for, unless that says otherwise.
type echo struct {
	cri.UnimplementedRuntimeServiceServer
}

func (echo) Version(ctx context.Context, r *cri.VersionRequest) (*cri.VersionResponse, error) {
	switch r.Version {
	case "refuse":
		return nil, status.Error(codes.NotFound, "none, 100 % “sure”\n")
	case "wait":
		<-ctx.Done()
	}
	return &cri.VersionResponse{RuntimeName: r.Version}, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// to is a client of an address.
func to(t *testing.T, address string) *rpc.Client {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	must(t, err)
	client := rpc.New(conn, address)
	t.Cleanup(client.Close)
	return client
}

func genuine(t *testing.T) *rpc.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, echo{})
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return to(t, l.Addr().String())
}

func ask(t *testing.T, version string) []byte {
	t.Helper()
	message, err := proto.Marshal(&cri.VersionRequest{Version: version})
	must(t, err)
	return message
}

func TestAServerOfGRPCUnderstandsAndIsUnderstood(t *testing.T) {
	client := genuine(t)
	for _, name := range []string{"", "containerd", strings.Repeat("long", 200_000)} { // longer than the windows of HTTP/2 are at first
		answer, err := client.Call(t.Context(), method, ask(t, name))
		must(t, err)
		if said, err := rpc.At(answer, 2); err != nil || string(said) != name { // VersionResponse.runtime_name
			t.Errorf("%d bytes come back as %d, %v", len(name), len(said), err)
		}
	}
}

func TestARefusalIsAStatusWithItsWords(t *testing.T) {
	client := genuine(t)
	for name, want := range map[string]rpc.Status{
		method:              {Code: rpc.NotFound, Message: "none, 100 % “sure”\n"},
		"/runtime.v1.Other": {Code: int(codes.Unimplemented)},
	} {
		_, err := client.Call(t.Context(), name, ask(t, "refuse"))
		var got *rpc.Status
		if !errors.As(err, &got) || got.Code != want.Code || !strings.Contains(got.Message, want.Message) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	client := genuine(t)
	ctx, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer done()
	if _, err := client.Call(ctx, method, ask(t, "wait")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it says %v", err)
	}
}

func TestAClosedClientAsksNobody(t *testing.T) {
	client := genuine(t)
	client.Close()
	if _, err := client.Call(t.Context(), method, nil); err == nil {
		t.Error("it was answered")
	}
}

// odd speaks HTTP/2, and says what it is told to.
func odd(t *testing.T, says func(http.ResponseWriter)) *rpc.Client {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != method || r.Header.Get("Content-Type") != "application/grpc" || r.Header.Get("Te") != "trailers" {
			t.Errorf("it asks %s %s with %v", r.Method, r.URL, r.Header)
		}
		says(w)
	}))
	server.Config.Protocols = &http.Protocols{}
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return to(t, server.Listener.Addr().String())
}

func TestWhatIsNoAnswerIsNotTakenForOne(t *testing.T) {
	answer := func(body, code string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/grpc+proto")
			_, _ = w.Write([]byte(body)) // which may be given up
			if code != "" {
				w.Header().Set(http.TrailerPrefix+"Grpc-Status", code)
			}
		}
	}
	for name, c := range map[string]struct {
		says func(http.ResponseWriter)
		want string // in the error
	}{
		"an answer":                        {answer("\x00\x00\x00\x00\x02hi", "0"), ""},
		"an empty message":                 {answer("\x00\x00\x00\x00\x00", "0"), ""},
		"a website":                        {func(w http.ResponseWriter) { _, _ = w.Write([]byte("hello")) }, "no answer of gRPC"},
		"a proxy's error":                  {func(w http.ResponseWriter) { http.Error(w, "no upstream", http.StatusServiceUnavailable) }, "HTTP status 503"},
		"no message and a good status":     {answer("", "0"), "without a message"},
		"no status":                        {answer("\x00\x00\x00\x00\x02hi", ""), `gRPC status ""`},
		"a status that is none":            {answer("\x00\x00\x00\x00\x02hi", "fine"), `gRPC status "fine"`},
		"half a prefix":                    {answer("\x00\x00", "0"), "half a message"},
		"half a message":                   {answer("\x00\x00\x00\x00\x05hi", "0"), "2 bytes where one message of 5"},
		"two messages":                     {answer("\x00\x00\x00\x00\x02hi\x00\x00\x00\x00\x02hi", "0"), "9 bytes where one message of 2"},
		"a compressed message":             {answer("\x01\x00\x00\x00\x02hi", "0"), "compressed"},
		"more than anybody wants to know":  {answer("\x00\x00\x50\x00\x00"+strings.Repeat("a", 5<<20), "0"), "at most 4194304"},
		"a message, and that it is no use": {answer("\x00\x00\x00\x00\x02hi", "5"), "gRPC status 5"},
	} {
		t.Run(name, func(t *testing.T) {
			message, err := odd(t, c.says).Call(t.Context(), method, nil)
			switch {
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%q, %v; want an error with %q", message, err, c.want)
			case err != nil && message != nil:
				t.Errorf("%q beside %v", message, err)
			}
		})
	}
}

func TestAServerThatSaysNothingIsWaitedForNoLongerThanTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	ctx, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer done()
	if _, err := to(t, l.Addr().String()).Call(ctx, method, nil); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it says %v", err)
	}
}

func TestMessagesAreAsTheGeneratedCodeHasThem(t *testing.T) {
	written := rpc.With(rpc.With(nil, 1, "one"), 2, rpc.With(nil, 1, []byte("two")))
	var read cri.PodSandboxStatus // id, metadata.name
	must(t, proto.Unmarshal(written, &read))
	if read.GetId() != "one" || read.GetMetadata().GetName() != "two" {
		t.Errorf("With: %v", &read)
	}
	message, err := proto.Marshal(&cri.PodSandboxStatus{Id: "x", State: cri.PodSandboxState_SANDBOX_NOTREADY, CreatedAt: 1 << 60, Labels: map[string]string{"a": "b"},
		Network: &cri.PodSandboxNetworkStatus{Ip: "10.0.0.1", AdditionalIps: []*cri.PodIP{{Ip: "fd00::1"}, {Ip: "fd00::2"}}}})
	must(t, err)
	state, err := rpc.Number(message, 3)
	if id, _ := rpc.At(message, 1); err != nil || state != 1 || string(id) != "x" {
		t.Errorf("state %d, %v, id %q", state, err, id)
	}
	network, err := rpc.At(message, 5)
	must(t, err)
	more, err := rpc.Parts(network, 2)
	must(t, err)
	if last, err := rpc.At(message, 5, 2, 1); err != nil || string(last) != "fd00::2" || len(more) != 2 {
		t.Errorf("%q, %v of %d", last, err, len(more))
	}
	if none, err := rpc.At(message, 4, 1); err != nil || none != nil { // a number there
		t.Errorf("a field of a field that has none: %q, %v", none, err)
	}
	if number, err := rpc.Number(message, 1); err != nil || number != 0 { // a text there
		t.Errorf("a text read as a number: %d, %v", number, err)
	}
}

func TestAMessageThatIsNoneIsAnError(t *testing.T) {
	good := rpc.With(nil, 1, "text")
	for name, message := range map[string][]byte{
		"cut off":              good[:len(good)-1],
		"a tag and no more":    good[:1],
		"no tag":               {0xff},
		"field 0":              {0x00, 0x01},
		"cut off after a part": slices.Concat(good, []byte{0x0a, 0x05}),
	} {
		if parts, err := rpc.Parts(message, 1); err == nil {
			t.Errorf("%s: %q", name, parts)
		}
		if number, err := rpc.Number(message, 1); err == nil {
			t.Errorf("%s: %d", name, number)
		}
	}
}

func FuzzAnyMessageIsReadOrRefused(f *testing.F) {
	f.Add([]byte{0x0a, 0x04, 't', 'e', 'x', 't', 0x18, 0x01})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, message []byte) {
		parts, err := rpc.Parts(message, 1)
		length := 0
		for _, part := range parts {
			length += len(part)
		}
		if length > len(message) {
			t.Errorf("%d bytes out of %d, %v", length, len(message), err)
		}
	})
}
