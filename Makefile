# Every target that runs code depends on `setup`, so `make demo` and `make test` work on a fresh machine with Python 3.11 and make.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
UV := .tools/bin/uv
BIN := .venv/bin
# Dozens of processes start here: without kept bytecode each compiles thousands of modules again. Empty means: keep it; `setup` makes it once.
export PYTHONDONTWRITEBYTECODE :=
LOCK := $(UV) pip compile --universal --generate-hashes --no-emit-index-url --no-header --quiet pyproject.toml

help:  ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.tools/bin/uv:
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt

.venv/synced: locks/all.txt pyproject.toml | .tools/bin/uv
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@$(UV) pip sync --quiet --require-hashes locks/all.txt
	@$(UV) pip install --quiet --no-deps --editable .
	@$(BIN)/python -c "import api.app, cli.main, control.loops, control.signer, worker.runner as runner; runner.plugins.load([]); runner.touch('cpu')"
	@touch .venv/synced

setup: .venv/synced  ## Bring uv, sync the locked packages into .venv, install the project editable

lock: | .tools/bin/uv  ## Write locks/ anew (versions and hashes, no addresses)
	@$(LOCK) --group gateway --group worker --group embedded --group llm --group dev -o locks/all.txt
	@$(LOCK) --group gateway -c locks/all.txt -o locks/gateway.txt
	@$(LOCK) --group worker -c locks/all.txt -o locks/worker.txt
	@echo uv | $(UV) pip compile --universal --generate-hashes --no-emit-index-url --no-header --quiet - -o locks/uv.txt

demo: setup  ## Run the main job on real data: two deletion requests over HTTP, results in demo-output/
	@$(BIN)/lethe demo --output demo-output

up: setup  ## Start the embedded stack: database, queue, store, gateway, worker, control
	@$(BIN)/lethe up

check: setup  ## Lint, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright --level error
	@$(BIN)/lint-imports

test: check  ## All tests; three processes on two cores, since a quarter of the time is waiting for stacks
	@$(BIN)/pytest -m "not soak and not gpu" -n 3 --dist loadgroup --no-loadscope-reorder

soak: setup  ## The full forms of the statistical, crash-point and fault tests
	@$(BIN)/pytest -m "soak and not gpu"

bench: setup  ## Ratios beside their goals, one JSON line each
	@$(BIN)/python -m bench gateway latency transfer loop coalescing membership

verifier: setup  ## Make the offline verifier of audit reports one file: lethe-verify.pyz
	@$(BIN)/python -m cli.pack lethe-verify.pyz

.PHONY: help setup lock demo up check test soak bench verifier
