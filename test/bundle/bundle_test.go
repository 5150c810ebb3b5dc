// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bundle validates the OLM bundle with the library of the operator framework: what OLM would refuse is
// refused here, and what it would warn of fails too.
package bundle

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/operator-framework/api/pkg/manifests"
	"github.com/operator-framework/api/pkg/operators/v1alpha1"
	"github.com/operator-framework/api/pkg/validation"
	validator "github.com/operator-framework/api/pkg/validation/interfaces"
	registry "github.com/operator-framework/operator-registry/pkg/lib/bundle"
	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

const dir = "../../bundle"

var kinds = []string{"FencingProfile", "GuardConfig", "GuardedStatefulApp", "HostAttestation", "HostIncident"}

func TestTheBundleHasTheFormatAndOnlyKindsThatOLMInstalls(t *testing.T) {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	image := registry.NewImageValidator(nil, logrus.NewEntry(quiet))
	if err := image.ValidateBundleFormat(dir); err != nil {
		t.Errorf("format: %v", err)
	}
	if err := image.ValidateBundleContent(filepath.Join(dir, "manifests")); err != nil {
		t.Errorf("content: %v", err)
	}
}

func TestAnUnsupportedKindIsRefused(t *testing.T) {
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(filepath.Join(dir, "manifests"))); err != nil {
		t.Fatal(err)
	}
	policy := `{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": {}}`
	if err := os.WriteFile(filepath.Join(copied, "policy.yaml"), []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	err := registry.NewImageValidator(nil, logrus.NewEntry(quiet)).ValidateBundleContent(copied)
	if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
		t.Errorf("a policy in the bundle: %v", err)
	}
}

func TestNoValidatorErrsOrWarns(t *testing.T) {
	bundle := load(t)
	objects := append(bundle.ObjectsToValidate(), map[string]string{"k8s-version": "1.37"})
	validators := map[string]validator.Validators{
		"default":         validation.DefaultBundleValidators,
		"operatorhub":     {validation.OperatorHubV2Validator},
		"capabilities":    {validation.StandardCapabilitiesValidator},
		"categories":      {validation.StandardCategoriesValidator},
		"objects":         {validation.ObjectValidator},
		"good practices":  {validation.GoodPracticesValidator},
		"deprecated APIs": {validation.AlphaDeprecatedAPIsValidator},
	}
	for name, list := range validators {
		t.Run(name, func(t *testing.T) {
			results := list.Validate(objects...)
			if len(results) == 0 {
				t.Error("nothing was validated")
			}
			for _, result := range results {
				for _, e := range result.Errors {
					t.Errorf("%s: %v", result.Name, e)
				}
				for _, w := range result.Warnings {
					if strings.Contains(w.Error(), "permissions to create CRD") && onlyLabelsItsOwnKinds(bundle) {
						continue // the validator takes patch for create
					}
					t.Errorf("%s: warning: %v", result.Name, w)
				}
			}
		})
	}
}

// onlyLabelsItsOwnKinds reports whether the operator may read and patch definitions that it owns, by name, and may do nothing else with any.
func onlyLabelsItsOwnKinds(bundle *manifests.Bundle) bool {
	owned := func(name string) bool {
		return slices.ContainsFunc(bundle.V1CRDs, func(crd *apiextensionsv1.CustomResourceDefinition) bool { return crd.Name == name })
	}
	for _, permissions := range bundle.CSV.Spec.InstallStrategy.StrategySpec.ClusterPermissions {
		for _, rule := range permissions.Rules {
			if !slices.Contains(rule.Resources, "customresourcedefinitions") {
				continue
			}
			if !slices.Equal(rule.Verbs, []string{"get", "patch"}) || len(rule.ResourceNames) == 0 || slices.ContainsFunc(rule.ResourceNames, func(name string) bool { return !owned(name) }) {
				return false
			}
		}
	}
	return true
}

// hasStatus reports whether the kind has a status.
func hasStatus(bundle *manifests.Bundle, kind string) bool {
	return slices.ContainsFunc(bundle.V1CRDs, func(crd *apiextensionsv1.CustomResourceDefinition) bool {
		return crd.Spec.Names.Kind == kind && crd.Spec.Versions[0].Subresources != nil && crd.Spec.Versions[0].Subresources.Status != nil
	})
}

func TestEveryKindIsOwnedDescribedAndShown(t *testing.T) {
	bundle := load(t)
	csv := bundle.CSV
	var examples []struct {
		Kind string
		Spec map[string]any
	}
	if err := json.Unmarshal([]byte(csv.Annotations["alm-examples"]), &examples); err != nil {
		t.Fatal(err)
	}
	var owned, shown []string
	for _, crd := range csv.Spec.CustomResourceDefinitions.Owned {
		owned = append(owned, crd.Kind)
		if crd.DisplayName == "" || crd.Description == "" || len(crd.Resources) == 0 {
			t.Errorf("%s has no display name, no description or no resources", crd.Kind)
		}
		if len(crd.SpecDescriptors) == 0 || (len(crd.StatusDescriptors) == 0 && hasStatus(bundle, crd.Kind)) {
			t.Errorf("%s has no descriptors", crd.Kind)
		}
	}
	for _, example := range examples {
		shown = append(shown, example.Kind)
		if len(example.Spec) == 0 {
			t.Errorf("the example of %s has no spec", example.Kind)
		}
	}
	slices.Sort(owned)
	slices.Sort(shown)
	if !slices.Equal(owned, kinds) || !slices.Equal(shown, kinds) {
		t.Errorf("owned are %v, shown are %v, want %v", owned, shown, kinds)
	}
}

