// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/test/envtest"
)

// reads are the verbs that change nothing.
var reads = []string{"get", "list", "watch"}

// served is what the API server says of itself: every resource that can be written, in every version, with its write verbs.
func served(t *testing.T) map[string]map[schema.GroupVersionResource]metav1.APIResource {
	t.Helper()
	d, err := discovery.NewDiscoveryClientForConfig(cluster.Config)
	must(t, err)
	_, lists, err := d.ServerGroupsAndResources()
	must(t, err)
	all := map[string]map[schema.GroupVersionResource]metav1.APIResource{}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		must(t, err)
		for _, r := range list.APIResources {
			r.Verbs = slices.DeleteFunc(slices.Clone(r.Verbs), func(v string) bool { return slices.Contains(reads, v) })
			connects := slices.Contains([]string{"exec", "attach", "portforward", "proxy"}, sub(r.Name)) // a get of these is no read
			if len(r.Verbs) == 0 && !connects {
				continue
			}
			if all[r.Name] == nil {
				all[r.Name] = map[schema.GroupVersionResource]metav1.APIResource{}
			}
			all[r.Name][gv.WithResource(base(r.Name))] = r
		}
	}
	return all
}

func base(name string) string { r, _, _ := strings.Cut(name, "/"); return r }

func sub(name string) string { _, s, _ := strings.Cut(name, "/"); return s }

// TestEveryResourceAndVerbIsKnown fails on whatever a Kubernetes brings that nobody has thought about yet.
func TestEveryResourceAndVerbIsKnown(t *testing.T) {
	all := served(t)
	groups := map[string]map[string]bool{}
	for name, versions := range all {
		e, known := table[name]
		if !known {
			t.Errorf("%s can be written, and the table does not say what that can do to a held writer", name)
			continue
		}
		for gvr, r := range versions {
			if groups[name] == nil {
				groups[name] = map[string]bool{}
			}
			groups[name][gvr.Group] = true
			for _, verb := range r.Verbs {
				if e.says(verb) == "" {
					t.Errorf("%s %s: the table says nothing of the verb %s", gvr.GroupVersion(), name, verb)
				}
			}
		}
	}
	for name := range table {
		if all[name] == nil {
			t.Errorf("the table has %s, which is not served or cannot be written", name)
		}
	}
	for name, in := range groups {
		if len(in) > 1 && name != "events" { // one kind, in two groups
			t.Errorf("%s is in several groups, and the table knows one: %v", name, in)
		}
	}
}

// says tells how the entry deals with the verb.
func (e entry) says(verb string) string {
	switch tried := e.object != nil; {
	case e.rest[verb] != "":
		return e.rest[verb]
	case e.cannot != "":
		return e.cannot
	case !tried && e.known != "":
		return "known: " + e.known
	case (verb == "patch" || verb == "update") && len(e.patches)+len(e.owned) > 0,
		(verb == "delete" || verb == "deletecollection") && e.deletes,
		verb == "create" && len(e.creates) > 0:
		return "tried"
	}
	return ""
}

// TestWhatIsNotProtectedIsSaid keeps the list of what remains in the spec.
func TestWhatIsNotProtectedIsSaid(t *testing.T) {
	root, err := envtest.Root()
	must(t, err)
	spec, err := os.ReadFile(filepath.Join(root, "docs", "spec", "admission.md"))
	must(t, err)
	_, limits, found := strings.Cut(string(spec), "## What this does not protect against")
	if !found {
		t.Fatal("docs/spec/admission.md no longer says what it does not protect against")
	}
	for name, e := range table {
		if e.known != "" && !strings.Contains(limits, "**"+e.known) {
			t.Errorf("%s: docs/spec/admission.md does not say %q", name, e.known)
		}
	}
}

