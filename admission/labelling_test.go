// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// labellings are annotations of the namespace, the claims of a new pod, and the label that it must get.
var labellings = map[string]struct {
	annotation string
	claims     []string
	label      string
}{
	"the claim itself":                                  {"db=data-db-0", []string{"data-db-0"}, "db"},
	"another claim":                                     {"db=data-db-0", []string{"data-db-1"}, ""},
	"no claim":                                          {"db=data-db-0", nil, ""},
	"an ordinal to come":                                {"db=data-db-*", []string{"data-db-17"}, "db"},
	"a star stands for digits only":                     {"db=data-db-*", []string{"data-db-x-0"}, ""},
	"a star stands for at least one digit":              {"db=data-db-*", []string{"data-db-"}, ""},
	"dots in a name are dots":                           {"db=data.db-*", []string{"data-db-0"}, ""},
	"the pod's second claim":                            {"db=data-db-*", []string{"scratch", "data-db-0"}, "db"},
	"the second entry":                                  {"a=data-a-*, db=data-db-*", []string{"data-db-0"}, "db"},
	"the first entry wins":                              {"a=shared,db=data-db-*", []string{"data-db-0", "shared"}, "a"},
	"blanks and broken entries are passed over":         {" , broken,,db = x, db=data-db-*", []string{"data-db-0"}, "db"},
	"an empty annotation":                               {"", []string{"data-db-0"}, ""},
	"a star alone is no claim's name":                   {"db=*", []string{"data-db-0"}, ""},
	"a star alone covers a claim of digits":             {"db=*", []string{"0"}, "db"},
	"an app named twice":                                {"db=data-db-*,db=log-db-*", []string{"log-db-3"}, "db"},
	"five hundred entries and ten claims are no burden": {strings.Repeat("other=some-other-claim-of-a-set-*,", 500) + "db=data-db-*", tenClaims(), "db"},
}

func tenClaims() []string {
	var names []string
	for i := range 9 {
		names = append(names, fmt.Sprintf("some-other-claim-of-a-setting-%d", i))
	}
	return append(names, "data-db-0")
}

func TestANewPodGetsTheLabelOfTheAppWhoseClaimItNames(t *testing.T) {
	ctx := guarded(t)
	us, user := holdfast.client(t), alice.client(t)
	for name, l := range labellings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := admission.AppOf(l.annotation, l.claims); got != l.label {
				t.Errorf("AppOf says %q, want %q", got, l.label)
			}
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
				GenerateName: "births-", Annotations: map[string]string{v1alpha1.AnnotationClaims: l.annotation},
			}}
			must(t, us.Create(ctx, ns))
			for _, labels := range []map[string]string{nil, {"example.com/team": "a"}} {
				pod := podOn(ns.Name, l.claims, labels, nil)
				must(t, user.Create(ctx, pod, client.DryRunAll))
				if got := pod.Labels[v1alpha1.LabelApp]; got != l.label {
					t.Errorf("the pod with labels %v got %q, want %q", labels, got, l.label)
				}
				if pod.Labels["example.com/team"] != labels["example.com/team"] {
					t.Errorf("the pod's own labels became %v", pod.Labels)
				}
			}
		})
	}
}

