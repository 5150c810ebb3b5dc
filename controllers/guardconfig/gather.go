// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardconfig

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// annotationMadeAnew marks a GuardConfig that was made without knowing what it had been; it counts until its spec is set.
const annotationMadeAnew = "guard.holdfast.dev/made-anew"

type sighting struct {
	config    v1alpha1.GuardConfig
	proven    bool // recently enough, for the installed version
	installed admission.Installed
	proof     *admission.Proof
	err       error
}

func (s *sighting) effective() bool {
	return s.proven || (s.err == nil && s.proof != nil && s.proof.Holds())
}

// gather reads the GuardConfig, and makes it where there is none.
func (r *Reconciler) gather(ctx context.Context) (*sighting, error) {
	s := &sighting{}
	name := types.NamespacedName{Name: v1alpha1.GuardConfigName}
	err := r.Direct.Get(ctx, name, &s.config)
	if apierrors.IsNotFound(err) {
		if err := r.make(ctx); err != nil {
			return nil, err
		}
		err = r.Direct.Get(ctx, name, &s.config)
	}
	if err != nil {
		return nil, err
	}
	r.spec = s.config.Spec.DeepCopy()
	st := s.config.Status
	// A new leader proves anew: it cannot know what happened while nobody led.
	s.proven = meta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionPoliciesEffective) && st.Leader == r.Self &&
		st.PoliciesProvenAt != nil && r.Clock.Since(st.PoliciesProvenAt.Time) < proveEvery && st.PolicyVersion == admission.Current().String()
	return s, nil
}

// make makes the GuardConfig where there is none. One that was deleted comes back as it was: its brakes must not get looser by that. A leader that never
// saw it, in a cluster that has guarded apps already, cannot know what it was, and makes it with a budget that switches nothing off.
func (r *Reconciler) make(ctx context.Context) error {
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	if r.spec != nil {
		config.Spec = *r.spec.DeepCopy()
	} else {
		used, err := r.inUse(ctx)
		if err != nil {
			return err
		}
		if used {
			config.Annotations = map[string]string{annotationMadeAnew: "budget 0"}
			config.Spec.FenceBudget = v1alpha1.FenceBudget{Count: 0, WindowSeconds: 3600}
		}
	}
	err := r.Direct.Create(ctx, config)
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// inUse reports whether any app was ever accepted, or any incident opened: then there was a GuardConfig.
func (r *Reconciler) inUse(ctx context.Context) (bool, error) {
	var apps v1alpha1.GuardedStatefulAppList
	if err := r.Direct.List(ctx, &apps); err != nil {
		return false, err
	}
	for i := range apps.Items {
		if controllerutil.ContainsFinalizer(&apps.Items[i], v1alpha1.FinalizerApp) {
			return true, nil
		}
	}
	var incidents v1alpha1.HostIncidentList
	if err := r.Direct.List(ctx, &incidents); err != nil {
		return false, err
	}
	return len(incidents.Items) > 0, nil
}
