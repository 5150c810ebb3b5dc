// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/agent/credential"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

const (
	requestsPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	// askFor bounds one request to the API server, and answerBytes its answer.
	askFor      = 10 * time.Second
	answerBytes = 1 << 20
)

// apiServer is asked with the token of the agent's pod.
type apiServer struct {
	url    string
	client *http.Client
	// token is a file, which the kubelet replaces from time to time.
	token string
}

// send makes one request and reads its answer, whatever that is.
func (s apiServer) send(ctx context.Context, method, path, kind string, body io.Reader) (code int, text []byte, err error) {
	token, err := os.ReadFile(s.token)
	if err != nil {
		return 0, nil, fmt.Errorf("read the token of this pod: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Content-Type", kind)
	request.Header.Set("Accept", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	text, err = io.ReadAll(io.LimitReader(response.Body, answerBytes))
	return response.StatusCode, text, err
}

// requests are the certificate requests of an API server. It implements credential.Requests.
type requests struct{ apiServer }

// signingRequest is what an agent says and reads of a certificates.k8s.io/v1 CertificateSigningRequest.
type signingRequest struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Metadata   metadata      `json:"metadata"`
	Spec       signingSpec   `json:"spec"`
	Status     signingStatus `json:"status,omitzero"`
}

type metadata struct {
	Name string `json:"name"`
}

type signingSpec struct {
	SignerName string   `json:"signerName"`
	Request    []byte   `json:"request"`
	Usages     []string `json:"usages"`
}

type signingStatus struct {
	Certificate []byte      `json:"certificate"`
	Conditions  []condition `json:"conditions"`
}

type condition struct {
	Type    string `json:"type"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Create implements credential.Requests.
func (r requests) Create(ctx context.Context, name string, request []byte) error {
	body, err := json.Marshal(signingRequest{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest", Metadata: metadata{name},
		Spec: signingSpec{SignerName: wire.Signer, Request: request, Usages: []string{"digital signature", "server auth", "client auth"}}})
	if err != nil {
		return err
	}
	_, err = r.ask(ctx, http.MethodPost, "", bytes.NewReader(body))
	return err
}

// Get implements credential.Requests.
func (r requests) Get(ctx context.Context, name string) (credential.Answer, error) {
	seen, err := r.ask(ctx, http.MethodGet, name, nil)
	if err != nil {
		return credential.Answer{}, err
	}
	for _, c := range seen.Status.Conditions {
		if c.Type == "Denied" || c.Type == "Failed" {
			return credential.Answer{Refused: fmt.Sprintf("%s, %s: %s", c.Type, c.Reason, c.Message)}, nil
		}
	}
	return credential.Answer{Certificate: seen.Status.Certificate}, nil
}

func (r requests) ask(ctx context.Context, method, name string, body io.Reader) (seen signingRequest, err error) {
	path := requestsPath
	if name != "" {
		path += "/" + name
	}
	code, text, err := r.send(ctx, method, path, "application/json", body)
	if err != nil {
		return seen, err
	}
	if code/100 != 2 {
		return seen, refusal(code, text)
	}
	if err := json.Unmarshal(text, &seen); err != nil {
		return seen, fmt.Errorf("read what the API server answers: %w", err)
	}
	return seen, nil
}

// refusal is what the API server says, or what stands before it. Only the API server's own word loses a request.
func refusal(code int, text []byte) error {
	var says struct{ Kind, Reason, Message string }
	if err := json.Unmarshal(text, &says); err != nil || says.Kind != "Status" {
		return fmt.Errorf("HTTP status %d: %q", code, text[:min(len(text), 200)])
	}
	if says.Reason == "NotFound" || says.Reason == "Forbidden" {
		return fmt.Errorf("%w: %s", credential.ErrLost, says.Message)
	}
	return fmt.Errorf("%s: %s", says.Reason, says.Message)
}
