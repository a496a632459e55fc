#!/usr/bin/env bash
# Prints the folder of the Prometheus operator's CustomResourceDefinitions, which the tests of the chart apply: from its
# Go module, pinned by monitoring/go.mod and go.sum.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/monitoring"
command -v go >/dev/null || { echo "cluster: Go is needed to fetch the Prometheus operator's CRDs; install it from your distribution (golang)" >&2; exit 2; }
module=github.com/prometheus-operator/prometheus-operator
version=$(awk -v module=$module '$2 == module {print $3}' go.mod)
GOFLAGS=-mod=readonly go mod download "$module" >&2
echo "$(go env GOMODCACHE)/$module@$version/example/prometheus-operator-crd"
