# Sets up .venv on first use, then runs the course. `make` alone prints what there is.
# Kept to what GNU make 3.81 (macOS) understands.

DATASET ?= ml-100k
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$p -c '$(SUITABLE)' 2>/dev/null; then echo $$p; break; fi; done)
endif

# Idle OpenMP threads otherwise spin and starve the ones at work.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY
# Annoy's own flags contain -ffast-math, with which clang builds return wrong neighbours.
ANNOY_COMPILER_ARGS ?= -O3,-std=c++14,-fpermissive,-DANNOYLIB_MULTITHREADED_BUILD
export ANNOY_COMPILER_ARGS

.PHONY: help run test lab notebooks solved nbgrader book wheel check-machine offline-kit publish colab-check \
	release-check matrix mutants bench lint licences audit clean
.DEFAULT_GOAL := help

help:
	@echo 'make run        set up, fetch MovieLens, execute every notebook, print the scoreboard'
	@echo '                (make run DATASET=ml-1m | synthetic; executed copies go to artifacts/)'
	@echo 'make test       set up, then the whole test suite, every notebook included'
	@echo 'make lab        set up, then JupyterLab at notebook 00'
	@echo 'make notebooks  re-execute the notebooks in place, from empty artifacts, and clean them for a commit;'
	@echo '                refresh the README'
	@echo 'make solved     copies of the notebooks with the solutions filled in, in artifacts/solved/'
	@echo 'make nbgrader   a source tree for nbgrader, in artifacts/nbgrader/'
	@echo 'make book       a static site of the notebooks, in artifacts/book/'
	@echo 'make wheel      the course as a wheel for Colab or a server, in dist/'
	@echo 'make check-machine   what is here, what is missing, how long each notebook will take on this machine'
	@echo 'make offline-kit     wheels, notebooks and data to install without a network, in artifacts/offline-kit/'
	@echo 'make publish REPO=owner/name   write the address of the published course everywhere (REPO= takes it out)'
	@echo 'make release-check   what takes too long for every day: each notebook alone as on Colab, the offline kit'
	@echo 'make matrix     tests and notebooks with every Python found, the lowest versions, without the optional parts'
	@echo '                (INTERPRETERS="/a/python /b/python" ENTRIES="3.11-lowest" to choose); outcomes in docs/versions.md'
	@echo 'make bench      every benchmark, some against peers: a night on two cores; tables in benchmarks/RESULTS.md'
	@echo 'make licences   docs/licences.md anew'
	@echo 'make audit      known vulnerabilities of what requirements.lock holds, where the advisories can be reached'
	@echo 'make mutants    plant small faults, one at a time, and see whether a test fails; table in docs/mutants.md'
	@echo 'make lint       ruff over code and notebooks'
	@echo 'make clean      remove .venv, artifacts and dist (data/ stays; remove it by hand)'

$(READY): requirements.txt requirements-annoy-wheel.txt pyproject.toml
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(SUITABLE)' 2>/dev/null; then \
	  echo 'This course needs Python 3.11 to 3.14: install one (Debian/Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python@3.13) and run make again, or name it: make run PYTHON=/path/to/python3'; \
	  exit 1; fi
	@if [ ! -x $(PY) ] || ! $(PY) -c '$(SUITABLE)' 2>/dev/null; then rm -rf $(VENV); $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'Python has no venv module here. Debian/Ubuntu: sudo apt install python3-venv, then run make again'; exit 1; }; fi
	@echo 'Installing the pinned requirements into $(VENV): a minute or a few, once; about 2 GB, or 6 GB where pip takes a CUDA build of torch.'
	@grep -v '^annoy==' requirements.txt > $(VENV)/requirements.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	@$(PY) -m pip uninstall --quiet --yes annoy-mm 2>/dev/null || true
	@$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^annoy==' requirements.txt)" >$(VENV)/annoy.log 2>&1 \
	  || { echo 'annoy could not be compiled (no C++ compiler?); taking prebuilt wheels of the same source'; \
	       $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-annoy-wheel.txt; } \
	  || echo 'No annoy for this Python without a C++ compiler. Install one (Debian/Ubuntu: sudo apt install g++ python3-dev; macOS: xcode-select --install), then: rm $(READY) and make again. All else works without.'
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

run: $(READY)
	@$(PY) -m dssm_helpers.course run --dataset $(DATASET)

# One seed instead of three keeps the suite short; the code is the same. The notebooks run three times: as a learner finds
# them, exercises open; alone with the wheel, as on Colab; and with every solution in its place, where a wrong solution or a
# missing optional part fails. Two workers with a thread each (tests/workers.py says who does what): pip, the browser and
# kernels that start keep one of them waiting, and a training gains little from a second thread.
test: $(READY) solved
	@$(PY) -m ruff check --quiet . && $(PY) -m ruff format --quiet --check .
	OMP_NUM_THREADS=1 DSSM_SEEDS=$${DSSM_SEEDS:-1} DSSM_STRICT=1 $(PY) -m pytest -n 2 --dist loadscope \
	  --no-loadscope-reorder --durations=10 --nbmake --nbmake-timeout=900 tests notebooks artifacts/solved

# JupyterLab asks its makers for news and for a newer version unless told not to.
lab: $(READY)
	@$(PY) -m jupyter lab notebooks/00_overview.ipynb --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(FLAGS)

notebooks: $(READY)
	@$(PY) -m dssm_helpers.course notebooks

solved nbgrader book wheel check-machine offline-kit audit: $(READY)
	@$(PY) -m dssm_helpers.course $@

licences: $(READY)
	@$(PY) tests/licences.py

publish: $(READY)
	@$(PY) -m dssm_helpers.course publish $(REPO)

# Each notebook in an environment of its own; about an hour.
release-check: $(READY)
	DSSM_STRICT=1 DSSM_COLAB_ALONE=1 $(PY) -m pytest -m "release or colab" tests

colab-check: $(READY)
	DSSM_COLAB_ALONE=1 $(PY) -m pytest -m colab tests

# Hours, and up to 6 GB an entry, kept in artifacts/matrix/; an interrupted run goes on.
matrix: $(READY)
	@$(PY) -m dssm_helpers.course matrix $(ENTRIES)

# What is done is kept in artifacts/benchmarks/ and artifacts/<dataset>/variants/: an interrupted run goes on from there;
# remove them to measure anew.
bench: $(READY)
	$(PY) benchmarks/ann.py
	$(PY) benchmarks/peers.py --only sasrec
	$(PY) benchmarks/peers.py
	$(PY) benchmarks/variants.py
	$(PY) benchmarks/amount.py
	$(PY) benchmarks/scaling.py
	$(PY) benchmarks/out_of_core.py
	$(PY) benchmarks/own.py
	$(PY) benchmarks/load.py
	$(PY) benchmarks/paper.py
	$(PY) benchmarks/queries.py
	$(PY) benchmarks/towers.py
	$(PY) benchmarks/second_stage.py
	$(PY) benchmarks/every_day.py
	$(PY) benchmarks/report.py

# What docs/mutants.json holds is not run again: an interrupted run goes on from there; remove it to start anew.
mutants: $(READY)
	OMP_NUM_THREADS=1 $(PY) tests/mutants/mutants.py

lint: $(READY)
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) artifacts dist *.egg-info .pytest_cache .ruff_cache
