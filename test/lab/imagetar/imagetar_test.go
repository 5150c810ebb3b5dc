// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package imagetar

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func entries(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		found[header.Name] = content
	}
}

func TestTheArchiveIsOneThatDockerCouldHaveSaved(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "binary")
	if err := os.WriteFile(binary, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	image := Image{
		Reference: "example.org/app:dev", User: "65532:65532",
		Files: map[string]string{"/usr/bin/app": binary, "/app": binary}, Entrypoint: []string{"/app"},
	}
	first, second := filepath.Join(dir, "1.tar"), filepath.Join(dir, "2.tar")
	for _, path := range []string{first, second} {
		if err := Write(path, image); err != nil {
			t.Fatal(err)
		}
	}
	one, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the same image has two archives")
	}

	outer := entries(t, one)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(outer["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if manifest[0].RepoTags[0] != image.Reference {
		t.Errorf("tag %q, want %q", manifest[0].RepoTags[0], image.Reference)
	}
	layer := outer[manifest[0].Layers[0]]
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
		Config struct {
			Entrypoint []string
			User       string
		}
	}
	if err := json.Unmarshal(outer[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	if want := "sha256:" + digest(layer); config.RootFS.DiffIDs[0] != want {
		t.Errorf("layer digest %q, want %q", config.RootFS.DiffIDs[0], want)
	}
	if config.Config.User != image.User || config.Config.Entrypoint[0] != "/app" {
		t.Errorf("config %+v", config.Config)
	}
	files := entries(t, layer)
	for _, name := range []string{"app", "usr/bin/app"} {
		if string(files[name]) != "program" {
			t.Errorf("%s holds %q", name, files[name])
		}
	}
	for _, dir := range []string{"tmp/", "usr/", "usr/bin/"} {
		if _, found := files[dir]; !found {
			t.Errorf("directory %s is missing", dir)
		}
	}
}
