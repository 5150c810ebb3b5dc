// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/cgroup"
	"github.com/holdfast-dev/holdfast/test/lab/journal"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// The phases of a lab.
const (
	phaseStarting = "starting"
	phaseUp       = "up"
)

// description is lab.json.
type description struct {
	Name       string      `json:"name"`
	Phase      string      `json:"phase"`
	Timings    Timings     `json:"timings"`
	Root       string      `json:"root"`
	KernelBoot string      `json:"kernelBoot"`
	APIServers []apiServer `json:"apiServers"`
	Hosts      []hostEntry `json:"hosts"`
	Storage    bool        `json:"storage"`
}

// apiServer is reached at Address from inside the lab and at 127.0.0.1:Port from the machine.
type apiServer struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
}

type hostEntry struct {
	Name      string `json:"name"`
	Number    int    `json:"number"`
	MachineID string `json:"machineID"`
}

// Lab is one lab that was made by Up, in this process or another.
type Lab struct {
	dir      string
	state    description
	cgroups  cgroup.Tree
	progress io.Writer
}

// Open returns the lab of that name, which has to be up.
func Open(name string) (*Lab, error) {
	if name == "" {
		name = DefaultName
	}
	if !labName.MatchString(name) {
		return nil, fmt.Errorf("lab name %q: use at most 24 lower-case letters, digits and dashes, a letter first", name)
	}
	l := &Lab{dir: filepath.Join(Home(), name), progress: io.Discard}
	text, err := os.ReadFile(l.path("lab.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab %q; %s makes one", name, command("up", name))
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &l.state); err != nil {
		return nil, fmt.Errorf("%s: %w", l.path("lab.json"), err)
	}
	boot, err := kernelBoot()
	if err != nil {
		return nil, err
	}
	if boot != l.state.KernelBoot {
		return nil, fmt.Errorf("the machine was restarted under lab %q; %s removes what is left of it", name, command("down", name))
	}
	l.cgroups, err = cgroup.Detect()
	return l, err
}

// command is how a person calls the lab command for a lab.
func command(verb, name string) string {
	if name == DefaultName {
		return "`bin/lab " + verb + "`"
	}
	return "`bin/lab " + verb + " --lab " + name + "`"
}

// Name tells labs apart.
func (l *Lab) Name() string { return l.state.Name }

// Timings are those that the lab was made with.
func (l *Lab) Timings() Timings { return l.state.Timings }

// Root is the checkout that the lab was made from.
func (l *Lab) Root() string { return l.state.Root }

// StateDir is the directory of everything that the lab keeps; docs/spec/lab.md lists what is in it.
func (l *Lab) StateDir() string { return l.dir }

// path joins names to the state directory.
func (l *Lab) path(names ...string) string {
	return filepath.Join(append([]string{l.dir}, names...)...)
}

func (l *Lab) journalPath() string { return l.path("resources.jsonl") }

// program is a file of the lab's own bin directory.
func (l *Lab) program(name string) string { return l.path("bin", name) }

func (l *Lab) logPath(name string) string { return l.path("logs", name+".log") }

// NetNS returns the path of one of the lab's network namespaces: fabric, control, array, bmc, client, or the
// name of a host.
func (l *Lab) NetNS(name string) string { return netns.Path(l.state.Name + "-" + name) }

// Dialer dials from inside one of the lab's network namespaces, see NetNS. Addresses are numeric.
func (l *Lab) Dialer(name string) netns.DialFunc { return netns.Dialer(l.NetNS(name)) }

// cgroupName names the lab's cgroup, or one below it.
func (l *Lab) cgroupName(names ...string) string {
	return filepath.Join(append([]string{"holdfast-lab", l.state.Name}, names...)...)
}

// save writes lab.json, whole or not at all.
func (l *Lab) save() error {
	text, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(l.path("lab.json"), append(text, '\n'))
}

// Process returns the newest recorded process of that name, such as kube-apiserver-1, etcd or host-2 (PID 1
// of the host). Whether it still runs, its Alive says.
func (l *Lab) Process(name string) (process.ID, error) {
	records, err := journal.Read(l.journalPath())
	if err != nil {
		return process.ID{}, err
	}
	var names []string
	for _, r := range slices.Backward(records) {
		if r.Kind == journal.Process && r.Name == name {
			return r.ID, nil
		}
		if r.Kind == journal.Process && !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	return process.ID{}, fmt.Errorf("lab %q never started a process %q; it started %s", l.state.Name, name, strings.Join(names, ", "))
}

// kernelBoot is the boot ID of the machine's kernel.
func kernelBoot() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}

// newID returns a random version 4 UUID as 16 bytes.
func newID() [16]byte {
	var id [16]byte
	rand.Read(id[:]) //nolint:errcheck // crypto/rand never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// newMachineID has the form of /etc/machine-id: 32 hexadecimal digits.
func newMachineID() string {
	id := newID()
	return hex.EncodeToString(id[:])
}

// newBootID has the form of the kernel's boot_id.
func newBootID() string {
	id := newID()
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// writeFile replaces a file: a reader sees the old content or the new.
func writeFile(path string, content []byte) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	if _, err := temporary.Write(content); err != nil {
		temporary.Close()
		return err
	}
	if err := temporary.Close(); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}

// lockFile takes an exclusive lock that ends with the returned file or with this process. The file or
// directory exists.
func lockFile(path string, how int) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|how); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}
