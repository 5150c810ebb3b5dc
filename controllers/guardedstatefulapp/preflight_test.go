// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	clientfake "sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/guardedstatefulapp"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// site is a cluster in memory: the namespace shop with the app "app" that guards the workload "db", on two hosts. Each test changes what it is about.
type site struct {
	app      *v1alpha1.GuardedStatefulApp
	others   []*v1alpha1.GuardedStatefulApp
	workload client.Object
	claim    *corev1.PersistentVolumeClaim
	volume   *corev1.PersistentVolume
	driver   *storagev1.CSIDriver
	pod      *corev1.Pod
	hosts    []*corev1.Node
	// accounts are the service accounts of kube-system.
	accounts []string
	// effective is what GuardConfig says of the policies, empty where there is no GuardConfig.
	effective metav1.ConditionStatus
	// old is true for an API server that knows no MutatingAdmissionPolicy.
	old bool
	// silent is true where service accounts cannot be read.
	silent bool
}

// newSite is one about which there is nothing to say: a StatefulSet with one replica and one volume that any host can attach.
func newSite() *site {
	return &site{
		app: guarding("app", 2, "StatefulSet"),
		workload: &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "db"},
			Spec: appsv1.StatefulSetSpec{Replicas: ptr.To[int32](1), Template: corev1.PodTemplateSpec{Spec: podSpec()}}},
		claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-1", AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}}},
		volume: &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-1"}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: "h-1"}}}},
		driver: &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "csi.example.com"}},
		pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", UID: "db-0", Labels: map[string]string{"runs": "db"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "db", Controller: ptr.To(true)}}}, Spec: podSpec()},
		hosts:     []*corev1.Node{host("node-1", "a"), host("node-2", "b")},
		accounts:  []string{"node-controller", "pod-garbage-collector", "attachdetach-controller"},
		effective: metav1.ConditionTrue,
	}
}

func guarding(name string, born int64, kind string) *v1alpha1.GuardedStatefulApp {
	return &v1alpha1.GuardedStatefulApp{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Unix(born, 0))},
		Spec:       v1alpha1.GuardedStatefulAppSpec{WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: kind, Name: "db"}},
	}
}

func podSpec() corev1.PodSpec {
	return corev1.PodSpec{
		Containers: []corev1.Container{{Name: "db", ReadinessProbe: &corev1.Probe{}, Ports: []corev1.ContainerPort{{Name: "sql", ContainerPort: 5432}}}},
		Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}},
	}
}

func host(name, rack string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, "rack": rack}}}
}

// deployed makes the workload a Deployment.
func (s *site) deployed(replicas int32, strategy appsv1.DeploymentStrategyType) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "db"}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Strategy: appsv1.DeploymentStrategy{Type: strategy}, Template: corev1.PodTemplateSpec{Spec: podSpec()}}}
	d.Spec.Template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{}}
	s.app = guarding("app", 2, "Deployment")
	s.workload = d
	return d
}

func (s *site) set() *appsv1.StatefulSet { return s.workload.(*appsv1.StatefulSet) }

func (s *site) template() *corev1.PodTemplateSpec { return &s.set().Spec.Template }

// tied binds the volume to the hosts that a requirement is about.
func (s *site) tied(key string, operator corev1.NodeSelectorOperator, values ...string) {
	s.tie(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: operator, Values: values}}})
}

func (s *site) tie(terms ...corev1.NodeSelectorTerm) {
	s.volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: terms}}
}

// bears puts the volume on something else.
func (s *site) bears(source corev1.PersistentVolumeSource) {
	s.volume.Spec.PersistentVolumeSource = source
}

// server starts the cluster.
func (s *site) server(t *testing.T) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(admissionv1.SchemeGroupVersion.WithKind("ValidatingAdmissionPolicy"), meta.RESTScopeRoot)
	if !s.old {
		mapper.Add(admissionv1.SchemeGroupVersion.WithKind("MutatingAdmissionPolicy"), meta.RESTScopeRoot)
	}
	objects := []client.Object{s.app, s.claim, s.volume, s.driver, s.pod, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}}
	if s.workload != nil {
		objects = append(objects, s.workload)
	}
	for _, o := range s.others {
		objects = append(objects, o)
	}
	for _, h := range s.hosts {
		objects = append(objects, h)
	}
	for _, name := range s.accounts {
		objects = append(objects, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}})
	}
	if s.effective != "" {
		objects = append(objects, &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}, Status: v1alpha1.GuardConfigStatus{
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionPoliciesEffective, Status: s.effective, Message: "what the canary found"}}}})
	}
	return clientfake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).WithStatusSubresource(&v1alpha1.GuardedStatefulApp{}).WithObjects(objects...).Build()
}