// Descriptors are written by hand, so each path is looked up in the schema.
func TestEveryDescriptorIsAFieldOfItsKind(t *testing.T) {
	bundle := load(t)
	schemas := map[string]map[string]any{}
	for _, crd := range bundle.V1CRDs {
		content, err := json.Marshal(crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
		if err != nil {
			t.Fatal(err)
		}
		schema := map[string]any{}
		if err := json.Unmarshal(content, &schema); err != nil {
			t.Fatal(err)
		}
		schemas[crd.Spec.Names.Kind] = schema
	}
	for _, crd := range bundle.CSV.Spec.CustomResourceDefinitions.Owned {
		for _, d := range crd.SpecDescriptors {
			if !has(schemas[crd.Kind], "spec."+d.Path) {
				t.Errorf("%s has no field spec.%s", crd.Kind, d.Path)
			}
		}
		for _, d := range crd.StatusDescriptors {
			if !has(schemas[crd.Kind], "status."+d.Path) {
				t.Errorf("%s has no field status.%s", crd.Kind, d.Path)
			}
		}
	}
}

func has(schema map[string]any, path string) bool {
	for name := range strings.SplitSeq(path, ".") {
		properties, ok := schema["properties"].(map[string]any)
		if !ok {
			return false
		}
		if schema, ok = properties[name].(map[string]any); !ok {
			return false
		}
	}
	return true
}

func TestTheIconAndTheImageAreTheOnesOfTheSources(t *testing.T) {
	csv := load(t).CSV
	svg, err := os.ReadFile("../../config/manifests/icon.svg")
	if err != nil {
		t.Fatal(err)
	}
	if len(csv.Spec.Icon) != 1 || csv.Spec.Icon[0].Data != base64.StdEncoding.EncodeToString(svg) {
		t.Error("the icon is not config/manifests/icon.svg in base64")
	}
	image := "holdfast.dev/manager:v" + csv.Spec.Version.String()
	if got := csv.Annotations["containerImage"]; got != image {
		t.Errorf("containerImage is %s, want %s", got, image)
	}
	for _, container := range containers(csv) {
		if container != image {
			t.Errorf("the Deployment runs %s, want %s", container, image)
		}
	}
	agents := "holdfast.dev/witness:v" + csv.Spec.Version.String()
	if len(csv.Spec.RelatedImages) != 1 || csv.Spec.RelatedImages[0].Image != agents {
		t.Errorf("the related images are %+v, want %s", csv.Spec.RelatedImages, agents)
	}
	for _, deployment := range csv.Spec.InstallStrategy.StrategySpec.DeploymentSpecs {
		env := deployment.Spec.Template.Spec.Containers[0].Env
		if !slices.ContainsFunc(env, func(e corev1.EnvVar) bool { return e.Name == "RELATED_IMAGE_WITNESS" && e.Value == agents }) {
			t.Errorf("the manager is not told that its agents' image is %s: %+v", agents, env)
		}
	}
}

func TestOLMMakesEveryIdentity(t *testing.T) {
	csv := load(t).CSV
	roles := map[string]int{}
	for _, p := range csv.Spec.InstallStrategy.StrategySpec.Permissions {
		roles[p.ServiceAccountName] += len(p.Rules)
	}
	for _, name := range []string{"holdfast-manager", "holdfast-fencer", "holdfast-canary", "holdfast-authority"} {
		if roles[name] == 0 {
			t.Errorf("%s has no rules in the install namespace", name)
		}
	}
	for _, p := range csv.Spec.InstallStrategy.StrategySpec.ClusterPermissions {
		if p.ServiceAccountName == "holdfast-authority" {
			for _, rule := range p.Rules {
				if !slices.Equal(rule.APIGroups, []string{"certificates.k8s.io"}) {
					t.Errorf("the authority may in the whole cluster: %+v", rule)
				}
			}
			continue
		}
		if p.ServiceAccountName != "holdfast-manager" {
			t.Errorf("%s has rules in the whole cluster", p.ServiceAccountName)
		}
	}
}

func load(t *testing.T) *manifests.Bundle {
	t.Helper()
	bundle, err := manifests.GetBundleFromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if bundle.CSV == nil {
		t.Fatal("the bundle has no ClusterServiceVersion")
	}
	return bundle
}

func containers(csv *v1alpha1.ClusterServiceVersion) []string {
	var images []string
	for _, deployment := range csv.Spec.InstallStrategy.StrategySpec.DeploymentSpecs {
		for _, container := range deployment.Spec.Template.Spec.Containers {
			images = append(images, container.Image)
		}
	}
	return images
}
