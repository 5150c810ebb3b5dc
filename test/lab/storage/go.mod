module github.com/holdfast-dev/holdfast/test/lab/storage

go 1.26.0

require (
	github.com/container-storage-interface/spec v1.12.0
	github.com/google/uuid v1.6.0
	github.com/hanwen/go-fuse/v2 v2.12.0
	golang.org/x/sys v0.49.0
	google.golang.org/grpc v1.82.1
	google.golang.org/protobuf v1.36.12-0.20260120151049-f2248ac996af
	k8s.io/kubelet v0.37.1
)

require (
	golang.org/x/net v0.57.0 // indirect
	golang.org/x/text v0.40.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260526163538-3dc84a4a5aaa // indirect
)
