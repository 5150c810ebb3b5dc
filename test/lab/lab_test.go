// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-dev/holdfast/hack/mkimage"
	"github.com/holdfast-dev/holdfast/test/lab/journal"
)

// binary is the lab command, built once.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	home, err := os.MkdirTemp("/var/tmp", "holdfast-lab-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(home)
	root, err := findRoot()
	if err == nil {
		err = os.Setenv("HOLDFAST_LAB_HOME", filepath.Join(home, "labs"))
	}
	if err == nil {
		binary = filepath.Join(home, "lab")
		err = build(context.Background(), root, binary, "./test/lab/cmd/lab")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// testName is unique on the machine: tests of other checkouts may run at the same time.
func testName(what string) string { return fmt.Sprintf("t%d-%s", os.Getpid(), what) }

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a lab: run it as root")
	}
}

// upLab makes a lab and checks at the end of the test that its removal leaves nothing.
func upLab(t *testing.T, o Options) (*Lab, *counter) {
	t.Helper()
	requireRoot(t)
	o.Binary, o.Progress = binary, t.Output()
	c := newCounter(o.Name)
	t.Cleanup(func() {
		if _, err := Down(context.Background(), o.Name); err != nil {
			t.Error(err)
		}
		c.nothingLeft(t)
	})
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c.meet()
	return l, c
}

// runCommand runs the lab command and returns what it printed.
func runCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
	return string(output), err
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTwoLabsAtOnce(t *testing.T) {
	one, oneCount := upLab(t, Options{Name: testName("one"), Hosts: 2, Timings: FastTimings})
	two, twoCount := upLab(t, Options{Name: testName("two"), Hosts: 1, APIServers: 2})
	for _, c := range []*counter{oneCount, twoCount} {
		found := c.count(t)
		if len(found.directory) == 0 || len(found.namespaces) == 0 || len(found.mounts) == 0 || len(found.cgroups) == 0 || len(found.processes) == 0 {
			t.Fatalf("the census of a lab that is up misses a kind: %+v", found)
		}
	}
	pod := startLedger(t, one)
	for _, step := range []struct {
		name string
		test func(*testing.T, *Lab, *corev1.Pod)
	}{
		{"a pod answers clients and hosts", answers},
		{"hosts are themselves", identity},
		{"a killed kubelet leaves its containers running", killKubelet},
		{"a host that loses power is gone and comes back as another boot", powerCycle},
		{"the BMC switches the host", switchByBMC},
		{"rights are separate", rights},
		{"the audit log tells what happened and no secret", audit},
		{"commands run on hosts", execute},
		{"refusals say what helps", refusals},
	} {
		t.Run(step.name, func(t *testing.T) { step.test(t, one, pod) })
	}
	t.Run("both API servers serve the same cluster", func(t *testing.T) { bothServers(t, two) })
	t.Run("a lab goes away with a frozen host and running pods and leaves the other alone", func(t *testing.T) {
		h, err := one.Host("host-1")
		must(t, err)
		must(t, h.Freeze())
		if out, err := runCommand(t, "down", "--lab", one.Name()); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		oneCount.nothingLeft(t)
		status, err := two.Status(t.Context())
		must(t, err)
		if got := status.Hosts[0]; got.Power != "on" || got.Kubelet != "running" || got.Ready != "True" {
			t.Errorf("the other lab's host: %+v", got)
		}
		out, err := runCommand(t, "down", "--lab", one.Name())
		if err != nil || !strings.Contains(out, "nothing to undo") {
			t.Errorf("down of a lab that is gone: %v, %q", err, out)
		}
	})
}

