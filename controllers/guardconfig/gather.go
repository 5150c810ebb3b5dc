// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardconfig

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

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
		s.config = v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
		if err := r.Direct.Create(ctx, &s.config); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
		err = r.Direct.Get(ctx, name, &s.config)
	}
	if err != nil {
		return nil, err
	}
	st := s.config.Status
	// A new leader proves anew: it cannot know what happened while nobody led.
	s.proven = meta.IsStatusConditionTrue(st.Conditions, v1alpha1.ConditionPoliciesEffective) && st.Leader == r.Self &&
		st.PoliciesProvenAt != nil && r.Clock.Since(st.PoliciesProvenAt.Time) < proveEvery && st.PolicyVersion == admission.Current().String()
	return s, nil
}