// newcomings are annotations of the namespace, a new pod and its claims, and whether it has to wait at the gate.
var newcomings = map[string]struct {
	annotation string
	pod        string // empty: the API server makes the name
	claims     []string
	newcomer   bool
}{
	"a pod without guarded claims":                       {"db=data-db-*@db-*", "db-1", []string{"scratch"}, false},
	"a pod in its place":                                 {"db=data-db-*@db-*", "db-1", []string{"data-db-1"}, false},
	"a pod of another ordinal":                           {"db=data-db-*@db-*", "db-1", []string{"data-db-2"}, true},
	"digits are compared as they are written":            {"db=data-db-*@db-*", "db-1", []string{"data-db-01"}, true},
	"a pod of another workload":                          {"db=data-db-*@db-*", "backup", []string{"data-db-1"}, true},
	"a name that ends like the place":                    {"db=data-db-*@db-*", "my-db-1", []string{"data-db-1"}, true},
	"a name that begins like the place":                  {"db=data-db-*@db-*", "db-1-x", []string{"data-db-1"}, true},
	"a pod whose name is still to be made":               {"db=data-db-*@db-*", "", []string{"data-db-1"}, true},
	"a claim without a place":                            {"db=shared", "db-0", []string{"shared"}, true},
	"a claim without a place, name still to be made":     {"db=shared", "", []string{"shared"}, true},
	"a place of one name":                                {"db=shared@db-0", "db-0", []string{"shared"}, false},
	"another pod than the place of one name":             {"db=shared@db-0", "db-1", []string{"shared"}, true},
	"a place of one name on claims of all ordinals":      {"db=data-db-*@first", "first", []string{"data-db-7"}, false},
	"a star in the place without one in the claim":       {"db=shared@db-*", "db-0", []string{"shared"}, true},
	"in place on one claim and not on the other":         {"db=data-db-*@db-*,db=shared", "db-0", []string{"data-db-0", "shared"}, true},
	"in place on both claims":                            {"db=data-db-*@db-*,db=log-db-*@db-*", "db-0", []string{"data-db-0", "log-db-0"}, false},
	"the second app gives the claim another place":       {"a=shared@a-0,b=shared@b-0", "a-0", []string{"shared"}, true},
	"the second app agrees":                              {"a=shared@a-0,b=shared@a-0", "a-0", []string{"shared"}, false},
	"the second app gives it no place":                   {"a=data-db-*@db-*,b=data-db-0", "db-0", []string{"data-db-0"}, true},
	"what is after a second at sign belongs to the name": {"db=shared@db-0@db-1", "db-0", []string{"shared"}, true},
	"five hundred entries and ten claims are no burden":  {strings.Repeat("other=some-other-claim-of-a-set-*@some-other-*,", 500) + "db=data-db-*@db-*", "db-0", tenClaims(), false},
	"five hundred entries of one claim are no burden":    {strings.Repeat("db=data-db-*@db-*,", 500), "db-0", tenClaims(), false},
}

func TestANewPodThatIsNotInItsPlaceGetsTheGate(t *testing.T) {
	ctx := guarded(t)
	us, user := holdfast.client(t), alice.client(t)
	theirs := corev1.PodSchedulingGate{Name: "example.com/theirs"}
	ours := corev1.PodSchedulingGate{Name: v1alpha1.GateNewcomer}
	for name, n := range newcomings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := admission.Newcomer(n.annotation, n.pod, n.claims); got != n.newcomer {
				t.Errorf("Newcomer says %v, want %v", got, n.newcomer)
			}
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
				GenerateName: "newcomers-", Annotations: map[string]string{v1alpha1.AnnotationClaims: n.annotation},
			}}
			must(t, us.Create(ctx, ns))
			for _, before := range [][]corev1.PodSchedulingGate{nil, {theirs}} {
				var labels map[string]string
				if before != nil {
					labels = map[string]string{"app": "db"} // whose selector it matches does not matter
				}
				pod := podOn(ns.Name, n.claims, labels, nil)
				pod.Name, pod.Spec.SchedulingGates = n.pod, before
				if n.pod == "" {
					pod.GenerateName = "db-"
				}
				must(t, user.Create(ctx, pod, client.DryRunAll))
				want := slices.Clone(before)
				if n.newcomer {
					want = append(want, ours)
				}
				if !slices.Equal(pod.Spec.SchedulingGates, want) {
					t.Errorf("the pod born with gates %v has %v, want %v", before, pod.Spec.SchedulingGates, want)
				}
			}
		})
	}
}

func TestAnnotationsAreReadAsWritten(t *testing.T) {
	claims := []admission.Claim{{App: "db", Name: admission.OrdinalClaims("data", "db"), Place: admission.OrdinalPods("db")}, {App: "queue", Name: "log-queue-0"}}
	if got := admission.FormatClaims(claims); got != "db=data-db-*@db-*,queue=log-queue-0" {
		t.Errorf("claims are written as %q", got)
	}
	if got := admission.ParseClaims(admission.FormatClaims(claims)); fmt.Sprint(got) != fmt.Sprint(claims) {
		t.Errorf("claims are read as %v", got)
	}
	holds := []admission.Hold{{Pod: "db-0", Incident: "node-1-boot"}, {Pod: "db-1", Incident: "node-2-boot"}}
	if got := admission.FormatHeld(holds); got != "db-0=node-1-boot,db-1=node-2-boot" {
		t.Errorf("holds are written as %q", got)
	}
	if got := admission.ParseHeld(admission.FormatHeld(holds)); fmt.Sprint(got) != fmt.Sprint(holds) {
		t.Errorf("holds are read as %v", got)
	}
}