// startLedger runs the witness application on host-1 with an enforcing volume, behind a Service.
func startLedger(t *testing.T, l *Lab) *corev1.Pod {
	t.Helper()
	ctx := within(t, 90*time.Second)
	dir := t.TempDir()
	const reference = "holdfast.dev/lab/ledger:dev"
	must(t, buildStatic(ctx, filepath.Join(l.Root(), "test/lab/storage"), filepath.Join(dir, "ledger"), "./cmd/ledger"))
	tar := filepath.Join(dir, "ledger.tar")
	must(t, mkimage.Image{
		Reference: reference, Entrypoint: []string{"/ledger"},
		Files: []mkimage.File{{Source: filepath.Join(dir, "ledger"), Target: "/ledger", Mode: 0o755}},
	}.WriteFile(tar))
	must(t, l.LoadImage(ctx, tar))
	for range 2 {
		must(t, l.CreateVolume(ctx, Volume{Name: "ledger"}))
	}
	client, err := l.Client()
	must(t, err)
	labels := map[string]string{"app": "ledger"}
	_, err = client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "ledger"},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	must(t, err)
	pod := ledgerPod(reference, labels)
	_, err = client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	must(t, err)
	return awaitPod(t, client, func(p *corev1.Pod) bool { return podReady(p) })
}

func ledgerPod(image string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "ledger", Labels: labels},
		Spec: corev1.PodSpec{
			NodeName:    "host-1",
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, // it stays while its host is off
			Containers: []corev1.Container{{
				Name: "ledger", Image: image, ImagePullPolicy: corev1.PullNever,
				ReadinessProbe: &corev1.Probe{
					PeriodSeconds: 1,
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(8080)}},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "ledger"},
			}}},
		},
	}
}

func podReady(p *corev1.Pod) bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func awaitPod(t *testing.T, client kubernetes.Interface, reached func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	ctx := within(t, time.Minute)
	must(t, untilAPI(ctx, "pod ledger", func() (bool, error) {
		var err error
		pod, err = client.CoreV1().Pods("default").Get(ctx, "ledger", metav1.GetOptions{})
		return err == nil && reached(pod), err
	}))
	return pod
}

// get asks the ledger whether it is ready, from a namespace of the lab.
func get(t *testing.T, l *Lab, namespace, address string) error {
	t.Helper()
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: l.Dialer(namespace), DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/readyz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return err
}

func answers(t *testing.T, l *Lab, pod *corev1.Pod) {
	client, err := l.Client()
	must(t, err)
	service, err := client.CoreV1().Services("default").Get(t.Context(), "ledger", metav1.GetOptions{})
	must(t, err)
	for _, c := range []struct{ from, address string }{
		{clientNS, pod.Status.PodIP + ":8080"},
		{"host-2", pod.Status.PodIP + ":8080"},
		{"host-1", service.Spec.ClusterIP + ":80"},
		{"host-2", service.Spec.ClusterIP + ":80"},
	} {
		// kube-proxy learns of the endpoint a little later than we do.
		must(t, untilAPI(within(t, 10*time.Second), c.from+" to reach "+c.address, func() (bool, error) {
			return get(t, l, c.from, c.address) == nil, nil
		}))
	}
}

func identity(t *testing.T, l *Lab, _ *corev1.Pod) {
	client, err := l.Client()
	must(t, err)
	seen := map[string]bool{}
	for _, h := range l.Hosts() {
		node, err := client.CoreV1().Nodes().Get(t.Context(), h.Name(), metav1.GetOptions{})
		must(t, err)
		boot, err := h.BootID()
		must(t, err)
		if got := strings.ReplaceAll(node.Status.NodeInfo.SystemUUID, "-", ""); got != h.MachineID() {
			t.Errorf("%s: the Node's system UUID is %s, the machine ID %s", h.Name(), got, h.MachineID())
		}
		if node.Status.NodeInfo.BootID != boot {
			t.Errorf("%s: the Node's boot ID is %s, the host's %s", h.Name(), node.Status.NodeInfo.BootID, boot)
		}
		if seen[boot] || seen[h.MachineID()] {
			t.Errorf("%s shares an identity with another host", h.Name())
		}
		seen[boot], seen[h.MachineID()] = true, true
	}
}