// seen is what became of the site after the app was looked at once.
type seen struct {
	client.WithWatch
	t      *testing.T
	leader *guardedstatefulapp.Reconciler
	app    v1alpha1.GuardedStatefulApp
	err    error
}

func (s *site) look(t *testing.T) *seen {
	t.Helper()
	out := &seen{t: t, WithWatch: s.server(t)}
	clock := sight.NewClock(clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
	live := interceptor.NewClient(out.WithWatch, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, account := o.(*corev1.ServiceAccount); account && s.silent {
				return errors.New("no answer")
			}
			return c.Get(ctx, key, o, opts...)
		}})
	out.leader = &guardedstatefulapp.Reconciler{Client: out.WithWatch, Live: live, Clock: clock, Board: sight.NewBoard(clock, func(string) {}), Devices: &guard.Devices{}, Self: "manager"}
	out.again()
	return out
}

func (s *seen) again() {
	s.t.Helper()
	key := types.NamespacedName{Namespace: "shop", Name: "app"}
	_, s.err = s.leader.Reconcile(s.t.Context(), ctrl.Request{NamespacedName: key})
	if err := s.Get(s.t.Context(), key, &s.app); err != nil {
		s.t.Fatal(err)
	}
}

// says fails unless the condition is as given and its message has all the words.
func (s *seen) says(condition string, status metav1.ConditionStatus, reason string, words ...string) {
	s.t.Helper()
	if s.err != nil {
		s.t.Fatal(s.err)
	}
	c := meta.FindStatusCondition(s.app.Status.Conditions, condition)
	if c == nil || c.Status != status || c.Reason != reason {
		s.t.Fatalf("%s: %+v, want %s with reason %s", condition, c, status, reason)
	}
	for _, w := range words {
		if !strings.Contains(c.Message, w) {
			s.t.Errorf("%s does not say %q: %s", condition, w, c.Message)
		}
	}
}

// label is the app whose label the pod carries.
func (s *seen) label() string { return s.labels()[v1alpha1.LabelApp] }

func (s *seen) labels() map[string]string {
	s.t.Helper()
	var p corev1.Pod
	if err := s.Get(s.t.Context(), types.NamespacedName{Namespace: "shop", Name: "db-0"}, &p); err != nil {
		s.t.Fatal(err)
	}
	return p.Labels
}

const (
	rwx  = corev1.ReadWriteMany
	rwop = corev1.ReadWriteOncePod
)

