// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package crash runs Holdfast's controllers in-process against a real API server, with a fence device, a network and a clock that belong to the
// test: what they do is looked at write by write, and they are killed at every one of them.
package crash

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/holdfast-dev/holdfast/test/envtest"
)

// cluster is the API server of this package's tests. Each test has a part of it that the others do not see; see [newWorld].
var cluster *envtest.Cluster

// said is everything that was logged.
var said journal

type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) contains(s string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return bytes.Contains(j.text.Bytes(), []byte(s))
}

// about returns the last lines that contain s.
func (j *journal) about(s string) []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	var lines [][]byte
	for _, line := range bytes.Split(j.text.Bytes(), []byte("\n")) {
		if bytes.Contains(line, []byte(s)) {
			lines = append(lines, line)
		}
	}
	return bytes.Join(lines[max(0, len(lines)-25):], []byte("\n"))
}

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // they wait for the API server most of the time
		panic(err)
	}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&said), zap.DebugLevel)
	ctrl.SetLogger(zapr.NewLogger(zap.New(core)))
	os.Exit(run(m))
}

// token is an administrator's. Every write is looked at with several requests, and to check a certificate for each of them costs the API server a tenth of
// its time.
const token = "of-the-administrator"

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-crash-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		panic(err)
	}
	return envtest.Main(m, &cluster, "token-auth-file="+tokens)
}
