// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// HTTP answers
//
//	GET  /readyz   200 when the last append succeeded within a second, else 503 with the reason
//	GET  /healthz  200 as long as the process answers
//	GET  /status   a Status
//	POST /append   body: the client's ID → 200 with a Receipt after fsync
func (w *Writer) HTTP() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(out http.ResponseWriter, _ *http.Request) { answer(out, http.StatusOK, "alive\n") })
	mux.HandleFunc("GET /readyz", func(out http.ResponseWriter, _ *http.Request) {
		if s := w.Status(); !s.Ready {
			answer(out, http.StatusServiceUnavailable, s.Error+"\n")
			return
		}
		answer(out, http.StatusOK, "ready\n")
	})
	mux.HandleFunc("GET /status", func(out http.ResponseWriter, _ *http.Request) { answerJSON(out, w.Status()) })
	mux.HandleFunc("POST /append", w.postAppend)
	return mux
}

func (w *Writer) postAppend(out http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(io.LimitReader(q.Body, 1024))
	if err != nil {
		answer(out, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	id := strings.TrimSpace(string(body))
	if err := CheckID(id); err != nil {
		answer(out, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	r, err := w.Append(q.Context(), id)
	if err != nil {
		answer(out, http.StatusServiceUnavailable, errors.Join(err, errors.New(w.Status().Error)).Error()+"\n")
		return
	}
	answerJSON(out, r)
}

func answerJSON(out http.ResponseWriter, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		answer(out, http.StatusInternalServerError, err.Error()+"\n")
		return
	}
	out.Header().Set("Content-Type", "application/json")
	answer(out, http.StatusOK, string(b)+"\n")
}

func answer(out http.ResponseWriter, code int, text string) {
	out.WriteHeader(code)
	if _, err := io.WriteString(out, text); err != nil {
		slog.Debug("a client went away", "err", err)
	}
}

// Health is the standard gRPC health service: SERVING when /readyz says 200. It knows the service "" only.
type Health struct {
	healthpb.UnimplementedHealthServer
	Writer *Writer
}

// Check answers for the whole server.
func (h *Health) Check(_ context.Context, q *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if q.GetService() != "" {
		return nil, status.Errorf(codes.NotFound, "service %q: ask for the empty service name", q.GetService())
	}
	if h.Writer.Status().Ready {
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
}
