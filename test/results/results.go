// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package results keeps the tables under docs/results: rows of CSV, each of which names the commit that it was made by.
package results

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Commit is the last one of the checkout that changed anything but results; "-dirty" says that the checkout differs from it.
func Commit(root string) (string, error) {
	but := []string{"--", ".", ":!docs/results"}
	hash, err := git(root, append([]string{"log", "-1", "--format=%h", "--abbrev=12"}, but...)...)
	if err != nil {
		return "", err
	}
	changed, err := git(root, append([]string{"status", "--porcelain"}, but...)...)
	if changed != "" {
		hash += "-dirty"
	}
	return hash, err
}

func git(root string, args ...string) (string, error) {
	var errs bytes.Buffer
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Stderr = root, &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// Read returns the lines of the table, its header first; none if there is no table yet.
func Read(path string) ([][]string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lines, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return lines, nil
}

// Append adds a row to the table, which it makes with that header if it is not there.
func Append(path string, header, row []string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	w := csv.NewWriter(file)
	if at, err := file.Seek(0, 2); err == nil && at == 0 {
		_ = w.Write(header) // the writer keeps its error
	}
	_ = w.Write(row)
	w.Flush()
	return errors.Join(w.Error(), file.Close())
}
