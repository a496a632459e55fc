#!/usr/bin/env bash
# Runs examples/digits/sweep.yaml from nothing and checks its best model in a process that only calls mp.load.
set -euo pipefail
cd "$(dirname "$0")/.."
store=${DEMO_STORE:-modelpress-runs/demo}
rm -rf "$store"
.venv/bin/modelpress run examples/digits/sweep.yaml --store "$store" --parallel 2
root=$(ls -d "$store"/default/digits-sweep-*)
echo
.venv/bin/python tools/verify_best.py "$root" "$store/.state/default/$(basename "$root")" examples/digits
