// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	guardedPods    = "holdfast-guarded-pods/"
	heldPods       = "holdfast-held-pods/"
	newGuardedPods = "holdfast-new-guarded-pods/"
	newHeldPods    = "holdfast-new-held-pods/"
	evictions      = "holdfast-evictions/"
)

const (
	failed          = `{"status":{"phase":"Failed"}}`
	succeeded       = `{"status":{"phase":"Succeeded"}}`
	terminated      = `{"status":{"containerStatuses":[{"name":"db","image":"db","imageID":"","ready":false,"restartCount":0,"state":{"terminated":{"exitCode":137}}}]}}`
	waiting         = `{"status":{"containerStatuses":[{"name":"db","image":"db","imageID":"","ready":false,"restartCount":0,"state":{"waiting":{}}}]}}`
	noContainers    = `{"status":{"containerStatuses":null}}`
	notReady        = `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`
	otherAddress    = `{"status":{"podIP":"192.0.2.9","podIPs":[{"ip":"192.0.2.9"}]}}`
	withoutApp      = `{"metadata":{"labels":{"guard.holdfast.dev/app":null}}}`
	otherApp        = `{"metadata":{"labels":{"guard.holdfast.dev/app":"other"}}}`
	withApp         = `{"metadata":{"labels":{"guard.holdfast.dev/app":"db"}}}`
	withoutHold     = `{"metadata":{"labels":{"guard.holdfast.dev/hold":null}}}`
	withHold        = `{"metadata":{"labels":{"guard.holdfast.dev/hold":"mine"}}}`
	withoutAnything = `{"metadata":{"labels":null,"finalizers":null}}`
	noFinalizers    = `{"metadata":{"finalizers":null}}`
	released        = `{"metadata":{"labels":{"guard.holdfast.dev/hold":null},"finalizers":null}}`
	withOverride    = `{"metadata":{"annotations":{"guard.holdfast.dev/override":"I know that node-1 is off"}}}`
	withoutOverride = `{"metadata":{"annotations":{"guard.holdfast.dev/override":null}}}`
	withOurs        = `{"metadata":{"annotations":{"guard.holdfast.dev/anything":"x"}}}`
	withTheirs      = `{"metadata":{"labels":{"example.com/team":"a"},"annotations":{"example.com/note":"b"}}}`
)

// saysGuarded are the words of every refusal about a guarded pod that is not held.
var saysGuarded = []string{"/db-0", "guarded (app db)", "host node-1", "kubectl get hi", "guard.holdfast.dev/override"}

// saysHeld are the words of every refusal about a held pod.
var saysHeld = []string{"/db-0", "held by HostIncident node-1-boot", "host node-1 is suspect", "kubectl get hi node-1-boot",
	"guard.holdfast.dev/override", "verb override on guardedstatefulapps db"}

var held, plain = scene{held: true}, scene{}

