#!/usr/bin/env bash
# Prints the folder of promtool, which checks Prometheus' rules in the tests: that on the PATH, else Debian's, unpacked
# into ${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin without installing the server and its service.
set -euo pipefail
say() { echo "cluster: $*" >&2; }
if found=$(command -v promtool); then dirname "$found"; exit 0; fi
bin=${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin/promtool
if [ ! -x "$bin/promtool" ]; then
  hint="install promtool, which comes with Prometheus; on Debian: apt-get install prometheus"
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { say "$hint"; exit 2; }
  mkdir -p "$bin"
  part=$(mktemp -d "$bin/.part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  say "fetching promtool from Debian's package prometheus (once)"
  (cd "$part" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }) >&2 ||
    { say "$hint"; exit 2; }
  dpkg-deb -x "$part"/prometheus_*.deb "$part/root"
  mv -f "$part/root/usr/bin/promtool" "$bin/promtool"
fi
echo "$bin"
