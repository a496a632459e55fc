#!/usr/bin/env bash
# Packs what a machine with PyTorch alone lacks to run tools/gpu_check, which reaches no registry: modelpress's wheel, the
# wheels of the locked runner packages (torch, triton and CUDA's excepted: they are that machine's own), the checks, and a
# script. There: unpack the folder, and  ./run.sh
# Usage: tools/gpu_wheels.sh [FOLDER]     PYTHON_VERSION (3.12) and PLATFORM (x86_64-manylinux_2_28) are the other machine's.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu-machine}
version=${PYTHON_VERSION:-3.12}
platform=${PLATFORM:-x86_64-manylinux_2_28}
architecture=${platform%%-*}
glibc=${platform##*manylinux_2_}
rm -rf "$out"
mkdir -p "$out/wheels"
# Markers are settled for the other machine, whatever this one is; its own packages are left out.
.venv/bin/python - "$version" "$architecture" <<'PYTHON' >"$out/requirements.txt"
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement

version, architecture = sys.argv[1:]
there = {
    "python_version": version, "python_full_version": f"{version}.0", "implementation_name": "cpython",
    "platform_python_implementation": "CPython", "sys_platform": "linux", "platform_system": "Linux",
    "os_name": "posix", "platform_machine": architecture, "extra": "",
}  # fmt: skip
for line in Path("requirements/runner.txt").read_text().replace("\\\n", " ").splitlines():
    named, *hashes = line.split(" --hash=")
    found = Requirement(named.strip())
    own = re.fullmatch("torch|triton|nvidia-.*|cuda-.*", found.name)
    if not own and (found.marker is None or found.marker.evaluate(there)):
        print(f"{found.name}{found.specifier}", *(f"--hash={each.strip()}" for each in hashes))
PYTHON
one=$(mktemp)
trap 'rm -f "$one"' EXIT
platforms=()
for minor in $(seq "$glibc" -1 17); do platforms+=(--platform "manylinux_2_${minor}_$architecture"); done
platforms+=(--platform "manylinux2014_$architecture" --platform "linux_$architecture")
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
# DeepSpeed comes as source only, and is pure Python where none of its operators is built beforehand: its wheel is made here.
grep -v '^deepspeed==' "$out/requirements.txt" >"$one"
"${pip[@]}" download --no-deps --only-binary :all: --python-version "$version" --implementation cp "${platforms[@]}" \
  --dest "$out/wheels" --require-hashes --requirement "$one"
grep '^deepspeed==' "$out/requirements.txt" >"$one"
DS_BUILD_OPS=0 "${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$out/wheels" --require-hashes --requirement "$one"
.venv/bin/uv build --quiet --wheel --build-constraints requirements/build.txt --require-hashes --out-dir "$out/wheels" .
rm -f "$out/wheels/.gitignore"
cp -r tools/gpu_check "$out/gpu_check"
find "$out/gpu_check" -name __pycache__ -prune -exec rm -r {} +
cat >"$out/run.sh" <<'SCRIPT'
#!/usr/bin/env bash
# Puts what is in this folder beside the machine's own PyTorch, into a folder of its own, and runs the checks.
# Arguments go to them: ./run.sh --only latency      PYTHON: the interpreter that has torch.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -c 'import torch' || { echo "run.sh: $python has no torch; set PYTHON to one that has" >&2; exit 2; }
if [ ! -e packages/.complete ]; then
  for wheel in wheels/*.whl; do "$python" -m zipfile -e "$wheel" packages; done
  touch packages/.complete
fi
export PYTHONPATH=$PWD/packages${PYTHONPATH:+:$PYTHONPATH}
exec "$python" gpu_check "$@"
SCRIPT
chmod +x "$out/run.sh"
echo "$(find "$out/wheels" -name '*.whl' | wc -l) wheels, $(du -sh "$out" | cut -f1), in $out; there: ./run.sh"
