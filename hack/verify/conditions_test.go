// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Conditions and reasons are API: each is set by code, and stands on the page of a kind.
func TestEveryConditionAndReasonIsUsedAndDocumented(t *testing.T) {
	declared := constants(t, "api/v1alpha1/conditions.go")
	if len(declared) < 40 {
		t.Fatalf("found only %d constants: does this test still look in the right place?", len(declared))
	}
	used := selections(t, "v1alpha1", "controllers", "engine", "cmd", "admission")
	var pages strings.Builder
	for _, kind := range []string{"guardedstatefulapp", "fencingprofile", "hostincident", "guardconfig"} {
		pages.WriteString(read(t, "docs/spec/"+kind+".md"))
	}
	for name, value := range declared {
		if !used[name] {
			t.Errorf("nothing sets v1alpha1.%s: use it or remove it", name)
		}
		if !strings.Contains(pages.String(), "`"+value+"`") {
			t.Errorf("no page of a kind in docs/spec tells what `%s` means", value)
		}
	}
}

// constants returns the string constants of a file, by name.
func constants(t *testing.T, file string) map[string]string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			for i, value := range spec.Values {
				if literal, ok := value.(*ast.BasicLit); ok {
					found[spec.Names[i].Name], _ = strconv.Unquote(literal.Value)
				}
			}
		}
		return true
	})
	return found
}

// selections returns every X of qualifier.X in the code, without tests, of some directories.
func selections(t *testing.T, qualifier string, directories ...string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, directory := range directories {
		err := filepath.WalkDir(filepath.Join(root, directory), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && x.Name == qualifier {
						found[s.Sel.Name] = true
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}
