// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger"
)

// TestOnlyRightAnswersAreAcknowledgements asks a server that is well, then broken, then mistaken, then ends.
func TestOnlyRightAnswersAreAcknowledgements(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		id, _ := io.ReadAll(q.Body)
		n := asked.Add(1)
		r := ledger.Receipt{Seq: uint64(n), ID: string(id), Host: "host-1", Epoch: 4}
		switch n {
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			r.ID = "another"
		case 5:
			cancel()
			return
		}
		_ = json.NewEncoder(w).Encode(r)
	}))
	t.Cleanup(server.Close)
	endpoints := filepath.Join(t.TempDir(), "endpoints")
	if err := os.WriteFile(endpoints, []byte(strings.TrimPrefix(server.URL, "http://")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var record bytes.Buffer
	summary, err := Run(ctx, Config{EndpointsFile: endpoints, Interval: time.Millisecond, Timeout: 5 * time.Second}, &record)
	if err != nil {
		t.Fatal(err)
	}
	if summary.Attempts < 4 || summary.Acked != 2 || summary.Failed != summary.Attempts-2 {
		t.Errorf("summary %+v", summary)
	}
	var seqs []string
	for line := range bytes.Lines(record.Bytes()) {
		var a Ack
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatal(err)
		}
		if a.Host != "host-1" || a.Epoch != 4 || a.Mono == 0 || a.ID == "" || a.Endpoint == "" {
			t.Errorf("ack %+v", a)
		}
		seqs = append(seqs, fmt.Sprint(a.Seq))
	}
	if got := strings.Join(seqs, " "); got != "1 4" {
		t.Errorf("acknowledged %s, want 1 4", got)
	}
}

func TestWithoutEndpointsEveryAttemptFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	summary, err := Run(ctx, Config{EndpointsFile: filepath.Join(t.TempDir(), "missing"), Interval: time.Millisecond, Timeout: time.Second}, io.Discard)
	if err != nil || summary.Failed == 0 || summary.Acked != 0 || !strings.Contains(summary.LastError, "missing") {
		t.Errorf("%+v, %v", summary, err)
	}
}
