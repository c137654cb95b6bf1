# The front door. Every target makes or updates .venv by itself, and does nothing twice.
#   make demo PYTHON=python3.12      another interpreter for a new .venv; the first of 3.11, 3.12, 3.13 if not given
#   make plugins TENSORRT_ROOT=/opt/tensorrt JOBS=16      where TensorRT's headers are
#   make test TEST_PROCESSES=1      by one process, in the tests' own order; by three a machine of two cores is busy
#   make demo PIP_ARGS="--no-index --find-links wheels"      further arguments of pip

# The python backend of the embedded Triton has a stub for each of these, and for no newer Python.
PYTHONS := python3.11 python3.12 python3.13
PYTHON ?= $(firstword $(foreach name,$(PYTHONS),$(shell $(name) -c 'print("$(name)")' 2>/dev/null)))
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
RUNS ?= runs
CMAKE_ARGS ?=
JOBS ?= 2
TEST_PROCESSES ?= 3
CXX_FILES = $(wildcard $(foreach suffix,h cpp cuh cu,$(addsuffix .$(suffix),plugins/*/* plugins/include/*/* tests/plugins/*/*)))

.DEFAULT_GOAL := help
.PHONY: help quickstart demo checkpoint test lint format bench compile-check model-table pictures census plugins clean

help: ## Show this
	@echo 'make TARGET [VARIABLE=value ...]; what needs .venv makes it first'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo; echo 'For example:'
	@sed -n 's/^#   /  /p' $(firstword $(MAKEFILE_LIST))
	@echo; echo 'After `. .venv/bin/activate` there is the command itself: retinaserve --help. Docs: docs/README.md'

# Without one of them, uv brings a Python 3.12 into .venv. On 3.13 nvidia-pytriton is installed without what its
# metadata asks for, numpy 1 among it: its tritonserver is used, and nothing of its Python.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || if [ -n "$(PYTHON)" ]; then $(PYTHON) -m venv $(VENV); else \
		echo "no $(PYTHONS) here: uv brings a Python 3.12 ..." >&2; \
		python3 -m venv $(VENV)-uv && $(VENV)-uv/bin/python -m pip install --quiet $(PIP_ARGS) uv && \
		$(VENV)-uv/bin/uv venv --quiet --seed --python 3.12 $(VENV) && rm -rf $(VENV)-uv; fi
	@echo "installing into $(VENV): minutes at first, when packages have to be downloaded ..." >&2
	@$(PIP) -e '.[train,serve,web]'
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || $(PIP) --no-deps nvidia-pytriton
	@touch $@

$(DEV): $(STAMP)
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps trackeval
	@touch $@

quickstart: $(STAMP) ## Boxes on images in a minute, on a real Triton; nothing is trained (writes runs/quickstart)
	@$(BIN)/retinaserve demo --quick --output $(RUNS)/quickstart

demo: $(STAMP) ## Synthetic images to boxes on a real Triton, in minutes (writes runs/demo)
	@$(BIN)/retinaserve demo --output $(RUNS)/demo

checkpoint: demo ## Train anew what quickstart serves (writes examples/shapes.pth)
	@$(BIN)/python -m retinaserve.scripts.lab.images checkpoint $(RUNS)/demo examples/shapes.pth

# A file's tests stay together; the order is that of tests/conftest.py.
test: $(DEV) ## Run all tests; those that need a GPU say so and skip
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(DEV) ## Ruff, mypy strict, clang-format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(DEV) ## Rewrite the code in the house format
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

bench: $(STAMP) ## What serving costs: ResNet18 at 512 x 512 through Triton against a plain loop (writes runs/bench)
	@$(BIN)/python -m retinaserve.scripts.lab.speed overhead --output $(RUNS)/bench

compile-check: $(DEV) ## NVIDIA's compiler on ResNet18 and ResNet50 in FP32, FP16, INT8, no GPU needed (writes runs/compile)
	@$(BIN)/python -m retinaserve.scripts.lab.compile_check --output $(RUNS)/compile --json $(RUNS)/compile/compile.json

model-table: $(DEV) ## What each backbone costs in each precision, half an hour (writes runs/model_table)
	@$(BIN)/python -m retinaserve.scripts.lab.speed backbones --output $(RUNS)/model_table

pictures: $(DEV) demo ## Take the images of README and docs again (needs Chromium and playwright)
	@$(BIN)/python -m retinaserve.scripts.lab.images readme $(RUNS)/demo docs/detections.jpg
	@$(BIN)/python -m retinaserve.scripts.lab.images page $(RUNS)/demo docs/web.jpg
	@$(BIN)/python -m retinaserve.scripts.lab.images report $(RUNS)/demo docs/report.png

census: $(DEV) ## Modules, lines, words and import cycles of this tree
	@$(BIN)/python -m retinaserve.scripts.lab.census .

plugins: ## CUDA kernels and TensorRT plugins (writes build/plugins; needs nvcc, and TENSORRT_ROOT for the headers)
	@cmake -S plugins -B build/plugins $(CMAKE_ARGS)
	@cmake --build build/plugins --parallel $(JOBS)

clean: ## Remove .venv, runs and caches
	@rm -rf $(VENV) $(RUNS) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
