// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostinit

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// restartDelay keeps a service that cannot start from eating the machine.
const restartDelay = time.Second

// supervisor starts processes and is the only one that waits for any: PID 1 also gets the orphans, and only
// one waiter can tell them apart.
type supervisor struct {
	mu       sync.Mutex
	waiting  map[int]chan syscall.WaitStatus
	services map[string]*running
	env      []string
	logs     string
}

// running is one service.
type running struct {
	Service
	pid     int  // 0 while it is down
	wanted  bool // false once somebody stopped or killed it, until somebody starts it
	stopped bool // stop has sent SIGKILL, the end is still to be seen
	killed  bool // somebody else's SIGKILL is why it is not wanted
	changed chan struct{}
}

func newSupervisor(c Config) *supervisor {
	s := &supervisor{
		waiting:  map[int]chan syscall.WaitStatus{},
		services: map[string]*running{},
		env:      []string{"PATH=" + c.Path, "HOME=/root"},
		logs:     c.LogPrefix,
	}
	for _, service := range c.Services {
		s.services[service.Name] = &running{Service: service, changed: make(chan struct{}, 1)}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	go func() {
		for range signals {
			s.reap()
		}
	}()
	return s
}

func (s *supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 {
			return
		}
		if ended, found := s.waiting[pid]; found {
			ended <- status
			delete(s.waiting, pid)
		}
	}
}

// spawn starts a program. The channel gets its end.
func (s *supervisor) spawn(service Service) (int, <-chan syscall.WaitStatus, error) {
	path, err := lookPath(service.Args[0], s.env)
	if err != nil {
		return 0, nil, err
	}
	log, err := os.OpenFile(s.logs+service.Name+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return 0, nil, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(path, service.Args, &syscall.ProcAttr{
		Env:   append(append([]string{}, s.env...), service.Environment...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", path, err)
	}
	ended := make(chan syscall.WaitStatus, 1)
	s.waiting[pid] = ended
	return pid, ended, nil
}

// run runs a program to its end.
func (s *supervisor) run(name string, args ...string) error {
	_, ended, err := s.spawn(Service{Name: name, Args: args})
	if err != nil {
		return err
	}
	if status := <-ended; status.ExitStatus() != 0 {
		return fmt.Errorf("%v ended with status %d, see %s%s.log", args, status.ExitStatus(), s.logs, name)
	}
	return nil
}

// keep keeps one service running for as long as it is wanted. It never returns.
func (s *supervisor) keep(r *running) {
	for {
		for !s.isWanted(r) {
			<-r.changed
		}
		pid, ended, err := s.spawn(r.Service)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", r.Name, err)
			time.Sleep(restartDelay)
			continue
		}
		s.setPID(r, pid)
		status := <-ended
		fmt.Fprintf(os.Stderr, "%s (pid %d) ended: %s\n", r.Name, pid, describe(status))
		killed := status.Signaled() && status.Signal() == syscall.SIGKILL
		if s.setEnded(r, killed) {
			time.Sleep(restartDelay)
		}
	}
}

func (s *supervisor) isWanted(r *running) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.wanted
}

func (s *supervisor) setPID(r *running, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.pid = pid
	if !r.wanted { // somebody stopped it between the decision and the start
		r.stopped = true
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// setEnded reports whether the service starts again.
func (s *supervisor) setEnded(r *running, killed bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.pid = 0
	if killed && r.StaysKilled && !r.stopped {
		r.wanted, r.killed = false, true
	}
	r.stopped = false
	return r.wanted
}

// start makes a service wanted. A service that runs goes on.
func (s *supervisor) start(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, found := s.services[name]
	if !found {
		return fmt.Errorf("this host has no service %q", name)
	}
	r.wanted, r.killed = true, false
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return nil
}

// stop kills a service and keeps it down.
func (s *supervisor) stop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, found := s.services[name]
	if !found {
		return fmt.Errorf("this host has no service %q", name)
	}
	r.wanted, r.killed = false, false
	if r.pid > 0 {
		r.stopped = true
		// Only reap, which needs the same lock, frees the pid for another process.
		return syscall.Kill(r.pid, syscall.SIGKILL)
	}
	return nil
}

func (s *supervisor) status() map[string]ServiceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]ServiceStatus{}
	for name, r := range s.services {
		all[name] = ServiceStatus{Running: r.pid > 0, Wanted: r.wanted, PID: r.pid}
	}
	return all
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal " + status.Signal().String()
	}
	return fmt.Sprintf("status %d", status.ExitStatus())
}
