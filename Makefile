# Everything on a machine with Python 3.11 and make. `make demo` and `make test` do all the set-up themselves.
#
#   make demo DATA=<folder> DP=off KILL=1 UI=off ROUNDS=3 PORT=8600      (all optional)
#   make test PYTEST_ARGS="-k ledger"
#   TORCH_INDEX=<url> or TORCH_WHEEL=<file>: another build of torch, chosen when .venv is made

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: soak help install demo clean-demo test lint format stubs bench clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SIZE_CPU := about 450 MB to download, 2 GB on disk (for the tests, Ray included: 630 MB, 2.5 GB)
NEWEST := $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PYTHON ?= $(NEWEST)
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
STAMPS := $(VENV)/stamps
WANTED := $(shell cksum < pyproject.toml | cut -d ' ' -f 1)
STUDY := $(STAMPS)/study-$(WANTED)
TEST := $(STAMPS)/test-$(WANTED)

DEMO_OPTIONS = $(if $(DATA),--data "$(DATA)") $(if $(DP),--dp $(DP)) $(if $(UI),--ui $(UI)) \
	$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(PORT),--port $(PORT)) $(if $(filter-out 0 no off,$(KILL)),--kill)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1#\2/p' Makefile | awk -F '#' '{printf "%-20s %s\n", $$1, $$2}'

install: $(TEST)  ## everything into .venv, tools and tests included

demo: $(STUDY)  ## a whole federation on this machine: DATA= DP= KILL= UI= ROUNDS= PORT=
	@$(BIN)/secagg-study demo $(DEMO_OPTIONS)

clean-demo:  ## remove what `make demo` wrote and cached
	rm -rf demo .demo

test: lint  ## lint, types, stub freshness and all tests: PYTEST_ARGS=
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(TEST)  ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(TEST)  ## let ruff rewrite the files
	$(BIN)/python -m ruff format .

stubs: $(TEST)  ## make the gRPC stubs from proto/federation.proto again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. proto/federation.proto

bench: $(TEST)  ## measure what the README claims about speed and bytes
	$(BIN)/python -m benchmarks.masking; masking=$$?; $(BIN)/python -m benchmarks.dp_training; training=$$?; \
	$(BIN)/python -m benchmarks.inference; inference=$$?; $(BIN)/python -m benchmarks.rounds; rounds=$$?; \
	$(BIN)/python -m benchmarks.imaging && exit $$((masking | training | inference | rounds))

soak: $(TEST)  ## an hour of rounds: does any process grow?
	$(BIN)/python -m benchmarks.soak --minutes 60

clean: clean-demo  ## remove .venv and all caches too
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found:" \
		"install it, or name one with make PYTHON=<path>"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed," \
		"$(PYTHON) is older or does not start: install it, or name another with make PYTHON=<path>"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) could not make .venv: install its venv module" \
		"(Debian and Ubuntu: apt install python3-venv)"; exit 1; }

# --no-deps: an index or a file that offers torch need not offer what torch depends on; that follows from pip's own index
$(BIN)/torch-chosen: | $(BIN)/python
	@echo "Installing into $(VENV). With a CPU build of torch: $(SIZE_CPU)."
	@echo "With the CUDA build, which is what PyPI offers on Linux: several GB. TORCH_INDEX=<url of a CPU index> or"
	@echo "TORCH_WHEEL=<file> choose another build; now: $(or $(TORCH_WHEEL),$(TORCH_INDEX),the index that pip is set to)."
	@if [ -n "$(TORCH_WHEEL)" ]; then $(PIP) install --no-deps "$(TORCH_WHEEL)"; \
	elif [ -n "$(TORCH_INDEX)" ]; then $(PIP) install --no-deps --index-url "$(TORCH_INDEX)" "$(TORCH)"; fi
	@found=$$($(PIP) show torch 2>/dev/null | sed -n 's/^Version: \([^+]*\).*/torch==\1/p'); \
	if [ -n "$$found" ] && [ "$$found" != "$(TORCH)" ]; then echo "$$found was chosen, but pyproject.toml pins $(TORCH):" \
		"run make clean, then choose a build of that version"; exit 1; fi
	@touch $@

$(STUDY): | $(BIN)/torch-chosen
	@if [ ! -e $(TEST) ]; then $(PIP) install -e ".[study]"; fi
	@mkdir -p $(STAMPS) && touch $@

$(TEST): | $(BIN)/torch-chosen
	@$(PIP) install -e ".[test]"
	@mkdir -p $(STAMPS) && touch $@
