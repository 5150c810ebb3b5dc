// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"time"
)

// watchdog is the hardware that resets the host, and the agent's leash on it (agent/watchdog), as they truly are. The zero value is a host without one.
type watchdog struct {
	// span and timeout are as they are set; all truly takes slow hundredths longer.
	span, timeout time.Duration
	slow          int
	// broken: the hardware resets nothing.
	broken bool
	// counts: the device was opened and not disarmed. held: the agent that lives has opened it. gone: that agent has let go.
	counts, held, gone bool
	// contact is when the agent last asked what it had an answer to, fed when the device was last fed.
	contact, fed time.Duration
	// stood is true while the agent's process is stopped.
	stood bool
}

func (d watchdog) there() bool { return d.span > 0 }

// bound is what the agent announces.
func (d watchdog) bound() time.Duration {
	if !d.held {
		return 0
	}
	return d.span + 2*d.timeout
}

// truly is how long something takes that should take so long.
func (d watchdog) truly(t time.Duration) time.Duration { return t + t*time.Duration(d.slow)/100 }

// reached is the API taking the agent's word; the first of an agent's has it open the device.
func (d *watchdog) reached(now time.Duration) {
	if d.contact = now; !d.held {
		d.counts, d.held, d.gone, d.fed = true, true, false, now
	}
}

// count is what agent and device do as time goes by. A process that was stopped may have decided to feed before that.
func (w *World) count() {
	h := &w.host
	d := &h.watchdog
	if !d.there() || !h.powered {
		return
	}
	d.held = d.held && h.agent
	switch runs := h.kernel && h.userspace && h.agent; {
	case !d.counts:
		return
	case w.now-d.fed > d.truly(d.timeout) && !d.broken:
		w.reset()
		return
	case !runs:
		d.stood = true
	case d.held && d.stood && !d.gone:
		d.stood, d.fed = false, w.now
	case d.held && !d.gone && w.now-d.contact <= d.truly(d.span):
		d.fed = w.now
	default:
		d.gone = true
	}
}

// reset is what the watchdog does: another boot begins, behind the same network.
func (w *World) reset() {
	h := &w.host
	toAPI, toUs := h.toAPI, h.toUs
	w.tell("the watchdog resets the host")
	w.bootAs(fmt.Sprintf("%s-again", h.boot))
	h.toAPI, h.toUs = toAPI, toUs
}

// leave is the agent ending in order: it says that it disarms, and does so if that was taken.
func (w *World) leave() {
	h := &w.host
	if h.watchdog.held && h.agent && w.says(word{pulse: true}) {
		h.watchdog.counts = h.watchdog.gone
	}
	h.agent, h.watchdog.held = false, false
}
