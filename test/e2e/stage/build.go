// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-dev/holdfast/hack/mkimage"
)

// programs are paths of what was built for the stage.
type programs struct{ manager, witness, ledger, client, check string }

// build compiles the programs into out/stage, where an equal one stays, and writes the images.
func (s *Stage) build(ctx context.Context) error {
	root := s.Lab.Root()
	out := filepath.Join(root, "out", "stage")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	s.programs = programs{filepath.Join(out, "manager"), filepath.Join(out, "witness"), filepath.Join(out, "ledger"), filepath.Join(out, "ledger-client"), filepath.Join(out, "ledger-check")}
	storage := filepath.Join(root, "test", "lab", "storage")
	for _, b := range []struct{ dir, pkg, to string }{
		{root, "./cmd/manager", s.programs.manager},
		{root, "./cmd/witness", s.programs.witness},
		{storage, "./cmd/ledger", s.programs.ledger},
		{storage, "./cmd/ledger-client", s.programs.client},
		{storage, "./cmd/ledger-check", s.programs.check},
	} {
		if b.to == s.programs.witness && !s.options.Witnesses {
			continue
		}
		if err := compile(ctx, b.dir, b.pkg, b.to); err != nil {
			return err
		}
	}
	for _, i := range []struct {
		tar   string
		image mkimage.Image
	}{
		{"manager.tar", mkimage.Image{Reference: "holdfast.dev/manager:dev", Entrypoint: []string{"/manager"}, User: "65532:65532",
			Files: []mkimage.File{{Source: s.programs.manager, Target: "/manager", Mode: 0o755}}}},
		{"witness.tar", mkimage.Image{Reference: "holdfast.dev/witness:dev", Entrypoint: []string{"/witness"},
			Files: []mkimage.File{{Source: s.programs.witness, Target: "/witness", Mode: 0o755}}}},
		{"ledger.tar", mkimage.Image{Reference: "holdfast.dev/lab/ledger:dev", Entrypoint: []string{"/ledger"},
			Files: []mkimage.File{{Source: s.programs.ledger, Target: "/ledger", Mode: 0o755}}}},
	} {
		if i.tar == "witness.tar" && !s.options.Witnesses {
			continue
		}
		if err := i.image.WriteFile(filepath.Join(out, i.tar)); err != nil {
			return err
		}
	}
	return nil
}

func compile(ctx context.Context, dir, pkg, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", to, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// loadImages loads what the lab does not have yet, byte by byte.
func (s *Stage) loadImages(ctx context.Context) error {
	for _, name := range []string{"manager.tar", "witness.tar", "ledger.tar"} {
		if name == "manager.tar" && s.options.WithoutHoldfast || name == "witness.tar" && !s.options.Witnesses {
			continue
		}
		tar := filepath.Join(s.Lab.Root(), "out", "stage", name)
		fresh, err := os.ReadFile(tar)
		if err != nil {
			return err
		}
		if loaded, err := os.ReadFile(filepath.Join(s.Lab.StateDir(), "images", name)); err == nil && bytes.Equal(loaded, fresh) {
			continue
		}
		if err := s.Lab.LoadImage(ctx, tar); err != nil {
			return err
		}
		s.freshManager = s.freshManager || name == "manager.tar"
		s.freshWitness = s.freshWitness || name == "witness.tar"
	}
	return nil
}
