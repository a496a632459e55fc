#!/usr/bin/env bash
# Builds podsecurity, which judges pods by Kubernetes' own PodSecurity library, and prints the binary's path on stdout.
# Pinned by podsecurity/go.mod and go.sum, cached by their content, Go's version and this script in
# ${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin, outside the checkout. Two of these at once build once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { echo "cluster: $*" >&2; }
command -v go >/dev/null || { say "Go is needed to build podsecurity; install it from your distribution (golang)"; exit 2; }
key=$(cd "$here/podsecurity" && { cat go.mod go.sum main.go ../podsecurity.sh; go version; } | sha256sum | cut -c1-16)
bin=${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin
target=$bin/podsecurity-$key
mkdir -p "$bin"
if [ ! -x "$target" ]; then
  exec 9>"$target.lock"
  flock --nonblock 9 || { say "another process builds podsecurity; waiting for it"; flock 9; }
fi
if [ ! -x "$target" ]; then
  say "building podsecurity (once; a minute)"
  part=$(mktemp "$target.XXXXXX")
  trap 'rm -f "$part"' EXIT
  (cd "$here/podsecurity" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -o "$part" .) >&2
  chmod 755 "$part" && mv -f "$part" "$target"
  trap - EXIT
fi
echo "$target"