func killKubelet(t *testing.T, l *Lab, pod *corev1.Pod) {
	h, err := l.Host("host-1")
	must(t, err)
	for range 2 {
		must(t, h.KillKubelet(t.Context()))
	}
	if _, err := h.ServicePID(t.Context(), "kubelet"); err == nil {
		t.Error("a kubelet that was killed has a pid")
	}
	must(t, get(t, l, clientNS, pod.Status.PodIP+":8080"))
	for range 2 {
		must(t, h.StartKubelet(t.Context()))
	}
	must(t, h.ReconfigureKubelet(t.Context(), map[string]any{"nodeStatusUpdateFrequency": "2s"}))
	pid, err := h.ServicePID(t.Context(), "kubelet")
	must(t, err)
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	must(t, err)
	if strings.TrimSpace(string(name)) != "kubelet" {
		t.Errorf("pid %d is %s", pid, name)
	}
	must(t, h.WaitReady(within(t, time.Minute)))
	client, err := l.Client()
	must(t, err)
	ctx := within(t, time.Minute)
	must(t, untilAPI(ctx, "the kubelet's new configuration", func() (bool, error) {
		running, err := client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/host-1/proxy/configz").DoRaw(ctx)
		if apierrors.IsServiceUnavailable(err) { // it does not listen yet
			return false, nil
		}
		return strings.Contains(string(running), `"nodeStatusUpdateFrequency":"2s"`), err
	}))
	must(t, h.ReconfigureKubelet(t.Context(), nil))
	must(t, h.WaitReady(within(t, time.Minute)))
	now := awaitPod(t, client, podReady)
	if now.Status.ContainerStatuses[0].ContainerID != pod.Status.ContainerStatuses[0].ContainerID {
		t.Error("the container is another one")
	}
}

func powerCycle(t *testing.T, l *Lab, pod *corev1.Pod) {
	h, err := l.Host("host-1")
	must(t, err)
	before, err := h.BootID()
	must(t, err)
	for range 2 {
		must(t, h.PowerOff(t.Context()))
	}
	if h.Powered() || len(l.cgroups.Pids(h.Cgroup())) > 0 {
		t.Errorf("after power-off: powered %v, processes %v", h.Powered(), l.cgroups.Pids(h.Cgroup()))
	}
	if err := get(t, l, clientNS, pod.Status.PodIP+":8080"); !errors.Is(err, context.DeadlineExceeded) && !os.IsTimeout(err) {
		t.Errorf("a client of a host without power: %v, want silence", err)
	}
	if err := h.KillKubelet(t.Context()); err == nil || !strings.Contains(err.Error(), "power-on host-1") {
		t.Errorf("kill-kubelet without power: %v, want the command that helps", err)
	}
	client, err := l.Client()
	must(t, err)
	ctx := within(t, 30*time.Second)
	must(t, untilAPI(ctx, "host-1 to be NotReady", func() (bool, error) {
		node, err := client.CoreV1().Nodes().Get(ctx, "host-1", metav1.GetOptions{})
		return err == nil && nodeReady(node) == corev1.ConditionUnknown, err
	}))
	for range 2 {
		must(t, h.PowerOn(t.Context()))
	}
	must(t, h.WaitReady(within(t, time.Minute)))
	after, err := h.BootID()
	must(t, err)
	if before == after {
		t.Error("the boot ID is that of the boot before")
	}
	now := awaitPod(t, client, func(p *corev1.Pod) bool { return podReady(p) && p.Status.ContainerStatuses[0].RestartCount > 0 })
	must(t, get(t, l, clientNS, now.Status.PodIP+":8080"))
}

