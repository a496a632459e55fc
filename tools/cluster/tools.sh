#!/usr/bin/env bash
# Builds the other tools of the test cluster and prints their folder on stdout.
# Usage: tools/cluster/tools.sh NAME...      of helm, kubeconform, coredns, pause
# Each is pinned by go.mod and go.sum of its folder here, and cached by their content, Go's version and this script in
# ${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin, outside the checkout. Two of these at once build once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { echo "cluster: $*" >&2; }
[ $# -gt 0 ] || { say "name what to build: helm, kubeconform, coredns, pause"; exit 2; }
command -v go >/dev/null || { say "Go is needed to build $*; install it from your distribution (golang)"; exit 2; }
key=$(cd "$here" && { cat tools.sh helm/go.* dns/go.* dns/*.go pause/go.* pause/*.go; cd helm; go version; } | sha256sum | cut -c1-16)
bin=${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin/cluster-tools-$key
mkdir -p "$bin"
for name in "$@"; do
  case $name in
    helm) module=helm package=helm.sh/helm/v3/cmd/helm ;;
    kubeconform) module=helm package=github.com/yannh/kubeconform/cmd/kubeconform ;;
    coredns) module=dns package=. ;;
    pause) module=pause package=. ;;
    *) say "there is no tool '$name'; there are helm, kubeconform, coredns and pause"; exit 2 ;;
  esac
  [ -x "$bin/$name" ] && continue
  exec 9>"$bin/.$name.lock"
  flock --nonblock 9 || { say "another process builds $name; waiting for it"; flock 9; }
  [ -x "$bin/$name" ] && continue
  say "building $name (once; minutes)"
  part=$(mktemp "$bin/.$name.XXXXXX")
  trap 'rm -f "$part"' EXIT
  (cd "$here/$module" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -o "$part" "$package") >&2
  chmod 755 "$part" && mv -f "$part" "$bin/$name"
  trap - EXIT
done
echo "$bin"
