// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// record is one published volume, as it outlives the program.
type record struct {
	Volume   string `json:"volume"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly"`
	Boot     string `json:"boot"`
}

// records keeps one file per target path.
type records struct{ dir string }

func (r *records) path(target string) string {
	sum := sha256.Sum256([]byte(target))
	return filepath.Join(r.dir, hex.EncodeToString(sum[:8])+".json")
}

func (r *records) keep(one record) error {
	b, err := json.Marshal(one)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	path := r.path(one.Target)
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (r *records) drop(target string) error {
	err := os.Remove(r.path(target))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// all returns what can be read, and what could not.
func (r *records) all() ([]record, error) {
	paths, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []record
	var failed error
	for _, path := range paths {
		var one record
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &one)
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		all = append(all, one)
	}
	return all, failed
}
