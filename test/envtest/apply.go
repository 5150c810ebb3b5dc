// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package envtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Apply creates what the given directories of config hold, namespaces first, and returns it. A field that the API does
// not know is an error; an object that exists is left alone.
func (c *Cluster) Apply(ctx context.Context, dirs ...string) ([]*unstructured.Unstructured, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	var namespaces, others []*unstructured.Unstructured
	for _, dir := range dirs {
		objects, err := Objects(filepath.Join(root, "config", dir))
		if err != nil {
			return nil, err
		}
		for _, obj := range objects {
			if obj.GetKind() == "Namespace" {
				namespaces = append(namespaces, obj)
			} else {
				others = append(others, obj)
			}
		}
	}
	all := append(namespaces, others...)
	strict := client.WithFieldValidation(c.Client, metav1.FieldValidationStrict)
	for _, obj := range all {
		if err := strict.Create(ctx, obj); client.IgnoreAlreadyExists(err) != nil {
			return nil, fmt.Errorf("%s %s: %w", obj.GetKind(), obj.GetName(), err)
		}
	}
	return all, nil
}

// Objects reads the objects in a directory's YAML files, kustomizations left out.
func Objects(dir string) ([]*unstructured.Unstructured, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, name := range files {
		if filepath.Base(name) == "kustomization.yaml" {
			continue
		}
		more, err := read(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, more...)
	}
	if len(objects) == 0 {
		return nil, fmt.Errorf("no objects in %s", dir)
	}
	return objects, nil
}

func read(name string) ([]*unstructured.Unstructured, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // it was only read
	var objects []*unstructured.Unstructured
	for decoder := yaml.NewYAMLOrJSONDecoder(file, 4096); ; {
		obj := &unstructured.Unstructured{}
		err := decoder.Decode(obj)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		objects = append(objects, obj)
	}
}
