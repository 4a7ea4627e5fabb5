# Every target makes the environment it needs in .venv, and does nothing there when it is up to date.
PYTHON ?= python3
ARGS ?=
STUDIES ?= demo_studies
PORT ?= 8000

VENV := .venv
BIN := $(VENV)/bin
# The versions in constraints.txt are installed with this uv, and only into .venv.
UV_INSTALL := $(BIN)/uv pip install --python $(BIN)/python -r pyproject.toml -c constraints.txt

# Overlays of each stage after brain.json, in the order of training; each starts from the weights of an earlier one.
BRAIN_STAGES := "" ",'configs/brain_refine.json'" ",'configs/brain_robust.json','configs/brain_fine.json'"

# Debian packages of the demo clinic and the end-to-end tests: an archive with DICOMweb, and a browser.
CLINIC_PACKAGES := orthanc orthanc-dicomweb chromium curl fonts-dejavu-core

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Tests, demo and benchmark use what the repository ships: no language model is fetched behind the user's back.
test test-e2e coverage demo demo-clinic serve bench: export HF_HUB_OFFLINE ?= 1
export UV_PYTHON_DOWNLOADS = never

.PHONY: help
help: ## Show this list
	@echo "Targets (variables: PYTHON=python3.12 to choose the interpreter, ARGS='-k text' to pass on to pytest)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.setup-done ## Create .venv with all that demo, tests and checks need (some GB, once)

.PHONY: setup-label
setup-label: $(VENV)/.setup-label-done ## Add MONAI Label to .venv (Python 3.10 to 3.12)

.PHONY: setup-test
setup-test: setup
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then $(MAKE) --no-print-directory setup-label;\
	 else echo "note: MONAI Label needs Python 3.10 to 3.12: the tests of the app are skipped"; fi

.PHONY: setup-clinic
setup-clinic: $(VENV)/.setup-e2e-done ## Add Orthanc, Chromium (Debian packages) and playwright to what setup-label brings
	@missing=""; for package in $(CLINIC_PACKAGES); do \
		dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "note: there is no apt-get here; install yourself:$$missing (tests that need them are skipped)"; exit 0; fi; \
	sudo=""; if [ "$$(id -u)" != 0 ]; then command -v sudo >/dev/null || { \
		echo "note: neither root nor sudo; install yourself:$$missing (tests that need them are skipped)"; exit 0; }; \
		sudo=sudo; fi; \
	{ $$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } || \
		echo "note: could not install$$missing (tests that need them are skipped)"

.PHONY: demo
demo: setup ## Segment a head MRI by text: table on screen, files and picture in demo_output/
	cd bundle && ../$(BIN)/python -m scripts.data.demo --output_dir ../demo_output

.PHONY: serve
serve: setup-label ## Serve the MONAI Label app with a head MRI at http://127.0.0.1:8000 (STUDIES=folder or URL, PORT=8000)
	@test "$(STUDIES)" != demo_studies || test -f demo_studies/mni152_t1.nii.gz || { mkdir -p demo_studies &&\
	 cd bundle && ../$(BIN)/python -c "from pathlib import Path; from scripts.data.demo import write_template;\
	 write_template(Path('../demo_studies/mni152_t1.nii.gz'))"; }
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m monailabel.main start_server --app apps/medal_s_label\
	 --studies "$(STUDIES)" --host 127.0.0.1 --port $(PORT) $(ARGS)

.PHONY: demo-clinic
demo-clinic: setup-clinic ## Start Orthanc with a head MRI, the app, and show the viewer's address (Ctrl-C stops all)
	$(BIN)/python apps/medal_s_label/demo_clinic.py $(ARGS)

.PHONY: test
test: export OMP_NUM_THREADS ?= 1
test: setup-test ## Run the tests, a file to a core at a time (ARGS="-m 'not slow'" for the quick ones)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

.PHONY: test-e2e
test-e2e: setup-clinic ## Test the app end to end: server, client, Orthanc, OHIF in Chromium (ARGS="-k viewer" for a part)
	$(BIN)/python -m pytest -m e2e $(ARGS)

.PHONY: lint
lint: setup-test ## Check style, format, types and file sizes
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

.PHONY: coverage
coverage: setup-clinic ## Run all tests, the end-to-end ones too, and say which lines they do not reach (at most 10 %)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "" $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=90

.PHONY: docs
docs: setup ## Write the generated pages anew: docs/classes.md, docs/configuration.md
	$(BIN)/python tools/class_table.py
	$(BIN)/python tools/config_reference.py

.PHONY: bundle
bundle: setup ## Write dist/medal_s_v<version>.zip, the package for the model zoo, the same bytes each time
	$(BIN)/python tools/package_bundle.py

.PHONY: release
release: setup ## Check the versions; VERSION=0.2.0 SUMMARY="what is new" prepares that release (nothing is pushed)
	$(BIN)/python tools/release.py $(VERSION) $(if $(SUMMARY),--summary "$(SUMMARY)")

.PHONY: constraints
constraints: $(BIN)/uv ## Renew constraints.txt after a change of pyproject.toml (ARGS=--upgrade: all versions)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet --output-file constraints.txt $(ARGS)

.PHONY: clean
clean: ## Remove outputs and caches
	rm -rf demo_output demo_studies demo_clinic dist bench.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find bundle apps tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

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

$(VENV)/.setup-e2e-done: $(VENV)/.setup-label-done
	$(UV_INSTALL) --extra demo --extra dev --extra label --extra e2e
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
