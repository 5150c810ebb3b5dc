// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the nouns that users of Holdfast read and write: GuardedStatefulApp,
// FencingProfile, HostIncident, HostAttestation and GuardConfig, with their conditions, reasons and keys.
//
// +kubebuilder:object:generate=true
// +groupName=guard.holdfast.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: "guard.holdfast.dev", Version: "v1alpha1"}

// AddToScheme registers the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&GuardedStatefulApp{}, &GuardedStatefulAppList{},
		&FencingProfile{}, &FencingProfileList{},
		&HostIncident{}, &HostIncidentList{},
		&HostAttestation{}, &HostAttestationList{},
		&GuardConfig{}, &GuardConfigList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