func switchByBMC(t *testing.T, l *Lab, _ *corev1.Pod) {
	h, err := l.Host("host-2")
	must(t, err)
	ipmi := func(args ...string) string {
		t.Helper()
		all := append([]string{
			"--net=" + l.NetNS(clientNS), "ipmitool", "-I", "lanplus", "-C", "3",
			"-H", h.BMCAddress(), "-U", "admin", "-P", "lab-" + h.Name(),
		}, args...)
		out, err := exec.CommandContext(t.Context(), "nsenter", all...).CombinedOutput()
		if err != nil {
			t.Fatalf("ipmitool %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	guid := ipmi("mc", "guid")
	if !strings.Contains(strings.ReplaceAll(guid, "-", ""), h.MachineID()) {
		t.Errorf("the BMC's GUID is not machine ID %s:\n%s", h.MachineID(), guid)
	}
	ipmi("power", "off")
	must(t, untilAPI(within(t, 10*time.Second), "host-2 to be off", func() (bool, error) { return !h.Powered(), nil }))
	if out := ipmi("power", "status"); !strings.Contains(out, "off") {
		t.Errorf("power status of a host that is off: %s", out)
	}
	ipmi("power", "on")
	must(t, untilAPI(within(t, 10*time.Second), "host-2 to be on", func() (bool, error) { return h.Powered(), nil }))
	must(t, h.WaitReady(within(t, time.Minute)))
}

// rights uses the certificates of the lab's own components, through the port of the machine.
func rights(t *testing.T, l *Lab, _ *corev1.Pod) {
	as := func(component string) kubernetes.Interface {
		t.Helper()
		admin, err := l.RESTConfig()
		must(t, err)
		config, err := clientcmd.BuildConfigFromFlags("", l.path("pki", component+".kubeconfig"))
		must(t, err)
		config.Host = admin.Host
		client, err := kubernetes.NewForConfig(config)
		must(t, err)
		return client
	}
	label := func(node string) error {
		_, err := as("kubelet-host-1").CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
		return err
	}
	must(t, label("host-1"))
	if err := label("host-2"); !apierrors.IsForbidden(err) {
		t.Errorf("host-1's kubelet labels host-2: %v, want forbidden", err)
	}
	for _, component := range []string{"csi-attacher", "kube-scheduler", "kube-proxy"} {
		_, err := as(component).CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s lists secrets: %v, want forbidden", component, err)
		}
	}
}

func audit(t *testing.T, l *Lab, _ *corev1.Pod) {
	client, err := l.Client()
	must(t, err)
	const secret = "dHJ1c3Qtbm9ib2R5LWhlcmU="
	_, err = client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"password": "trust-nobody-here"},
	}, metav1.CreateOptions{})
	must(t, err)
	text, err := os.ReadFile(l.path("audit", "kube-apiserver-1.log"))
	must(t, err)
	if bytes.Contains(text, []byte("trust-nobody-here")) || bytes.Contains(text, []byte(secret)) {
		t.Error("the audit log holds a secret")
	}
	var told struct{ secret, podStatus bool }
	for line := range bytes.Lines(text) {
		var event struct {
			Verb          string
			ObjectRef     struct{ Resource, Subresource, Name string }
			RequestObject json.RawMessage
		}
		must(t, json.Unmarshal(line, &event))
		switch ref := event.ObjectRef; {
		case ref.Resource == "secrets" && ref.Name == "s":
			told.secret = true
		case ref.Resource == "pods" && ref.Subresource == "status" && ref.Name == "ledger" && len(event.RequestObject) > 0:
			told.podStatus = true
		}
	}
	if !told.secret || !told.podStatus {
		t.Errorf("the audit log tells of (the secret's making, pod status with content): %+v", told)
	}
}

func execute(t *testing.T, l *Lab, _ *corev1.Pod) {
	out, err := runCommand(t, "exec", "--lab", l.Name(), "host-2", "--", "sh", "-c", "hostname; cat /proc/1/comm; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("the command's status is %v, want 7", err)
	}
	if out != "host-2\nlab\n" {
		t.Errorf("printed %q", out)
	}
}

