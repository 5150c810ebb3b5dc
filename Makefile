# Copyright The Holdfast Authors.
# SPDX-License-Identifier: Apache-2.0

VERSION ?= 0.1.0
IMG ?= holdfast.dev/manager:dev
WITNESS_IMG ?= holdfast.dev/witness:dev
# What a test run may take beyond what is written here, such as TESTFLAGS='-run TestDefaults -v'.
TESTFLAGS ?=
# What the demo may be told, such as DEMOFLAGS=--keep.
DEMOFLAGS ?=
# What the bench may be told, such as BENCHFLAGS='--n 20 --seed 7'; make bench-failover BENCHFLAGS=--help lists it.
BENCHFLAGS ?=
# Which numbered cases and from which seed, such as E2EFLAGS='-cases 1,3/killed -seed 2'.
E2EFLAGS ?=
# Which mutants, by the names of their patches; none named means all.
MUTANTS ?=

pinned = go run ./hack/pinned/cmd/pinned -set tools -into bin
gotestsum = bin/gotestsum --format pkgname-and-test-fails --hide-summary skipped --
# Tests that shape the network and start kubelets run one at a time on a machine, whatever the checkout.
alone = flock /var/tmp/holdfast-lab-tests.lock

# One setting for every build and test: packages are compiled once, also for another checkout, and binaries are static.
export CGO_ENABLED = 0
export GOFLAGS := $(strip $(shell go env GOFLAGS) -trimpath)

.DEFAULT_GOAL := help
.NOTPARALLEL:
# bin holds links into a cache: a link is as new as its making.
MAKEFLAGS += --check-symlink-times

##@ Use

.PHONY: help
help: ## Say what every target does.
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## Build bin/manager and bin/lab.
	go build -trimpath -o bin/manager ./cmd/manager
	go build -trimpath -o bin/lab ./test/lab/cmd/lab

.PHONY: demo
demo: deps ## Watch both scenes on a lab of three hosts (root; 20 minutes the first time, then two).
	@go build -trimpath -o bin/lab ./test/lab/cmd/lab
	@go run ./test/demo $(DEMOFLAGS)

.PHONY: image
image: ## Build the images of manager and agents as out/manager.tar and out/witness.tar, without a registry or a base image.
	@mkdir -p out/image
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o out/image/manager ./cmd/manager
	go run ./hack/mkimage/cmd/mkimage -o out/manager.tar -t $(IMG) -entrypoint /manager -user 65532:65532 out/image/manager:/manager:0755
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o out/image/witness ./cmd/witness
	go run ./hack/mkimage/cmd/mkimage -o out/witness.tar -t $(WITNESS_IMG) -entrypoint /witness out/image/witness:/witness:0755

.PHONY: install-yaml
install-yaml: bin/kustomize ## Write out/install.yaml: everything that kubectl apply needs.
	@mkdir -p out
	bin/kustomize build config/default > out/install.yaml

##@ Change

.PHONY: deps
deps: ## Install the Debian packages that the lab and the tests need.
	hack/debian-packages

.PHONY: tools
tools: ## Build the pinned tools and link them into bin (15 minutes the first time).
	$(pinned)

.PHONY: components
components: ## Build Kubernetes and what else the lab consists of (15 minutes the first time).
	@go run ./hack/pinned/cmd/pinned -set lab >/dev/null

bin/%: hack/tools/%/go.mod
	@$(pinned) $*

.PHONY: generate
generate: bin/controller-gen ## Generate the deepcopy functions of the API.
	bin/controller-gen object:headerFile=hack/boilerplate.go.txt paths=./api/...

.PHONY: manifests
manifests: bin/controller-gen ## Generate the CRDs from the API.
	bin/controller-gen crd:generateEmbeddedObjectMeta=false paths=./api/... output:crd:artifacts:config=config/crd/bases

.PHONY: bundle
bundle: manifests bin/kustomize bin/operator-sdk ## Generate the OLM bundle from config and the API.
	hack/bundle $(VERSION)

##@ Check

.PHONY: test
test: deps ## Run everything that has to pass, and say what each stage took.
	@MAKE=$(MAKE) hack/stages components test-unit test-storage test-envtest test-bundle test-lab