// always are the attempts on guarded pods.
var always = map[string]attempt{
	// what must work
	"an ordinary user may delete a guarded pod gracefully while nothing is held": {plain, alice, deletePod, "", nil},
	"an ordinary user may delete a guarded pod within a second":                  {plain, alice, deletePodWithin(1), "", nil},
	"the StatefulSet controller may delete a guarded pod gracefully":             {plain, statefulSets, deletePod, "", nil},
	"the scheduler may preempt a guarded pod gracefully":                         {plain, scheduler, deletePod, "", nil},
	"the namespace controller may delete guarded pods gracefully":                {plain, namespaceEnder, deleteCollection(30), "", nil},
	"the own kubelet may remove":                                                 {scene{terminating: true}, ownKubelet, forceDelete, "", nil},
	"the own kubelet may fail the pod":                                           {plain, ownKubelet, patchStatus(failed), "", nil},
	"the own kubelet may report terminated containers":                           {plain, ownKubelet, patchStatus(terminated), "", nil},
	"Holdfast may remove":                                                        {plain, holdfast, forceDelete, "", nil},
	"Holdfast may fail the pod":                                                  {plain, holdfast, patchStatus(failed), "", nil},
	"Holdfast may take its labels off":                                           {plain, holdfast, patchPod(withoutApp), "", nil},
	"anybody may delete a guarded pod that never ran":                            {scene{unscheduled: true}, alice, forceDelete, "", nil},
	"anybody may delete a guarded pod that its kubelet declared stopped":         {scene{stopped: true}, statefulSets, deletePod, "", nil},
	"pod GC may collect a guarded pod that its kubelet declared stopped":         {scene{stopped: true}, podGC, forceDelete, "", nil},
	"others may change the Ready condition of a guarded pod":                     {plain, taintManager, patchStatus(notReady), "", nil},
	"others may change their own keys on a guarded pod":                          {plain, alice, patchPod(withTheirs), "", nil},
	"a pod that is not guarded may be force-deleted":                             {scene{unguarded: true}, alice, forceDelete, "", nil},
	"a pod that is not guarded may be failed by pod GC":                          {scene{unguarded: true}, podGC, patchStatus(failed), "", nil},
	"a pod that is not guarded may be deleted by the taint manager":              {scene{unguarded: true}, taintManager, deletePod, "", nil},
	// removal
	"force delete refused":                             {plain, alice, forceDelete, guardedPods + "RemovalGradeDelete", saysGuarded},
	"force delete of a terminating pod refused":        {scene{terminating: true}, alice, forceDelete, guardedPods + "RemovalGradeDelete", saysGuarded},
	"deletecollection with grace 0 refused":            {plain, alice, deleteCollection(0), guardedPods + "RemovalGradeDelete", saysGuarded},
	"another kubelet may not remove":                   {scene{terminating: true}, otherKubelet, forceDelete, guardedPods + "RemovalGradeDelete", saysGuarded},
	"a kubelet's name without its group is not it":     {scene{terminating: true}, pretendedKubelet, forceDelete, guardedPods + "RemovalGradeDelete", saysGuarded},
	"the manager of another namespace is not Holdfast": {plain, otherHoldfastName, forceDelete, guardedPods + "RemovalGradeDelete", saysGuarded},
	// deletes that follow from the host's state
	"the taint manager may not delete a guarded pod gracefully": {plain, taintManager, deletePod, guardedPods + "ControllerDelete",
		append([]string{"node-controller"}, saysGuarded...)},
	"the taint manager under its own name may not either": {plain, newTaintManager, deletePod, guardedPods + "ControllerDelete", saysGuarded},
	"pod GC may not delete a guarded pod gracefully":      {plain, podGC, deletePod, guardedPods + "ControllerDelete", saysGuarded},
	// the word "stopped"
	"pod GC may not fail the pod":                        {plain, podGC, patchStatus(failed), guardedPods + "TerminalPhase", append([]string{"phase Failed"}, saysGuarded...)},
	"a user may not declare the pod succeeded":           {plain, alice, patchStatus(succeeded), guardedPods + "TerminalPhase", saysGuarded},
	"another kubelet may not fail the pod":               {plain, otherKubelet, patchStatus(failed), guardedPods + "TerminalPhase", saysGuarded},
	"a user may not declare containers terminated":       {plain, alice, patchStatus(terminated), guardedPods + "StoppedContainers", saysGuarded},
	"nor on a terminating pod":                           {scene{terminating: true}, alice, patchStatus(terminated), guardedPods + "StoppedContainers", saysGuarded},
	"a user may not declare containers waiting":          {plain, alice, patchStatus(waiting), guardedPods + "StoppedContainers", saysGuarded},
	"a user may not empty the container statuses":        {plain, alice, patchStatus(noContainers), guardedPods + "StoppedContainers", saysGuarded},
	"another kubelet may not declare containers stopped": {plain, otherKubelet, patchStatus(terminated), guardedPods + "StoppedContainers", saysGuarded},
	"a user may not change the address of a guarded pod": {plain, alice, patchStatus(otherAddress), guardedPods + "PodAddress", saysGuarded},
	"another kubelet may not change it":                  {plain, otherKubelet, patchStatus(otherAddress), guardedPods + "PodAddress", saysGuarded},
	"the own kubelet may":                                {plain, ownKubelet, patchStatus(otherAddress), "", nil},
	// keys
	"the label cannot be stripped":                         {plain, alice, patchPod(withoutApp), guardedPods + "PodKeys", append([]string{"- label guard.holdfast.dev/app=db"}, saysGuarded...)},
	"the label cannot be stripped through pods/status":     {plain, alice, patchStatus(withoutApp), guardedPods + "PodKeys", saysGuarded},
	"the own kubelet cannot strip the label":               {plain, ownKubelet, patchStatus(withoutApp), guardedPods + "PodKeys", saysGuarded},
	"the label cannot be changed":                          {plain, alice, patchPod(otherApp), guardedPods + "PodKeys", saysGuarded},
	"another pod cannot be made guarded":                   {scene{unguarded: true}, alice, patchPod(withApp), guardedPods + "PodKeys", []string{"+ label guard.holdfast.dev/app=db"}},
	"a guarded pod cannot be given other keys of Holdfast": {plain, alice, patchPod(withOurs), guardedPods + "PodKeys", []string{"+ annotation guard.holdfast.dev/anything=x"}},
	// override
	"an override cannot be set without the verb":           {plain, alice, patchPod(withOverride), guardedPods + "OverrideKey", []string{"verb override on guardedstatefulapps db", "alice does not have"}},
	"an override cannot be set through pods/status either": {plain, alice, patchStatus(withOverride), guardedPods + "OverrideKey", nil},
	"an override can be set with the verb":                 {plain, breaker, patchPod(withOverride), "", nil},
	"an override cannot be taken back without the verb":    {scene{override: "off"}, alice, patchPod(withoutOverride), guardedPods + "OverrideKey", nil},
	"force delete works with verb and annotation":          {scene{override: "off"}, breaker, forceDelete, "", nil},
	"force delete does not work with the verb alone":       {plain, breaker, forceDelete, guardedPods + "RemovalGradeDelete", saysGuarded},
	"force delete does not work with the annotation alone": {scene{override: "off"}, alice, forceDelete, guardedPods + "RemovalGradeDelete", saysGuarded},
	"an override does not help the taint manager":          {scene{override: "off"}, taintManager, deletePod, guardedPods + "ControllerDelete", nil},
	"an override does not help pod GC":                     {scene{override: "off"}, podGC, patchStatus(failed), guardedPods + "TerminalPhase", nil},
	"with an override a user may fail the pod":             {scene{override: "off"}, breaker, patchStatus(failed), "", nil},
	"with an override a user may end containers":           {scene{override: "off"}, breaker, patchStatus(noContainers), "", nil},
	"an override does not take the guard off":              {scene{override: "off"}, breaker, patchPod(withoutApp), guardedPods + "PodKeys", nil},
}

