// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

var _ call.Identity = &badge{}

func newAuthority(t *testing.T, at time.Time) *authority.Authority {
	t.Helper()
	a, err := authority.New(at)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTheManagersOwnCertificateIsMadeAndRenewed(t *testing.T) {
	source := clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	kept, unread, wanted := newAuthority(t, source.Now()), error(nil), false
	reads := 0
	b := &badge{clock: source, begun: make(chan struct{}), wanted: func(context.Context) (bool, error) { return wanted, nil },
		keep: func(context.Context) (*authority.Authority, error) { reads++; return kept, unread }}
	look := func() *identity.Identity {
		b.look(t.Context())
		own, _ := b.Identity()
		return own
	}
	if own := look(); own != nil || reads > 0 {
		t.Fatal("where nobody is to be asked, the authority is read")
	}
	wanted, unread = true, errors.New("forbidden")
	if look() != nil {
		t.Fatal("there is a certificate of no authority")
	}
	if _, err := b.Identity(); !errors.Is(err, unread) || !errors.Is(err, errNoBadge) {
		t.Errorf("says %v", err)
	}
	unread = nil
	first := look()
	leaf, err := x509.ParseCertificate(first.Certificate().Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if name, err := first.Name([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth, source.Now()); name != wire.ManagerName || err != nil {
		t.Errorf("it is %q, %v", name, err)
	}
	source.Step(authority.Life / 3)
	if look() != first {
		t.Error("another one is made although nothing changed: all connections would be made anew")
	}
	unread = errors.New("the API is away")
	source.Step(authority.Life / 3)
	if look() != first {
		t.Error("what cannot be read changes something")
	}
	unread = nil
	second := look()
	if second == first || second == nil {
		t.Error("it is not renewed")
	}
	kept = newAuthority(t, source.Now())
	third := look()
	if third == second || third.Authorities().Equal(second.Authorities()) {
		t.Error("another authority changes nothing")
	}
}

func TestTheRollIsOfTheGuardConfigAndTheNodes(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	node := func(name string, ready corev1.ConditionStatus, addresses ...corev1.NodeAddress) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "z-" + name, corev1.LabelOSStable: "linux"}},
			Status: corev1.NodeStatus{Addresses: addresses, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	}
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	nodes := []client.Object{
		node("a", corev1.ConditionTrue, corev1.NodeAddress{Type: corev1.NodeHostName, Address: "a"}, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "10.0.0.1"},
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "fd00::1"}),
		node("b", corev1.ConditionUnknown),
		node("w", corev1.ConditionTrue),
	}
	nodes[2].SetLabels(map[string]string{corev1.LabelOSStable: "windows"})
	read := func(objects ...client.Object) (sight.Roll, error) {
		return roll(t.Context(), fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(nodes, objects...)...).Build())
	}
	if got, err := read(); err == nil {
		t.Errorf("without a GuardConfig it is %+v: what was read before is used then", got)
	}
	if got, err := read(config.DeepCopy()); err != nil || got.On || len(got.Hosts) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	config.Spec.Witness = v1alpha1.Witness{Enabled: true, Port: 4711}
	want := sight.Roll{On: true, Port: 4711, Hosts: []sight.Host{{Node: "a", Address: "10.0.0.1", Zone: "z-a", Ready: true}, {Node: "b", Zone: "z-b"}, {Node: "w", Ready: true, NoAgent: true}}}
	if got, err := read(config); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
