// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"strings"
)

// Claim is one entry of the annotation guard.holdfast.dev/claims: the app and the name of a claim that it guards.
// A name that ends in "*" stands for the claims of a StatefulSet's ordinals: the part before it followed by digits
// only. See [OrdinalClaims].
type Claim struct{ App, Name string }

// OrdinalClaims is the name that covers every claim which the StatefulSet's claim template makes, also for ordinals
// to come.
func OrdinalClaims(template, statefulSet string) string { return template + "-" + statefulSet + "-*" }

// FormatClaims writes the annotation guard.holdfast.dev/claims. Earlier entries win where several match one pod.
func FormatClaims(claims []Claim) string {
	entries := make([]string, 0, len(claims))
	for _, c := range claims {
		entries = append(entries, c.App+"="+c.Name)
	}
	return strings.Join(entries, ",")
}

// ParseClaims reads the annotation guard.holdfast.dev/claims; entries without "=" are left out.
func ParseClaims(annotation string) []Claim {
	var claims []Claim
	for _, e := range entries(annotation) {
		if app, name, ok := strings.Cut(e, "="); ok {
			claims = append(claims, Claim{App: strings.TrimSpace(app), Name: name})
		}
	}
	return claims
}

// AppOf is the app that guards a pod with volumes on the given claims, or "". It is what the labelling policy computes:
// the manager labels by it where the API server has no MutatingAdmissionPolicy.
func AppOf(annotation string, claimNames []string) string {
	for _, c := range ParseClaims(annotation) {
		for _, name := range claimNames {
			if c.covers(name) {
				return c.App
			}
		}
	}
	return ""
}

func (c Claim) covers(name string) bool {
	if name == c.Name {
		return true
	}
	stem, pattern := strings.CutSuffix(c.Name, "*")
	ordinal, ok := strings.CutPrefix(name, stem)
	return pattern && ok && ordinal != "" && strings.Trim(ordinal, "0123456789") == ""
}

// Hold is one entry of the annotation guard.holdfast.dev/held: a held pod and the HostIncident that holds it.
type Hold struct{ Pod, Incident string }

// FormatHeld writes the annotation guard.holdfast.dev/held.
func FormatHeld(holds []Hold) string {
	entries := make([]string, 0, len(holds))
	for _, h := range holds {
		entries = append(entries, h.Pod+"="+h.Incident)
	}
	return strings.Join(entries, ",")
}

// ParseHeld reads the annotation guard.holdfast.dev/held. An entry without "=" is a hold of an unknown incident, as
// the eviction policy reads it.
func ParseHeld(annotation string) []Hold {
	var holds []Hold
	for _, e := range entries(annotation) {
		pod, incident, _ := strings.Cut(e, "=")
		holds = append(holds, Hold{Pod: pod, Incident: incident})
	}
	return holds
}

func entries(annotation string) []string {
	var trimmed []string
	for e := range strings.SplitSeq(annotation, ",") {
		if e = strings.TrimSpace(e); e != "" {
			trimmed = append(trimmed, e)
		}
	}
	return trimmed
}
