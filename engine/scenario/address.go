// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
)

// address is one of a pod that was released at that time. The rest of what is known of it is worked out with each look.
type address struct {
	evidence.Address
	pod  string
	gone time.Duration
	// life is that of the observer that has connections reset.
	life int
}

// addressesNow are those of all pods of the incident, there or released.
func (w *World) addressesNow() []evidence.Address {
	if !w.journal.Open() {
		return nil
	}
	var out []evidence.Address
	for _, p := range w.pods {
		for _, ip := range p.Addresses {
			out = append(out, evidence.Address{IP: ip, User: p.user})
		}
	}
	for _, a := range w.addresses {
		now := a.Address
		now.Ago, now.Ours = w.now-a.gone, now.Begun && !now.Ended && a.life == w.life
		out = append(out, now)
	}
	return out
}

// resetConnections has the agents do so, which is allowed only where nobody has the address.
func (w *World) resetConnections(ip string) {
	i := slices.IndexFunc(w.addresses, func(a *address) bool { return a.IP == ip })
	if i < 0 {
		w.Broken = append(w.Broken, fmt.Sprintf("%s: connections to %s are reset, and its pod is there", w.clock(), ip))
		return
	}
	a := w.addresses[i]
	if a.User != "" || a.Ended {
		w.Broken = append(w.Broken, fmt.Sprintf("%s: connections to %s are reset, which belongs to %q, ended %v", w.clock(), ip, a.User, a.Ended))
	}
	a.Begun, a.life = true, w.life
}

func (w *World) letGo(ip string) {
	for _, a := range w.addresses {
		a.Ended = a.Ended || a.IP == ip
	}
}

// given is an address that another pod gets.
func (w *World) given(name, to string) error {
	for _, p := range w.pods {
		if p.Name == name {
			p.user = "shop/" + to
			return nil
		}
	}
	for _, a := range w.addresses {
		if a.pod == name {
			a.User = "shop/" + to
			w.eyes.woken = true
			return nil
		}
	}
	return fmt.Errorf("no app %q is or was on the host", name)
}

// overdue notes an address to which connections are still reset.
func (w *World) overdue(a *address, why string) {
	if a.Begun && !a.Ended {
		w.Broken = append(w.Broken, fmt.Sprintf("%s: connections to %s are still reset: %s", w.clock(), a.IP, why))
		a.Ended = true
	}
}

// bounded notes what is reset for longer than may be, once a plan that should have ended it is carried out.
func (w *World) bounded() {
	for _, a := range w.addresses {
		if ago := w.now - a.gone; ago > plan.ResetWindow+5*time.Second {
			w.overdue(a, "its pod was released "+ago.String()+" ago")
		}
	}
}

// forgetAddresses is what the end of an incident does.
func (w *World) forgetAddresses() {
	for _, a := range w.addresses {
		w.overdue(a, "the incident is over")
	}
	w.addresses = nil
}
