// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mkimage writes a container image from files, without a registry, a base image or a daemon.
//
// The image has one layer and the form of "docker save", which containerd, podman and docker import. Equal
// input gives equal bytes: entries are sorted, belong to root and are dated 1970-01-01.
package mkimage

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// File is a file of this machine, or a directory with all below it, and its place in the image.
type File struct {
	Source string
	// Target is absolute.
	Target string
	// Mode holds the permission bits of files; 0 keeps those of the source. Directories have 0755.
	Mode fs.FileMode
}

// Image says what to write.
type Image struct {
	// Reference is the full name with its tag, such as "docker.io/holdfast.dev/manager:dev".
	Reference  string
	Entrypoint []string
	// User is "UID:GID"; empty is root.
	User string
	// Labels may be nil.
	Labels map[string]string
	// Architecture as Go names it; empty is that of this machine.
	Architecture string
	Files        []File
}

// ParseFile reads "source:/target" or "source:/target:mode", mode in octal.
func ParseFile(s string) (File, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !path.IsAbs(parts[1]) {
		return File{}, fmt.Errorf("file %q: write source:/target or source:/target:mode", s)
	}
	f := File{Source: parts[0], Target: path.Clean(parts[1])}
	if len(parts) == 3 {
		var mode uint32
		if _, err := fmt.Sscanf(parts[2], "%o", &mode); err != nil || mode > 0o7777 || mode == 0 {
			return File{}, fmt.Errorf("file %q: mode %q: write permission bits in octal, such as 0755", s, parts[2])
		}
		f.Mode = fs.FileMode(mode)
	}
	return f, nil
}

// Write writes the image to out.
func (i Image) Write(out io.Writer) error {
	if !strings.Contains(path.Base(i.Reference), ":") {
		return fmt.Errorf("reference %q: give a name with a tag, such as docker.io/holdfast.dev/manager:dev", i.Reference)
	}
	layer, err := i.layer()
	if err != nil {
		return err
	}
	config, err := i.config(digest(layer))
	if err != nil {
		return err
	}
	configName, layerName := digest(config)+".json", digest(layer)+".tar"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configName, "RepoTags": []string{i.Reference}, "Layers": []string{layerName},
	}})
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	for _, one := range []entry{
		{name: configName, mode: 0o644, content: config},
		{name: layerName, mode: 0o644, content: layer},
		{name: "manifest.json", mode: 0o644, content: manifest},
	} {
		if err := one.write(w); err != nil {
			return err
		}
	}
	return w.Close()
}

// WriteFile writes the image to a file, which appears when it is whole.
func (i Image) WriteFile(name string) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	err = errors.Join(i.Write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (i Image) config(layerDigest string) ([]byte, error) {
	type process struct {
		Entrypoint []string          `json:"Entrypoint,omitempty"`
		User       string            `json:"User,omitempty"`
		WorkingDir string            `json:"WorkingDir"`
		Labels     map[string]string `json:"Labels,omitempty"`
	}
	return json.Marshal(map[string]any{
		"architecture": cmp.Or(i.Architecture, runtime.GOARCH),
		"os":           "linux",
		"created":      time.Unix(0, 0).UTC().Format(time.RFC3339),
		"config":       process{Entrypoint: i.Entrypoint, User: i.User, WorkingDir: "/", Labels: i.Labels},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerDigest}},
	})
}

// entry is one member of a tar. Names of directories end in a slash.
type entry struct {
	name    string
	mode    fs.FileMode
	content []byte
}

func (e entry) write(w *tar.Writer) error {
	h := &tar.Header{Name: e.name, Mode: int64(e.mode), Size: int64(len(e.content)), Typeflag: tar.TypeReg,
		ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if strings.HasSuffix(e.name, "/") {
		h.Typeflag = tar.TypeDir
	}
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", e.name, err)
	}
	_, err := w.Write(e.content)
	return err
}

// layer is the tar of all files and of the directories above them.
func (i Image) layer() ([]byte, error) {
	entries := map[string]entry{}
	for _, f := range i.Files {
		if err := f.collect(entries); err != nil {
			return nil, err
		}
	}
	sorted := make([]entry, 0, len(entries))
	for _, e := range entries {
		sorted = append(sorted, e)
	}
	slices.SortFunc(sorted, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range sorted {
		if err := e.write(w); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// collect adds the file, or every file below the directory, and the directories above each.
func (f File) collect(entries map[string]entry) error {
	if !path.IsAbs(f.Target) {
		return fmt.Errorf("target %q of %s: give an absolute path", f.Target, f.Source)
	}
	return filepath.WalkDir(f.Source, func(source string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(source)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s: only files and directories go into an image", source)
		}
		below, err := filepath.Rel(f.Source, source)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		e := entry{name: strings.TrimPrefix(path.Join(f.Target, filepath.ToSlash(below)), "/"), mode: cmp.Or(f.Mode, info.Mode().Perm()), content: content}
		if _, twice := entries[e.name]; twice {
			return fmt.Errorf("/%s: two files want this place", e.name)
		}
		entries[e.name] = e
		for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
			entries[dir+"/"] = entry{name: dir + "/", mode: 0o755}
		}
		return nil
	})
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
