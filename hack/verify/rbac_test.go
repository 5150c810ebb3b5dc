// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

// grants maps "Kind name: group/resource verb" to the reason.
type grants map[string]string

func TestEveryGrantIsListedWithItsReason(t *testing.T) {
	granted, listed := granted(t), listed(t)
	for _, grant := range slices.Sorted(maps.Keys(granted)) {
		if listed[grant] == "" {
			t.Errorf("config grants %q, and docs/spec/rbac.md does not say why", grant)
		}
		if strings.Contains(grant, "*") {
			t.Errorf("%q has a wildcard", grant)
		}
	}
	for _, grant := range slices.Sorted(maps.Keys(listed)) {
		if _, ok := granted[grant]; !ok {
			t.Errorf("docs/spec/rbac.md lists %q, and config does not grant it", grant)
		}
	}
	if len(granted) < 50 {
		t.Errorf("found only %d grants in config: does this test still look in the right place?", len(granted))
	}
}

func granted(t *testing.T) grants {
	t.Helper()
	var files []string
	for _, dir := range []string{"rbac", "witness"} {
		found, err := filepath.Glob(filepath.Join(root, "config", dir, "*.yaml"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no YAML in config/%s (%v)", dir, err)
		}
		files = append(files, found...)
	}
	all := grants{}
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		decoder := utilyaml.NewYAMLOrJSONDecoder(file, 4096)
		for {
			role := rbacv1.ClusterRole{} // a Role has the same fields
			err := decoder.Decode(&role)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if role.Kind == "Role" || role.Kind == "ClusterRole" {
				all.add(t, role)
			}
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func (g grants) add(t *testing.T, role rbacv1.ClusterRole) {
	t.Helper()
	for _, rule := range role.Rules {
		if len(rule.NonResourceURLs) > 0 || role.AggregationRule != nil {
			t.Errorf("%s: non-resource URLs and aggregation are not listed in docs/spec/rbac.md: extend this test", role.Name)
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					g[role.Kind+" "+role.Name+": "+strings.TrimPrefix(group+"/"+resource, "/")+" "+verb] = "granted"
				}
			}
		}
	}
}

// listed reads the tables of docs/spec/rbac.md below headings of the form "## Kind name".
func listed(t *testing.T) grants {
	t.Helper()
	all := grants{}
	role := ""
	for line := range strings.Lines(read(t, "docs/spec/rbac.md")) {
		line = strings.TrimSpace(line)
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			role = heading
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if role == "" || len(cells) != 3 || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| resource") {
			continue
		}
		for verb := range strings.FieldsSeq(cells[1]) {
			all[role+": "+strings.TrimSpace(cells[0])+" "+verb] = strings.TrimSpace(cells[2])
		}
	}
	return all
}