.PHONY: test-unit
test-unit: bin/gotestsum ## Test what needs neither an API server nor a lab.
	@$(gotestsum) $(TESTFLAGS) $$(hack/packages unit)

.PHONY: test-storage
test-storage: bin/gotestsum ## Test the lab's storage array and CSI driver (root).
	@cd test/lab/storage && $(alone) ../../../$(gotestsum) -p 1 -count 1 $(TESTFLAGS) ./...

.PHONY: test-envtest
test-envtest: bin/gotestsum ## Test what needs an API server: the CRDs, the policies, the wiring.
	@$(gotestsum) -p 2 -count 1 -timeout 25m $(TESTFLAGS) $$(hack/packages envtest)
	@$(gotestsum) -p 1 -count 1 -timeout 25m $(TESTFLAGS) $$(hack/packages timed)

.PHONY: test-bundle
test-bundle: bin/gotestsum ## Validate the bundle with the library of the operator framework.
	@cd test/bundle && ../../$(gotestsum) -count 1 -tags json1,containers_image_openpgp,exclude_graphdriver_btrfs $(TESTFLAGS) ./...

.PHONY: test-lab
test-lab: bin/gotestsum ## Test the lab, and both scenes on it (root).
	@rm -f out/stage/times.md
	@$(alone) $(gotestsum) -p 1 -count 1 -timeout 40m $(TESTFLAGS) $$(hack/packages lab)
	@if [ -f out/stage/times.md ]; then cat out/stage/times.md; fi

.PHONY: e2e
e2e: deps components ## Play every numbered case at length, with the timings of Kubernetes, and record rows (root; hours).
	@$(alone) go test -count 1 -timeout 12h -v -run TestCase ./test/e2e -args -full $(E2EFLAGS)

.PHONY: mutate
mutate: deps components ## Take every safety feature away, one at a time, and show which test notices (about an hour).
	go run ./hack/mutate $(MUTANTS)

.PHONY: bench-failover
bench-failover: deps components ## Measure failover after the loss of a host against what Kubernetes does by itself, and what agents cost (root; 70 minutes).
	@go build -trimpath -o bin/lab ./test/lab/cmd/lab
	@mkdir -p out && go build -trimpath -o out/bench ./test/bench
	@$(alone) out/bench $(BENCHFLAGS)

.PHONY: chaos
chaos: deps components ## Strike hosts with N faults drawn from SEED, and compare verdicts with the matrix (root; hours; goes on where rows are missing).
	@mkdir -p out && go build -trimpath -o out/chaos ./test/chaos
	@$(alone) out/chaos -seed $(or $(SEED),1) -n $(or $(N),200) $(CHAOSFLAGS)

.PHONY: simulate
simulate: ## Run 10, 100 and 1,000 agents in one process, over a network that loses packets and on a clock of their own (20 to 40 minutes).
	go test ./test/simulation -count 1 -v -timeout 0 -run Losses -args -hosts 10,100,1000 -loss 0,0.01,0.05 -seeds 1,2,3 -rest 60s \
		-out $(CURDIR)/docs/results/simulation/rows.csv $(SIMULATEFLAGS)

.PHONY: lint
lint: bin/golangci-lint ## Run the linters, the import law and the clock law among them.
	bin/golangci-lint run ./...
	cd test/lab/storage && ../../../bin/golangci-lint run ./...
	cd test/bundle && ../../bin/golangci-lint run --build-tags json1,containers_image_openpgp,exclude_graphdriver_btrfs ./...

.PHONY: verify
verify: tools ## Regenerate everything and compare, lint, and break the laws on purpose.
	@MAKE=$(MAKE) hack/stages verify-generated verify-imports lint verify-laws

.PHONY: verify-generated
verify-generated: ## Regenerate in a copy and compare with the checkout.
	hack/verify-generated

.PHONY: verify-imports
verify-imports: ## Check who imports whom, transitively.
	go test -count 1 -run Imports ./hack/verify

.PHONY: verify-laws
verify-laws: bin/golangci-lint ## Break the import law and the clock law in a copy, and expect the linter to notice.
	go test -count 1 ./hack/verify/laws
