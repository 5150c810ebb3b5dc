// Generates and validates the OLM bundle.
module github.com/holdfast-dev/holdfast/hack/tools/operator-sdk

go 1.26.0

tool github.com/operator-framework/operator-sdk/cmd/operator-sdk

require github.com/operator-framework/operator-sdk v1.42.2
