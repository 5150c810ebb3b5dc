// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"strings"
)

// Claim is one entry of the annotation guard.holdfast.dev/claims: the app, the name of a claim that it guards, and the
// name of the only pod that may start on the claim without the gate guard.holdfast.dev/newcomer.
//
// A name that ends in "*" stands for the claims of a StatefulSet's ordinals: the part before it followed by digits
// only. A "*" at the end of the place stands for the same digits. See [OrdinalClaims] and [OrdinalPods]. Without a
// place every pod on the claim is a newcomer.
type Claim struct{ App, Name, Place string }

// OrdinalClaims is the name that covers every claim which the StatefulSet's claim template makes, also for ordinals
// to come.
func OrdinalClaims(template, statefulSet string) string { return template + "-" + statefulSet + "-*" }

// OrdinalPods is the place of the StatefulSet's pods on the claims of [OrdinalClaims].
func OrdinalPods(statefulSet string) string { return statefulSet + "-*" }

// FormatClaims writes the annotation guard.holdfast.dev/claims. Earlier entries win where several match one pod.
func FormatClaims(claims []Claim) string {
	entries := make([]string, 0, len(claims))
	for _, c := range claims {
		entry := c.App + "=" + c.Name
		if c.Place != "" {
			entry += "@" + c.Place
		}
		entries = append(entries, entry)
	}
	return strings.Join(entries, ",")
}

// ParseClaims reads the annotation guard.holdfast.dev/claims; entries without "=" are left out.
func ParseClaims(annotation string) []Claim {
	var claims []Claim
	for _, e := range entries(annotation) {
		if app, claim, ok := strings.Cut(e, "="); ok {
			name, place, _ := strings.Cut(claim, "@")
			claims = append(claims, Claim{App: strings.TrimSpace(app), Name: name, Place: place})
		}
	}
	return claims
}

// AppOf is the app that guards a pod with volumes on the given claims, or "". It is what the policies compute: the
// manager labels by it where the API server has no MutatingAdmissionPolicy.
func AppOf(annotation string, claimNames []string) string {
	for _, c := range ParseClaims(annotation) {
		for _, name := range claimNames {
			if c.Covers(name) {
				return c.App
			}
		}
	}
	return ""
}

// Newcomer says whether a pod of the given name, with volumes on the given claims, must wait at the gate
// guard.holdfast.dev/newcomer: it does unless it is in its place on every guarded claim that it names, by every entry
// that lists the claim. A pod without a name yet is in no place. It is what the policies compute.
func Newcomer(annotation, podName string, claimNames []string) bool {
	for _, c := range ParseClaims(annotation) {
		for _, name := range claimNames {
			if digits, covers := c.covers(name); covers && !c.placed(podName, digits) {
				return true
			}
		}
	}
	return false
}

// Covers says whether the entry stands for the claim.
func (c Claim) Covers(name string) bool {
	_, ok := c.covers(name)
	return ok
}

// covers says whether the entry stands for the claim, and with which digits in place of the star.
func (c Claim) covers(name string) (digits string, ok bool) {
	if name == c.Name {
		return "", true
	}
	stem, pattern := strings.CutSuffix(c.Name, "*")
	digits, ok = strings.CutPrefix(name, stem)
	return digits, pattern && ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

func (c Claim) placed(podName, digits string) bool {
	if stem, pattern := strings.CutSuffix(c.Place, "*"); pattern {
		return digits != "" && podName == stem+digits
	}
	return podName != "" && podName == c.Place
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
