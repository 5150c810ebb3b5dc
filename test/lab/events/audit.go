// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// Request is one request to an API server, as its audit log tells it.
type Request struct {
	// Stamp is when it was answered. Audit logs carry wall time in
	// microseconds; Mono is converted, see clock.
	mono.Stamp
	// Received is when it came, CLOCK_MONOTONIC in nanoseconds.
	Received int64 `json:"received"`
	// Server names the API server, for example kube-apiserver-1.
	Server string `json:"server"`
	// ID is the audit ID.
	ID   string `json:"id"`
	Verb string `json:"verb"`
	// User is who asked; when it was impersonated, who was impersonated.
	User      string `json:"user"`
	UserAgent string `json:"userAgent,omitempty"`
	URI       string `json:"uri"`
	Group     string `json:"group,omitempty"`
	// Resource is plural, for example pods; Subresource is for example eviction.
	Resource    string `json:"resource,omitempty"`
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
	// Code is the HTTP status; Reason and Message are those of a Status object.
	Code    int    `json:"code"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Annotations are what admission and authorization left in the log.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Sent and Returned are the objects in the request and the response, as
	// far as the audit policy keeps them. Only Requests fills them in.
	Sent     json.RawMessage `json:"-"`
	Returned json.RawMessage `json:"-"`
}

// Mutating reports whether the verb can change something.
func (r Request) Mutating() bool {
	return !slices.Contains([]string{"get", "list", "watch"}, r.Verb)
}

// Query selects requests. Empty fields select all.
type Query struct {
	// Since and Until bound the time of the answer, as in Filter.
	Since, Until int64
	// Verbs are create, update, patch, delete, deletecollection, get, list or watch.
	Verbs []string
	User  string
	// Resource, Subresource, Namespace and Name name the object; an empty
	// Subresource selects requests for the object itself and for all of its
	// subresources.
	Resource, Subresource, Namespace, Name string
	// Match further narrows the selection.
	Match func(Request) bool
}

// ToPod selects every request that names the pod and may change it, including
// evictions, bindings and status updates.
func ToPod(namespace, name string) Query {
	return Query{Resource: "pods", Namespace: namespace, Name: name, Match: Request.Mutating}
}

func (q Query) selects(r Request) bool {
	equal := func(want, got string) bool { return want == "" || want == got }
	return Filter{Since: q.Since, Until: q.Until}.within(r.Mono) &&
		(len(q.Verbs) == 0 || slices.Contains(q.Verbs, r.Verb)) &&
		equal(q.User, r.User) && equal(q.Resource, r.Resource) && equal(q.Subresource, r.Subresource) &&
		equal(q.Namespace, r.Namespace) && equal(q.Name, r.Name) &&
		(q.Match == nil || q.Match(r))
}

// Requests answers who did what to what: the selected requests of all API
// servers of the lab whose state directory is dir, in the order of their
// answers, with the objects they carried. Watches count when they end. A
// damaged log is an error: what it hides could be the answer.
func Requests(dir string, q Query) ([]Request, error) {
	var found []Request
	var damaged timeline
	err := scanAudit(dir, &damaged, func(r *Request) {
		if q.selects(*r) {
			found = append(found, *r)
		}
	})
	if err == nil && len(damaged.events) > 0 {
		err = fmt.Errorf("audit log: %s", damaged.events[0].Damaged)
	}
	slices.SortStableFunc(found, func(a, b Request) int { return cmp.Compare(a.Mono, b.Mono) })
	return found, err
}

func readAudit(dir string, to *timeline) error {
	return scanAudit(dir, to, func(r *Request) {
		if !to.filter.Reads && (!r.Mutating() || noise(r)) {
			return
		}
		r.Sent, r.Returned = nil, nil
		to.add(Event{Stamp: r.Stamp, Source: Audit, Request: r})
	})
}

// noise: heartbeats, and what is said about events rather than done.
func noise(r *Request) bool {
	return r.Resource == "leases" || r.Resource == "events" ||
		r.Resource == "subjectaccessreviews" || r.Resource == "tokenreviews"
}

// entry is as much of an audit.k8s.io/v1 Event as Request needs.
type entry struct {
	AuditID        string            `json:"auditID"`
	Stage          string            `json:"stage"`
	RequestURI     string            `json:"requestURI"`
	Verb           string            `json:"verb"`
	User           username          `json:"user"`
	Impersonated   *username         `json:"impersonatedUser"`
	UserAgent      string            `json:"userAgent"`
	ObjectRef      objectRef         `json:"objectRef"`
	ResponseStatus status            `json:"responseStatus"`
	Received       time.Time         `json:"requestReceivedTimestamp"`
	StageTimestamp time.Time         `json:"stageTimestamp"`
	Annotations    map[string]string `json:"annotations"`
	RequestObject  json.RawMessage   `json:"requestObject"`
	ResponseObject json.RawMessage   `json:"responseObject"`
}

type username struct {
	Username string `json:"username"`
}

type objectRef struct {
	Resource    string `json:"resource"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	APIGroup    string `json:"apiGroup"`
	Subresource string `json:"subresource"`
}

type status struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// scanAudit reads the audit logs of all API servers, rotated ones too.
func scanAudit(dir string, to *timeline, use func(*Request)) error {
	logs, err := filepath.Glob(filepath.Join(dir, "audit", "*.log"))
	if err != nil {
		return err
	}
	clock, err := clockOf(dir)
	if err != nil {
		return err
	}
	for _, path := range logs {
		server := serverOf(path)
		err := lines(path, Audit, to, func(e *entry) mono.Stamp {
			stamp := mono.Stamp{Mono: clock.mono(e.StageTimestamp), Wall: e.StageTimestamp}
			if e.Stage == "ResponseComplete" || e.Stage == "Panic" {
				use(e.request(stamp, clock.mono(e.Received), server))
			}
			return stamp
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rotated is what a full audit log gets into its name: when it was put aside.
var rotated = regexp.MustCompile(`-\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}\.\d{3}$`)

// serverOf is the API server that writes a log: its file name without suffix and without the date of a rotation.
func serverOf(path string) string {
	name := filepath.Base(path)
	return rotated.ReplaceAllString(name[:len(name)-len(filepath.Ext(name))], "")
}

func (e *entry) request(stamp mono.Stamp, received int64, server string) *Request {
	user := e.User
	if e.Impersonated != nil {
		user = *e.Impersonated
	}
	return &Request{
		Stamp: stamp, Received: received, Server: server, ID: e.AuditID,
		Verb: e.Verb, User: user.Username, UserAgent: e.UserAgent, URI: e.RequestURI,
		Group: e.ObjectRef.APIGroup, Resource: e.ObjectRef.Resource, Subresource: e.ObjectRef.Subresource,
		Namespace: e.ObjectRef.Namespace, Name: e.objectName(),
		Code: e.ResponseStatus.Code, Reason: e.ResponseStatus.Reason, Message: e.ResponseStatus.Message,
		Annotations: e.Annotations, Sent: e.RequestObject, Returned: e.ResponseObject,
	}
}

// objectName is the name in the request's path; a create has none there but in the object that came of it.
func (e *entry) objectName() string {
	if e.ObjectRef.Name != "" || e.Verb != "create" {
		return e.ObjectRef.Name
	}
	for _, raw := range []json.RawMessage{e.ResponseObject, e.RequestObject} {
		var object struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if json.Unmarshal(raw, &object) == nil && object.Kind != "Status" && object.Metadata.Name != "" {
			return object.Metadata.Name
		}
	}
	return ""
}
