// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// place is a cluster of two replicas on two hosts; the first leads.
type place struct {
	nodes    map[string]corev1.NodeCondition
	standby  corev1.Pod
	incident *v1alpha1.HostIncident
	outside  sight.Outside
	led      time.Duration
	isolated string // a host whose Node is Ready, with an incident that says Isolated
}

func well() *place {
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue}
	return &place{nodes: map[string]corev1.NodeCondition{"host-1": ready, "host-2": ready}, led: ledAtLeast, outside: sight.Outside{On: true, Expected: 4, Answering: 4},
		standby: replica("second", "host-2")}
}

func replica(name, host string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ours", Name: name, Labels: map[string]string{"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "manager"}},
		Spec:   corev1.PodSpec{NodeName: host},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
}

// doubter looks at the place by a clock of the test's.
func (p *place) doubter(t *testing.T) (*doubter, *clocktesting.FakeClock) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	first := replica("first", "host-1")
	objects := []client.Object{&first, &p.standby}
	for name, condition := range p.nodes {
		conditions := []corev1.NodeCondition{condition}
		if name == p.isolated {
			conditions = append(conditions, corev1.NodeCondition{Type: v1alpha1.NodeConditionVerdict, Status: corev1.ConditionTrue, Reason: "Isolated"})
		}
		objects = append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: conditions}})
	}
	if p.incident != nil {
		objects = append(objects, p.incident)
	}
	at := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	return &doubter{from: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build(), namespace: "ours", pod: "first", host: "host-1", clock: at,
		outside: func() sight.Outside { return p.outside }, led: func() time.Duration { return p.led }, down: func() {}}, at
}

func fenced(host string) *v1alpha1.HostIncident {
	return &v1alpha1.HostIncident{ObjectMeta: metav1.ObjectMeta{Name: "hi"}, Spec: v1alpha1.HostIncidentSpec{NodeName: host}, Status: v1alpha1.HostIncidentStatus{Step: v1alpha1.StepFencing}}
}

func TestWhenALeaderStepsDown(t *testing.T) {
	unready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}
	verdict := corev1.NodeCondition{Type: v1alpha1.NodeConditionVerdict, Status: corev1.ConditionTrue, Reason: "KubeletDown"}
	for name, c := range map[string]struct {
		change func(*place)
		stays  bool
	}{
		"all is well":                                              {func(*place) {}, true},
		"its Node is not ready":                                    {func(p *place) { p.nodes["host-1"] = unready }, false},
		"an incident of its host is open":                          {func(p *place) { p.nodes["host-1"] = verdict }, false},
		"a quorum does not hear its host":                          {func(p *place) { p.outside.Doubting = 3 }, false},
		"half of them are no quorum":                               {func(p *place) { p.outside.Doubting = 2 }, true},
		"nobody answers it":                                        {func(p *place) { p.outside.Answering = 0 }, false},
		"one answers it":                                           {func(p *place) { p.outside.Answering = 1 }, true},
		"one agent alone is no quorum":                             {func(p *place) { p.outside = sight.Outside{On: true, Expected: 1, Answering: 1, Doubting: 1} }, true},
		"one agent alone does not answer":                          {func(p *place) { p.outside = sight.Outside{On: true, Expected: 1} }, true},
		"it has led for less than two minutes":                     {func(p *place) { p.outside.Answering, p.led = 0, ledAtLeast-1 }, true},
		"the other is not ready":                                   {func(p *place) { p.outside.Answering, p.standby.Status.Conditions = 0, nil }, true},
		"the other is on the same host":                            {func(p *place) { p.outside.Answering, p.standby.Spec.NodeName = 0, "host-1" }, true},
		"the other is on a host that nobody knows":                 {func(p *place) { p.outside.Answering, p.standby.Spec.NodeName = 0, "host-3" }, true},
		"the other's Node is not ready":                            {func(p *place) { p.outside.Answering, p.nodes["host-2"] = 0, unready }, true},
		"an incident of the other's host is open":                  {func(p *place) { p.outside.Answering, p.nodes["host-2"] = 0, verdict }, true},
		"another host is being fenced":                             {func(p *place) { p.outside.Answering, p.incident = 0, fenced("host-2") }, true},
		"its own host is being fenced":                             {func(p *place) { p.nodes["host-1"], p.incident = verdict, fenced("host-1") }, false},
		"nobody answers it, to which the other's host is Isolated": {func(p *place) { p.outside.Answering, p.isolated = 0, "host-2" }, false},
		"most do not hear its host, and the other's is Isolated":   {func(p *place) { p.outside.Doubting, p.isolated = 3, "host-2" }, true},
		"what is ready there is not a replica of ours":             {func(p *place) { p.outside.Answering, p.standby.Labels = 0, nil }, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := well()
			c.change(p)
			d, at := p.doubter(t)
			for passed := time.Duration(0); passed < doubtFor; passed += doubtEvery {
				if _, to, err := d.look(t.Context()); err != nil || to != "" {
					t.Fatalf("after %s it steps down for %q, %v", passed, to, err)
				}
				at.Step(doubtEvery)
			}
			why, to, err := d.look(t.Context())
			if err != nil || (to == "") != c.stays || to != "" && (to != "second" || why == "") {
				t.Errorf("it steps down for %q because %q, %v", to, why, err)
			}
		})
	}
}