// refused are sites whose app is not accepted, with the reason and words of its message.
var refused = map[string]struct {
	change func(*site)
	reason string
	words  []string
}{
	"a StatefulSet that does not exist": {func(s *site) { s.workload = nil }, v1alpha1.ReasonWorkloadMissing, []string{"no StatefulSet shop/db", "spec.workloadRef.name"}},
	"a selector that finds no pod": {func(s *site) {
		s.app.Spec = v1alpha1.GuardedStatefulAppSpec{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"runs": "else"}}}
	}, v1alpha1.ReasonWorkloadMissing, []string{"spec.podSelector selects no pod"}},
	"an older app guards the workload": {func(s *site) {
		s.others = append(s.others, guarding("older", 1, "StatefulSet"))
	}, v1alpha1.ReasonWorkloadTaken, []string{"StatefulSet db", "GuardedStatefulApp older", "delete one of the two"}},
	"an app of the same second and an earlier name guards it": {func(s *site) {
		s.others = append(s.others, guarding("aap", 2, "StatefulSet"))
	}, v1alpha1.ReasonWorkloadTaken, []string{"GuardedStatefulApp aap"}},
	"an older app guards a pod of it": {func(s *site) {
		older := guarding("older", 1, "StatefulSet")
		older.Spec = v1alpha1.GuardedStatefulAppSpec{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"runs": "db"}}}
		s.others = append(s.others, older)
	}, v1alpha1.ReasonWorkloadTaken, []string{"GuardedStatefulApp older"}},
	"every delete would be a removal": {func(s *site) {
		s.template().Spec.TerminationGracePeriodSeconds = ptr.To[int64](0)
	}, v1alpha1.ReasonPreflightFailed, []string{"terminationGracePeriodSeconds is 0", "set at least 1"}},
	"a toleration of every taint": {func(s *site) {
		s.template().Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	}, v1alpha1.ReasonPreflightFailed, []string{"tolerates every taint", "name the keys"}},
	"a volume that is deleted with its pod": {func(s *site) {
		volumes := &s.template().Spec.Volumes
		*volumes = append(*volumes, corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}})
	}, v1alpha1.ReasonPreflightFailed, []string{"volume scratch is a generic ephemeral volume"}},
	"a probe of a port that no container has": {func(s *site) {
		s.app.Spec.Health.Probes = []v1alpha1.Probe{{Name: "up", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromString("http")}}}
	}, v1alpha1.ReasonPreflightFailed, []string{`spec.health.probes[up] names port "http"`}},
	"nothing to guard": {func(s *site) {
		s.template().Spec.Volumes, s.pod.Spec.Volumes = nil, nil
	}, v1alpha1.ReasonNoVolumes, []string{"StatefulSet db names no PersistentVolumeClaim"}},
	"a rollout that waits for itself": {func(s *site) {
		s.deployed(1, appsv1.RollingUpdateDeploymentStrategyType)
	}, v1alpha1.ReasonPreflightFailed, []string{"Deployment db", "RollingUpdate", "claim data", "spec.strategy.type to Recreate"}},
	"a strategy that is not named is RollingUpdate": {func(s *site) {
		s.deployed(1, "")
	}, v1alpha1.ReasonPreflightFailed, []string{"spec.strategy.type to Recreate"}},
	"a rollout on a claim for one pod": {func(s *site) {
		s.deployed(2, appsv1.RollingUpdateDeploymentStrategyType)
		s.claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{rwop}
	}, v1alpha1.ReasonPreflightFailed, []string{"claim data"}},
	"a rollout on a claim that may be mounted by one host too": {func(s *site) {
		s.deployed(2, appsv1.RollingUpdateDeploymentStrategyType)
		s.claim.Spec.AccessModes = append(s.claim.Spec.AccessModes, rwx)
	}, v1alpha1.ReasonPreflightFailed, []string{"claim data"}},
	"a rollout on a claim that nobody knows": {func(s *site) {
		s.deployed(2, appsv1.RollingUpdateDeploymentStrategyType)
		s.claim.Name = "else"
	}, v1alpha1.ReasonPreflightFailed, []string{"claim data"}},
}

func TestWhatCannotBeGuardedIsRefusedAndLeftAlone(t *testing.T) {
	for name, test := range refused {
		t.Run(name, func(t *testing.T) {
			s := newSite()
			test.change(s)
			saw := s.look(t)
			saw.says(v1alpha1.ConditionAccepted, metav1.ConditionFalse, test.reason, test.words...)
			saw.says(v1alpha1.ConditionProtected, metav1.ConditionFalse, test.reason)
			if len(saw.app.Finalizers) != 0 || saw.label() != "" {
				t.Errorf("the app has finalizers %v, its pod the label of %q", saw.app.Finalizers, saw.label())
			}
		})
	}
}

// accepted are sites that look like some of those that are refused, and can be guarded.
var accepted = map[string]func(*site){
	"a StatefulSet":                          func(*site) {},
	"a Deployment that stops old pods first": func(s *site) { s.deployed(1, appsv1.RecreateDeploymentStrategyType) },
	"a rollout on a claim for many hosts": func(s *site) {
		s.deployed(2, appsv1.RollingUpdateDeploymentStrategyType)
		s.claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{rwx, corev1.ReadOnlyMany}
	},
	"a younger app on the same workload":         func(s *site) { s.others = append(s.others, guarding("younger", 3, "StatefulSet")) },
	"an older app on a workload of another kind": func(s *site) { s.others = append(s.others, guarding("older", 1, "Deployment")) },
	"an older app in another namespace": func(s *site) {
		older := guarding("older", 1, "StatefulSet")
		older.Namespace = "lab"
		s.others = append(s.others, older)
	},
	"a toleration with a key": func(s *site) {
		s.template().Spec.Tolerations = []corev1.Toleration{{Key: "node.kubernetes.io/unreachable", Operator: corev1.TolerationOpExists}}
	},
	"a probe of a port by its name": func(s *site) {
		s.app.Spec.Health.Probes = []v1alpha1.Probe{{Name: "up", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromString("sql")}}}
	},
}

