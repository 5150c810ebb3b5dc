// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
)

// Status is what `lab status` shows.
type Status struct {
	Name     string  `json:"name"`
	StateDir string  `json:"stateDir"`
	Phase    string  `json:"phase"`
	Timings  Timings `json:"timings"`
	// APIServers holds the URL of each API server on this machine, and what it says of itself.
	APIServers []APIServerStatus `json:"apiServers"`
	Hosts      []HostStatus      `json:"hosts"`
}

// APIServerStatus is one API server; Error is empty when it is ready.
type APIServerStatus struct {
	URL   string `json:"url"`
	Error string `json:"error,omitempty"`
}

// HostStatus is one host.
type HostStatus struct {
	Name      string `json:"name"`
	Address   string `json:"address"`
	BMC       string `json:"bmc"`
	MachineID string `json:"machineID"`
	// Power is on or off.
	Power string `json:"power"`
	// BootID is that of the last boot.
	BootID string `json:"bootID,omitempty"`
	// Kubelet is running, down, or silent when the host has power but does not answer.
	Kubelet string `json:"kubelet"`
	// Ready is the Node's Ready condition, which the API may be late to change: True, False, Unknown, or none.
	Ready string `json:"ready"`
}

// Status asks hosts and API servers how they are. What does not answer within a second is told as such.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	s := Status{Name: l.state.Name, StateDir: l.dir, Phase: l.state.Phase, Timings: l.state.Timings}
	ready := map[string]corev1.ConditionStatus{}
	for n, server := range l.state.APIServers {
		status := APIServerStatus{URL: fmt.Sprintf("https://127.0.0.1:%d", server.Port)}
		nodes, err := l.nodes(ctx, n+1)
		if err != nil {
			status.Error = err.Error()
		}
		for name, condition := range nodes {
			ready[name] = condition
		}
		s.APIServers = append(s.APIServers, status)
	}
	for _, h := range l.Hosts() {
		s.Hosts = append(s.Hosts, h.status(ctx, string(ready[h.entry.Name])))
	}
	return s, nil
}

func (l *Lab) nodes(ctx context.Context, server int) (map[string]corev1.ConditionStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	kubeconfig, err := l.KubeconfigOf(server)
	if err != nil {
		return nil, err
	}
	client, err := clientFrom(kubeconfig)
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	ready := map[string]corev1.ConditionStatus{}
	for _, node := range list.Items {
		ready[node.Name] = nodeReady(&node)
	}
	return ready, nil
}

func clientFrom(kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

func (h *Host) status(ctx context.Context, ready string) HostStatus {
	s := HostStatus{
		Name: h.entry.Name, Address: h.Address(), BMC: h.BMCAddress(), MachineID: h.entry.MachineID,
		Power: "off", Kubelet: "down", Ready: ready,
	}
	if ready == "" {
		s.Ready = "none"
	}
	s.BootID, _ = h.BootID() // none before the first boot
	if !h.Powered() {
		return s
	}
	s.Power = "on"
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answer, err := h.ask(ctx, hostinit.Request{Op: "status"})
	switch {
	case err != nil:
		s.Kubelet = "silent"
	case answer.Services[hostinit.Kubelet].Running:
		s.Kubelet = "running"
	}
	return s
}

// String is the table for people.
func (s Status) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "lab %s (%s, timings %s) in %s\n", s.Name, s.Phase, s.Timings, s.StateDir)
	for n, server := range s.APIServers {
		condition := "ready"
		if server.Error != "" {
			condition = server.Error
		}
		fmt.Fprintf(&text, "API server %d  %s  %s\n", n+1, server.URL, condition)
	}
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "HOST\tADDRESS\tBMC\tPOWER\tKUBELET\tREADY\tBOOT ID")
	for _, h := range s.Hosts {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", h.Name, h.Address, h.BMC, h.Power, h.Kubelet, h.Ready, h.BootID)
	}
	_ = table.Flush() // into memory
	return strings.TrimSuffix(text.String(), "\n")
}
