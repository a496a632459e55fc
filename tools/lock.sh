#!/usr/bin/env bash
# Resolves pyproject.toml again and writes requirements/*.txt: names, versions and hashes, no index address, so that the
# same lock installs from any mirror (docs/design/0001-locks-without-an-index.md).   Usage: tools/lock.sh [--upgrade]
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv; [ -x "$uv" ] || uv=uv
"$uv" lock --quiet "$@"
# The runner's image trains with every evaluator.
declare -A extras=([dev]=dev [runner]="runner lightning transformers deepspeed data onnx openvino compressed-tensors" [operator]=operator [examples]=examples)
for profile in dev runner operator examples; do
  # shellcheck disable=SC2046
  "$uv" export --quiet --frozen --no-emit-project --no-header --no-annotate --format requirements-txt \
    $(printf -- '--extra %s ' ${extras[$profile]}) --output-file "requirements/$profile.txt"
done
# What installs everything else, and what builds the wheel, in the images and here.
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --output-file requirements/uv.txt - <<<"uv==$("$uv" --version | cut -d' ' -f2)"
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --output-file requirements/build.txt - <<<"$(sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml)"