func TestWhatCanBeGuardedIsAcceptedAndMarked(t *testing.T) {
	for name, change := range accepted {
		t.Run(name, func(t *testing.T) {
			s := newSite()
			change(s)
			saw := s.look(t)
			saw.says(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted)
			if !slices.Contains(saw.app.Finalizers, v1alpha1.FinalizerApp) || saw.label() != "app" {
				t.Errorf("the app has finalizers %v, its pod the label of %q", saw.app.Finalizers, saw.label())
			}
		})
	}
}

const (
	oneHost      = "claim data is on a volume of one host (pv-1): the app cannot migrate, and a lost host stays lost to it"
	onlyGate     = "the volume of claim data is not attached to a host: Kubernetes does not keep a second host from it, Holdfast is the only gate"
	shareOneHost = "2 replicas share claim data, which is for one host: they run on one host only, and wait for each other"
	together     = "several replicas without podAntiAffinity or topologySpreadConstraints: one host can carry them all"
)

// postures are sites with everything that is found in them.
var postures = map[string]struct {
	change func(*site)
	found  []string
}{
	"nothing to say": {func(*site) {}, nil},

	"a local volume": {func(s *site) {
		s.bears(corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{}})
	}, []string{oneHost, onlyGate}},
	"a directory of the host": {func(s *site) {
		s.bears(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{}})
	}, []string{oneHost, onlyGate}},
	"a volume of one host, by its name":           {func(s *site) { s.tied(corev1.LabelHostname, corev1.NodeSelectorOpIn, "node-1") }, []string{oneHost}},
	"a volume of a host that is not there":        {func(s *site) { s.tied(corev1.LabelHostname, corev1.NodeSelectorOpIn, "node-9") }, []string{oneHost}},
	"a volume that all hosts but one do not have": {func(s *site) { s.tied("rack", corev1.NodeSelectorOpNotIn, "b") }, []string{oneHost}},
	"a volume of one host, by its field": {func(s *site) {
		s.tie(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{"node-2"}}}})
	}, []string{oneHost}},
	"a volume of hosts with a label that one has": {func(s *site) {
		s.hosts[0].Labels["nvme"] = ""
		s.tied("nvme", corev1.NodeSelectorOpExists)
	}, []string{oneHost}},
	"a volume of hosts without a label that one has": {func(s *site) {
		s.hosts[0].Labels["diskless"] = ""
		s.tied("diskless", corev1.NodeSelectorOpDoesNotExist)
	}, []string{oneHost}},
	"a term that is about nothing": {func(s *site) { s.tie(corev1.NodeSelectorTerm{}) }, []string{oneHost}},
	"a volume of both hosts":       {func(s *site) { s.tied("rack", corev1.NodeSelectorOpIn, "a", "b") }, nil},
	"a volume of both hosts, a term for each": {func(s *site) {
		s.tied("rack", corev1.NodeSelectorOpIn, "a")
		s.tie(s.volume.Spec.NodeAffinity.Required.NodeSelectorTerms[0],
			corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "rack", Operator: corev1.NodeSelectorOpIn, Values: []string{"b"}}}})
	}, nil},
	"the only host there is has it": {func(s *site) {
		s.hosts = s.hosts[:1]
		s.tied(corev1.LabelHostname, corev1.NodeSelectorOpIn, "node-1")
	}, nil},

	"a driver that does not attach":          {func(s *site) { s.driver.Spec.AttachRequired = ptr.To(false) }, []string{onlyGate}},
	"a driver that attaches":                 {func(s *site) { s.driver.Spec.AttachRequired = ptr.To(true) }, nil},
	"another driver does not attach":         {func(s *site) { s.driver.Name, s.driver.Spec.AttachRequired = "else", ptr.To(false) }, nil},
	"a share on the network":                 {func(s *site) { s.bears(corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}) }, []string{onlyGate}},
	"a block device on the network":          {func(s *site) { s.bears(corev1.PersistentVolumeSource{ISCSI: &corev1.ISCSIPersistentVolumeSource{}}) }, nil},
	"a claim that is not bound says nothing": {func(s *site) { s.claim.Spec.VolumeName = "" }, nil},

	"replicas of a Deployment share a claim for one host": {func(s *site) {
		s.deployed(2, appsv1.RecreateDeploymentStrategyType)
	}, []string{shareOneHost}},
	"replicas of a StatefulSet share a claim for one host": {func(s *site) {
		s.set().Spec.Replicas = ptr.To[int32](2)
		s.template().Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{}}
	}, []string{shareOneHost}},
	"replicas share a claim for many hosts": {func(s *site) {
		s.deployed(2, appsv1.RecreateDeploymentStrategyType)
		s.claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{rwx}
	}, nil},
	"replicas have a claim each": {func(s *site) {
		s.set().Spec.Replicas = ptr.To[int32](2)
		s.set().Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "own"}}}
		s.template().Spec.Volumes, s.pod.Spec.Volumes = nil, nil
		s.template().Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}}
	}, nil},
	"one host can carry all replicas": {func(s *site) {
		s.deployed(2, appsv1.RecreateDeploymentStrategyType).Spec.Template.Spec.TopologySpreadConstraints = nil
		s.claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{rwx}
	}, []string{together}},
	"nobody asks whether a container is ready": {func(s *site) {
		s.template().Spec.Containers[0].ReadinessProbe = nil
	}, []string{"container db has no readinessProbe"}},
}

