// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package array

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
)

// Attachment is one line of GET /attachments.
type Attachment struct {
	Volume string `json:"volume"`
	Class  Class  `json:"class"`
	Host   string `json:"host"`
	Boot   string `json:"boot"`
	Epoch  uint64 `json:"epoch"`
}

// ControlError is the body of every answer that is not 2xx.
type ControlError struct {
	Kind  Kind   `json:"kind"`
	Error string `json:"error"`
}

// hostRequest is the body of attach and detach.
type hostRequest struct {
	Host string `json:"host"`
}

// bootRequest is the body of PUT /hosts/{name}.
type bootRequest struct {
	Boot string `json:"boot"`
}

// Control answers the control API, plain HTTP with JSON; see docs/spec/lab.md, "The array's control API".
func (a *Array) Control() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, err := do(r)
			answer(w, body, err)
		})
	}
	handle("GET /healthz", func(*http.Request) (any, error) { return map[string]string{"instance": a.instance}, nil })
	handle("GET /volumes", func(*http.Request) (any, error) { return a.Volumes(), nil })
	handle("POST /volumes", a.postVolume)
	handle("GET /volumes/{name}", func(r *http.Request) (any, error) { return a.Volume(r.PathValue("name")) })
	handle("DELETE /volumes/{name}", func(r *http.Request) (any, error) {
		return struct{}{}, a.DeleteVolume(r.PathValue("name"))
	})
	handle("POST /volumes/{name}/attach", func(r *http.Request) (any, error) {
		q, err := body[hostRequest](r)
		if err != nil {
			return nil, err
		}
		return a.Attach(r.PathValue("name"), q.Host)
	})
	handle("POST /volumes/{name}/detach", func(r *http.Request) (any, error) {
		q, err := body[hostRequest](r)
		if err != nil {
			return nil, err
		}
		return a.Detach(r.PathValue("name"), q.Host)
	})
	handle("GET /attachments", func(*http.Request) (any, error) { return a.Attachments(), nil })
	handle("GET /hosts", func(*http.Request) (any, error) { return a.Hosts(), nil })
	handle("PUT /hosts/{name}", a.putHost)
	handle("POST /flush", func(*http.Request) (any, error) { return struct{}{}, a.Flush() })
	return mux
}

// Attachments returns the volumes that somebody holds, by name.
func (a *Array) Attachments() []Attachment {
	held := []Attachment{}
	for _, r := range a.Volumes() {
		if h := r.Holder; h != nil {
			held = append(held, Attachment{Volume: r.Name, Class: r.Class, Host: h.Host, Boot: h.Boot, Epoch: r.Epoch})
		}
	}
	return held
}

func (a *Array) postVolume(r *http.Request) (any, error) {
	q, err := body[Record](r)
	if err != nil {
		return nil, err
	}
	return a.CreateVolume(q)
}

func (a *Array) putHost(r *http.Request) (any, error) {
	q, err := body[bootRequest](r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, a.RegisterHost(r.PathValue("name"), q.Boot)
}

func body[T any](r *http.Request) (T, error) {
	var q T
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return q, refuse(KindInvalid, "body of %s %s: %v", r.Method, r.URL.Path, err)
	}
	return q, nil
}

var statusOf = map[Kind]int{
	KindInvalid: http.StatusBadRequest, KindNotFound: http.StatusNotFound,
	KindConflict: http.StatusConflict, KindDetached: http.StatusConflict,
}

func answer(w http.ResponseWriter, body any, err error) {
	status := http.StatusOK
	if err != nil {
		refusal := &Refusal{Kind: "internal", Message: err.Error()}
		errors.As(err, &refusal)
		body = ControlError{Kind: refusal.Kind, Error: refusal.Message}
		if status = statusOf[refusal.Kind]; status == 0 {
			status = http.StatusInternalServerError
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		slog.Info("a control client went away", "err", err)
	}
}
