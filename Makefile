# The only tools this needs are Python 3.11 or newer, git and make; everything else is installed into this folder.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
UV := .uv/bin/uv
RUN := $(UV) run --frozen --all-packages
MODE ?= auto
SECONDS ?= 120
RELEASES ?= forky trixie bookworm

.PHONY: help sync demo dev test check format engine browser secrets image bench chaos clean

help:  ## list what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is older than 3.11; name a newer one with PYTHON=…" >&2; exit 2; }
	@echo "Installing uv into .uv/ …"
	@$(PYTHON) -m venv .uv
	@.uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.8'

.venv/.synced: $(UV) uv.lock pyproject.toml protocol/pyproject.toml agent/pyproject.toml orchestrator_plugin/pyproject.toml
	@echo "Installing what uv.lock names into .venv/ …"
	@UV_PYTHON_DOWNLOADS=$${UV_PYTHON_DOWNLOADS:-never} $(UV) sync --quiet --frozen --all-packages --python '>=3.11'
	@touch .venv/.synced

sync: .venv/.synced  ## install everything into this folder

demo: sync  ## run a small real graph; MODE=local or MODE=cluster forces one of the two
	@$(RUN) python docs/examples/weather/demo.py --mode $(MODE)

dev: sync  ## the same, and leave Dagster's UI open
	@$(RUN) python docs/examples/weather/demo.py --mode $(MODE) --dev

test: sync  ## all tests; those that need a container engine say so and are skipped where there is none
	@others=0; $(RUN) pytest -m "not cluster" -n 2 --dist worksteal || others=$$?; \
	  [ $$others -ne 2 ] || exit 2; \
	  echo "Now the cluster's tests, on three clusters beside each other."; \
	  $(RUN) pytest -m cluster -n 3 --dist loadfile --no-loadscope-reorder || exit $$?; exit $$others

check: sync  ## format, lint, types and import contracts
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports

format: sync  ## put the code into shape
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

engine:  ## install and start a container engine on a Debian host that has none (root)
	@containers/engine.sh

browser:  ## install the browser that tests the dashboard on a Debian host that has none (root)
	@command -v chromium google-chrome >/dev/null || { echo "Installing chromium …"; apt-get update -qq; \
	  apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null; }

secrets: $(UV)  ## install SOPS, GnuPG and age, with which secrets files are tested, on a Debian host that has none (root)
	@command -v age gpg >/dev/null && [ "$$(command -v age gpg | wc -l)" = 2 ] || { echo "Installing age and GnuPG …"; \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends age gnupg >/dev/null; }
	@UV_TOOL_DIR=.uv/tools UV_TOOL_BIN_DIR=.uv/bin $(UV) tool install --quiet sops==1.18

image: sync  ## build the cluster's images: of Slurm 26.05 (forky), 24.11 (trixie) and 22.05 (bookworm)
	@PYTHONPATH=containers $(RUN) python -m slurmbus_cluster build $(RELEASES)

bench: sync  ## what Slurmbus adds to a job, side by side with bare Slurm
	@$(RUN) pytest tests/bench -o python_files="bench_*.py" -s

chaos: sync  ## break everything at random; SEED=… repeats a run, SECONDS=600 is long, MODE=points or newbus, SCHEDULER=commands
	@PYTHONPATH=containers:tests $(RUN) python -m chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) \
	  $(if $(filter points,$(MODE)),--mode points) $(if $(filter newbus,$(MODE)),--new-bus) \
	  $(if $(SCHEDULER),--scheduler $(SCHEDULER)) $(ARGS)

clean:  ## remove what was installed into this folder
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
