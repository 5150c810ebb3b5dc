// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package imagetar writes container images of one static binary, without a registry and without a base image.
package imagetar

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
)

// Image says what goes into an image.
type Image struct {
	// Reference is the name with its tag, such as "holdfast.dev/lab/pause:dev".
	Reference string
	// Files maps absolute paths in the image to files of this machine; all become executable and root's.
	Files map[string]string
	// Entrypoint is the command.
	Entrypoint []string
	// User is a numeric uid[:gid]; empty is root.
	User string
}

// Write writes the image to path in the format of docker save, which containerd imports. The same input gives
// the same bytes. The file appears whole or not at all.
func Write(path string, image Image) error {
	layer, err := layerOf(image.Files)
	if err != nil {
		return err
	}
	archive, err := archiveOf(image, layer)
	if err != nil {
		return err
	}
	temporary := path + ".part"
	if err := os.WriteFile(temporary, archive, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func layerOf(files map[string]string) ([]byte, error) {
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	if err := add(writer, &tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, target := range slices.Sorted(maps.Keys(files)) {
		if err := addParents(writer, target, seen); err != nil {
			return nil, err
		}
		content, err := os.ReadFile(files[target])
		if err != nil {
			return nil, err
		}
		header := &tar.Header{Name: strings.TrimPrefix(target, "/"), Typeflag: tar.TypeReg, Mode: 0o755}
		if err := add(writer, header, content); err != nil {
			return nil, err
		}
	}
	return buffer.Bytes(), writer.Close()
}

func addParents(writer *tar.Writer, target string, seen map[string]bool) error {
	parts := strings.Split(strings.Trim(target, "/"), "/")
	for n := 1; n < len(parts); n++ {
		dir := strings.Join(parts[:n], "/") + "/"
		if seen[dir] || dir == "tmp/" {
			continue
		}
		seen[dir] = true
		if err := add(writer, &tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
			return err
		}
	}
	return nil
}

func archiveOf(image Image, layer []byte) ([]byte, error) {
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": image.Entrypoint, "User": image.User},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return nil, err
	}
	configName, layerName := digest(config)+".json", digest(layer)+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configName, "RepoTags": []string{image.Reference}, "Layers": []string{layerName},
	}})
	if err != nil {
		return nil, err
	}
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, file := range []struct {
		name    string
		content []byte
	}{{configName, config}, {layerName, layer}, {"manifest.json", manifest}} {
		header := &tar.Header{Name: file.name, Typeflag: tar.TypeReg, Mode: 0o644}
		if err := add(writer, header, file.content); err != nil {
			return nil, err
		}
	}
	return buffer.Bytes(), writer.Close()
}

func add(writer *tar.Writer, header *tar.Header, content []byte) error {
	header.Size = int64(len(content))
	if err := writer.WriteHeader(header); err != nil {
		return fmt.Errorf("%s: %w", header.Name, err)
	}
	_, err := io.Copy(writer, bytes.NewReader(content))
	return err
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
