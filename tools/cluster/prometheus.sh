#!/usr/bin/env bash
# Prints the folder of prometheus and promtool: those on the PATH, else Debian's, unpacked into
# ${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin without installing the package and its service.
set -euo pipefail
say() { echo "cluster: $*" >&2; }
if found=$(command -v promtool) && [ -x "$(dirname "$found")/prometheus" ]; then dirname "$found"; exit 0; fi
bin=${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/bin/prometheus
if [ ! -x "$bin/promtool" ]; then
  hint="install Prometheus with its promtool; on Debian: apt-get install prometheus"
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { say "$hint"; exit 2; }
  mkdir -p "$bin"
  part=$(mktemp -d "$bin/.part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  say "fetching Debian's package prometheus (once)"
  (cd "$part" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }) >&2 ||
    { say "$hint"; exit 2; }
  dpkg-deb -x "$part"/prometheus_*.deb "$part/root"
  mv -f "$part/root/usr/bin/prometheus" "$part/root/usr/bin/promtool" "$bin"
fi
echo "$bin"
