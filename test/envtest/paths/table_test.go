// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// entry says of one resource or subresource what its write verbs can do to a held writer.
type entry struct {
	// cannot is the reason why none of the verbs can remove, replace or detach it.
	cannot string
	// known is the words under which docs/spec/admission.md says that this is not protected against.
	known string

	// The rest is tried: patches by patch and update, the deletes by delete and deletecollection, creates by create.
	object  func(s *scene) string
	home    string
	patches []string
	// owned are further patches, that only somebody may make. Who, and why that is no way around, is said by except; it
	// goes for the deletes as well.
	owned   []string
	deletes bool
	creates []creation
	except  map[string]string
	// and is tried as well: another object of the same resource.
	and *entry
	// rest is the reason for verbs that are not tried.
	rest map[string]string
}

type creation struct {
	what   string
	object func(s *scene) client.Object
}

func writerOf(*scene) string        { return writer }
func nodeOf(s *scene) string        { return s.node }
func attachmentOf(s *scene) string  { return s.attachment }
func volumeOf(s *scene) string      { return s.volume }
func driverOf(s *scene) string      { return s.driver }
func claimOf(*scene) string         { return guarded }
func namespaceOf(s *scene) string   { return s.namespace }
func incidentOf(s *scene) string    { return s.incident }
func appOf(*scene) string           { return app }
func backupOf(*scene) string        { return backup }
func theConfig(*scene) string       { return v1alpha1.GuardConfigName }
func theIncidentKind(*scene) string { return incidentKind }

const (
	jsonNoLabels     = `{"metadata":{"labels":null}}`
	jsonNoHold       = `{"metadata":{"labels":{"guard.holdfast.dev/hold":null}}}`
	jsonNoApp        = `{"metadata":{"labels":{"guard.holdfast.dev/app":null}}}`
	jsonNoFinalizers = `{"metadata":{"finalizers":null}}`
	jsonOrphan       = `{"metadata":{"ownerReferences":null}}`
	jsonOtherOwner   = `{"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","kind":"StatefulSet","name":"gone","uid":"gone","controller":true}]}}`
	jsonOverride     = `{"metadata":{"annotations":{"guard.holdfast.dev/override":"because"}}}`
	jsonNoLists      = `{"metadata":{"annotations":null}}`
	jsonOtherLists   = `{"metadata":{"annotations":{"guard.holdfast.dev/held":"","guard.holdfast.dev/claims":""}}}`
	jsonNoMark       = `{"metadata":{"labels":{"guard.holdfast.dev/volume":null}}}`
)

// onMetadata are changes of metadata that every held pod's subresource might let through.
var onMetadata = []string{jsonNoLabels, jsonNoHold, jsonNoApp, jsonNoFinalizers, jsonOrphan, jsonOtherOwner, jsonOverride}

var (
	onlyIt      = map[string]string{ownKubelet: "the pod's own kubelet knows whether it runs; its word that it stopped is the truth"}
	onlyItsHost = map[string]string{ownKubelet: "the node's own kubelet knows it: what it says is the truth"}
	detaches    = map[string]string{"attachdetach-controller": "detaches only what no pod wants any more, and no other path makes the writer stop wanting it"}
)

const (
	makesPods   = "makes pods or tells a controller to make or delete them; every such request is admitted by itself (pods, pods/eviction)"
	isRead      = "is a question; nothing is stored"
	isTraffic   = "is about traffic to pods, not about their life"
	atBirthOnly = "is looked at when a pod is created or scheduled; a running one does not change"
	isConfig    = "is data that pods read"
	isDevice    = "is about devices, not volumes; whoever deletes pods for it (device-taint-eviction-controller) is refused at pods"
	viaKubelet  = "goes through the pod's kubelet to its container, on the host that the pod is on"
	isLimit     = "can only refuse requests; Holdfast's own among them, which costs a release, not a hold"
)

