// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/hack/pinned"
	"github.com/holdfast-dev/holdfast/hack/tools"
)

// startWithin bounds each wait of Raise. It is for a machine with other things to do.
const startWithin = 3 * time.Minute

// Replicas is how many managers the Deployment of config/default has.
const Replicas = 2

// installHoldfast applies config/default and waits until the manager has proven its policies.
func (s *Stage) installHoldfast(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	yaml, err := s.kustomize(ctx, "config/default")
	if err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, yaml, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	if s.used && s.freshManager {
		if _, err := s.Kubectl(ctx, "rollout", "restart", "-n", HoldfastNamespace, "deployment/holdfast-manager"); err != nil {
			return err
		}
	}
	if err := s.awaitManager(ctx, Replicas); err != nil {
		return err
	}
	if _, err := s.AwaitConfig(ctx, "policies that are proven effective", func(g *v1alpha1.GuardConfig) bool {
		return Is(g.Status.Conditions, v1alpha1.ConditionPoliciesEffective)
	}); err != nil {
		return err
	}
	if s.options.FenceBudget == 0 {
		return nil
	}
	budget := fmt.Sprintf(`{"spec":{"fenceBudget":{"count":%d,"windowSeconds":3600}}}`, s.options.FenceBudget)
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	return s.Client.Patch(ctx, config, client.RawPatch(types.MergePatchType, []byte(budget)))
}

// AwaitConfig waits for the GuardConfig to reach something.
func (s *Stage) AwaitConfig(ctx context.Context, what string, reached func(*v1alpha1.GuardConfig) bool) (*v1alpha1.GuardConfig, error) {
	return awaitObject(ctx, s, &v1alpha1.GuardConfigList{}, what, reached)
}

// kustomize builds a directory of the checkout with the pinned kustomize.
func (s *Stage) kustomize(ctx context.Context, dir string) ([]byte, error) {
	specs, err := pinned.Select(tools.Specs(), []string{"kustomize"})
	if err != nil {
		return nil, err
	}
	paths, err := pinned.Ensure(ctx, s.Lab.Root(), specs, &lineWriter{to: s.options.Progress})
	if err != nil {
		return nil, err
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, paths["kustomize"], "build", dir)
	cmd.Dir, cmd.Stderr = s.Lab.Root(), &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("kustomize build %s: %w: %s", dir, err, errs.String())
	}
	return out, nil
}

// startLedger brings the first ledger on, unguarded so far.
func (s *Stage) startLedger(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	var err error
	s.Actor, err = s.engage(ctx, lead)
	return err
}

// guardLedger gives Holdfast the BMCs and puts the ledger under guard.
func (s *Stage) guardLedger(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for _, h := range s.Lab.Hosts() {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bmc-" + h.Name(), Namespace: HoldfastNamespace},
			StringData: map[string]string{"username": "admin", "password": "lab-" + h.Name()}}
		if err := client.IgnoreAlreadyExists(s.Client.Create(ctx, secret)); err != nil {
			return err
		}
	}
	profile, err := s.profile()
	if err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, profile, "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		return err
	}
	if s.used {
		if err := s.clear(ctx); err != nil {
			return err
		}
	}
	return s.guard(ctx)
}

// profile is the manifest of that name with the BMCs of the lab's hosts, however many they are.
func (s *Stage) profile() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(s.Lab.Root(), "test", "e2e", "manifests", "profile.yaml"))
	if err != nil {
		return nil, err
	}
	var p v1alpha1.FencingProfile
	if err := yaml.UnmarshalStrict(text, &p); err != nil {
		return nil, fmt.Errorf("profile.yaml: %w", err)
	}
	method := p.Spec.Levels[0].Methods[0].IPMI
	method.Hosts = nil
	for _, h := range s.Lab.Hosts() {
		method.Hosts = append(method.Hosts, v1alpha1.HostDevice{NodeName: h.Name(), Address: h.BMCAddress(), CredentialsSecretRef: &v1alpha1.SecretReference{Name: "bmc-" + h.Name()}})
	}
	return json.Marshal(struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta           `json:"metadata"`
		Spec            v1alpha1.FencingProfileSpec `json:"spec"`
	}{p.TypeMeta, p.ObjectMeta, p.Spec}) // without a status, which is not ours
}

// Kubectl runs kubectl as the administrator and returns what it printed, errors included.
func (s *Stage) Kubectl(ctx context.Context, args ...string) (string, error) {
	return s.kubectl(ctx, nil, args...)
}

func (s *Stage) kubectl(ctx context.Context, in []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.Lab.StateDir(), "bin", "kubectl"), append([]string{"--kubeconfig", s.Lab.Kubeconfig()}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+s.Lab.StateDir()) // its cache of what the API serves belongs to this lab
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %v: %w: %s", args, err, out)
	}
	return string(out), err
}
