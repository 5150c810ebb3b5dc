// Keeps the project scaffold current.
module github.com/holdfast-dev/holdfast/hack/tools/kubebuilder

go 1.26.0

tool sigs.k8s.io/kubebuilder/v4

require sigs.k8s.io/kubebuilder/v4 v4.15.0
