// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/memberlist"
)

// Primary is the file with the key that is sent with.
const Primary = "primary"

// keyBytes is the length of a key: AES-256.
const keyBytes = 32

// readKeys reads a directory of keys, the primary one first and the others in the order of their names. What begins with two dots is how mounted Secrets
// are replaced, and no key. One bad file makes all of them bad: half a rotation would part the hosts.
func readKeys(dir string) ([][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the gossip keys: %w", err)
	}
	var keys [][]byte
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "..") {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read the gossip keys: %w", err)
		}
		key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
		if err != nil || len(key) != keyBytes {
			return nil, fmt.Errorf("%s is no key: it should hold %d random bytes in base64", path, keyBytes)
		}
		if entry.Name() == Primary {
			keys = append([][]byte{key}, keys...)
		} else {
			keys = append(keys, key)
		}
	}
	if !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == Primary }) {
		return nil, fmt.Errorf("%s has no file %q: the key to send with has to be there", dir, Primary)
	}
	return keys, nil
}

// setKeys makes the ring hold just these keys, the first of which is sent with. Nothing in between refuses a packet that one of the keys before and after
// opens: what is new is added first, and what is old goes last.
func setKeys(ring *memberlist.Keyring, keys [][]byte) error {
	for _, key := range keys {
		if err := ring.AddKey(key); err != nil {
			return err
		}
	}
	if err := ring.UseKey(keys[0]); err != nil {
		return err
	}
	for _, old := range slices.Clone(ring.GetKeys()) {
		if slices.ContainsFunc(keys, func(key []byte) bool { return bytes.Equal(key, old) }) {
			continue
		}
		if err := ring.RemoveKey(old); err != nil {
			return err
		}
	}
	return nil
}

// readSeeds reads a file of addresses, one a line, with a port or without. What is no address is left out, and named in the error.
func readSeeds(path string, port int) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the seeds: %w", err)
	}
	var seeds []string
	var bad []error
	for i, text := range strings.Split(string(raw), "\n") {
		text = strings.TrimSpace(text)
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if address, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
			seeds = append(seeds, net.JoinHostPort(address.String(), strconv.Itoa(port)))
		} else if address, err := netip.ParseAddrPort(text); err == nil {
			seeds = append(seeds, address.String())
		} else {
			bad = append(bad, fmt.Errorf("%s, line %d: %q is no IP address, with a port or without", path, i+1, text))
		}
	}
	return seeds, errors.Join(bad...)
}

// watch calls changed whenever something in one of the directories has, and now and then in any case: a kernel may lose events, and may have no more
// watches to give. It returns when ctx ends.
func watch(ctx context.Context, every <-chan time.Time, dirs []string, changed func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", strings.Join(dirs, " and "), err)
	}
	defer watcher.Close()
	for _, dir := range dirs {
		if err := watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	// What changed before the watch began.
	changed()
	for {
		select {
		case <-watcher.Events:
			changed()
		case <-watcher.Errors:
			changed()
		case <-every:
			changed()
		case <-ctx.Done():
			return nil
		}
	}
}

// look is watch without a kernel.
func look(ctx context.Context, every <-chan time.Time, _ []string, changed func()) error {
	changed()
	for {
		select {
		case <-every:
			changed()
		case <-ctx.Done():
			return nil
		}
	}
}
