# Every target sets up what it needs from nothing: Python 3.11 to 3.13, Go and make are enough.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
# One more than two cores have: at first two of them have tests of clusters, which wait most of their time.
WORKERS ?= 3
# Tests start hundreds of Pythons that import torch; without its bytecode on disk each spends seconds on compiling it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup binaries demo test test-long e2e e2e-clean lint bench bench-memory bench-operator bench-hostile gpu-check gpu-wheels crds lock clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## .venv with the locked versions and this checkout, editable
	@tools/setup.sh dev

# The servers and tools that tests run against, built once per machine, so that no test waits minutes for a compiler.
binaries: setup
	@tools/s3/build.sh >/dev/null
	@tools/cluster/build.sh >/dev/null
	@tools/cluster/tools.sh helm kubeconform >/dev/null
	@tools/cluster/prometheus.sh >/dev/null
	@tools/cluster/monitoring.sh >/dev/null
	@tools/cluster/podsecurity.sh >/dev/null

demo: setup  ## the main job on real data: a sweep over pruning recipes of a digits CNN
	@tools/demo.sh

test: binaries  ## unit and integration tests, but for the long ones
	@$(PY) -m pytest -n $(WORKERS) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder -m "not long"

test-long: WORKERS = 2
test-long: setup  ## trainings in several processes, by every framework, killed and resumed; many random tensors
	@$(PY) -m pytest -n $(WORKERS) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder -m long tests

e2e:  ## a real cluster on this machine (Linux, root): images, chart, examples, S3
	@tools/cluster/e2e.sh run

e2e-clean:  ## frees what e2e keeps between runs (about 20 GB)
	@tools/cluster/e2e.sh clean

lint: setup  ## format, lint, types, layers, locks
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PY) tools/audit.py

bench: setup  ## timings against a peer, paired in one run, into benchmarks/results/
	@OMP_NUM_THREADS=1 $(PY) benchmarks/prune_finetune.py
	@OMP_NUM_THREADS=1 $(PY) benchmarks/compress_overhead.py

bench-memory: setup  ## peak memory by phase on a decoder of 400 M parameters: 6 GiB, some minutes
	@$(PY) benchmarks/prune_memory.py

gpu-check: setup  ## everything that needs a GPU, on this machine's: 6 minutes at most, a table at the end
	@$(PY) tools/gpu_check

gpu-wheels: setup  ## build/gpu-machine: what a machine with PyTorch alone lacks for that, and one script to run there
	@tools/gpu_wheels.sh

bench-training: setup  ## what finetuning takes beyond the user's plain script, for each evaluator, into benchmarks/results/
	@OMP_NUM_THREADS=1 $(PY) benchmarks/training_overhead.py

# The second one wants Linux and root, as e2e does.
bench-operator: setup  ## a sweep of 1,000 trials on a fake kubelet; one of 24 on a real node beside a bare Job; a start over 10,000
	@$(PY) benchmarks/operator_sweep.py --output benchmarks/results/operator_sweep.json
	@$(PY) benchmarks/operator_overhead.py --output benchmarks/results/operator_overhead.json
	@$(PY) benchmarks/operator_fleet.py --output benchmarks/results/operator_fleet.json

bench-hostile: setup  ## ten busy minutes of the operator among hostile objects and floods
	@$(PY) benchmarks/operator_hostile.py --output benchmarks/results/operator_hostile.json

crds: setup  ## writes crds/, its copy in the chart, the field tables of docs/reference and the code in examples again
	@.venv/bin/modelpress crd --output crds
	@$(PY) -m modelpress.api.reference docs/reference
	@$(PY) tools/chart.py
	@$(PY) tools/examples.py

lock: setup  ## resolves the dependencies again
	@tools/lock.sh --upgrade

clean:  ## removes what the targets above made in the checkout
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis modelpress-runs build uv.lock