func TestWhatIsFoundIsSaid(t *testing.T) {
	for name, test := range postures {
		t.Run(name, func(t *testing.T) {
			s := newSite()
			test.change(s)
			saw := s.look(t)
			saw.says(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted) // a finding is no refusal
			if len(test.found) == 0 {
				saw.says(v1alpha1.ConditionPostureClean, metav1.ConditionTrue, v1alpha1.ReasonNoFindings)
				return
			}
			saw.says(v1alpha1.ConditionPostureClean, metav1.ConditionFalse, v1alpha1.ReasonFindings)
			if got := meta.FindStatusCondition(saw.app.Status.Conditions, v1alpha1.ConditionPostureClean).Message; got != strings.Join(test.found, "; ") {
				t.Errorf("found %q, want %q", got, test.found)
			}
		})
	}
}

// optsIn puts the label and the gate into the pod template, as far as given.
func (s *site) optsIn(app string, gates ...string) {
	s.template().Labels = map[string]string{v1alpha1.LabelApp: app}
	for _, g := range gates {
		s.template().Spec.SchedulingGates = append(s.template().Spec.SchedulingGates, corev1.PodSchedulingGate{Name: g})
	}
}

const (
	noMutating = "this cluster has no MutatingAdmissionPolicy (Kubernetes 1.36)"
	noAccounts = "--use-service-account-credentials"
)