func refusals(t *testing.T, l *Lab, _ *corev1.Pod) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"up", "--lab", l.Name()}, "already up: `bin/lab status --lab " + l.Name()},
		{[]string{"status", "--lab", testName("none")}, "`bin/lab up --lab " + testName("none") + "` makes one"},
		{[]string{"host", "power-off", "host-9", "--lab", l.Name()}, "it has host-1, host-2"},
		{[]string{"kubeconfig", "--server", "2", "--lab", l.Name()}, "--apiservers 2"},
		{[]string{"up", "--lab", "Bad_Name"}, "lower-case letters"},
		{[]string{"up", "--lab", testName("x"), "--hosts", "51"}, "use 1 to 50"},
		{[]string{"up", "--lab", testName("x"), "--timings", "slow"}, "use default or fast"},
		{[]string{"volume", "create", "v", "--class", "nfs", "--lab", l.Name()}, "use enforcing or permissive"},
		{[]string{"status", "-o", "yaml", "--lab", l.Name()}, "use text or json"},
	} {
		out, err := runCommand(t, c.args...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("lab %s: %v, %q; want %q in it", strings.Join(c.args, " "), err, out, c.want)
		}
	}
	asUser := exec.CommandContext(t.Context(), binary, "up", "--lab", testName("x"))
	asUser.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	asUser.Dir = "/"
	must(t, os.Chmod(filepath.Dir(binary), 0o755))
	out, err := asUser.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "as root") {
		t.Errorf("up by a user: %v, %q", err, out)
	}
}

func bothServers(t *testing.T, l *Lab) {
	var uids []string
	for server := 1; server <= 2; server++ {
		kubeconfig, err := l.KubeconfigOf(server)
		must(t, err)
		client, err := clientFrom(kubeconfig)
		must(t, err)
		namespace, err := client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
		must(t, err)
		uids = append(uids, string(namespace.UID))
	}
	if uids[0] != uids[1] {
		t.Errorf("the API servers serve different clusters: %v", uids)
	}
}

// TestDownAfterKill ends lab up with SIGKILL after ever more records, so at ever later moments.
func TestDownAfterKill(t *testing.T) {
	requireRoot(t)
	for _, records := range []int{0, 1, 3, 6, 8, 10, 12, 15} {
		t.Run(fmt.Sprintf("after %d records", records), func(t *testing.T) {
			name := testName("k")
			c := newCounter(name)
			killUp(t, name, records)
			c.meet()
			if out, err := runCommand(t, "host", "power-off", "host-1", "--lab", name); err == nil && records == 0 {
				t.Errorf("a lab without a host was switched: %s", out)
			}
			if out, err := runCommand(t, "up", "--lab", name); err == nil || !strings.Contains(out, "lab down") {
				t.Errorf("up over what is left: %v, %q; want to hear of lab down", err, out)
			}
			killDown(t, name)
			if out, err := runCommand(t, "down", "--lab", name); err != nil {
				t.Fatalf("down: %v: %s", err, out)
			}
			c.nothingLeft(t)
		})
	}
}

// killUp starts lab up and kills it once the journal has so many records.
func killUp(t *testing.T, name string, records int) {
	t.Helper()
	cmd := exec.Command(binary, "up", "--lab", name, "--hosts", "1")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	must(t, cmd.Start())
	log := filepath.Join(Home(), name, "resources.jsonl")
	err := untilFast(within(t, 2*time.Minute), func() (bool, error) {
		if records == 0 {
			_, err := os.Stat(filepath.Dir(log))
			return err == nil, nil
		}
		found, err := journal.Read(log)
		return len(found) >= records, err
	})
	must(t, errors.Join(err, cmd.Process.Kill()))
	if err := cmd.Wait(); err == nil {
		t.Fatalf("lab up ended before it was killed: %s", output.String())
	}
}

// killDown starts lab down and kills it as soon as it has begun.
func killDown(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command(binary, "down", "--lab", name)
	must(t, cmd.Start())
	log := filepath.Join(Home(), name, "resources.jsonl")
	err := untilFast(within(t, 30*time.Second), func() (bool, error) {
		text, err := os.ReadFile(log)
		return errors.Is(err, os.ErrNotExist) || bytes.Contains(text, []byte(`"closed"`)), nil
	})
	_ = cmd.Process.Kill() // it may have been quicker
	_ = cmd.Wait()
	must(t, err)
}

// untilFast looks every half millisecond: it has to hit a moment.
func untilFast(ctx context.Context, reached func() (bool, error)) error {
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		if ok, err := reached(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
