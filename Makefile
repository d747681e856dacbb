# Everything here is a door to a tool; no logic of its own.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# make engine MODEL=path/to/checkpoint PRECISION=fp16 BACKEND=tensorrt
MODEL ?= models/demo
PRECISION ?= fp16
BACKEND ?= tensorrt
NAME := $(notdir $(abspath $(MODEL)))-$(PRECISION)
OUT := build/$(NAME)

##@ First steps

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z0-9-]*:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/installed ## Create .venv with all that is needed here

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; found $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	# Built from source by root, jetson-stats would install a system service.
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary jetson-stats \
	  --editable '.[convert,report,serve,nvml,jtop,provision,dev]'
	@touch $@

.PHONY: demo
demo: build/demo/engine/manifest.json ## Convert, build, generate, score, benchmark and report with the demo model
	@echo; $(BIN)/mamba-orin generate build/demo/engine --echo \
	  --prompt "$(DEMO_PROMPT)" --max-new-tokens 120 --temperature 0.7 --top-k 40 --seed 9
	@echo; $(BIN)/mamba-orin score build/demo/engine --text-file models/demo/heldout.txt
	@echo; $(BIN)/mamba-orin bench build/demo/engine --compare torch --maximum-seconds 15 \
	  --output build/demo/record.json
	@$(BIN)/mamba-orin report build/demo/record.json --output build/demo/report.html
	@echo; echo "The report: file://$(CURDIR)/build/demo/report.html"

DEMO_PROMPT := It was a truth

