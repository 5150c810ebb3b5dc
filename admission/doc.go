// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package admission holds the rules that the API server itself enforces for guarded pods, as data: which requests are
// refused, to whom, and with what words. It installs them, keeps the newest version in place and proves, with a
// second identity, that every API server refuses what it should.
//
// The rules are ValidatingAdmissionPolicies without parameters. They read the request, labels, annotations of the
// namespace and the caller, so they stand when every Holdfast process is dead. docs/spec/admission.md describes each
// rule under the name that it has here and in its message.
package admission
