// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Number is raised with every change of the policies. A manager never replaces policies of a higher number.
const Number = 4

// AnnotationVersion on each policy and binding names the version that it is of.
const AnnotationVersion = prefix + "policy-version"

// Version names one state of the policies: a number that orders and a hash of the content that tells two states of
// one number apart. The zero value is older than every real version.
type Version struct {
	Number int
	Hash   string
}

// Current is the version of the policies in this package. It does not depend on the identity.
var Current = sync.OnceValue(func() Version {
	content, err := json.Marshal(build(Identity{}, "", Capabilities{MutatingPolicies: true}))
	if err != nil {
		panic(fmt.Sprintf("admission: policies of this package cannot be encoded: %v", err))
	}
	sum := sha256.Sum256(content)
	return Version{Number: Number, Hash: hex.EncodeToString(sum[:6])}
})

// String is "number-hash", as in the annotation.
func (v Version) String() string { return strconv.Itoa(v.Number) + "-" + v.Hash }

// ParseVersion reads what String writes. Anything else is the zero value.
func ParseVersion(s string) Version {
	number, hash, ok := strings.Cut(s, "-")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 0 {
		return Version{}
	}
	return Version{Number: n, Hash: hash}
}

// Objects are the policies and their bindings for a Holdfast of the given identity, each policy before its binding,
// as far as an API server of the given capabilities can use them.
func Objects(id Identity, caps Capabilities) []client.Object {
	version := Current().String()
	objects := build(id, version, caps)
	for _, o := range objects {
		o.SetAnnotations(map[string]string{AnnotationVersion: version})
		o.SetLabels(map[string]string{"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "admission"})
	}
	return objects
}

// policies are all that refuse. Those that the canary can try come last: an API server that enforces them has heard of
// those before them.
func policies(id Identity, stamp string) []policy {
	return []policy{
		nodes(id, stamp),
		fencedNodes(id, stamp),
		attachments(id, stamp),
		namespaces(id, stamp),
		claims(id, stamp),
		volumes(id, stamp),
		drivers(id, stamp),
		incidents(id, stamp),
		apps(id, stamp),
		profiles(id, stamp),
		configs(id, stamp),
		kinds(id, stamp),
		gatedNewcomers(id, stamp),
		newcomers(id, stamp),
		gates(id, stamp),
		newGuardedPods(id, stamp),
		newHeldPods(id, stamp),
		silence(id, stamp),
		evictions(id, stamp),
		heldPods(id, stamp),
		guardedPods(id, stamp),
	}
}

func build(id Identity, stamp string, caps Capabilities) []client.Object {
	var objects []client.Object
	for _, p := range policies(id, stamp) {
		if p.mutatingToo && !caps.MutatingPolicies {
			continue
		}
		objects = append(objects, p.object(), p.binding())
	}
	if caps.MutatingPolicies {
		objects = append(objects, labelling(), labellingBinding())
	}
	return objects
}