build/demo/engine/manifest.json: $(VENV)/installed $(wildcard models/demo/*.json models/demo/*.safetensors) $(wildcard pipeline/*.py)
	$(BIN)/mamba-orin convert models/demo --output build/demo/bundle
	$(BIN)/mamba-orin build build/demo/bundle --output build/demo/engine

.PHONY: engine
engine: $(VENV)/installed ## Build a TensorRT engine: make engine MODEL=path/to/checkpoint PRECISION=fp16|int8|int4; without a GPU, what runs here
	$(BIN)/mamba-orin convert '$(MODEL)' --output $(OUT)-bundle --precision $(PRECISION)
	$(BIN)/mamba-orin build $(OUT)-bundle --output $(OUT)-engine --backend $(BACKEND) --fall-back
	@echo "Try it: $(BIN)/mamba-orin generate $(OUT)-engine --prompt 'Once upon a time'"

# make plugin PRESET=dev_gpu TENSORRT_ROOT=path/above/include
PRESET ?= orin
TENSORRT_ROOT ?=

.PHONY: plugin
plugin: ## Build the kernels, and TensorRT's plugin where its headers are: make plugin TENSORRT_ROOT=path/above/include
	cmake -S plugin --preset $(PRESET) $(if $(TENSORRT_ROOT),-DTENSORRT_ROOT='$(abspath $(TENSORRT_ROOT))')
	cmake --build plugin/build/$(PRESET) --parallel "$$(nproc)"

##@ Develop

.PHONY: test
test: $(VENV)/installed ## Run the tests
	$(BIN)/pytest -m 'not boards and not images'

.PHONY: test-boards
test-boards: $(VENV)/installed ## Provision simulated boards in containers (root, Debian, minutes)
	$(BIN)/pytest -m boards tests/boards

.PHONY: measure-boards
measure-boards: $(VENV)/installed ## Provision thirty simulated boards into docs/measurements (root, Debian)
	$(BIN)/python -m tests.boards.measure_fleet --boards 30 --output docs/measurements/provisioning.json

.PHONY: lint
lint: $(VENV)/installed ## Check style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict roles playbooks inventory *.yml .yamllint .ansible-lint
	@if [ -x $(BIN)/ansible-lint ]; then PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint; \
	else echo "Roles are not linted: Ansible needs Python 3.11 or newer" >&2; fi

.PHONY: measure
measure: $(VENV)/installed ## Measure mamba-130m shapes on this CPU into docs/measurements (needs a quiet machine)
	$(BIN)/mamba-orin convert random:mamba-130m --output build/mamba-130m
	$(BIN)/mamba-orin build build/mamba-130m --output build/mamba-130m-engine
	$(BIN)/mamba-orin bench build/mamba-130m-engine --compare torch --output docs/measurements/embedded_130m.json

.PHONY: measure-sampler
measure-sampler: $(VENV)/installed ## Measure what reading sensors costs, on a recorded board's files (needs a quiet machine)
	$(BIN)/mamba-orin convert random:mamba-130m --output build/mamba-130m
	$(BIN)/mamba-orin build build/mamba-130m --output build/mamba-130m-engine
	$(BIN)/python -m tests.pipeline.board_sensors build/nano
	$(BIN)/python -m pipeline.sampler_cost build/mamba-130m-engine --telemetry sysfs --root build/nano \
	  --times-as-often 20 --output docs/measurements/sampler.json

.PHONY: report-scale
report-scale: $(VENV)/installed ## Report on 10,000 synthetic records of 200 boards; says time and memory
	$(BIN)/python -m tests.pipeline.synthetic_fleet build/synthetic-fleet --boards 200 --records 10000 --report

# What `make quality` compares: a name and the options of convert for each.
CALIBRATED := --calibration-text models/demo/calibration.txt
OPTIONS_fp16 := --precision fp16
OPTIONS_int8 := --precision int8
OPTIONS_int8-calibrated := --precision int8 $(CALIBRATED)
OPTIONS_int4 := --precision int4
OPTIONS_int4-calibrated := --precision int4 $(CALIBRATED)
OPTIONS_int4-embedding-fp16 := --precision int4 $(CALIBRATED) --embedding-precision fp16
OPTIONS_int4-embedding-int4 := --precision int4 $(CALIBRATED) --embedding-precision int4
OPTIONS_int4-groups-of-32 := --precision int4 $(CALIBRATED) --group-size 32
OPTIONS_int4-groups-of-128 := --precision int4 $(CALIBRATED) --group-size 128
QUALITY_VERSIONS := fp16 int8 int8-calibrated int4 int4-calibrated int4-embedding-fp16 \
  int4-embedding-int4 int4-groups-of-32 int4-groups-of-128
# Another model than the demo goes into a record of its own: make quality MODEL=build/demo-29m
QUALITY := quality$(patsubst -demo,,-$(notdir $(abspath $(MODEL))))

build/$(QUALITY)/%/manifest.json: pipeline/calibration.py pipeline/quantize.py | $(VENV)/installed
	$(BIN)/mamba-orin convert '$(MODEL)' --output build/$(QUALITY)/$* $(OPTIONS_$*)

.PHONY: quality
quality: $(QUALITY_VERSIONS:%=build/$(QUALITY)/%/manifest.json) ## Measure what int8 and int4 cost the demo model into docs/measurements (minutes)
	$(BIN)/mamba-orin evaluate $(QUALITY_VERSIONS:%=build/$(QUALITY)/%) --text models/demo/heldout.txt \
	  --output docs/measurements/$(QUALITY).json --chart docs/measurements/$(QUALITY).svg

.PHONY: tables
tables: $(VENV)/installed ## Write the tables of the documents from docs/measurements
	$(BIN)/python docs/render_tables.py

.PHONY: schema
schema: $(VENV)/installed ## Write docs/record.schema.json from the code
	$(BIN)/python docs/write_record_schema.py

.PHONY: fmt
fmt: $(VENV)/installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: clean
clean: ## Remove what make has built, but not .venv
	rm -rf build

##@ Images

# make images TARGETS=boards
TARGETS ?=

.PHONY: images
images: build/demo/engine/manifest.json ## Build the image mamba-orin:cpu; others: make images TARGETS=boards
	$(BIN)/python containers/build.py $(TARGETS)

.PHONY: images-test
images-test: build/demo/engine/manifest.json ## Build and try images for amd64 and arm64 (root, Debian, half an hour)
	$(BIN)/pytest -m images tests/containers
