// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/fencing"
)

// Errors of finding a device; each is a reason in FencingReady.
var (
	ErrNoProfile       = errors.New("no FencingProfile selects this host")
	ErrConflicted      = errors.New("two FencingProfiles select this host")
	ErrUnlisted        = errors.New("host is not listed")
	ErrSecretMissing   = errors.New("secret missing")
	ErrSecretMalformed = errors.New("secret malformed")
)

// Devices finds the fence devices of hosts. Only Secrets reads credentials, with an identity of its own.
type Devices struct {
	// Secrets reads Secrets in Namespace, as the fencer; nothing else holds that right.
	Secrets   client.Reader
	Namespace string
	Drivers   fencing.Registry
}

// Device is one way to isolate one host.
type Device struct {
	Method  string
	Level   int32
	Driver  fencing.Driver
	Target  fencing.Target
	Timeout time.Duration
	Settle  time.Duration
	// SystemUUID is what the device's identity is compared with: the Node's, or the one that a human pinned.
	SystemUUID string
	// Err says why this method cannot be used for this host; the other fields but Method and Level are then not complete.
	Err error
}

// Address tells devices apart: their address and port. It is empty where the method does not list the host.
func (d Device) Address() string { return addressOf(d.Target.Address, d.Target.Port) }

// Addresses are those of the devices by which the profile's methods reach the host now, by method. Without a profile there are none.
func Addresses(profile *v1alpha1.FencingProfile, node string) map[string]string {
	out := map[string]string{}
	if profile == nil {
		return out
	}
	for _, l := range profile.Spec.Levels {
		for _, m := range l.Methods {
			if h, ok := entryOf(m, node); ok {
				out[m.Name] = addressOf(h.Address, int(m.IPMI.Port))
			}
		}
	}
	return out
}

func addressOf(address string, port int) string {
	if address == "" {
		return ""
	}
	return net.JoinHostPort(address, strconv.Itoa(port))
}

// Profile returns the one profile that selects the node. ErrNoProfile and ErrConflicted are wrapped.
func (d *Devices) Profile(ctx context.Context, from client.Reader, node *corev1.Node) (*v1alpha1.FencingProfile, error) {
	var list v1alpha1.FencingProfileList
	if err := from.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list fencing profiles: %w", err)
	}
	var found *v1alpha1.FencingProfile
	for i := range list.Items {
		if !Selects(&list.Items[i], node) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: %s and %s; narrow the nodeSelector of one", ErrConflicted, found.Name, list.Items[i].Name)
		}
		found = &list.Items[i]
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoProfile, node.Name)
	}
	return found, nil
}

// Selects reports whether the profile's selector chooses the node. An empty or malformed selector chooses none.
func Selects(p *v1alpha1.FencingProfile, node *corev1.Node) bool {
	s, err := metav1.LabelSelectorAsSelector(&p.Spec.NodeSelector)
	return err == nil && !s.Empty() && s.Matches(labels.Set(node.Labels))
}

// For returns the devices of a host in order of level, with credentials. Methods that cannot be used are returned with their error.
func (d *Devices) For(ctx context.Context, profile *v1alpha1.FencingProfile, node, systemUUID string) []Device {
	var out []Device
	for level, l := range profile.Spec.Levels {
		for _, m := range l.Methods {
			dev, err := d.device(ctx, m, node)
			dev.Method, dev.Level, dev.Err = m.Name, int32(level+1), err //nolint:gosec // at most 8 levels
			if dev.SystemUUID == "" {
				dev.SystemUUID = systemUUID
			}
			out = append(out, dev)
		}
	}
	return out
}

func (d *Devices) device(ctx context.Context, m v1alpha1.FencingMethod, node string) (Device, error) {
	dev := Device{Timeout: seconds(orDefault(m.TimeoutSeconds, 5)), Settle: seconds(orDefault(m.SettleSeconds, 20))}
	if m.IPMI == nil {
		return dev, fmt.Errorf("%w: method %s names no driver", fencing.ErrInvalidTarget, m.Name)
	}
	var err error
	if dev.Driver, err = d.Drivers.Get("ipmi"); err != nil {
		return dev, err
	}
	h, ok := entryOf(m, node)
	if !ok {
		return dev, fmt.Errorf("%w: add %s to the hosts of method %s", ErrUnlisted, node, m.Name)
	}
	ref := h.CredentialsSecretRef
	if ref == nil {
		ref = m.IPMI.CredentialsSecretRef
	}
	dev.SystemUUID = h.PinnedSystemUUID
	dev.Target = fencing.Target{Node: node, Address: h.Address, Port: int(m.IPMI.Port),
		Options: map[string]string{"cipherSuite": strconv.Itoa(int(orDefault(m.IPMI.CipherSuite, 3)))}}
	dev.Target.Credentials, err = d.credentials(ctx, ref)
	return dev, err
}

// entryOf is the host's entry in a method, if it has one.
func entryOf(m v1alpha1.FencingMethod, node string) (v1alpha1.HostDevice, bool) {
	if m.IPMI == nil {
		return v1alpha1.HostDevice{}, false
	}
	i := slices.IndexFunc(m.IPMI.Hosts, func(h v1alpha1.HostDevice) bool { return h.NodeName == node })
	if i < 0 {
		return v1alpha1.HostDevice{}, false
	}
	return m.IPMI.Hosts[i], true
}

func (d *Devices) credentials(ctx context.Context, ref *v1alpha1.SecretReference) (fencing.Credentials, error) {
	if ref == nil {
		return fencing.Credentials{}, fmt.Errorf("%w: neither the host nor the method has a credentialsSecretRef", ErrSecretMissing)
	}
	var s corev1.Secret
	err := d.Secrets.Get(ctx, types.NamespacedName{Namespace: d.Namespace, Name: ref.Name}, &s)
	switch {
	case apierrors.IsNotFound(err):
		return fencing.Credentials{}, fmt.Errorf("%w: create Secret %s/%s with the keys username and password", ErrSecretMissing, d.Namespace, ref.Name)
	case err != nil:
		return fencing.Credentials{}, fmt.Errorf("read Secret %s/%s: %w", d.Namespace, ref.Name, err)
	}
	for _, key := range []string{"username", "password"} {
		if len(s.Data[key]) == 0 {
			return fencing.Credentials{}, fmt.Errorf("%w: Secret %s/%s has no key %s", ErrSecretMalformed, d.Namespace, ref.Name, key)
		}
	}
	return fencing.Credentials{Username: string(s.Data["username"]), Password: string(s.Data["password"])}, nil
}
