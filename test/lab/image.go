// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
)

// importTimeout bounds one import into one host, which may still have to boot.
const importTimeout = 2 * time.Minute

// LoadImage keeps the image tar (of docker save) for the next power-on of every host, and imports it at once
// into those that have power. A tar of the same file name is replaced.
func (l *Lab) LoadImage(ctx context.Context, tar string) error {
	name := filepath.Base(tar)
	if !strings.HasSuffix(name, ".tar") {
		return fmt.Errorf("image %s: hosts load files that end in .tar", tar)
	}
	kept := l.path("images", name)
	incoming := l.path("images", "."+name+".part")
	if err := copyFile(tar, incoming); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if err := os.Rename(incoming, kept); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	imports, ctx := errgroup.WithContext(ctx)
	for _, h := range l.Hosts() {
		if !h.Powered() {
			continue
		}
		imports.Go(func() error {
			if _, err := hostinit.Ask(ctx, h.socket(), hostinit.Request{Op: "load-image", Image: kept}); err != nil {
				return fmt.Errorf("image %s into %s: %w", name, h.entry.Name, err)
			}
			return nil
		})
	}
	return imports.Wait()
}
