// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package mkimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sample(t *testing.T) Image {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tree", "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"manager": "program", "tree/b.txt": "b", "tree/sub/a.txt": "a"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return Image{
		Reference: "docker.io/holdfast.dev/x:dev", Entrypoint: []string{"/manager"}, User: "65532:65532",
		Labels: map[string]string{"k": "v"}, Architecture: "amd64",
		Files: []File{
			{Source: filepath.Join(dir, "tree"), Target: "/usr/share/x"},
			{Source: filepath.Join(dir, "manager"), Target: "/manager", Mode: 0o755},
		},
	}
}

func written(t *testing.T, i Image) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := i.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// members reads a tar, and checks that its entries are dated 1970 and belong to root.
func members(t *testing.T, b []byte) (names []string, contents map[string][]byte, modes map[string]int64) {
	t.Helper()
	contents, modes = map[string][]byte{}, map[string]int64{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, contents, modes
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s: dated %v, owned by %d:%d", h.Name, h.ModTime, h.Uid, h.Gid)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names, contents[h.Name], modes[h.Name] = append(names, h.Name), content, h.Mode
	}
}

func TestEqualInputGivesEqualBytes(t *testing.T) {
	i := sample(t)
	once := written(t, i)
	for _, f := range i.Files {
		now := time.Now()
		if err := os.Chtimes(f.Source, now, now); err != nil {
			t.Fatal(err)
		}
	}
	i.Files[0], i.Files[1] = i.Files[1], i.Files[0]
	if !bytes.Equal(once, written(t, i)) {
		t.Error("other dates and another order of the files gave another image")
	}
	if err := os.WriteFile(i.Files[0].Source, []byte("another program"), 0o640); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(once, written(t, i)) {
		t.Error("another program gave the same image")
	}
}

func TestImageHoldsWhatItsManifestAndConfigSay(t *testing.T) {
	_, outer, _ := members(t, written(t, sample(t)))
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(outer["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || !reflect.DeepEqual(manifest[0].RepoTags, []string{"docker.io/holdfast.dev/x:dev"}) || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest %+v", manifest)
	}
	layer := outer[manifest[0].Layers[0]]
	var config struct {
		Architecture, OS string
		Config           struct {
			Entrypoint []string
			User       string
			Labels     map[string]string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(outer[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "amd64" || config.Config.User != "65532:65532" ||
		!reflect.DeepEqual(config.Config.Entrypoint, []string{"/manager"}) || config.Config.Labels["k"] != "v" ||
		!reflect.DeepEqual(config.Rootfs.DiffIDs, []string{"sha256:" + digest(layer)}) {
		t.Errorf("config %+v", config)
	}
	names, contents, modes := members(t, layer)
	want := []string{"manager", "usr/", "usr/share/", "usr/share/x/", "usr/share/x/b.txt", "usr/share/x/sub/", "usr/share/x/sub/a.txt"}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("layer holds %v, want %v", names, want)
	}
	if string(contents["manager"]) != "program" || modes["manager"] != 0o755 || modes["usr/share/x/b.txt"] != 0o640 || modes["usr/"] != 0o755 {
		t.Errorf("contents %q, modes %v", contents, modes)
	}
}

func TestWriteFileLeavesNothingHalf(t *testing.T) {
	i := sample(t)
	dir := t.TempDir()
	i.Files = append(i.Files, File{Source: filepath.Join(dir, "missing"), Target: "/missing"})
	if err := i.WriteFile(filepath.Join(dir, "x.tar")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing source: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	i.Files = i.Files[:2]
	if err := i.WriteFile(filepath.Join(dir, "x.tar")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "x.tar")); err != nil || !bytes.Equal(b, written(t, i)) {
		t.Errorf("the file differs from what Write writes: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	i := sample(t)
	i.Reference = "docker.io:5000/x"
	if err := i.Write(io.Discard); err == nil || !strings.Contains(err.Error(), "with a tag") {
		t.Errorf("a reference without tag: %v", err)
	}
	i = sample(t)
	i.Files = append(i.Files, i.Files[1])
	if err := i.Write(io.Discard); err == nil || !strings.Contains(err.Error(), "/manager: two files") {
		t.Errorf("two files at one place: %v", err)
	}
	for _, bad := range []string{"", "a", "a:b", ":/b", "a:/b:9", "a:/b:0", "a:/b:0755:x"} {
		if _, err := ParseFile(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if f, err := ParseFile("a/b:/c:0755"); err != nil || f != (File{Source: "a/b", Target: "/c", Mode: 0o755}) {
		t.Errorf("a/b:/c:0755 became %+v, %v", f, err)
	}
}