// TestNobodyGetsAroundTheHold tries every resource and verb that could touch a held writer, as every identity. What is not refused must leave the
// writer, and all that it hangs on, as they are.
func TestNobodyGetsAroundTheHold(t *testing.T) {
	must(t, guard())
	told := &tally{}
	t.Run("tries", func(t *testing.T) {
		for name, versions := range served(t) {
			e := table[name]
			if e.object == nil {
				continue
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				for gvr, r := range versions {
					if gvr.Version != newest(versions) {
						continue // the same object, and the policies match equivalent versions
					}
					try(t, e, r, target{gvr, sub(name), r.Namespaced, e.object, e.home}, told)
					if e.and != nil {
						try(t, *e.and, r, target{gvr, sub(name), r.Namespaced, e.and.object, e.home}, told)
					}
				}
			})
		}
	})
	t.Log(told)
}

// newest is v1 where it is served.
func newest(versions map[schema.GroupVersionResource]metav1.APIResource) string {
	best := ""
	for gvr := range versions {
		if best == "" || len(gvr.Version) < len(best) || len(gvr.Version) == len(best) && gvr.Version > best {
			best = gvr.Version
		}
	}
	return best
}

// try makes all attempts on one resource as all identities.
func try(t *testing.T, e entry, r metav1.APIResource, on target, told *tally) {
	var attempts []attempt
	for _, p := range e.patches {
		attempts = append(attempts, on.patches(p, nil)...)
	}
	for _, p := range e.owned {
		attempts = append(attempts, on.patches(p, e.except)...)
	}
	if e.deletes {
		attempts = append(attempts, on.deletes(e.except)...)
	}
	for _, c := range e.creates {
		attempts = append(attempts, on.create(c.what, c.object))
	}
	ctx, s := t.Context(), set(t.Context(), t)
	for _, a := range attempts {
		if !slices.Contains(r.Verbs, a.verb) {
			continue
		}
		for _, id := range identities {
			if a.except[id.name] != "" {
				continue
			}
			what := fmt.Sprintf("%s: %s %s (%s)", id.name, a.verb, r.Name, a.what)
			err := a.do(ctx, id.in(s).dynamic(t), s)
			if err != nil {
				why := refusal(err)
				if why == "" || why == "no rights" && id.name != editor {
					t.Errorf("%s: was not refused but failed: %v", what, err)
					break
				}
				if id.name == admin || id.name == editor {
					t.Logf("%s: %s", what, why)
				}
				told.refused(why)
				continue
			}
			t.Logf("%s: harmless", what)
			told.refused("harmless")
			if harm := s.harm(ctx); len(harm) > 0 {
				t.Errorf("%s: was let through, and\n  %s", what, strings.Join(harm, "\n  "))
			}
			if s = s.after(ctx, t, a); id.name == admin {
				break // what a request does to what is stored does not depend on who makes it
			}
		}
	}
	if harm := s.harm(ctx); len(harm) > 0 {
		t.Errorf("after every attempt:\n  %s", strings.Join(harm, "\n  "))
	}
}

// after is the scene for the next attempt: as it was, without what was created.
func (s *scene) after(ctx context.Context, t *testing.T, a attempt) *scene {
	switch a.verb {
	case "patch", "update":
		return s
	case "create":
		for _, made := range s.made {
			must(t, client.IgnoreNotFound(cluster.Client.Delete(ctx, made, client.GracePeriodSeconds(0))))
		}
		s.made = nil
		return s
	}
	return set(ctx, t)
}

// tally counts answers.
type tally struct {
	sync.Mutex
	by map[string]int
}

func (t *tally) refused(why string) {
	t.Lock()
	defer t.Unlock()
	if t.by == nil {
		t.by = map[string]int{}
	}
	if strings.HasPrefix(why, "the API: ") {
		why = "the API's own rules"
	}
	t.by[why]++
}

func (t *tally) String() string {
	t.Lock()
	defer t.Unlock()
	var lines []string
	for why, n := range t.by {
		lines = append(lines, fmt.Sprintf("%5d %s", n, why))
	}
	slices.Sort(lines)
	return "answers:\n" + strings.Join(lines, "\n")
}
