// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostinit is PID 1 of a host of the lab: it gives the host its own mounts and identity, runs its
// services, reaps, and answers on a socket. The host loses power when this process is killed.
package hostinit

// Kubelet is the name of the service that stays down when somebody kills it.
const Kubelet = "kubelet"

// Config is the host as PID 1 finds it in a JSON file.
type Config struct {
	Host string `json:"host"`
	// MachineIDFile and BootIDFile hold what /etc/machine-id and the kernel's boot_id shall say.
	MachineIDFile string `json:"machineIDFile"`
	BootIDFile    string `json:"bootIDFile"`
	// Disk is what survives a loss of power: its var/lib and var/log become the host's /var/lib and /var/log.
	Disk string `json:"disk"`
	// Socket is where this process answers, see Ask.
	Socket string `json:"socket"`
	// LogPrefix and a service's name and ".log" make the file that it logs to.
	LogPrefix string `json:"logPrefix"`
	// Images is a directory of image tars; every one is imported before the kubelet starts.
	Images string `json:"images"`
	// Path is the PATH of all services. It finds ctr.
	Path     string    `json:"path"`
	Services []Service `json:"services"`
}

// Service is one program that the host runs.
type Service struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	// StaysKilled says that a service which SIGKILL ended is not started again before somebody asks. Services
	// that end in another way are started again after a second.
	StaysKilled bool `json:"staysKilled,omitempty"`
	// NeedsImages holds the service back until all images are imported.
	NeedsImages bool `json:"needsImages,omitempty"`
	// Environment is added to PATH and HOME.
	Environment []string `json:"environment,omitempty"`
}
