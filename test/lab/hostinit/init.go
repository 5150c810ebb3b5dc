// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostinit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// importsDir remembers on the host's disk which image tars are in containerd's store.
const importsDir = "/var/lib/lab-imported"

// Run boots the host and does not return while it has power. The calling process is PID 1 of new PID, mount
// and UTS namespaces and is in the host's network namespace.
func Run(configFile string) error {
	c, err := readConfig(configFile)
	if err != nil {
		return err
	}
	if err := mountAll(c); err != nil {
		return err
	}
	h := &host{config: c, supervisor: newSupervisor(c), containerd: make(chan struct{}), imported: make(chan struct{})}
	listener, err := listen(c.Socket)
	if err != nil {
		return err
	}
	h.supervisor.listenAsSystemd()
	h.boot()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go h.answer(conn)
	}
}

type host struct {
	config     Config
	supervisor *supervisor
	containerd chan struct{} // closed when containerd answers for the first time
	imported   chan struct{} // closed when all images are there
	imports    sync.Mutex    // one import at a time
}

func readConfig(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// listen takes the place of the socket that the boot before this one has left.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

func (h *host) boot() {
	go h.prepare()
	for name, r := range h.supervisor.services {
		_ = h.supervisor.start(name) // the name is one of them
		go func() {
			if r.NeedsImages {
				<-h.imported
			}
			h.supervisor.keep(r)
		}()
	}
}

// prepare waits for containerd and imports the images that are not there yet.
func (h *host) prepare() {
	for h.supervisor.run("ctr", "ctr", "version") != nil {
		time.Sleep(200 * time.Millisecond) // containerd says nothing when it is ready
	}
	close(h.containerd)
	tars, err := filepath.Glob(filepath.Join(h.config.Images, "*.tar"))
	if err != nil {
		fmt.Fprintf(os.Stderr, "images: %v\n", err)
	}
	for _, tar := range tars {
		if err := h.load(tar); err != nil {
			fmt.Fprintf(os.Stderr, "image %s: %v\n", tar, err)
		}
	}
	close(h.imported)
}

// load imports an image tar unless this very file was imported before.
func (h *host) load(tar string) error {
	<-h.containerd
	h.imports.Lock()
	defer h.imports.Unlock()
	stat, err := os.Stat(tar)
	if err != nil {
		return err
	}
	mark := filepath.Join(importsDir, filepath.Base(tar))
	version := fmt.Sprintf("%d %d", stat.Size(), stat.ModTime().UnixNano())
	if old, err := os.ReadFile(mark); err == nil && string(old) == version {
		return nil
	}
	if err := h.supervisor.run("ctr", "ctr", "-n", "k8s.io", "images", "import", tar); err != nil {
		return err
	}
	if err := os.MkdirAll(importsDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(mark, []byte(version), 0o644)
}

// lookPath finds a program on the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, variable := range env {
		list, found := strings.CutPrefix(variable, "PATH=")
		if !found {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s is not on the host's PATH", name)
}

// Request is what a client of the socket asks for.
type Request struct {
	// Op is status, start-kubelet, stop-kubelet or load-image.
	Op string `json:"op"`
	// Image is the tar to load.
	Image string `json:"image,omitempty"`
}

// Answer is what it gets. Status is filled in for every request.
type Answer struct {
	Error  string `json:"error,omitempty"`
	Status Status `json:"status"`
}

// Status is the host as its PID 1 sees it.
type Status struct {
	BootID   string                   `json:"bootID"`
	Services map[string]ServiceStatus `json:"services"`
}

// ServiceStatus is one service; PID counts in the host's PID namespace and is 0 while the service is down.
type ServiceStatus struct {
	Running bool `json:"running"`
	Wanted  bool `json:"wanted"`
	PID     int  `json:"pid,omitempty"`
}

func (h *host) answer(conn net.Conn) {
	defer conn.Close()
	var request Request
	if err := json.NewDecoder(conn).Decode(&request); err != nil {
		return
	}
	var answer Answer
	if err := h.do(request); err != nil {
		answer.Error = err.Error()
	}
	boot, _ := os.ReadFile(h.config.BootIDFile)
	answer.Status = Status{BootID: strings.TrimSpace(string(boot)), Services: h.supervisor.status()}
	_ = json.NewEncoder(conn).Encode(answer)
}

func (h *host) do(request Request) error {
	switch request.Op {
	case "status":
		return nil
	case "start-kubelet":
		return h.supervisor.start(Kubelet)
	case "stop-kubelet":
		return h.supervisor.stop(Kubelet)
	case "load-image":
		return h.load(request.Image)
	}
	return fmt.Errorf("unknown op %q; ops are status, start-kubelet, stop-kubelet, load-image", request.Op)
}

// Ask sends one request to the PID 1 that listens on the socket.
func Ask(ctx context.Context, socket string, request Request) (Status, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return Status{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return Status{}, err
	}
	var answer Answer
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		if ctx.Err() != nil {
			return Status{}, fmt.Errorf("the host does not answer on %s: %w", socket, ctx.Err())
		}
		return Status{}, err
	}
	if answer.Error != "" {
		return answer.Status, errors.New(answer.Error)
	}
	return answer.Status, nil
}
