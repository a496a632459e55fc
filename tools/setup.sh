#!/usr/bin/env bash
# Sets up .venv from nothing: the exact, hash-checked versions of requirements/<profile>.txt, then this checkout, editable.
# Usage: tools/setup.sh [dev|runner|operator]     Honours PYTHON (default: python3.11, else python3).
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-dev}
lock=requirements/$profile.txt
[ -f "$lock" ] || { echo "setup: no lock file $lock; known: $(cd requirements && ls ./*.txt | xargs -n1 basename -s .txt | xargs)" >&2; exit 2; }
stamp=.venv/.modelpress-$profile
want=$(cat "$lock" requirements/uv.txt requirements/build.txt pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/modelpress ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || { echo "setup: Python 3.11 to 3.13 is needed; on Debian: apt-get install python3 python3-venv" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))' \
  || { echo "setup: $python is $("$python" -V); Python 3.11 to 3.13 is needed (set PYTHON=...)" >&2; exit 2; }
if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
  rm -rf .venv
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing python3-venv" >&2
    apt-get update -qq && apt-get install -y -qq python3-venv
    "$python" -m venv .venv
  else
    echo "setup: $python has no venv module; on Debian: apt-get install python3-venv" >&2; exit 2
  fi
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes --requirement requirements/uv.txt
export VIRTUAL_ENV=$PWD/.venv UV_LINK_MODE=${UV_LINK_MODE:-hardlink}
echo "setup: installing $(grep -c '==' "$lock") locked packages into .venv" >&2
.venv/bin/uv pip sync --quiet --require-hashes "$lock"
.venv/bin/uv pip install --quiet --no-deps --build-constraints requirements/build.txt --editable .
echo "$want" > "$stamp"
