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
	"net"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-dev/holdfast/test/lab/await"
)

// ArrayControl is the path of the unix socket on which the array is controlled.
func (l *Lab) ArrayControl() string { return l.path("array", "control.sock") }

func (l *Lab) startArray(ctx context.Context) error {
	id, err := l.Spawn(ctx, Process{
		Name: "lab-array", NetNS: l.NetNS(arrayNS), Cgroup: l.cgroupName("control"),
		Args: []string{
			l.program("lab-array"), "--dir", l.path("array"), "--control", l.ArrayControl(),
			"--listen", fmt.Sprintf("%s:%d", arrayAddress, arrayPort),
		},
	})
	if err != nil {
		return err
	}
	return await.Until(ctx, "the array", func() (bool, error) {
		if !id.Alive() {
			return false, fmt.Errorf("lab-array ended:\n%s", tail(l.logPath("lab-array")))
		}
		return l.array(ctx, http.MethodGet, "/healthz", nil) == nil, nil
	})
}

// startCSIControllers starts both drivers' controllers, and for the one that attaches the real csi-attacher.
func (l *Lab) startCSIControllers(ctx context.Context) error {
	for class := range drivers {
		socket := "unix://" + l.path("array", class+".sock")
		args := []string{"lab-csi", "controller", "--class", class, "--control", l.ArrayControl(), "--endpoint", socket}
		if _, err := l.control(ctx, "csi-controller-"+class, args); err != nil {
			return err
		}
		if class != "enforcing" {
			continue
		}
		attacher := []string{"csi-attacher", "--csi-address=" + socket, "--kubeconfig=" + l.path("pki", "csi-attacher.kubeconfig"), "--timeout=15s"}
		if _, err := l.control(ctx, "csi-attacher", attacher); err != nil {
			return err
		}
	}
	return nil
}

// array sends one request to the array's control socket.
func (l *Lab) array(ctx context.Context, method, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://array"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", l.ArrayControl())
		},
		DisableKeepAlives: true,
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("array: %s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(answer))
	}
	return nil
}

// Volume is a volume of the array with its PersistentVolume and claim.
type Volume struct {
	// Name of the volume on the array, of the PersistentVolume, and of the claim.
	Name string
	// Class is enforcing or permissive. Default enforcing.
	Class string
	// Namespace of the claim; it is made if need be. Default "default".
	Namespace string
	// SizeBytes defaults to 64 MiB.
	SizeBytes int64
	// Claim is the claim's name. Default Name. The claims of a StatefulSet are named <template>-<pod>.
	Claim string
}

func (v Volume) complete() (Volume, error) {
	if v.Class == "" {
		v.Class = "enforcing"
	}
	if v.Namespace == "" {
		v.Namespace = metav1.NamespaceDefault
	}
	if v.SizeBytes == 0 {
		v.SizeBytes = 64 << 20
	}
	if v.Claim == "" {
		v.Claim = v.Name
	}
	if v.Name == "" {
		return v, errors.New("volume: name is empty")
	}
	if _, found := drivers[v.Class]; !found {
		return v, fmt.Errorf("volume %s: class %q: use enforcing or permissive", v.Name, v.Class)
	}
	return v, nil
}

// CreateVolume makes a volume on the array, a PersistentVolume for it and a claim that is bound to it. It is
// idempotent.
func (l *Lab) CreateVolume(ctx context.Context, v Volume) error {
	v, err := v.complete()
	if err != nil {
		return err
	}
	record := map[string]any{"name": v.Name, "class": v.Class, "sizeBytes": v.SizeBytes}
	if err := l.array(ctx, http.MethodPost, "/volumes", record); err != nil {
		return err
	}
	client, err := l.Client()
	if err != nil {
		return err
	}
	if err := v.createObjects(ctx, client); err != nil {
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return untilAPI(ctx, "claim "+v.Claim+" to be bound", func() (bool, error) {
		claim, err := client.CoreV1().PersistentVolumeClaims(v.Namespace).Get(ctx, v.Claim, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return claim.Status.Phase == corev1.ClaimBound, nil
	})
}

func (v Volume) createObjects(ctx context.Context, client kubernetes.Interface) error {
	if err := ensureNamespace(ctx, client, v.Namespace); err != nil {
		return err
	}
	size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(v.SizeBytes, resource.BinarySI)}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: v.Name}, Spec: corev1.PersistentVolumeSpec{
		Capacity: size, AccessModes: modes, StorageClassName: v.Class,
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		ClaimRef:                      &corev1.ObjectReference{Namespace: v.Namespace, Name: v.Claim},
		PersistentVolumeSource: corev1.PersistentVolumeSource{
			CSI: &corev1.CSIPersistentVolumeSource{Driver: drivers[v.Class], VolumeHandle: v.Name},
		},
	}}
	_, err := client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: v.Claim}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: modes, StorageClassName: &v.Class, VolumeName: v.Name,
		Resources: corev1.VolumeResourceRequirements{Requests: size},
	}}
	_, err = client.CoreV1().PersistentVolumeClaims(v.Namespace).Create(ctx, claim, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}

func ensureNamespace(ctx context.Context, client kubernetes.Interface, name string) error {
	if slices.Contains([]string{metav1.NamespaceDefault, metav1.NamespaceSystem}, name) {
		return nil
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}
