// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/holdfast-dev/holdfast/admission"
)

// Timings of leadership; docs/adr/0014-a-hand-over-within-five-seconds.md has the arithmetic.
const (
	leaseDuration = 4 * time.Second
	// endAfter is when a process ends that could not renew: counted from the moment at which the last renewal that came through was asked for, as its lease is at the earliest.
	endAfter = 3 * time.Second
	// renewDeadline is when client-go gives up by itself. It begins to count up to retryPeriod after a renewal, and asks the API server once more after it.
	renewDeadline = 2500 * time.Millisecond
	// A candidate looks at the lease at intervals of up to 2.2 times this one.
	retryPeriod = 150 * time.Millisecond
	// callDeadline bounds a driver's call. It is within leadership by endAfter; this is what a device may take.
	callDeadline = 2500 * time.Millisecond
)

// term is the managers' Lease as this replica holds it. It ends the process before anybody else can hold it, and gives it back only when nothing is under way any more.
// It implements resourcelock.Interface.
type term struct {
	resourcelock.Interface
	lock  *resourcelock.LeaseLock
	clock clock.WithDelayedExecution
	// end ends the process; nothing that it does comes after.
	end func(why string)

	mu      sync.Mutex
	since   time.Time // when the first renewal of the term was asked for; zero while it does not lead
	renewed time.Time // when the last one was
	expiry  clock.Timer
}

// errKept is why a lease is not given back.
var errKept = errors.New("the lease is not given back, since what was done under it may be under way: it runs out")

// newTerm is of the Lease in a namespace, as this replica.
func newTerm(config *rest.Config, namespace string) (*term, error) {
	config = rest.AddUserAgent(rest.CopyConfig(config), "leader-election") // it changes what it is given
	config.Timeout = renewDeadline / 2                                     // one request that hangs must not cost the lease
	leases, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: admission.ManagersLease}, Client: leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())}}
	return &term{Interface: lock, lock: lock, clock: clock.RealClock{}, end: endProcess}, nil
}

// announce has the begin and the end of the term told by Events.
func (t *term) announce(by record.EventRecorder) { t.lock.LockConfig.EventRecorder = by }

func endProcess(why string) {
	ctrl.Log.WithName("term").Info("This process ends at once", "because", why)
	os.Exit(1)
}

// Get implements resourcelock.Interface. A lease that has another holder than the one who believes to hold it ends the process.
//
// A candidate waits for the lease's duration from when it last saw the raw record change. client-go's has whole seconds: a second's last renewal would not be seen beside its first,
// and the candidate would lead up to a second early. So this one has all digits.
func (t *term) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := t.Interface.Get(ctx)
	if err != nil {
		return record, raw, err
	}
	if record.HolderIdentity != "" && record.HolderIdentity != t.Identity() && t.Led() > 0 {
		t.end("the lease was taken by " + record.HolderIdentity)
	}
	return record, record.RenewTime.UTC().AppendFormat(raw, time.RFC3339Nano), nil
}

// Create implements resourcelock.Interface.
func (t *term) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return t.write(ctx, record, t.Interface.Create)
}

// Update implements resourcelock.Interface.
func (t *term) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity == t.Identity() {
		return t.write(ctx, record, t.Interface.Update)
	}
	if !t.mayGiveBack() {
		return errKept
	}
	if err := t.Interface.Update(ctx, record); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expiry.Stop()
	t.since = time.Time{}
	return nil
}

// mayGiveBack: client-go gives the lease back also when it could not renew it, and before it says so to those that act under it. When it is stopped in good order, all of them
// have ended before, and the last renewal was just now.
func (t *term) mayGiveBack() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.since.IsZero() && t.clock.Since(t.renewed) < renewDeadline
}

func (t *term) write(ctx context.Context, record resourcelock.LeaderElectionRecord, do func(context.Context, resourcelock.LeaderElectionRecord) error) error {
	asked := t.clock.Now()
	record.RenewTime = metav1.Time{Time: asked} // client-go's second try has the time of its first, and might change nothing that others see
	if err := do(ctx, record); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		t.since = asked
	}
	t.renewed = asked
	if t.expiry != nil {
		t.expiry.Stop()
	}
	t.expiry = t.clock.AfterFunc(endAfter-t.clock.Since(asked), func() { t.expire(asked) })
	return nil
}

// expire ends the process if the renewal of that time was the last. A timer that could not be stopped any more comes to nothing.
func (t *term) expire(last time.Time) {
	t.mu.Lock()
	over := !t.since.IsZero() && t.renewed.Equal(last)
	t.mu.Unlock()
	if over {
		t.end(fmt.Sprintf("the lease could not be renewed for %s", endAfter))
	}
}

// Led is for how long this replica leads, and 0 while it does not.
func (t *term) Led() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		return 0
	}
	return max(t.clock.Since(t.since), 1)
}