// armed are the attempts on held pods.
var armed = map[string]attempt{
	"a held pod cannot be deleted gracefully":                     {held, alice, deletePod, heldPods + "HeldDelete", saysHeld},
	"the StatefulSet controller cannot delete a held pod":         {held, statefulSets, deletePod, heldPods + "HeldDelete", saysHeld},
	"the namespace controller cannot delete held pods":            {held, namespaceEnder, deleteCollection(30), heldPods + "HeldDelete", saysHeld},
	"the own kubelet cannot begin to delete a held pod":           {held, ownKubelet, deletePod, heldPods + "HeldDelete", saysHeld},
	"the own kubelet may finish what was begun":                   {scene{held: true, terminating: true}, ownKubelet, forceDelete, "", nil},
	"another kubelet may not finish it":                           {scene{held: true, terminating: true, unguarded: true}, otherKubelet, forceDelete, heldPods + "HeldDelete", nil},
	"a held pod that its kubelet declared stopped stays":          {scene{held: true, stopped: true}, statefulSets, deletePod, heldPods + "HeldDelete", saysHeld},
	"a held pod cannot be force-deleted even without the guard":   {scene{held: true, unguarded: true}, alice, forceDelete, heldPods + "HeldDelete", []string{"held by HostIncident node-1-boot"}},
	"Holdfast may delete a held pod":                              {held, holdfast, forceDelete, "", nil},
	"Holdfast may lift the hold":                                  {held, holdfast, patchPod(released), "", nil},
	"the hold cannot be stripped":                                 {scene{held: true, unguarded: true}, alice, patchPod(withoutHold), heldPods + "PodKeys", []string{"- label guard.holdfast.dev/hold=node-1-boot"}},
	"the finalizer cannot be stripped":                            {scene{held: true, unguarded: true}, alice, patchPod(noFinalizers), heldPods + "PodKeys", []string{"- finalizer guard.holdfast.dev/hold"}},
	"the finalizer cannot be stripped through pods/status":        {scene{held: true, unguarded: true}, podGC, patchStatus(noFinalizers), heldPods + "PodKeys", nil},
	"the own kubelet cannot strip label and finalizer":            {scene{held: true, unguarded: true}, ownKubelet, patchStatus(withoutAnything), heldPods + "PodKeys", nil},
	"a pod cannot be held by others":                              {scene{unguarded: true}, alice, patchPod(withHold), heldPods + "PodKeys", []string{"+ label guard.holdfast.dev/hold=mine"}},
	"a held pod cannot be deleted with the verb alone":            {held, breaker, deletePod, heldPods + "HeldDelete", saysHeld},
	"a held pod cannot be deleted with the annotation alone":      {scene{held: true, override: "off"}, alice, deletePod, heldPods + "HeldDelete", saysHeld},
	"a held pod can be deleted with verb and annotation":          {scene{held: true, override: "off"}, breaker, deletePod, "", nil},
	"a held pod can be force-deleted with verb and annotation":    {scene{held: true, override: "off"}, breaker, forceDelete, "", nil},
	"label and finalizer of a hold yield to an override":          {scene{held: true, override: "off"}, breaker, patchPod(released), "", nil},
	"an override may not put a hold on":                           {scene{unguarded: true, override: "off"}, breaker, patchPod(withHold), heldPods + "PodKeys", nil},
	"force delete of a guarded and held pod names the incident":   {held, alice, forceDelete, guardedPods + "RemovalGradeDelete|" + heldPods + "HeldDelete", saysHeld},
	"pod GC may not fail a held pod, and is told the incident":    {held, podGC, patchStatus(failed), guardedPods + "TerminalPhase", saysHeld},
	"a user may not end a held pod's containers":                  {held, alice, patchStatus(noContainers), guardedPods + "StoppedContainers", saysHeld},
	"an override of a held pod cannot be set without the verb":    {held, alice, patchPod(withOverride), guardedPods + "OverrideKey|" + heldPods + "OverrideKey", nil},
	"an override of an unguarded held pod needs the verb as well": {scene{held: true, unguarded: true}, alice, patchPod(withOverride), heldPods + "OverrideKey", nil},
}

