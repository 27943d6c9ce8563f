# make demo   the quickstart: sets everything up, runs it, draws the curve
# make test   checks and tests; make test-all has the costlier ones too
# make docs   the documentation as a site, in build/site
# A bare clone needs Python 3.11 or newer with venv, and nothing else. DEVICE=cpu or DEVICE=cuda forces the engine.

# Without bytecode every process would compile again what it imports.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda || echo cpu)
READY = .venv/ready-$(DEVICE)
# The CPU build of torch comes from where pip is told to look for files, if it is told; else from PyTorch's own index.
LINKS = $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || echo "$$PIP_FIND_LINKS")
# Some tests wait, for servers and signals, so there are half as many workers again as cores, 8 at most.
CORES = $(shell getconf _NPROCESSORS_ONLN)
WORKERS = $(shell workers=$$(($(CORES) + ($(CORES) + 1) / 2)); echo $$((workers < 8 ? workers : 8)))
ENGINE = $(shell grep -rl --include='test_*.py' 'mark\.engine' tests)
SIDE_BY_SIDE = --dist loadfile --no-loadscope-reorder --durations=12
UV = UV_FIND_LINKS="$(LINKS)" .venv/bin/uv pip install --quiet --python .venv/bin/python

# Pages as they are, and what they link to; a broken link fails. mkdocs has an environment of its own.
DOCS = build/docs
docs:
	test -x $(DOCS)/bin/uv || { $(PYTHON) -m venv $(DOCS) && $(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check uv; }
	$(DOCS)/bin/uv pip install --quiet --python $(DOCS)/bin/python --group docs
	rm -rf build/pages && mkdir -p build/pages
	cp --parents -t build/pages $$(git ls-files '*.md' docs recipes raft/pipeline/loop.py | grep -v ^outputs)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

.PHONY: docs demo test test-fast test-engine test-all test-wheel nightly check format faults setup clean

demo: $(READY)
	.venv/bin/raft run quickstart

test: check test-fast test-engine

test-all: test nightly faults

# Each worker has one thread (tests/conftest.py): an engine of a tiny model gains nothing from a second, which only waits.
# Two workers at most: an engine takes 3 GB, and files that share a process share the import of vLLM, 20 s when cold.
test-engine: $(READY)
	.venv/bin/python -m pytest -m "engine and not nightly and not faults" -n $(WORKERS) --maxprocesses 2 $(SIDE_BY_SIDE) $(ENGINE)

# With trackers, and with lm-evaluation-harness, which are not among the tools of development: transformers imports the
# scikit-learn that the harness brings, and every process would begin two seconds later.
nightly: $(READY)
	$(UV) -e '.[eval]' trackio wandb
	.venv/bin/python -m pytest -m nightly

test-fast: $(READY)
	.venv/bin/python -m pytest -m "not engine and not nightly and not faults" -n $(WORKERS) $(SIDE_BY_SIDE)

# The wheel in an empty environment: PYTHON=python3.13 tests another version.
test-wheel: $(READY)
	rm -rf build/wheel
	.venv/bin/uv build --quiet --wheel --out-dir build/wheel
	.venv/bin/uv venv --quiet --python $(PYTHON) build/wheel/env
	printf 'torchvision\ntorchaudio\ntorchcodec\n' > build/wheel/excludes.txt
	UV_FIND_LINKS="$(LINKS)" .venv/bin/uv pip install --quiet --python build/wheel/env/bin/python --excludes build/wheel/excludes.txt build/wheel/*.whl
	cd build/wheel && env/bin/raft env && env/bin/raft cp quickstart && env/bin/raft check quickstart.yaml generator.kind=transformers

faults: $(READY)
	.venv/bin/python -m pytest -m faults -s

check: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: $(READY)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

setup: $(READY)

$(READY): pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raft needs Python 3.11 or newer; say which with make PYTHON=python3.12")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
ifeq ($(DEVICE),cuda)
	$(UV) -e '.[cuda,dev]'
else
	printf 'torchvision\ntorchaudio\ntorchcodec\n' > .venv/excludes.txt
	if [ -n "$(LINKS)" ]; then $(UV) --excludes .venv/excludes.txt -e '.[cpu,dev]' || $(UV) --torch-backend cpu --excludes .venv/excludes.txt -e '.[cpu,dev]'; \
	else $(UV) --torch-backend cpu --excludes .venv/excludes.txt -e '.[cpu,dev]'; fi
endif
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
