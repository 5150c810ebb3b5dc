// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/holdfast-dev/holdfast/test/lab/pki"
)

// issue makes all certificates and kubeconfigs: every component is somebody else.
func (l *Lab) issue() (identities, error) {
	authority, err := pki.New(l.path("pki"))
	if err != nil {
		return identities{}, err
	}
	ids := identities{ca: authority.CA()}
	if ids.apiServer, err = authority.Issue(apiCertificate()); err != nil {
		return ids, err
	}
	if ids.kubeletClient, err = authority.Issue(pki.Subject{File: "apiserver-kubelet-client", User: kubeletClientUser}); err != nil {
		return ids, err
	}
	if ids.serviceAccounts, err = authority.KeyPair("service-accounts"); err != nil {
		return ids, err
	}
	for _, s := range l.clients() {
		pair, err := authority.Issue(s)
		if err != nil {
			return ids, err
		}
		if err := l.writeKubeconfig(l.path("pki", s.File+".kubeconfig"), apiURL(1), pair); err != nil {
			return ids, err
		}
	}
	admin, err := authority.Issue(pki.Subject{File: "admin", User: "lab-admin", Groups: []string{"system:masters"}})
	if err != nil {
		return ids, err
	}
	for n, server := range l.state.APIServers {
		url := fmt.Sprintf("https://127.0.0.1:%d", server.Port)
		if err := l.writeKubeconfig(l.kubeconfigPath(n+1), url, admin); err != nil {
			return ids, err
		}
	}
	return ids, nil
}

// The users whose rights are given by objects that the lab installs, see objects.go.
const (
	kubeletClientUser = "lab:apiserver-kubelet-client"
	attacherUser      = "lab:csi-attacher"
)

// clients are those that reach the API from inside the lab.
func (l *Lab) clients() []pki.Subject {
	subjects := []pki.Subject{
		{File: "kube-controller-manager", User: "system:kube-controller-manager"},
		{File: "kube-scheduler", User: "system:kube-scheduler"},
		{File: "kube-proxy", User: "system:kube-proxy"},
		{File: "csi-attacher", User: attacherUser},
	}
	for _, h := range l.Hosts() {
		subjects = append(subjects, pki.Subject{
			File: "kubelet-" + h.Name(), User: "system:node:" + h.Name(), Groups: []string{"system:nodes"},
			DNS: []string{h.Name()}, IPs: []string{h.Address(), "127.0.0.1"},
		})
	}
	return subjects
}

func (l *Lab) kubeconfigPath(server int) string {
	if server == 1 {
		return l.path("kubeconfig")
	}
	return l.path(fmt.Sprintf("kubeconfig-%d", server))
}

func (l *Lab) writeKubeconfig(path, server string, client pki.Pair) error {
	content := map[string][]byte{}
	for _, file := range []string{l.path("pki", "ca.crt"), client.Cert, client.Key} {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		content[file] = text
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: content[l.path("pki", "ca.crt")]}
	config.AuthInfos["lab"] = &clientcmdapi.AuthInfo{ClientCertificateData: content[client.Cert], ClientKeyData: content[client.Key]}
	config.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "lab"}
	config.CurrentContext = "lab"
	return clientcmd.WriteToFile(*config, path)
}

// Kubeconfig is the path of the administrator's kubeconfig. It reaches the first API server through a port of
// the machine.
func (l *Lab) Kubeconfig() string { return l.kubeconfigPath(1) }

// KubeconfigOf is Kubeconfig for API server 1 or 2.
func (l *Lab) KubeconfigOf(server int) (string, error) {
	if server < 1 || server > len(l.state.APIServers) {
		return "", fmt.Errorf("lab %q has API servers 1 to %d, not %d; `bin/lab up --apiservers 2` makes two", l.state.Name, len(l.state.APIServers), server)
	}
	return l.kubeconfigPath(server), nil
}

// RESTConfig is the administrator's access to the first API server, without a client-side rate limit.
func (l *Lab) RESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = -1, -1
	return config, nil
}
