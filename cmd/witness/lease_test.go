// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/agent/lease"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// shelf is an API server with one Lease, which it gives another version with each word that it takes.
type shelf struct {
	*testing.T
	lease   coordinationv1.Lease
	version int
	// deaf: it takes what it is sent, and its answer is lost.
	deaf bool
	// gone: somebody has deleted the Lease, and only a word without a UID makes another.
	gone bool
	// still: it has this very word already, and writes nothing.
	still bool
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPatch || r.URL.Path != "/apis/coordination.k8s.io/v1/namespaces/place/leases/host-1" || r.URL.Query().Get("force") != "true" {
		s.Errorf("it asks for %s %s", r.Method, r.URL)
	}
	var sent coordinationv1.Lease
	if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
		s.Error(err)
	}
	if s.gone && sent.UID != "" {
		w.WriteHeader(http.StatusConflict)
		return
	}
	if sent.ResourceVersion != "" && sent.ResourceVersion != strconv.Itoa(s.version) {
		w.WriteHeader(http.StatusConflict)
		return
	}
	if !s.still {
		s.version++
	}
	s.lease = sent
	s.lease.ResourceVersion, s.lease.UID = strconv.Itoa(s.version), "u1"
	if s.deaf {
		w.WriteHeader(http.StatusGatewayTimeout)
		return
	}
	if err := json.NewEncoder(w).Encode(s.lease); err != nil {
		s.Error(err)
	}
}

func (s *shelf) says() string { return s.lease.Annotations[wire.AnnotationSelfFence] }

func newShelf(t *testing.T) (*shelf, *leases) {
	s := &shelf{T: t}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(token, []byte("x"), 0o600))
	return s, &leases{namespace: "place", node: "host-1", apiServer: apiServer{url: server.URL, client: server.Client(), token: token}}
}

func TestAWordSaysWhatTheWatchdogDoes(t *testing.T) {
	s, l := newShelf(t)
	word := lease.Word{BootID: "b1", At: time.Unix(1_700_000_000, 0), Every: time.Second, Pulse: true, Bound: 40 * time.Second}
	must(t, l.Write(t.Context(), word))
	if s.says() != "" || s.lease.Annotations[wire.AnnotationPulse] != "true" || *s.lease.Spec.HolderIdentity != "b1" {
		t.Errorf("before it knows what stands there it says %+v", s.lease)
	}
	must(t, l.Write(t.Context(), word))
	if s.says() != "40" {
		t.Errorf("then it says %+v", s.lease)
	}
	must(t, l.disarming(t.Context(), "b1"))
	if s.says() != "" {
		t.Errorf("before it disarms it says %+v", s.lease)
	}
}

// What was sent before the device was disarmed, and comes after, must not say again that it counts.
func TestAWordThatComesLateTakesNothingBack(t *testing.T) {
	s, l := newShelf(t)
	word := lease.Word{BootID: "b1", Every: time.Second, Bound: 40 * time.Second}
	must(t, l.Write(t.Context(), word))
	must(t, l.Write(t.Context(), word))
	late := &leases{apiServer: l.apiServer, namespace: l.namespace, node: l.node, version: l.version, uid: l.uid}
	must(t, l.disarming(t.Context(), "b1"))
	if err := late.Write(t.Context(), word); err == nil || !strings.Contains(err.Error(), "409") || s.says() != "" {
		t.Errorf("%v; the Lease says %q", err, s.says())
	}
	if late.version != "" {
		t.Error("it goes on with a version that is gone")
	}
	must(t, late.Write(t.Context(), word))
	must(t, late.Write(t.Context(), word))
	if s.says() != "40" {
		t.Error("it never says it again")
	}
}

// A Lease that somebody deletes must not keep the agent from its contacts.
func TestALeaseThatIsDeletedIsMadeAgain(t *testing.T) {
	s, l := newShelf(t)
	word := lease.Word{BootID: "b1", Every: time.Second, Bound: 40 * time.Second}
	must(t, l.Write(t.Context(), word))
	s.gone = true
	if err := l.Write(t.Context(), word); err == nil {
		t.Error("a word was taken by a version that is gone")
	}
	must(t, l.Write(t.Context(), word))
}

// A word whose answer is lost may stand there: the next one finds out.
func TestAWordWhoseAnswerIsLostMayBeThere(t *testing.T) {
	s, l := newShelf(t)
	word := lease.Word{BootID: "b1", Every: time.Second, Bound: 40 * time.Second}
	must(t, l.Write(t.Context(), word))
	s.deaf = true
	if err := l.Write(t.Context(), word); err == nil {
		t.Error("an answer that is none counts as one")
	}
	s.deaf = false
	if err := l.Write(t.Context(), word); err == nil {
		t.Error("a word was taken against one that it did not know of")
	}
	must(t, l.Write(t.Context(), word))
	must(t, l.Write(t.Context(), word))
	if s.says() != "40" {
		t.Errorf("it says %q", s.says())
	}
}

// What changes nothing is not written, so that nobody who reads the Lease learns of it: it must be no contact. It takes a host's clock that stands still, or is set back to the
// microsecond.
func TestAWordThatChangesNothingIsNotTaken(t *testing.T) {
	s, l := newShelf(t)
	word := lease.Word{BootID: "b1", At: time.Unix(1_700_000_000, 0), Every: time.Second, Bound: 40 * time.Second}
	must(t, l.Write(t.Context(), word))
	must(t, l.Write(t.Context(), word))
	s.still = true
	if err := l.Write(t.Context(), word); err == nil || !strings.Contains(err.Error(), "wrote nothing") {
		t.Errorf("%v", err)
	}
	s.still = false
	must(t, l.Write(t.Context(), word))
}

// A touch of an agent that does not pulse says the last word again, with a date beside it, and announces nothing.
func TestATouchHasADateOfItsOwn(t *testing.T) {
	s, l := newShelf(t)
	word := lease.Word{BootID: "b1", At: time.Unix(1_700_000_000, 0), Every: time.Second, Touched: time.Unix(1_700_000_007, 0)}
	must(t, l.Write(t.Context(), word))
	if s.lease.Spec.AcquireTime == nil || !s.lease.Spec.AcquireTime.Equal(&metav1.MicroTime{Time: word.Touched}) || !s.lease.Spec.RenewTime.Equal(&metav1.MicroTime{Time: word.At}) || len(s.lease.Annotations) != 0 {
		t.Errorf("it says %+v", s.lease)
	}
}
