// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/hack/mkimage"
	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
)

const (
	pauseImage       = "holdfast.dev/lab/pause:dev"
	containerdSocket = "/run/containerd/containerd.sock"
	kubeletDir       = "/var/lib/kubelet"
	kubeletPort      = 10250
)

// The storage drivers of the lab, by the class of volume that they serve.
var drivers = map[string]string{
	"enforcing":  "enforcing.lab.holdfast.dev",
	"permissive": "permissive.lab.holdfast.dev",
}

// configure writes everything that the host reads at power-on.
func (h *Host) configure() error {
	for _, dir := range []string{"etc/net.d", "disk/var/lib", "disk/var/log"} {
		if err := os.MkdirAll(h.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := h.configureKubelet(nil); err != nil {
		return err
	}
	proxy, err := json.MarshalIndent(h.proxyConfig(), "", "  ")
	if err != nil {
		return err
	}
	network, err := json.MarshalIndent(h.networkConfig(), "", "  ")
	if err != nil {
		return err
	}
	boot, err := json.MarshalIndent(h.initConfig(), "", "  ")
	if err != nil {
		return err
	}
	for file, content := range map[string][]byte{
		"machine-id":                []byte(h.entry.MachineID + "\n"),
		"etc/kube-proxy.json":       proxy,
		"etc/net.d/10-lab.conflist": network,
		"etc/containerd.toml":       []byte(h.containerdConfig()),
		"init.json":                 boot,
	} {
		if err := os.WriteFile(h.path(file), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// configureKubelet writes the kubelet's configuration with settings that differ from the lab's own.
func (h *Host) configureKubelet(settings map[string]any) error {
	config := h.kubeletConfig()
	maps.Copy(config, settings)
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(h.path("etc/kubelet.json"), text, 0o644)
}

func (h *Host) initConfig() hostinit.Config {
	return hostinit.Config{
		Host:          h.entry.Name,
		MachineIDFile: h.path("machine-id"),
		BootIDFile:    h.path("boot-id"),
		Disk:          h.path("disk"),
		Socket:        h.socket(),
		LogPrefix:     h.lab.path("logs", h.entry.Name+"-"),
		Images:        h.lab.path("images"),
		Path:          h.lab.searchPath(),
		Services:      h.services(),
	}
}

func (h *Host) services() []hostinit.Service {
	services := []hostinit.Service{
		{Name: "containerd", Args: []string{"containerd", "--config", h.path("etc/containerd.toml")}},
		{Name: "kube-proxy", Args: []string{"kube-proxy", "--config=" + h.path("etc/kube-proxy.json")}},
		{
			Name: hostinit.Kubelet, StaysKilled: true, NeedsImages: true,
			Args: []string{
				"kubelet", "--config=" + h.path("etc/kubelet.json"), "--root-dir=" + kubeletDir,
				"--kubeconfig=" + h.kubeconfig(), "--hostname-override=" + h.entry.Name, "--node-ip=" + h.Address(),
			},
		},
	}
	if !h.lab.state.Storage {
		return services
	}
	for class := range drivers {
		services = append(services, hostinit.Service{Name: "csi-" + class, Args: []string{
			"lab-csi", "node", "--class", class, "--array", fmt.Sprintf("%s:%d", arrayAddress, arrayPort),
			"--host", h.entry.Name, "--boot-id-file", h.path("boot-id"), "--kubelet-dir", kubeletDir,
		}})
	}
	return services
}

func (h *Host) kubeconfig() string { return h.lab.path("pki", "kubelet-"+h.entry.Name+".kubeconfig") }

func (h *Host) kubeletConfig() map[string]any {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": h.Address(), "port": kubeletPort,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": h.lab.path("pki", "ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              h.lab.path("pki", "kubelet-"+h.entry.Name+".crt"),
		"tlsPrivateKeyFile":        h.lab.path("pki", "kubelet-"+h.entry.Name+".key"),
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + h.cgroupName(),
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"enforceNodeAllocatable":   []string{},
		"makeIPTablesUtilChains":   false,
		"volumePluginDir":          kubeletDir + "/volume-plugins",
		"resolvConf":               "",
		// The disk is the machine's: how full it is says nothing about the lab.
		"evictionHard": map[string]string{
			"memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		// An image that was collected cannot be pulled again.
		"imageGCHighThresholdPercent": 100,
	}
	if h.lab.state.Timings == FastTimings {
		// The lease is renewed every quarter of its duration: every 2.5 s.
		config["nodeLeaseDurationSeconds"] = 10
		config["nodeStatusUpdateFrequency"] = "3s"
		config["nodeStatusReportFrequency"] = "1m0s"
	}
	return config
}

func (h *Host) proxyConfig() map[string]any {
	return map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": "nftables", "hostnameOverride": h.entry.Name, "bindAddress": h.Address(),
		"clientConnection":   map[string]any{"kubeconfig": h.lab.path("pki", "kube-proxy.kubeconfig")},
		"clusterCIDR":        podRange,
		"healthzBindAddress": h.Address() + ":10256",
		"metricsBindAddress": "127.0.0.1:10249",
		// Zero leaves the kernel's settings alone.
		"conntrack": map[string]any{
			"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
		},
		"nftables": map[string]any{"minSyncPeriod": "100ms"},
	}
}

func (h *Host) networkConfig() map[string]any {
	return map[string]any{
		"cniVersion": "1.0.0", "name": "lab",
		"plugins": []map[string]any{{
			"type": "ptp", "ipMasq": false,
			"ipam": map[string]any{
				// Below /run: a host that lost power has no pods that still hold addresses.
				"type": "host-local", "dataDir": "/run/cni-addresses",
				"ranges": [][]map[string]any{{{"subnet": podSubnet(h.entry.Number), "gateway": podGateway(h.entry.Number)}}},
				"routes": []map[string]any{{"dst": "0.0.0.0/0"}},
			},
		}},
	}
}

func (h *Host) containerdConfig() string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = -999

[grpc]
  address = %q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = %q
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false
`, containerdSocket, snapshotter(h.lab.dir), pauseImage, h.lab.path("bin"), h.path("etc/net.d"), h.lab.program("runc"))
}

// snapshotter chooses plain copies where overlays cannot be stacked, as inside a container.
func snapshotter(dir string) string {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err == nil && stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}

// makePauseImage puts the image of every pod's sandbox where hosts load it at power-on.
func (l *Lab) makePauseImage() error {
	return mkimage.Image{
		Reference:  pauseImage,
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
		Files:      []mkimage.File{{Source: l.program("pause"), Target: "/pause", Mode: 0o755}},
	}.WriteFile(l.path("images", "pause.tar"))
}
