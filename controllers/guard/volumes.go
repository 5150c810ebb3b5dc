// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Volumes returns the CSI volumes behind a pod's guarded claims. A claim that cannot be resolved is returned with an empty driver, which no
// isolation covers but one of the whole host.
func Volumes(ctx context.Context, c client.Reader, p *corev1.Pod) []evidence.Volume {
	var out []evidence.Volume
	for _, claim := range ClaimsOf(p) {
		v := evidence.Volume{Claim: claim}
		if pv, err := VolumeOf(ctx, c, p.Namespace, claim); err == nil && pv.Spec.CSI != nil {
			v.Driver, v.Handle = pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle
		}
		out = append(out, v)
	}
	return out
}

// VolumeOf returns the PersistentVolume bound to a claim.
func VolumeOf(ctx context.Context, c client.Reader, namespace, claim string) (*corev1.PersistentVolume, error) {
	var pvc corev1.PersistentVolumeClaim
	if err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: claim}, &pvc); err != nil {
		return nil, fmt.Errorf("get claim %s/%s: %w", namespace, claim, err)
	}
	if pvc.Spec.VolumeName == "" {
		return nil, fmt.Errorf("claim %s/%s is not bound", namespace, claim)
	}
	var pv corev1.PersistentVolume
	if err := c.Get(ctx, types.NamespacedName{Name: pvc.Spec.VolumeName}, &pv); err != nil {
		return nil, fmt.Errorf("get volume %s: %w", pvc.Spec.VolumeName, err)
	}
	return &pv, nil
}

// Claims finds claims by their own names and by what is behind them: several PersistentVolumes, bound to claims in any namespace, may stand for one
// volume of one CSI driver. Names are "namespace/claim".
type Claims struct {
	behind  map[string]string   // claim to volume
	aliases map[string][]string // volume to claims
	volumes map[string][]string // volume to PersistentVolumes
	modes   map[string]modes
}

// modes are what the access modes of a claim come to.
type modes struct{ many, onePod bool }

// ReadClaims reads which claims stand for which volumes. A claim stands for the volume that it names, and only if there is none of that name for one that
// names the claim: a volume that was released still does, when the claim of that name has long been another's.
//
// A cache hands out its own objects here, uncopied: nothing of them is changed or kept but strings. In a large cluster this is read at every look.
func ReadClaims(ctx context.Context, c client.Reader) (*Claims, error) {
	var volumes corev1.PersistentVolumeList
	if err := c.List(ctx, &volumes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var claims corev1.PersistentVolumeClaimList
	if err := c.List(ctx, &claims, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list claims: %w", err)
	}
	out := &Claims{behind: make(map[string]string, len(claims.Items)), aliases: make(map[string][]string, len(volumes.Items)),
		volumes: make(map[string][]string, len(volumes.Items)), modes: make(map[string]modes, len(claims.Items))}
	keys := make(map[string]string, len(volumes.Items))
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		key := volumeKey(pv)
		keys[pv.Name] = key
		out.volumes[key] = append(out.volumes[key], pv.Name)
	}
	for i := range claims.Items {
		pvc := &claims.Items[i]
		name := pvc.Namespace + "/" + pvc.Name
		out.modes[name] = modesOf(pvc.Spec.AccessModes)
		if key, ok := keys[pvc.Spec.VolumeName]; ok {
			out.bind(name, key)
		}
	}
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		if ref := pv.Spec.ClaimRef; ref != nil {
			out.bind(ref.Namespace+"/"+ref.Name, keys[pv.Name])
		}
	}
	return out, nil
}

func modesOf(list []corev1.PersistentVolumeAccessMode) modes {
	one := func(m corev1.PersistentVolumeAccessMode) bool {
		return m != corev1.ReadWriteMany && m != corev1.ReadOnlyMany
	}
	return modes{many: len(list) > 0 && !slices.ContainsFunc(list, one), onePod: slices.Contains(list, corev1.ReadWriteOncePod)}
}

func (c *Claims) bind(claim, key string) {
	if _, bound := c.behind[claim]; bound {
		return
	}
	c.behind[claim] = key
	c.aliases[key] = append(c.aliases[key], claim)
}

// Many reports whether a claim may be mounted by many hosts, and by nothing less.
func (c *Claims) Many(claim string) bool { return c.modes[claim].many }

// OnePod reports whether a claim may be mounted by one pod only.
func (c *Claims) OnePod(claim string) bool { return c.modes[claim].onePod }

// volumeKey is the same for PersistentVolumes that stand for the same storage.
func volumeKey(pv *corev1.PersistentVolume) string {
	if pv.Spec.CSI != nil {
		return pv.Spec.CSI.Driver + "/" + pv.Spec.CSI.VolumeHandle
	}
	return "volume " + pv.Name
}

// Same returns the claim itself and all that stand for the same volume.
func (c *Claims) Same(claim string) []string {
	out := []string{claim}
	for _, other := range c.aliases[c.behind[claim]] {
		if other != claim {
			out = append(out, other)
		}
	}
	return out
}

// PersistentVolumes returns the names of all that stand for the volume behind a claim.
func (c *Claims) PersistentVolumes(claim string) []string {
	if key, ok := c.behind[claim]; ok {
		return c.volumes[key]
	}
	return nil
}

// Of returns the claims that a pod names, as "namespace/claim".
func Of(p *corev1.Pod) []string {
	var out []string
	for _, claim := range ClaimsOf(p) {
		out = append(out, p.Namespace+"/"+claim)
	}
	return out
}

// Guards tells which apps guard a claim, by its name or by the volume behind it.
type Guards struct {
	by map[string][]*App
}

// GuardsOf makes it from all apps.
func GuardsOf(apps []App, claims *Claims) Guards {
	g := Guards{by: map[string][]*App{}}
	for i := range apps {
		app := &apps[i]
		seen := map[string]bool{}
		for claim := range app.Claims {
			for _, same := range claims.Same(app.Namespace + "/" + claim) {
				if !seen[same] {
					seen[same] = true
					g.by[same] = append(g.by[same], app)
				}
			}
		}
	}
	return g
}

// By returns the apps that guard a claim, "namespace/claim".
func (g Guards) By(claim string) []*App { return g.by[claim] }

// Of returns the apps that guard a volume of the pod, whoever owns the pod and whatever its labels (invariant I10).
func (g Guards) Of(p *corev1.Pod) []*App {
	var out []*App
	for _, claim := range Of(p) {
		for _, app := range g.by[claim] {
			if !slices.Contains(out, app) {
				out = append(out, app)
			}
		}
	}
	return out
}
