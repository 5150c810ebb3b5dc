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

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	requestsPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	// askFor bounds one request to the API server, and answerBytes its answer.
	askFor      = 10 * time.Second
	answerBytes = 1 << 20
)

// requests are the certificate requests of an API server. An agent makes one in five days, for which client-go would be a tenth of its memory. It implements
// credential.Requests.
type requests struct {
	url    string
	client *http.Client
	// token is a file, which the kubelet replaces from time to time.
	token string
}

func (r requests) Create(ctx context.Context, wanted *certificatesv1.CertificateSigningRequest, _ metav1.CreateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	wanted = wanted.DeepCopy()
	wanted.SetGroupVersionKind(certificatesv1.SchemeGroupVersion.WithKind("CertificateSigningRequest"))
	body, err := json.Marshal(wanted)
	if err != nil {
		return nil, err
	}
	return r.ask(ctx, http.MethodPost, "", bytes.NewReader(body))
}

func (r requests) Get(ctx context.Context, name string, _ metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error) {
	return r.ask(ctx, http.MethodGet, name, nil)
}

func (r requests) ask(ctx context.Context, method, name string, body io.Reader) (*certificatesv1.CertificateSigningRequest, error) {
	token, err := os.ReadFile(r.token)
	if err != nil {
		return nil, fmt.Errorf("read the token of this pod: %w", err)
	}
	url := r.url + requestsPath
	if name != "" {
		url += "/" + name
	}
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, answerBytes))
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		return nil, refusal(method, name, response.StatusCode, text)
	}
	seen := &certificatesv1.CertificateSigningRequest{}
	if err := json.Unmarshal(text, seen); err != nil {
		return nil, fmt.Errorf("read what the API server answers: %w", err)
	}
	return seen, nil
}

// refusal is what the API server says, or what stands before it.
func refusal(method, name string, code int, text []byte) error {
	says := &apierrors.StatusError{}
	if err := json.Unmarshal(text, &says.ErrStatus); err == nil && says.ErrStatus.Kind == "Status" {
		return says
	}
	resource := schema.GroupResource{Group: certificatesv1.GroupName, Resource: "certificatesigningrequests"}
	return apierrors.NewGenericServerResponse(code, strings.ToLower(method), resource, name, strings.ToValidUTF8(string(text[:min(len(text), 200)]), ""), 0, true)
}
