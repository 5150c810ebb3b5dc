// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package keyring_test

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/keyring"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func made(t *testing.T) keyring.Ring {
	t.Helper()
	r, err := keyring.New(began)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func turn(t *testing.T, r keyring.Ring, now time.Time, wanted bool, hosts ...keyring.Host) (keyring.Ring, bool) {
	t.Helper()
	next, changed, err := r.Turn(now, wanted, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return next, changed
}

// understood reports whether whoever goes by one ring understands what is sent by the other.
func understood(by, sent keyring.Ring) bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(by.Files)), func(key []byte) bool { return bytes.Equal(key, sent.Files[keyring.Primary]) })
}

// A turn goes through all its phases, and whoever has read the last files and whoever is one step behind always understand each other.
func TestATurnPartsNobody(t *testing.T) {
	first := made(t)
	r, now := first, began.Add(keyring.Period)
	if _, changed := turn(t, r, now.Add(-time.Second), false); changed {
		t.Error("it turns before its time")
	}
	for _, want := range []keyring.Phase{keyring.Announced, keyring.Switched, keyring.Resting} {
		next, changed := turn(t, r, now, false)
		phase, err := next.Phase()
		if !changed || err != nil || phase != want || !next.Since.Equal(now) {
			t.Fatalf("after %v it is %s since %v, changed %v, %v; want %s", slices.Collect(maps.Keys(r.Files)), phase, next.Since, changed, err, want)
		}
		if !understood(r, next) || !understood(next, r) {
			t.Errorf("%s: who has read it and who has not do not understand each other", want)
		}
		if _, again := turn(t, next, now.Add(keyring.Settle-time.Second), false); again {
			t.Errorf("%s: it goes on before all have read it", want)
		}
		r, now = next, now.Add(keyring.Settle)
	}
	if understood(first, r) || understood(r, first) || len(r.Files) != 1 {
		t.Errorf("the old key is still good; files %v", slices.Collect(maps.Keys(r.Files)))
	}
	if _, changed := turn(t, r, now, false); changed {
		t.Error("another turn begins at once")
	}
}

func TestATurnThatIsWantedBeginsAtOnceAndSkipsNothing(t *testing.T) {
	r := made(t)
	now := began.Add(keyring.Settle)
	for _, want := range []keyring.Phase{keyring.Announced, keyring.Switched, keyring.Resting} {
		if _, early := turn(t, r, now.Add(-time.Second), true); early {
			t.Errorf("%s comes before all have read what was", want)
		}
		r, _ = turn(t, r, now, true)
		if phase, err := r.Phase(); err != nil || phase != want {
			t.Fatalf("it is %s, %v; want %s", phase, err, want)
		}
		now = now.Add(keyring.Settle)
	}
}

func TestAStepWaitsForHostsThatMayNotHaveReadTheLast(t *testing.T) {
	now := began.Add(keyring.Period)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	well := keyring.Host{Name: "well", Ready: true, Since: ago(time.Hour)}
	for says, c := range map[string]struct {
		host  keyring.Host
		waits bool
	}{
		"well for long":                 {well, false},
		"well since a moment ago":       {keyring.Host{Name: "back", Ready: true, Since: ago(keyring.Settle - time.Second)}, true},
		"well for just long enough":     {keyring.Host{Name: "back", Ready: true, Since: ago(keyring.Settle)}, false},
		"without a kubelet":             {keyring.Host{Name: "down", Since: ago(time.Hour)}, true},
		"without a kubelet for a day":   {keyring.Host{Name: "gone", Since: ago(keyring.Patience)}, false},
		"without a kubelet till later":  {keyring.Host{Name: "down", Since: now.Add(time.Hour)}, true},
		"that came after the last step": {keyring.Host{Name: "new", Made: ago(time.Minute), Ready: true, Since: ago(time.Second)}, false},
		"that was there before it":      {keyring.Host{Name: "old", Made: ago(keyring.Period), Ready: true, Since: ago(time.Second)}, true},
	} {
		r := made(t)
		r.Since = ago(12 * time.Hour)
		_, changed := turn(t, r, now, true, well, c.host)
		if waits, name := r.Waits(now, []keyring.Host{well, c.host}); changed == c.waits || waits != c.waits || waits && name != c.host.Name {
			t.Errorf("a host %s: changed %v, waits %v for %q", says, changed, waits, name)
		}
	}
}

// Among thousands of hosts there is always one that came back a moment ago: a key that has leaked must go all the same.
func TestAStepWaitsForNobodyLongerThanADay(t *testing.T) {
	r := made(t)
	hosts := []keyring.Host{{Name: "down", Since: began}, {Name: "flaps", Ready: true, Since: began.Add(keyring.Patience - time.Minute)}}
	if _, changed := turn(t, r, began.Add(keyring.Patience-time.Second), true, hosts...); changed {
		t.Error("it does not wait for a host that may not have read the last step")
	}
	if _, changed := turn(t, r, began.Add(keyring.Patience), true, hosts...); !changed {
		t.Error("a host that comes and goes holds it up for ever")
	}
}

func TestFilesThatAreNoRingAreLeftAlone(t *testing.T) {
	good := made(t).Files[keyring.Primary]
	for says, c := range map[string]struct {
		files map[string][]byte
		want  string
	}{
		"nothing":       {nil, `"primary"`},
		"no primary":    {map[string][]byte{keyring.Next: good}, `"primary"`},
		"not base64":    {map[string][]byte{keyring.Primary: []byte("?")}, "primary is no key"},
		"a short key":   {map[string][]byte{keyring.Primary: good, "other": []byte("YWJj")}, "other is no key"},
		"two turns":     {map[string][]byte{keyring.Primary: good, keyring.Next: good, keyring.Previous: good}, "a turn is over"},
		"another's key": {map[string][]byte{keyring.Primary: good, "by-hand": good}, ""},
	} {
		r := keyring.Ring{Files: c.files, Since: began}
		next, changed, err := r.Turn(began.Add(keyring.Period), true, nil)
		if c.want == "" {
			if err != nil || !changed || next.Files["by-hand"] == nil {
				t.Errorf("%s: changed %v, %v; files %v", says, changed, err, next.Files)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || changed || len(next.Files) != len(c.files) {
			t.Errorf("%s: changed %v, %v; want %q", says, changed, err, c.want)
		}
	}
}
