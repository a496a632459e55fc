#!/usr/bin/env bash
# Builds the Kubernetes binaries that the tests run against, and prints their folder on stdout.
# Usage: tools/cluster/build.sh [NAME...]      default: etcd kube-apiserver kube-controller-manager kubectl
# Pinned by kubernetes/go.mod and go.sum, cached by their content, Go's version and this script in
# ${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin, outside the checkout. Where KUBEBUILDER_ASSETS names a folder that has
# a binary already, that one is taken and not built. Two of these at once build once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { echo "cluster: $*" >&2; }
version=1.35.4
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(etcd kube-apiserver kube-controller-manager kubectl)
command -v go >/dev/null || { say "Go is needed to build Kubernetes for tests; install it from your distribution (golang)"; exit 2; }
key=$(cd "$here/kubernetes" && { cat go.mod go.sum ../build.sh; go version; echo "${KUBEBUILDER_ASSETS:-}"; } | sha256sum | cut -c1-16)
bin=${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin/kubernetes-$version-$key
mkdir -p "$bin"
flags="-s -w -X k8s.io/component-base/version.gitVersion=v$version -X k8s.io/component-base/version.gitMajor=1"
flags="$flags -X k8s.io/component-base/version.gitMinor=${version:2:2}"
for name in "${names[@]}"; do
  [ -x "$bin/$name" ] && continue
  if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$name" ]; then ln -sfn "$KUBEBUILDER_ASSETS/$name" "$bin/$name"; continue; fi
  case $name in etcd) package=go.etcd.io/etcd/server/v3 ;; *) package=k8s.io/kubernetes/cmd/$name ;; esac
  exec 9>"$bin/.$name.lock"
  flock --nonblock 9 || { say "another process builds $name; waiting for it"; flock 9; }
  [ -x "$bin/$name" ] && continue
  say "building $name $([ "$name" = etcd ] || echo "$version") (once; minutes)"
  part=$(mktemp "$bin/.$name.XXXXXX")
  trap 'rm -f "$part"' EXIT
  (cd "$here/kubernetes" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags "$flags" -v -o "$part" "$package" 2>&1) |
    awk '/^go: downloading/ {next} /^[a-z0-9.-]+(\/[^ ]*)?$/ {if (++n % 200 == 0) print "cluster: " n " packages compiled"; next} {print}' >&2
  chmod 755 "$part" && mv -f "$part" "$bin/$name"
  trap - EXIT
done
echo "$bin"
