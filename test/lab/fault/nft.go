// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"

	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

const (
	table          = "holdfast_lab"
	cutMark        = "cut "
	connectionMark = "connection "
)

// nft runs the program nft inside the host's network namespace and returns what it prints.
func (n Network) nft(ctx context.Context, input string, args ...string) ([]byte, error) {
	path, err := exec.LookPath("nft")
	if err != nil {
		return nil, fmt.Errorf("%w; run hack/debian-packages (it is in the Debian package nftables)", err)
	}
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &complaint
	// The child is forked by the thread that is in the namespace.
	if err := netns.Do(n.NetNS, cmd.Run); err != nil {
		return nil, fmt.Errorf("nft %s in %s: %w: %s", strings.Join(args, " "), n.NetNS, err, complaint.String())
	}
	return out.Bytes(), nil
}

// listing is as much of `nft -j list ruleset` as read needs.
type listing struct {
	Nftables []struct {
		Rule *struct {
			Table   string `json:"table"`
			Chain   string `json:"chain"`
			Comment string `json:"comment"`
		} `json:"rule"`
	} `json:"nftables"`
}

// read tells which rules are in place, from their comments.
func (n Network) read(ctx context.Context) (rules, error) {
	r := rules{cuts: map[Plane]Direction{}, connections: map[Connection]bool{}}
	raw, err := n.nft(ctx, "", "-j", "list", "ruleset", "netdev")
	if err != nil {
		return r, err
	}
	var list listing
	if err := json.Unmarshal(raw, &list); err != nil {
		return r, fmt.Errorf("nft in %s: listing: %w", n.NetNS, err)
	}
	for _, entry := range list.Nftables {
		if entry.Rule == nil || entry.Rule.Table != table {
			continue
		}
		direction, err := ParseDirection(entry.Rule.Chain)
		if err != nil {
			return r, fmt.Errorf("nft in %s: chain: %w", n.NetNS, err)
		}
		if err := r.add(direction, entry.Rule.Comment); err != nil {
			return r, fmt.Errorf("nft in %s: %w", n.NetNS, err)
		}
	}
	return r, nil
}

func (r *rules) add(direction Direction, comment string) error {
	if name, ok := strings.CutPrefix(comment, cutMark); ok {
		plane, err := ParsePlane(name)
		r.cuts[plane] |= direction
		return err
	}
	if name, ok := strings.CutPrefix(comment, connectionMark); ok {
		c, err := parseConnection(name)
		r.connections[c] = true
		return err
	}
	return fmt.Errorf("table %s holds a rule with the comment %q, which this lab does not write", table, comment)
}
