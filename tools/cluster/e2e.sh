#!/usr/bin/env bash
# A cluster of one real node for end-to-end tests; e2e.py says how.   Usage: tools/cluster/e2e.sh up|exec|run|down|clean
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/tools/setup.sh" dev
exec "$root/.venv/bin/python" "$root/tools/cluster/e2e.py" "$@"