func TestADoubtThatPassesBeginsAnew(t *testing.T) {
	p := well()
	d, at := p.doubter(t)
	for _, answering := range []int{0, 0, 0, 4, 0, 0, 0} {
		p.outside.Answering = answering
		if why, to, err := d.look(t.Context()); err != nil || to != "" {
			t.Fatalf("it steps down because %q, %v", why, err)
		}
		at.Step(doubtEvery)
	}
	if _, to, err := d.look(t.Context()); err != nil || to != "second" {
		t.Errorf("it stays, %v", err)
	}
}

// A leader may have to wait for its two minutes, or for a standby, longer than agents are expected that fell silent.
func TestWhoIsAloneIsAloneUntilSomebodyAnswers(t *testing.T) {
	silent, nobody := sight.Outside{On: true, Expected: 2}, sight.Outside{On: true}
	for name, c := range map[string]struct {
		last  sight.Outside
		stays bool
	}{
		"nobody is expected any more": {nobody, false},
		"one alone is expected":       {sight.Outside{On: true, Expected: 1}, false},
		"one alone answers":           {sight.Outside{On: true, Expected: 1, Answering: 1}, true},
		"agents were switched off":    {sight.Outside{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := well()
			p.led = ledAtLeast - 1
			d, at := p.doubter(t)
			for range 5 {
				p.outside = silent
				if why, to, err := d.look(t.Context()); err != nil || to != "" || why == "" {
					t.Fatalf("it steps down for %q because %q, %v", to, why, err)
				}
				at.Step(doubtEvery)
			}
			p.led, p.outside = ledAtLeast, c.last
			if why, to, err := d.look(t.Context()); err != nil || (to == "") != c.stays || (why == "") != c.stays {
				t.Errorf("it steps down for %q because %q, %v", to, why, err)
			}
		})
	}
	if d, _ := well().doubter(t); d.doubtFrom(nobody) != "" {
		t.Error("it is alone from the beginning, where nobody was ever expected")
	}
}

func TestADoubterStepsDownOnceAndEndsWithItsContext(t *testing.T) {
	p := well()
	p.outside.Answering = 0
	d, at := p.doubter(t)
	downs, over := make(chan struct{}, 9), make(chan error, 1)
	d.down = func() { downs <- struct{}{} }
	go func() { over <- d.Start(t.Context()) }()
	for done := false; !done; {
		select {
		case <-downs:
			done = true
		default:
			if at.HasWaiters() {
				at.Step(doubtEvery)
			}
		}
	}
	if err := <-over; err != nil || len(downs) > 0 {
		t.Errorf("%v, and %d times more", err, len(downs))
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := d.Start(ctx); err != nil {
		t.Error(err)
	}
}

// A process that steps down is the same process, begun anew: with the same number, so that no kubelet sees one end.
func TestAProcessBeginsAnew(t *testing.T) {
	const life = "HOLDFAST_TEST_LIFE"
	switch os.Getenv(life) {
	case "first":
		fmt.Println("first", os.Getpid())
		if err := os.Setenv(life, "second"); err != nil {
			t.Fatal(err)
		}
		t.Fatal(again())
	case "second":
		fmt.Println("second", os.Getpid())
		return
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestAProcessBeginsAnew$")
	child.Env = append(os.Environ(), life+"=first")
	said, err := child.CombinedOutput()
	if pid := strconv.Itoa(child.ProcessState.Pid()); err != nil || !strings.Contains(string(said), "first "+pid) || !strings.Contains(string(said), "second "+pid) {
		t.Errorf("%v: %s", err, said)
	}
}
