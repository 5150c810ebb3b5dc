// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/controllers/guard"
)

// cached lists what it holds as the manager's cache does: everything is copied, unless the caller asked for no copies.
type cached struct {
	client.Reader
	volumes, claims []runtime.Object
}

func (c cached) List(_ context.Context, into client.ObjectList, opts ...client.ListOption) error {
	var asked client.ListOptions
	asked.ApplyOptions(opts)
	from := c.volumes
	if _, ok := into.(*corev1.PersistentVolumeClaimList); ok {
		from = c.claims
	}
	out := make([]runtime.Object, 0, len(from))
	for _, o := range from {
		if !ptr.Deref(asked.UnsafeDisableDeepCopy, false) {
			o = o.DeepCopyObject()
		}
		out = append(out, o)
	}
	return meta.SetList(into, out)
}

// many are claims of a large cluster, each with a volume of its own, as a provisioner makes them.
func many(n int) cached {
	var c cached
	for i := range n {
		claim, volume := pvc(fmt.Sprintf("shop-%d", i/10), fmt.Sprintf("data-db-%d", i), fmt.Sprintf("pv-%d", i), corev1.ReadWriteOnce), pv(fmt.Sprintf("pv-%d", i), "csi.example.com", fmt.Sprintf("h-%d", i))
		volume.Spec.ClaimRef = &corev1.ObjectReference{Namespace: claim.Namespace, Name: claim.Name}
		volume.Spec.CSI.VolumeAttributes = map[string]string{"pool": "a", "fsType": "ext4", "protocol": "iscsi"}
		volume.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "csi.example.com"}
		claim.Annotations = map[string]string{"pv.kubernetes.io/bind-completed": "yes", "volume.kubernetes.io/storage-provisioner": "csi.example.com"}
		claim.Labels = map[string]string{"app": "db", "tier": "data"}
		c.volumes, c.claims = append(c.volumes, volume), append(c.claims, claim)
	}
	return c
}

func BenchmarkReadClaims(b *testing.B) {
	c := many(5000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := guard.ReadClaims(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}

// TestReadingClaimsLeavesTheCacheAsItIs: the lists are not copies, and whoever changed them would change what every controller sees.
func TestReadingClaimsLeavesTheCacheAsItIs(t *testing.T) {
	c, before := many(20), many(20)
	claims, err := guard.ReadClaims(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if got := claims.PersistentVolumes("shop-0/data-db-2"); !slices.Equal(got, []string{"pv-2"}) || claims.Many("shop-0/data-db-2") {
		t.Errorf("read volumes %v", got)
	}
	if !reflect.DeepEqual(c, before) {
		t.Error("what the cache holds was changed")
	}
}

func TestAClaimStandsForTheVolumeThatItNames(t *testing.T) {
	of := func(volume *corev1.PersistentVolume, claim string) *corev1.PersistentVolume {
		volume.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: claim}
		return volume
	}
	c := cached{
		volumes: []runtime.Object{
			of(pv("a-released", "csi.example.com", "h-old"), "data"), of(pv("b-bound", "csi.example.com", "h-new"), "data"), pv("c-alias", "csi.example.com", "h-new"),
			of(pv("d-reserved", "csi.example.com", "h-3"), "pending"), of(pv("e-orphaned", "csi.example.com", "h-4"), "deleted"),
			of(pv("z-released", "csi.example.com", "h-old"), "data"),
		},
		claims: []runtime.Object{pvc("shop", "data", "b-bound"), pvc("lab", "copy", "c-alias"), pvc("lab", "old", "a-released"), pvc("shop", "pending", ""), pvc("shop", "unknown", "nowhere")},
	}
	tests := []struct {
		claim         string
		volumes, same []string
	}{
		{"shop/data", []string{"b-bound", "c-alias"}, []string{"shop/data", "lab/copy"}},
		{"lab/copy", []string{"b-bound", "c-alias"}, []string{"lab/copy", "shop/data"}},
		{"lab/old", []string{"a-released", "z-released"}, []string{"lab/old"}},
		{"shop/pending", []string{"d-reserved"}, []string{"shop/pending"}},
		{"shop/deleted", []string{"e-orphaned"}, []string{"shop/deleted"}},
		{"shop/unknown", nil, []string{"shop/unknown"}},
	}
	for name, order := range map[string]func([]runtime.Object){"as listed": func([]runtime.Object) {}, "the other way round": slices.Reverse[[]runtime.Object]} {
		order(c.volumes) // a cache lists in no order
		claims, err := guard.ReadClaims(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range tests {
			got := slices.Sorted(slices.Values(claims.PersistentVolumes(test.claim)))
			if same := claims.Same(test.claim); !slices.Equal(got, test.volumes) || !slices.Equal(same, test.same) {
				t.Errorf("%s, %s: volumes %v, claims %v, want %v and %v", name, test.claim, got, same, test.volumes, test.same)
			}
		}
	}
}

func TestWhoMayMountAClaim(t *testing.T) {
	tests := []struct {
		name         string
		modes        []corev1.PersistentVolumeAccessMode
		many, onePod bool
	}{
		{"one host", []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, false, false},
		{"many hosts", []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany, corev1.ReadOnlyMany}, true, false},
		{"many hosts, or one", []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany, corev1.ReadWriteOnce}, false, false},
		{"one pod", []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}, false, true},
		{"nobody knows", nil, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			claims, err := guard.ReadClaims(t.Context(), cached{claims: []runtime.Object{pvc("shop", "data", "", test.modes...)}})
			if err != nil {
				t.Fatal(err)
			}
			if many, onePod := claims.Many("shop/data"), claims.OnePod("shop/data"); many != test.many || onePod != test.onePod {
				t.Errorf("many %v, one pod %v", many, onePod)
			}
			if claims.Many("shop/else") || claims.OnePod("shop/else") {
				t.Error("a claim that is not there may be mounted")
			}
		})
	}
}
