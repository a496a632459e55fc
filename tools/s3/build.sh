#!/usr/bin/env bash
# Builds versitygw, the S3 server that the store's integration tests run against, and prints the binary's path on stdout.
# The build is pinned by go.mod and go.sum beside this script and cached by their content, Go's version and platform in
# ${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin, outside the checkout. Two of these at once build once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=github.com/versity/versitygw/cmd/versitygw
say() { echo "s3: $*" >&2; }

command -v go >/dev/null || { say "Go is needed to build the S3 server for tests; install it from https://go.dev/dl (or your distribution's golang package)"; exit 2; }
bin=${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin
mkdir -p "$bin"
hash() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c1-16; }
# `go version` inside the module names the toolchain that go.mod selects, which is the one that builds.
key=$(cd "$here" && { cat go.mod go.sum build.sh; go version; } | hash)
target=$bin/versitygw-$key

if [ ! -x "$target" ]; then
  exec 9>"$target.lock"
  if command -v flock >/dev/null; then
    flock --nonblock 9 || { say "another process builds versitygw; waiting for it"; flock 9; }
  fi
  if [ ! -x "$target" ]; then
    version=$(cd "$here" && go list -m -f '{{.Version}}' github.com/versity/versitygw)
    say "building versitygw $version (once; a minute or two)"
    # A private name and a rename: nobody ever runs half a binary, even where flock is missing.
    part=$(mktemp "$target.XXXXXX")
    trap 'rm -f "$part"' EXIT
    # -v names each package as it is compiled; every fiftieth is progress enough.
    (cd "$here" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -v -o "$part" "$package" 2>&1) |
      awk '/^go: downloading/ {d++; next} /^[a-z0-9.-]+(\/[^ ]*)?$/ {if (++n % 50 == 0) print "s3: " n " packages compiled"; next} {print}' >&2
    chmod 755 "$part"
    mv -f "$part" "$target"
    trap - EXIT
    say "built $target"
  fi
fi
echo "$target"
