// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"strconv"

	"github.com/holdfast-dev/holdfast/test/lab/pki"
)

// identities are the certificates of the control plane.
type identities struct {
	ca, apiServer, kubeletClient, serviceAccounts pki.Pair
}

// etcdURL is only reachable from inside the control namespace.
const etcdURL = "http://127.0.0.1:2379"

func (l *Lab) etcdArgs() []string {
	return []string{
		"etcd", "--name=lab", "--data-dir=" + l.path("etcd"),
		"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
		// The lab never outlives the machine's kernel, so a write that the kernel has is safe.
		"--unsafe-no-fsync",
	}
}

func (l *Lab) apiServerArgs(n int, ids identities) []string {
	address := apiAddress(n)
	args := []string{
		"kube-apiserver",
		"--etcd-servers=" + etcdURL,
		"--bind-address=" + address, "--advertise-address=" + address, "--secure-port=" + strconv.Itoa(apiPort),
		"--tls-cert-file=" + ids.apiServer.Cert, "--tls-private-key-file=" + ids.apiServer.Key,
		"--client-ca-file=" + ids.ca.Cert,
		"--kubelet-certificate-authority=" + ids.ca.Cert,
		"--kubelet-client-certificate=" + ids.kubeletClient.Cert, "--kubelet-client-key=" + ids.kubeletClient.Key,
		"--kubelet-preferred-address-types=InternalIP",
		"--service-cluster-ip-range=" + serviceRange,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + ids.serviceAccounts.Cert,
		"--service-account-signing-key-file=" + ids.serviceAccounts.Key,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		// The control plane has no kube-proxy: webhooks are called at their pods.
		"--enable-aggregator-routing=true",
		"--allow-privileged=true",
		"--audit-policy-file=" + l.path("audit", "policy.yaml"),
		"--audit-log-path=" + l.path("audit", fmt.Sprintf("kube-apiserver-%d.log", n)),
		"--audit-log-maxsize=0",
		"--profiling=false",
	}
	if l.state.Timings == FastTimings {
		args = append(args, "--default-not-ready-toleration-seconds=20", "--default-unreachable-toleration-seconds=20")
	}
	return args
}

func (l *Lab) controllerManagerArgs(ids identities) []string {
	kubeconfig := l.path("pki", "kube-controller-manager.kubeconfig")
	args := []string{
		"kube-controller-manager",
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + ids.serviceAccounts.Key,
		"--root-ca-file=" + ids.ca.Cert,
		"--cluster-signing-cert-file=" + ids.ca.Cert, "--cluster-signing-key-file=" + ids.ca.Key,
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--profiling=false",
	}
	if l.state.Timings == FastTimings {
		args = append(args, "--node-monitor-grace-period=12s", "--node-monitor-period=1s")
	}
	return args
}

func (l *Lab) schedulerArgs() []string {
	kubeconfig := l.path("pki", "kube-scheduler.kubeconfig")
	return []string{
		"kube-scheduler",
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--profiling=false",
	}
}

// auditPolicy records what tests ask about with its content, and of the rest that it happened. Nothing that
// holds secrets is recorded with its content.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  resources:
  - resources: [secrets, configmaps, serviceaccounts/token]
  - group: authentication.k8s.io
  - group: certificates.k8s.io
- level: None
  verbs: [get, list, watch]
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/openapi*", "/api*", "/version"]
- level: Metadata
  verbs: [get, list, watch]
- level: Metadata
  resources:
  - group: coordination.k8s.io
  - resources: [events]
  - group: events.k8s.io
- level: RequestResponse
  resources:
  - resources: [pods, pods/status, pods/eviction, pods/binding, pods/ephemeralcontainers, nodes, nodes/status, endpoints, services, persistentvolumes, persistentvolumes/status, persistentvolumeclaims, persistentvolumeclaims/status]
  - group: storage.k8s.io
  - group: discovery.k8s.io
  - group: apps
  - group: policy
  - group: admissionregistration.k8s.io
  - group: guard.holdfast.dev
- level: Metadata
`

// listenLoopback opens a port of the machine for each API server.
func listenLoopback() (*net.TCPListener, int, error) {
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, 0, err
	}
	return listener, listener.Addr().(*net.TCPAddr).Port, nil //nolint:forcetypeassert // of a TCP listener
}

// apiURL is how the lab's own namespaces reach API server n.
func apiURL(n int) string {
	return "https://" + net.JoinHostPort(apiAddress(n), strconv.Itoa(apiPort))
}

// apiCertificate names everything by which an API server is called.
func apiCertificate() pki.Subject {
	s := pki.Subject{
		File: "kube-apiserver", User: "kube-apiserver",
		DNS: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPs: []string{"127.0.0.1", kubernetesIP},
	}
	for n := 1; n <= maxAPIServers; n++ {
		s.IPs = append(s.IPs, apiAddress(n))
	}
	return s
}