var (
	now       = int64(0)
	appLabel  = map[string]string{"guard.holdfast.dev/app": "db"}
	holdLabel = map[string]string{"guard.holdfast.dev/hold": "mine"}
)

// births are the attempts to create pods.
var births = map[string]attempt{
	"a pod on a guarded claim is created":                            {scene{claims: "db=data-db-*"}, alice, createPod([]string{"data-db-1"}, nil, nil), "", nil},
	"a pod on a guarded claim may carry the label already":           {scene{claims: "db=data-db-*"}, alice, createPod([]string{"data-db-1"}, appLabel, nil), "", nil},
	"a pod on a guarded claim with another app's label is put right": {scene{claims: "db=data-db-*"}, alice, createPod([]string{"data-db-1"}, map[string]string{"guard.holdfast.dev/app": "other"}, nil), "", nil},
	"a pod on no guarded claim may not carry the label":              {scene{claims: "db=data-db-*"}, alice, createPod([]string{"scratch"}, appLabel, nil), newGuardedPods + "BornGuarded", []string{"/db-1", "label guard.holdfast.dev/app=db", "names no guarded claim", "pod template"}},
	"nor may it where nothing is guarded":                            {plain, alice, createPod(nil, appLabel, nil), newGuardedPods + "BornGuarded", []string{"names no guarded claim"}},
	"a guarded pod may not be born with other keys of Holdfast":      {scene{claims: "db=data-db-*"}, alice, createPod([]string{"data-db-1"}, nil, map[string]string{"guard.holdfast.dev/anything": "x"}), newGuardedPods + "BornGuarded", []string{"annotation guard.holdfast.dev/anything=x", "a pod of app db"}},
	"a guarded pod may not be born with an override":                 {scene{claims: "db=data-db-*"}, alice, createPod([]string{"data-db-1"}, nil, map[string]string{"guard.holdfast.dev/override": "x"}), newGuardedPods + "OverrideKey", []string{"verb override"}},
	"who may override may create a guarded pod with an override":     {scene{claims: "db=data-db-*"}, breaker, createPod([]string{"data-db-1"}, nil, map[string]string{"guard.holdfast.dev/override": "x"}), "", nil},
	"a pod may not be born held":                                     {plain, alice, createPod(nil, holdLabel, nil), newHeldPods + "BornHeld", []string{"/db-1", "only Holdfast holds pods"}},
	"Holdfast may create a pod with its keys":                        {plain, holdfast, createPod(nil, appLabel, nil), "", nil},
	"a pod without our keys is created where nothing is guarded":     {plain, alice, createPod([]string{"scratch"}, nil, nil), "", nil},
}

