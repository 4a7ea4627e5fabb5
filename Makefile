# Every target makes the environment it needs in .venv, and does nothing there when it is up to date.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The versions in constraints.txt are installed with this uv, and only into .venv.
UV_INSTALL := $(BIN)/uv pip install --python $(BIN)/python -r pyproject.toml -c constraints.txt

# Overlays of each stage after brain.json, in the order of training; each starts from the weights of an earlier one.
BRAIN_STAGES := "" ",'configs/brain_refine.json'" ",'configs/brain_robust.json'"\
 ",'configs/brain_robust.json','configs/brain_fine.json'"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Tests, demo and benchmark use what the repository ships: no language model is fetched behind the user's back.
test demo bench: export HF_HUB_OFFLINE ?= 1
export UV_PYTHON_DOWNLOADS = never

.PHONY: help
help: ## Show this list
	@echo "Targets (variables: PYTHON=python3.12 to choose the interpreter, ARGS='-k text' to pass on to pytest)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.setup-done ## Create .venv with all that demo, tests and checks need (some GB, once)

.PHONY: setup-label
setup-label: $(VENV)/.setup-label-done ## Add MONAI Label to .venv (Python 3.10 to 3.12)

.PHONY: demo
demo: setup ## Segment a head MRI by text: table on screen, files and picture in demo_output/
	cd bundle && ../$(BIN)/python -m scripts.data.demo --output_dir ../demo_output

.PHONY: test
test: setup ## Run the tests (ARGS="-m 'not slow'" for the quick ones)
	$(BIN)/python -m pytest $(ARGS)

.PHONY: lint
lint: setup ## Check style, format, types and file sizes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	.ci/check_sizes

.PHONY: weights
weights: setup ## Train the shipped weights again, hours on a CPU (LABEL_MAPS=folder of SynthSeg's label maps)
	@test -d "$(LABEL_MAPS)" || { echo "error: LABEL_MAPS='$(LABEL_MAPS)' is no folder. Give the label maps of SynthSeg\
	 (data/training_label_maps): make weights LABEL_MAPS=/path/to/them" >&2; exit 1; }
	cd bundle && for stage in $(BRAIN_STAGES); do ../$(BIN)/python -m monai.bundle run training --data_dir "$(LABEL_MAPS)"\
	 --config_file "['configs/train.json','configs/small_network.json','configs/brain.json'$$stage]" || exit 1; done

.PHONY: bench
bench: setup ## Measure speed and memory on this machine: bench.json
	cd bundle && ../$(BIN)/python -m scripts.bench --output ../bench.json

.PHONY: constraints
constraints: $(BIN)/uv ## Renew constraints.txt after a change of pyproject.toml (ARGS=--upgrade: all versions)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet --output-file constraints.txt $(ARGS)

.PHONY: clean
clean: ## Remove outputs and caches
	rm -rf demo_output bench.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find bundle tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove outputs, caches and .venv
	rm -rf $(VENV)

$(VENV)/.setup-done: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV_INSTALL) --extra demo --extra dev
	@touch $@

$(VENV)/.setup-label-done: $(VENV)/.setup-done
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || { echo "error: MONAI Label needs\
	 Python 3.10 to 3.12, and .venv has `$(BIN)/python -V`. Run: make distclean && make setup-label\
	 PYTHON=python3.12" >&2; exit 1; }
	$(UV_INSTALL) --extra demo --extra dev --extra label
	@touch $@

$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "error: '$(PYTHON)' was not found. Install Python 3.10 or newer, or name\
	 yours: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed,\
	 and '$(PYTHON)' is `$(PYTHON) -V 2>&1`. Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: '$(PYTHON)' cannot create environments\
	 (no ensurepip). On Debian and Ubuntu: sudo apt install python3-venv (for a Python other than the system's:\
	 python3.X-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
