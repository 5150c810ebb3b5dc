// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

var columns = [][]string{
	{"fresh", "late", "unread"},
	{"True", "Runtime", "Unknown"},
	{"none", "reset", "accepted", "spoke", "unread"},
	{"serves", "fails", "unread"},
	{"On", "Off", "Unreadable"},
}

// TestTruthTable compares the rules with a table that was written without them.
func TestTruthTable(t *testing.T) {
	rows := truth(t)
	each(nil, columns, func(c []string) {
		t.Run(strings.Join(c, " "), func(t *testing.T) {
			var allowed []string
			for _, row := range rows {
				if matches(row[:5], c) {
					if allowed != nil {
						t.Errorf("two rows of truth.csv match")
					}
					allowed = strings.Split(row[5], "|")
				}
			}
			found := verdict.Decide(picture(c[0], c[1], c[2], c[3], c[4]), verdict.Policy{ConfirmAfter: 15 * time.Second, BlindPercent: 50,
				BlindAPISilent: 5 * time.Second, MinimumProof: evidence.StrengthPowerOff})
			if !slices.Contains(allowed, found.Class.String()) {
				t.Errorf("says %s by %s (%s); the table allows %v", found.Class, found.Rule(), found.Findings[0].Because, allowed)
			}
		})
	})
}

func truth(t *testing.T) [][]string {
	t.Helper()
	text, err := os.ReadFile("../../test/scenario/truth.csv")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for _, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cells := strings.SplitN(line, ",", 7)
		if len(cells) != 7 {
			t.Fatalf("truth.csv: seven cells are wanted: %s", line)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

func each(chosen []string, left [][]string, do func([]string)) {
	if len(left) == 0 {
		do(slices.Clone(chosen))
		return
	}
	for _, word := range left[0] {
		each(append(chosen, word), left[1:], do)
	}
}

func matches(row, c []string) bool {
	for i := range row {
		if row[i] != "*" && !slices.Contains(strings.Split(row[i], "|"), c[i]) {
			return false
		}
	}
	return true
}

// picture is the snapshot that a combination of words stands for, ten minutes into the observer's life.
func picture(lease, ready, port, app, power string) evidence.Snapshot {
	const now = evidence.Instant(10 * time.Minute)
	ago := func(d time.Duration) evidence.Instant { return now - evidence.Instant(d) }
	host := evidence.Host{Node: "node-3", NodeUID: "n", BootID: "b1", SystemUUID: "m"}
	s := evidence.Snapshot{At: now, Host: host, Listed: true,
		Node:    evidence.Node{Read: true, At: now, UID: "n", BootID: "b1", SystemUUID: "m"},
		Lease:   evidence.Lease{Read: lease != "unread", At: now, Duration: 40 * time.Second, Moved: true},
		Writers: []evidence.Writer{{App: "shop/db", Namespace: "shop", Name: "db-0", UID: "u"}},
		Cluster: evidence.Cluster{Hosts: 10, HasOther: true, OtherNotBefore: ago(2 * time.Second), Observing: 10 * time.Minute},
	}
	s.Lease.Age, s.Lease.NotBefore = 5*time.Second, ago(6*time.Second)
	if lease == "late" {
		s.Lease.Age, s.Lease.NotBefore, s.Cluster.StaleHosts = time.Minute, ago(61*time.Second), 1
	}
	s.Node.Ready = map[string]evidence.Ready{"True": evidence.ReadyTrue, "Runtime": evidence.ReadyFalse, "Unknown": evidence.ReadyUnknown}[ready]
	s.Node.RuntimeDown = ready == "Runtime"
	s.Port.Answer = map[string]evidence.Answer{"none": evidence.AnswerNone, "reset": evidence.AnswerReset, "accepted": evidence.AnswerAccepted,
		"spoke": evidence.AnswerSpoke, "unread": evidence.AnswerUnread}[port]
	s.Port.Asked = now
	s.Port.HasAnswer, s.Port.LastAnswer = s.Port.Answer.Rank() != evidence.RankNone, now
	a := evidence.App{App: "shop/db", Pod: "db-0", PodUID: "u", Exclusive: true, Asked: 1, EndpointReady: true}
	switch app {
	case "serves":
		a.Serving, a.Answered, a.HasAnswer, a.LastAnswer = evidence.ServingYes, 1, true, ago(time.Second)
	case "fails":
		a.Serving, a.FailingFor, a.HasAnswer, a.LastAnswer = evidence.ServingNo, 20*time.Second, true, ago(20*time.Second)
	}
	s.Apps = []evidence.App{a}
	p := evidence.Power{Method: "ipmi", Level: 1, Strength: evidence.StrengthPowerOff, CoversHost: true, Identity: evidence.IdentityMatches, At: now}
	switch power {
	case "On":
		p.State = evidence.PowerOn
	case "Off":
		p.State, p.Said, p.OffSince, p.HasOff, p.LastOff = evidence.PowerOff, evidence.PowerOff, ago(10*time.Second), true, now
	}
	s.Power = []evidence.Power{p}
	return s
}