// table knows every resource that can be written.
var table = map[string]entry{
	"pods": {object: writerOf, deletes: true,
		patches: append([]string{`{"spec":{"activeDeadlineSeconds":1}}`, `{"spec":{"containers":[{"name":"db","image":"other","resources":{"requests":{"cpu":"100m"}}}]}}`, `{"spec":{"nodeName":"elsewhere"}}`,
			`{"status":{"phase":"Failed"}}`, `{"metadata":{"deletionTimestamp":"2020-01-01T00:00:00Z","deletionGracePeriodSeconds":0}}`}, onMetadata...),
		creates: newWriters,
		and:     &newcomerEntry,
	},
	"pods/status": {object: writerOf, except: onlyIt, and: &newcomerEntry,
		owned: []string{`{"status":{"phase":"Failed"}}`, `{"status":{"phase":"Succeeded"}}`, `{"status":{"containerStatuses":null}}`,
			`{"status":{"containerStatuses":[{"name":"db","image":"db","imageID":"","ready":false,"restartCount":0,"state":{"terminated":{"exitCode":1}}}]}}`,
			`{"status":{"containerStatuses":[{"name":"db","image":"db","imageID":"","ready":false,"restartCount":0,"state":{"waiting":{}}}]}}`,
			`{"status":{"podIP":"192.0.2.99","podIPs":[{"ip":"192.0.2.99"}]}}`, `{"status":null}`},
		patches: append([]string{`{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`,
			`{"status":{"conditions":[{"type":"DisruptionTarget","status":"True","reason":"DeletionByTaintManager"}]}}`}, onMetadata...),
	},
	"pods/ephemeralcontainers": {object: writerOf, patches: append([]string{`{"spec":{"ephemeralContainers":[{"name":"debug","image":"debug"}]}}`}, onMetadata...)},
	"pods/resize":              {object: writerOf, patches: append([]string{`{"spec":{"containers":[{"name":"db","image":"db","resources":{"requests":{"cpu":"200m"}}}]}}`}, onMetadata...)},
	"pods/eviction": {object: writerOf, creates: []creation{
		{"as usual", func(s *scene) client.Object { return &policyv1.Eviction{ObjectMeta: s.in(writer)} }},
		{"at once", func(s *scene) client.Object {
			return &policyv1.Eviction{ObjectMeta: s.in(writer), DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}}
		}},
	}},
	"pods/binding": {object: backupOf, creates: []creation{
		{"the newcomer to another host", func(s *scene) client.Object { return s.binding(backup) }},
		{"the writer to another host", func(s *scene) client.Object { return s.binding(writer) }},
	}},
	"bindings": {object: backupOf, creates: []creation{
		{"the newcomer to another host", func(s *scene) client.Object { return s.binding(backup) }},
		{"the writer to another host", func(s *scene) client.Object { return s.binding(writer) }},
	}},
	"pods/attach":      {cannot: viaKubelet},
	"pods/exec":        {cannot: viaKubelet},
	"pods/portforward": {cannot: viaKubelet},
	"pods/proxy":       {cannot: viaKubelet},
	"services/proxy":   {cannot: viaKubelet},
	"nodes/proxy":      {cannot: "goes to a kubelet that lives: what it stops has stopped", known: "Whoever reaches a kubelet or a host"},

	"nodes": {object: nodeOf, deletes: true,
		patches: []string{`{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","value":"x","effect":"NoExecute"}]}}`,
			`{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","effect":"NoSchedule"}]}}`,
			`{"spec":{"taints":[{"key":"guard.holdfast.dev/fenced","value":"x","effect":"NoExecute"}]}}`,
			`{"spec":{"taints":[{"key":"node.kubernetes.io/unreachable","effect":"NoExecute"}]}}`, `{"spec":{"unschedulable":true}}`,
			`{"status":{"nodeInfo":{"bootID":"boot-2"}}}`, jsonNoLabels, jsonOverride, `{"metadata":{"labels":{"guard.holdfast.dev/carries":null}}}`},
		creates: []creation{{"one in its place", func(s *scene) client.Object { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node}} }}},
	},
	"nodes/status": {object: nodeOf, except: onlyItsHost,
		owned:   []string{`{"status":{"nodeInfo":{"bootID":"boot-2"}}}`, `{"status":{"nodeInfo":{"systemUUID":"system-2"}}}`, `{"status":{"volumesInUse":null}}`},
		patches: []string{`{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, jsonNoLabels, jsonOverride}},
	"volumeattachments": {object: attachmentOf, deletes: true, except: detaches,
		patches: []string{jsonNoMark, jsonNoLabels, jsonNoFinalizers, jsonOverride, `{"spec":{"nodeName":"elsewhere"}}`, `{"status":{"attached":false}}`},
		creates: []creation{{"of the volume to another host", func(s *scene) client.Object {
			va := s.attachmentObject()
			va.Name, va.Labels, va.Spec.NodeName = va.Name+"-elsewhere", nil, "elsewhere"
			return va
		}}},
	},
	"volumeattachments/status": {object: attachmentOf, patches: []string{`{"status":{"attached":false}}`, jsonNoMark, jsonNoFinalizers, jsonOverride}},
	"persistentvolumeclaims": {object: claimOf, deletes: true, patches: []string{jsonOverride, `{"spec":{"volumeName":"other"}}`, jsonOrphan},
		owned:   []string{jsonNoFinalizers},
		except:  map[string]string{"pvc-protection-controller": "it takes its finalizer off only when no pod uses the claim"},
		creates: []creation{{"another one to the volume", func(s *scene) client.Object { c := s.claimObject(); c.Name = "mine"; return c }}}},
	"persistentvolumeclaims/status": {object: claimOf, patches: []string{`{"status":{"phase":"Lost"}}`, jsonOverride}},
	"persistentvolumes": {object: volumeOf, deletes: true,
		owned:   []string{`{"spec":{"claimRef":null}}`, `{"spec":{"claimRef":{"name":"theirs","namespace":"theirs","uid":"u"}}}`},
		patches: []string{jsonNoFinalizers, jsonNoMark, jsonOverride},
		except:  map[string]string{"persistent-volume-binder": "it unbinds only when the claim is gone"},
		rest:    map[string]string{"create": "a second PersistentVolume of the same driver and handle is no claim of the pods' yet: known, below"},
		known:   "Another way to the same volume"},
	"persistentvolumes/status": {object: volumeOf, patches: []string{`{"status":{"phase":"Available"}}`, jsonNoMark, jsonOverride}},
	"csidrivers": {object: driverOf, deletes: true, patches: []string{`{"spec":{"attachRequired":false}}`, jsonNoMark, jsonNoLabels, jsonOverride},
		creates: []creation{{"one in its place that does not attach", func(s *scene) client.Object {
			return &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: s.driver}, Spec: storagev1.CSIDriverSpec{AttachRequired: ptr.To(false)}}
		}}}},
	"csinodes":                {cannot: "is looked at when a volume is attached anew"},
	"csinodes/status":         {cannot: "is looked at when a volume is attached anew"},
	"csistoragecapacities":    {cannot: atBirthOnly},
	"storageclasses":          {cannot: "is looked at when a claim is provisioned"},
	"volumeattributesclasses": {cannot: "changes the volume in place, wherever it is attached"},

	"namespaces": {object: namespaceOf, patches: []string{jsonNoLists, jsonOtherLists, jsonNoFinalizers, `{"spec":{"finalizers":null}}`}, deletes: true,
		creates: []creation{{"one in its place", func(s *scene) client.Object {
			return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}
		}}}},
	"namespaces/status": {object: namespaceOf, patches: []string{jsonNoLists, jsonOtherLists, `{"status":{"phase":"Terminating"}}`}},
	"namespaces/finalize": {object: namespaceOf, patches: []string{jsonNoLists}, owned: []string{`{"spec":{"finalizers":null}}`},
		except: map[string]string{"namespace-controller": "it does so when the namespace is empty, and the finalizer of the hold keeps the writer in it"}},
	"leases": {object: nodeOf, home: corev1.NamespaceNodeLease, deletes: true, known: "Node conditions and Leases",
		patches: []string{`{"spec":{"renewTime":"2038-01-01T00:00:00.000000Z"}}`, `{"spec":{"holderIdentity":"me"}}`},
		creates: []creation{{"of another node", func(s *scene) client.Object {
			return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: s.node + "-b"}}
		}}}},

	"guardedstatefulapps": {object: appOf, deletes: true, patches: []string{jsonNoFinalizers, `{"spec":{"mode":"Paused"}}`},
		creates: []creation{{"another one for the workload", func(s *scene) client.Object { g := s.appObject(); g.Name = "mine"; return g }}}},
	"guardedstatefulapps/status": {object: appOf, patches: []string{`{"status":{"verdict":"Healthy"}}`, jsonNoFinalizers}},
	"hostincidents": {object: incidentOf, deletes: true, patches: []string{`{"spec":{"bootID":"boot-2"}}`, `{"status":{"step":"Closed"}}`, jsonOtherOwner,
		`{"metadata":{"annotations":{"guard.holdfast.dev/mine":"x"}}}`},
		creates: []creation{{"of the same boot", func(s *scene) client.Object { h := s.incidentObject(); h.Name += "-b"; return h }}}},
	"hostincidents/status": {object: incidentOf, patches: []string{`{"status":{"step":"Closed"}}`, `{"status":null}`}},
	"guardconfigs": {object: theConfig, deletes: true, patches: []string{jsonNoHold, jsonNoLabels, jsonOverride},
		creates: []creation{{"again", func(*scene) client.Object {
			return &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
		}}}},
	"guardconfigs/status":    {object: theConfig, patches: []string{`{"status":{"policyVersion":"99-x"}}`, jsonNoHold}},
	"hostattestations":       {known: "Whoever may create a HostAttestation"},
	"fencingprofiles":        {cannot: "says how hosts are fenced: without one nothing is fenced, and the hold stands; a proof is bound to the machine's identity"},
	"fencingprofiles/status": {cannot: "is what Holdfast has found of devices, for people to read; written by Holdfast only (rule ProfileStatus)"},
	"customresourcedefinitions": {object: theIncidentKind, deletes: true, patches: []string{jsonNoHold, jsonNoLabels, jsonOverride, jsonNoFinalizers, unserved},
		rest: map[string]string{"create": "a new kind has nothing to do with ours; ours exist"}},
	"customresourcedefinitions/status": {object: theIncidentKind, patches: []string{jsonNoHold, `{"status":{"storedVersions":["v0"]}}`}},

	"statefulsets": {object: appOf, deletes: true, patches: []string{`{"spec":{"replicas":0}}`, jsonOrphan, `{"spec":{"template":{"metadata":{"labels":{"new":"revision"}}}}}`},
		creates: []creation{{"another one of the same name", func(s *scene) client.Object { return s.setObject() }}}},
	"statefulsets/scale":  {object: appOf, patches: []string{`{"spec":{"replicas":0}}`}},
	"statefulsets/status": {object: appOf, patches: []string{`{"status":{"replicas":0,"readyReplicas":0}}`}},
	"jobs": {object: func(*scene) string { return "none" }, creates: []creation{{"a backup", func(s *scene) client.Object {
		pod := s.podOn("")
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		return &batchv1.Job{ObjectMeta: s.in(backup), Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: pod.Spec}}}
	}}}, rest: map[string]string{"delete": makesPods, "deletecollection": makesPods, "patch": makesPods, "update": makesPods}},
	"jobs/status":                        {cannot: makesPods},
	"cronjobs":                           {cannot: makesPods},
	"cronjobs/status":                    {cannot: makesPods},
	"controllerrevisions":                {cannot: makesPods},
	"daemonsets":                         {cannot: makesPods},
	"daemonsets/status":                  {cannot: makesPods},
	"deployments":                        {cannot: makesPods},
	"deployments/scale":                  {cannot: makesPods},
	"deployments/status":                 {cannot: makesPods},
	"replicasets":                        {cannot: makesPods},
	"replicasets/scale":                  {cannot: makesPods},
	"replicasets/status":                 {cannot: makesPods},
	"replicationcontrollers":             {cannot: makesPods},
	"replicationcontrollers/scale":       {cannot: makesPods},
	"replicationcontrollers/status":      {cannot: makesPods},
	"horizontalpodautoscalers":           {cannot: makesPods},
	"horizontalpodautoscalers/status":    {cannot: makesPods},
	"podtemplates":                       {cannot: makesPods},
	"poddisruptionbudgets":               {cannot: "can only refuse evictions, or not; those of held pods are refused anyway"},
	"poddisruptionbudgets/status":        {cannot: "can only refuse evictions, or not; those of held pods are refused anyway"},
	"priorityclasses":                    {cannot: "is looked at when a pod is created; preemption deletes gracefully, which is refused while held"},
	"runtimeclasses":                     {cannot: atBirthOnly},
	"limitranges":                        {cannot: isLimit},
	"resourcequotas":                     {cannot: isLimit},
	"resourcequotas/status":              {cannot: isLimit},
	"configmaps":                         {cannot: isConfig},
	"events":                             {cannot: "is a record for people"},
	"endpoints":                          {cannot: isTraffic},
	"endpointslices":                     {cannot: isTraffic},
	"services":                           {cannot: isTraffic},
	"services/status":                    {cannot: isTraffic},
	"ingresses":                          {cannot: isTraffic},
	"ingresses/status":                   {cannot: isTraffic},
	"ingressclasses":                     {cannot: isTraffic},
	"ipaddresses":                        {cannot: isTraffic},
	"networkpolicies":                    {cannot: isTraffic},
	"servicecidrs":                       {cannot: isTraffic},
	"servicecidrs/status":                {cannot: isTraffic},
	"deviceclasses":                      {cannot: isDevice},
	"devicetaintrules":                   {cannot: isDevice},
	"devicetaintrules/status":            {cannot: isDevice},
	"resourceclaims":                     {cannot: isDevice},
	"resourceclaims/status":              {cannot: isDevice},
	"resourceclaimtemplates":             {cannot: isDevice},
	"resourceslices":                     {cannot: isDevice},
	"resourcepoolstatusrequests":         {cannot: isDevice},
	"resourcepoolstatusrequests/status":  {cannot: isDevice},
	"leasecandidates":                    {cannot: "chooses leaders of control planes"},
	"flowschemas":                        {cannot: isLimit},
	"flowschemas/status":                 {cannot: isLimit},
	"prioritylevelconfigurations":        {cannot: isLimit},
	"prioritylevelconfigurations/status": {cannot: isLimit},
	"storageversions":                    {cannot: "is the API servers' own record of encodings"},
	"storageversions/status":             {cannot: "is the API servers' own record of encodings"},
	"storageversionmigrations":           {cannot: "writes objects again as they are, each admitted"},
	"storageversionmigrations/status":    {cannot: "writes objects again as they are, each admitted"},
	"apiservices":                        {cannot: "hides Holdfast's kinds, or shows others in their place; no rule reads them, so the hold stands"},
	"apiservices/status":                 {cannot: "hides Holdfast's kinds, or shows others in their place; no rule reads them, so the hold stands"},

	"tokenreviews":              {cannot: isRead},
	"selfsubjectreviews":        {cannot: isRead},
	"subjectaccessreviews":      {cannot: isRead},
	"localsubjectaccessreviews": {cannot: isRead},
	"selfsubjectaccessreviews":  {cannot: isRead},
	"selfsubjectrulesreviews":   {cannot: isRead},

	"clusterroles": {object: func(*scene) string { return "cluster-admin" }, creates: []creation{{"with the verb override", func(s *scene) client.Object {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "x-" + s.namespace}, Rules: []rbacv1.PolicyRule{overrideRule}}
	}}}, rest: map[string]string{"delete": "takes rights away", "deletecollection": "takes rights away",
		"patch": "gives only rights that the caller has, as a create does", "update": "gives only rights that the caller has, as a create does"}},
	"roles": {object: func(*scene) string { return "none" }, creates: []creation{{"with the verb override", func(s *scene) client.Object {
		return &rbacv1.Role{ObjectMeta: s.in("x"), Rules: []rbacv1.PolicyRule{overrideRule}}
	}}}, rest: map[string]string{"delete": "takes rights away", "deletecollection": "takes rights away",
		"patch": "gives only rights that the caller has, as a create does", "update": "gives only rights that the caller has, as a create does"}},
	"clusterrolebindings": {object: func(*scene) string { return "none" }, creates: []creation{{"to cluster-admin", func(s *scene) client.Object {
		return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "x-" + s.namespace}, RoleRef: toClusterAdmin, Subjects: everybody}
	}}}, rest: map[string]string{"delete": "takes rights away", "deletecollection": "takes rights away",
		"patch": "gives only rights that the caller has, as a create does", "update": "gives only rights that the caller has, as a create does"}},
	"rolebindings": {object: func(*scene) string { return "none" }, creates: []creation{{"to cluster-admin", func(s *scene) client.Object {
		return &rbacv1.RoleBinding{ObjectMeta: s.in("x"), RoleRef: toClusterAdmin, Subjects: everybody}
	}}}, rest: map[string]string{"delete": "takes rights away", "deletecollection": "takes rights away",
		"patch": "gives only rights that the caller has, as a create does", "update": "gives only rights that the caller has, as a create does"}},

	"mutatingadmissionpolicies":           {known: "Whoever may edit the policies"},
	"mutatingadmissionpolicybindings":     {known: "Whoever may edit the policies"},
	"validatingadmissionpolicies":         {known: "Whoever may edit the policies"},
	"validatingadmissionpolicies/status":  {known: "Whoever may edit the policies"},
	"validatingadmissionpolicybindings":   {known: "Whoever may edit the policies"},
	"mutatingwebhookconfigurations":       {known: "Whoever may install webhooks"},
	"validatingwebhookconfigurations":     {known: "Whoever may install webhooks"},
	"serviceaccounts":                     {known: "Whoever can act as Holdfast"},
	"serviceaccounts/token":               {known: "Whoever can act as Holdfast"},
	"secrets":                             {known: "Whoever can act as Holdfast"},
	"certificatesigningrequests":          {known: "Whoever can act as Holdfast"},
	"certificatesigningrequests/approval": {known: "Whoever can act as Holdfast"},
	"certificatesigningrequests/status":   {known: "Whoever can act as Holdfast"},
	"podcertificaterequests":              {known: "Whoever can act as Holdfast"},
	"podcertificaterequests/status":       {known: "Whoever can act as Holdfast"},
	"clustertrustbundles":                 {cannot: isConfig},
}

const unserved = `{"spec":{"preserveUnknownFields":false,"versions":[{"name":"v1alpha1","served":false,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`

var (
	overrideRule   = rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupVersion.Group}, Resources: []string{"guardedstatefulapps"}, Verbs: []string{"override"}}
	toClusterAdmin = rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"}
	everybody      = []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:authenticated"}}
)

func (s *scene) binding(pod string) *corev1.Binding {
	return &corev1.Binding{ObjectMeta: s.in(pod), Target: corev1.ObjectReference{Kind: "Node", Name: "elsewhere"}}
}

// newcomerEntry is about the newcomer at the gate: nobody lets it in.
var newcomerEntry = entry{object: backupOf, patches: []string{
	`{"spec":{"schedulingGates":null}}`, `{"spec":{"schedulingGates":[]}}`, `{"spec":{"schedulingGates":null,"nodeName":"elsewhere"}}`,
	`{"spec":{"schedulingGates":[{"name":"example.com/mine"}]}}`, `{"spec":{"nodeName":"elsewhere"}}`, `{"status":{"nominatedNodeName":"elsewhere"}}`,
	jsonNoLabels, jsonNoApp, jsonOverride,
}}

// newWriters are pods that would write beside the held one.
var newWriters = []creation{
	{"a newcomer", func(s *scene) client.Object { return s.podOn("new") }},
	{"a newcomer whose name is still to be made", func(s *scene) client.Object {
		p := s.podOn("")
		p.GenerateName = "db-"
		return p
	}},
	{"a newcomer that matches the workload's selector", func(s *scene) client.Object {
		p := s.podOn("new")
		p.Labels = map[string]string{"app": app}
		return p
	}},
	{"a newcomer with its node", func(s *scene) client.Object {
		p := s.podOn("new")
		p.Spec.NodeName = "elsewhere"
		return p
	}},
	{"a newcomer with its node and the label", func(s *scene) client.Object {
		p := s.podOn("new")
		p.Labels = map[string]string{v1alpha1.LabelApp: app}
		p.Spec.NodeName = "elsewhere"
		return p
	}},
	{"a newcomer in the place of another ordinal", func(s *scene) client.Object { return s.podOn("db-1") }},
	{"a newcomer with an override", func(s *scene) client.Object {
		p := s.podOn("new")
		p.Annotations = map[string]string{v1alpha1.AnnotationOverride: "because"}
		return p
	}},
	{"a newcomer with a gate of its own", func(s *scene) client.Object {
		p := s.podOn("new")
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/mine"}}
		return p
	}},
	{"one of the writer's name", func(s *scene) client.Object { return s.podOn(writer) }},
	{"one of the writer's name on another host", func(s *scene) client.Object {
		p := s.podOn(writer)
		p.Spec.NodeName = "elsewhere"
		return p
	}},
}