// protections are sites whose app is accepted, with what Protected says.
var protections = map[string]struct {
	change func(*site)
	status metav1.ConditionStatus
	reason string
	words  []string
}{
	"everything was tried and held": {func(*site) {}, metav1.ConditionTrue, v1alpha1.ReasonPoliciesEffective, nil},

	"nobody has tried the policies": {func(s *site) { s.effective = "" }, metav1.ConditionUnknown, v1alpha1.ReasonPoliciesNotProven, []string{"not been tried yet"}},
	"the policies are there, and a try got through": {func(s *site) {
		s.effective = metav1.ConditionFalse
	}, metav1.ConditionFalse, v1alpha1.ReasonPoliciesNotProven, []string{"what the canary found"}},
	"the policies are there, and could not be tried": {func(s *site) {
		s.effective = metav1.ConditionUnknown
	}, metav1.ConditionFalse, v1alpha1.ReasonPoliciesNotProven, []string{"what the canary found"}},
	"an older API server whose policies nobody has tried": {func(s *site) {
		s.old, s.effective = true, ""
	}, metav1.ConditionUnknown, v1alpha1.ReasonPoliciesNotProven, nil},

	"an older API server": {func(s *site) { s.old = true }, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected,
		[]string{noMutating, v1alpha1.LabelApp + ": app", v1alpha1.GateNewcomer, "into the pod template"}},
	"an older API server, and a template with the label alone": {func(s *site) {
		s.old = true
		s.optsIn("app")
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noMutating}},
	"an older API server, and a template with the gate alone": {func(s *site) {
		s.old = true
		s.optsIn("", v1alpha1.GateNewcomer)
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noMutating}},
	"an older API server, and a template with another app's label": {func(s *site) {
		s.old = true
		s.optsIn("other", v1alpha1.GateNewcomer)
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noMutating}},
	"an older API server, and a template with somebody else's gate": {func(s *site) {
		s.old = true
		s.optsIn("app", "example.com/wait")
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noMutating}},
	"an older API server, and a template with label and gate": {func(s *site) {
		s.old = true
		s.optsIn("app", "example.com/wait", v1alpha1.GateNewcomer)
	}, metav1.ConditionTrue, v1alpha1.ReasonPoliciesEffective, nil},

	"the node controller cannot be told apart": {func(s *site) {
		s.accounts = s.accounts[1:]
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noAccounts, "kube-system/node-controller"}},
	"the attach/detach controller cannot be told apart": {func(s *site) {
		s.accounts = s.accounts[:2]
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noAccounts, "kube-system/attachdetach-controller"}},
	"the pod garbage collector cannot be told apart": {func(s *site) {
		s.accounts = []string{"node-controller", "attachdetach-controller"}
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noAccounts, "kube-system/pod-garbage-collector"}},
	"an older API server, and no controller can be told apart": {func(s *site) {
		s.old, s.accounts = true, nil
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noMutating, noAccounts}},
	"a template with label and gate does not tell controllers apart": {func(s *site) {
		s.old, s.accounts = true, nil
		s.optsIn("app", v1alpha1.GateNewcomer)
	}, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, []string{noAccounts}},
}

func TestProtectedSaysWhatIsOpen(t *testing.T) {
	for name, test := range protections {
		t.Run(name, func(t *testing.T) {
			s := newSite()
			test.change(s)
			saw := s.look(t)
			saw.says(v1alpha1.ConditionProtected, test.status, test.reason, test.words...)
		})
	}
}

