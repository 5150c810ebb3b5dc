// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fencing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestCredentialsAreNeverFormatted(t *testing.T) {
	c := Credentials{Username: "fencer-account", Password: "correct horse"}
	target := Target{Node: "n1", Address: "192.0.2.1", Credentials: c}
	values := map[string]any{
		"credentials": c, "pointer": &c, "target": target, "pointer to target": &target,
		"slice": []Credentials{c}, "map": map[string]Credentials{"a": c}, "anonymous struct": struct{ C Credentials }{c},
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			hidden(t, name+" with "+verb, fmt.Sprintf(verb, v))
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Errorf("%s as JSON: %v", name, err)
		}
		hidden(t, name+" as JSON", string(text))
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "value", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "value", v)
		hidden(t, name+" logged", log.String())
		hidden(t, name+" in an error", fmt.Errorf("%w: %v", ErrDenied, v).Error())
	}
}

func hidden(t *testing.T, what, text string) {
	t.Helper()
	for _, secret := range []string{"fencer-account", "correct horse", "66656e636572", "636f7272656374"} {
		if strings.Contains(strings.ToLower(text), secret) {
			t.Errorf("%s shows the credentials: %s", what, text)
		}
	}
}

// named is a driver that only has a name.
type named string

func (n named) Describe() Description { return Description{Name: string(n)} }

func (named) Observe(context.Context, Target) (Reading, error) {
	return Reading{Power: PowerUnreadable}, ErrUnsupported
}

func (named) Isolate(context.Context, Target, func(string) error) (Receipt, error) {
	return Receipt{Before: PowerUnreadable}, ErrUnsupported
}

func (named) Release(context.Context, Target) (Receipt, error) {
	return Receipt{Before: PowerUnreadable}, ErrUnsupported
}

func TestRegistry(t *testing.T) {
	r := Registry{}
	r.Add(named("one"))
	r.Add(named("two"))
	d, err := r.Get("two")
	if err != nil || d.Describe().Name != "two" {
		t.Errorf("got %v (%v), want the driver two", d, err)
	}
	_, err = r.Get("three")
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `"three"`) || !strings.Contains(err.Error(), "[one two]") {
		t.Errorf("error %v, want %v that names three and, in order, what there is", err, ErrUnsupported)
	}
	defer func() {
		if said := recover(); said == nil || !strings.Contains(fmt.Sprint(said), "one") {
			t.Errorf("a driver registered twice: recovered %v, want a panic that names it", said)
		}
	}()
	r.Add(named("one"))
}

func TestCoverage(t *testing.T) {
	for says, c := range map[string]struct {
		coverage Coverage
		driver   string
		covers   bool
	}{
		"a host covers every volume":       {Coverage{Host: true}, "csi.example.com", true},
		"a driver covers its volumes":      {Coverage{Drivers: []string{"a", "csi.example.com"}}, "csi.example.com", true},
		"a driver covers no other volumes": {Coverage{Drivers: []string{"a"}}, "csi.example.com", false},
		"nothing covers nothing":           {Coverage{}, "", false},
	} {
		if got := c.coverage.Covers(c.driver); got != c.covers {
			t.Errorf("%s: %v", says, got)
		}
	}
}

func TestWordsOfZeroValuesAreInvalid(t *testing.T) {
	for got, want := range map[string]string{
		Power(0).String(): "Invalid", PowerUnreadable.String(): "Unreadable", PowerOn.String(): "On", PowerOff.String(): "Off",
		PowerGone.String(): "Gone", StrengthPowerOff.String(): "PowerOff",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := Strength(0).String(); got != "Invalid" {
		t.Errorf("the zero strength is %q", got)
	}
}