// evicting are the attempts to evict.
var evicting = map[string]attempt{
	"a guarded pod may be evicted gracefully":                  {scene{claims: "db=data-db-*"}, alice, evict(nil), "", nil},
	"eviction within a second is graceful":                     {scene{claims: "db=data-db-*"}, alice, evictWithin(1), "", nil},
	"eviction grace 0 refused":                                 {scene{claims: "db=data-db-*"}, alice, evictWithin(0), evictions + "RemovalGradeEviction", []string{"/db-0", "grace period 0", "has guarded apps", "kubectl get hi"}},
	"eviction grace 0 refused where only a hold is listed":     {scene{heldNames: "other-0=x"}, alice, evictWithin(0), evictions + "RemovalGradeEviction", nil},
	"eviction grace 0 works where nothing is guarded":          {scene{unguarded: true}, alice, evictWithin(0), "", nil},
	"an empty list of claims guards nothing":                   {scene{unguarded: true, claims: " , "}, alice, evictWithin(0), "", nil},
	"Holdfast may evict with grace 0":                          {scene{claims: "db=data-db-*"}, holdfast, evictWithin(0), "", nil},
	"a held pod cannot be evicted":                             {scene{heldNames: "db-1=other, db-0=node-1-boot"}, alice, evict(nil), evictions + "HeldEviction", []string{"/db-0", "held by HostIncident node-1-boot", "kubectl get hi node-1-boot", "cannot be overridden"}},
	"a held pod cannot be evicted with grace 0":                {scene{heldNames: "db-0=node-1-boot", claims: "db=data-db-*"}, alice, evict(&metav1.DeleteOptions{GracePeriodSeconds: &now}), evictions + "HeldEviction", []string{"held by HostIncident node-1-boot"}},
	"a held pod whose incident is missing cannot be evicted":   {scene{heldNames: "db-0"}, alice, evict(nil), evictions + "HeldEviction", nil},
	"a held pod cannot be evicted by who may override":         {scene{heldNames: "db-0=node-1-boot", override: "off"}, breaker, evict(nil), evictions + "HeldEviction", []string{"a delete can"}},
	"a pod whose name begins like a held pod's may be evicted": {scene{heldNames: "db-01=node-1-boot,db=x"}, alice, evict(nil), "", nil},
	"Holdfast may evict a held pod":                            {scene{heldNames: "db-0=node-1-boot"}, holdfast, evict(nil), "", nil},
}

func TestGuardedPods(t *testing.T) { runAll(t, always) }
func TestHeldPods(t *testing.T)    { runAll(t, armed) }
func TestBirths(t *testing.T)      { runAll(t, births) }
func TestEvictions(t *testing.T)   { runAll(t, evicting) }

func runAll(t *testing.T, attempts map[string]attempt) {
	ctx := guarded(t)
	for name, a := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a.run(ctx, t)
		})
	}
}

func TestAnOverrideStandsInTheAuditLogWithItsReason(t *testing.T) {
	ctx := guarded(t)
	s := scene{held: true, override: "node-1 was shredded"}.set(ctx, t)
	must(t, forceDelete(ctx, breaker.client(t), s))
	eventually(t, "line in the audit log", func() bool {
		log, err := os.ReadFile(auditLog)
		return err == nil && slices.ContainsFunc(strings.Split(string(log), "\n"), func(line string) bool {
			return strings.Contains(line, `"username":"breaker"`) && strings.Contains(line, s.namespace) &&
				strings.Contains(line, `"holdfast-held-pods/override":"node-1 was shredded"`) && strings.Contains(line, `"code":200`)
		})
	})
}