func TestControllersAreToldApartOnceTheyHaveAccounts(t *testing.T) {
	s := newSite()
	s.accounts = nil
	saw := s.look(t)
	saw.says(v1alpha1.ConditionProtected, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, noAccounts)
	for _, name := range newSite().accounts {
		if err := saw.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	saw.again()
	saw.says(v1alpha1.ConditionProtected, metav1.ConditionTrue, v1alpha1.ReasonPoliciesEffective)
}

func TestWhatCannotBeReadIsNotCalledProtected(t *testing.T) {
	s := newSite()
	s.silent = true
	saw := s.look(t)
	if saw.err == nil || !strings.Contains(saw.err.Error(), "get service account node-controller: no answer") {
		t.Errorf("looking says %v", saw.err)
	}
	if meta.IsStatusConditionTrue(saw.app.Status.Conditions, v1alpha1.ConditionProtected) {
		t.Error("it is called protected")
	}
}

// TestAnAppThatWasAcceptedStaysMarked shows that a refusal takes nothing off: there may still be writers.
func TestAnAppThatWasAcceptedStaysMarked(t *testing.T) {
	s := newSite()
	saw := s.look(t)
	set := &appsv1.StatefulSet{}
	if err := saw.Get(t.Context(), client.ObjectKeyFromObject(s.workload), set); err != nil {
		t.Fatal(err)
	}
	set.Spec.Template.Spec.TerminationGracePeriodSeconds = ptr.To[int64](0)
	if err := saw.Update(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	saw.again()
	saw.says(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonPreflightFailed)
	if !slices.Contains(saw.app.Finalizers, v1alpha1.FinalizerApp) || saw.label() != "app" {
		t.Errorf("the app has finalizers %v, its pod the label of %q", saw.app.Finalizers, saw.label())
	}
}

// TestAPodIsMarkedWhoseEndpointIsToBeKept: by what its app asks now, whatever it asked before, and not after the app has let it go.
func TestAPodIsMarkedWhoseEndpointIsToBeKept(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    v1alpha1.Mode
		traffic string
		want    string
	}{
		{"by default", "", "", v1alpha1.TrafficKeep},
		{"asked for", v1alpha1.ModeEnforce, v1alpha1.TrafficKeep, v1alpha1.TrafficKeep},
		{"left to Kubernetes", v1alpha1.ModeEnforce, v1alpha1.TrafficFollow, ""},
		{"in shadow", v1alpha1.ModeShadow, v1alpha1.TrafficKeep, ""},
		{"paused", v1alpha1.ModePaused, v1alpha1.TrafficKeep, ""},
	} {
		for _, before := range []string{"", v1alpha1.TrafficKeep} {
			s := newSite()
			s.app.Spec.Mode, s.app.Spec.OnKubeletFailure.Traffic = c.mode, c.traffic
			s.pod.Labels = map[string]string{v1alpha1.LabelApp: "app", v1alpha1.LabelTraffic: before}
			if before == "" {
				delete(s.pod.Labels, v1alpha1.LabelTraffic)
			}
			saw := s.look(t)
			if got := saw.labels()[v1alpha1.LabelTraffic]; got != c.want || saw.err != nil {
				t.Errorf("%s, marked %q before: %q, want %q (%v)", c.name, before, got, c.want, saw.err)
			}
			if err := saw.Delete(t.Context(), &saw.app); err != nil {
				t.Fatal(err)
			}
			key := types.NamespacedName{Namespace: "shop", Name: "app"}
			if _, err := saw.leader.Reconcile(t.Context(), ctrl.Request{NamespacedName: key}); err != nil {
				t.Fatal(err)
			}
			if got := saw.labels(); got[v1alpha1.LabelTraffic] != "" || got[v1alpha1.LabelApp] != "" {
				t.Errorf("%s: let go with %v", c.name, got)
			}
		}
	}
}

// TestAnAppThatFailsOnAHealthyHostIsAppDown: nothing is the matter with the host, and status does not call it healthy all the same.
func TestAnAppThatFailsOnAHealthyHostIsAppDown(t *testing.T) {
	s := newSite()
	s.app.Spec.Health = v1alpha1.Health{Probes: []v1alpha1.Probe{{Name: "tcp", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromInt32(5432)}, PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 1}}}
	s.pod.Spec.NodeName = "node-1"
	s.pod.Status.PodIP, s.pod.Status.PodIPs = "192.0.2.1", []corev1.PodIP{{IP: "192.0.2.1"}}
	s.pod.Status.Phase = corev1.PodRunning
	saw := s.look(t)
	if got := saw.app.Status; got.Verdict != verdict.Healthy.String() || got.Members[0].Verdict != verdict.Healthy.String() {
		t.Fatalf("before it is probed: %+v", got)
	}
	saw.asks(t, func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }, func() bool {
		return saw.app.Status.Members[0].Healthy == evidence.ServingNo.String()
	})
	if got := saw.app.Status; got.Verdict != verdict.AppDown.String() || got.Host != "node-1" || got.Members[0].Verdict != verdict.AppDown.String() || got.Incident != "" {
		t.Errorf("status is %+v", got)
	}

	saw.leader.Board = sight.NewBoard(sight.NewClock(clock.RealClock{}), func(string) {})
	saw.again()
	if got := saw.app.Status; got.Verdict != verdict.AppDown.String() || got.Members[0].Healthy != evidence.ServingUnread.String() {
		t.Errorf("the next leader, which has not asked it yet, says %s of an app that serves: %s", got.Verdict, got.Members[0].Healthy)
	}
	saw.asks(t, func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		return here, nil
	}, func() bool { return saw.app.Status.Verdict == verdict.Healthy.String() })
}

// asks leads with a board of its own, which reaches the app through dial, until status is as it should be.
func (s *seen) asks(t *testing.T, dial func(ctx context.Context, network, address string) (net.Conn, error), reached func() bool) {
	t.Helper()
	heard := make(chan string, 100)
	board := sight.NewBoard(sight.NewClock(clock.RealClock{}), func(host string) { heard <- host })
	board.Dial = dial
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- board.Start(ctx) }()
	s.leader.Board = board
	for s.again(); !reached(); s.again() {
		select {
		case <-heard:
		case <-time.After(time.Minute):
			t.Fatalf("asked for a minute, status is %+v", s.app.Status)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
