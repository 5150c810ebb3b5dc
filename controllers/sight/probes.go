// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-dev/holdfast/agent/probe"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// errAlive: somebody at the other end answered, if only to refuse or to say that all is not well. It is no answer of a serving application, but it is
// a sign of life: a database that answers 503 because it lost its peers is not a dead host.
var errAlive = errors.New("answered")

// Dial opens a connection, as net.Dialer does.
type Dial = probe.Dial

// ask puts one probe to a target. nil means that the application answered and is well; errAlive is wrapped when anything else came back.
func ask(ctx context.Context, dial Dial, p v1alpha1.Probe, t Target) error {
	question, err := questionOf(p, t)
	if err != nil {
		return err
	}
	outcome, err := probe.Ask(ctx, dial, question)
	switch {
	case outcome == wire.Refused, outcome == wire.Failed && !errors.Is(err, probe.ErrMute):
		return fmt.Errorf("%w: %w", errAlive, err)
	default:
		return err
	}
}

// questionOf is what a probe of the target asks.
func questionOf(p v1alpha1.Probe, t Target) (wire.Question, error) {
	q := wire.Question{Name: p.Name, Address: t.IP}
	var port intstr.IntOrString
	switch {
	case p.HTTPGet != nil:
		port, q.HTTP, q.TLS = p.HTTPGet.Port, &p.HTTPGet.Path, p.HTTPGet.Scheme == "HTTPS"
	case p.GRPC != nil:
		port, q.GRPC = p.GRPC.Port, &p.GRPC.Service
	case p.TCPSocket != nil:
		port = p.TCPSocket.Port
	default:
		return q, fmt.Errorf("probe %s has no handler", p.Name)
	}
	q.Port = port.IntVal
	if port.Type == intstr.String {
		q.Port = t.Ports[port.StrVal] // an unknown name gives port 0, which nobody answers
	}
	return q, nil
}

// askPort asks a kubelet's port: who answers, the kernel or a process?
func askPort(ctx context.Context, dial Dial, ip string, port int32) evidence.Answer {
	outcome, _ := probe.Ask(ctx, dial, wire.Question{Address: ip, Port: port, TLS: true})
	return answerOf(outcome)
}

// answerOf is what the outcome of such a question says.
func answerOf(outcome wire.Outcome) evidence.Answer {
	switch outcome {
	case wire.Answered:
		return evidence.AnswerSpoke
	case wire.Failed:
		return evidence.AnswerAccepted
	case wire.Refused:
		return evidence.AnswerReset
	case wire.Unreachable:
		return evidence.AnswerUnreachable
	case wire.Silent:
		return evidence.AnswerNone
	default:
		return evidence.AnswerUnread
	}
}

// tally counts successes and failures of one probe in a row, by the probe's own thresholds.
type tally struct {
	row     int32 // successes in a row if positive, failures if negative
	verdict evidence.Serving
}

func (t *tally) count(ok bool, p v1alpha1.Probe) {
	switch {
	case ok && t.row > 0:
		t.row++
	case ok:
		t.row = 1
	case t.row < 0:
		t.row--
	default:
		t.row = -1
	}
	if t.row >= max(1, p.SuccessThreshold) {
		t.verdict = evidence.ServingYes
	}
	if -t.row >= max(1, p.FailureThreshold) {
		t.verdict = evidence.ServingNo
	}
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }
