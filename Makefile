# make demo, make test: on a fresh machine with Python 3.11 or newer, no root, no Redis.

PYTHON ?= python3
VENV ?= .venv
# A further requirement for the environment of `make test`, such as redis==5.0.1.
WITH ?=
# Test processes at once; most tests wait more than they work.
WORKERS ?= 6
# More arguments for the demo or for pytest.
ARGS ?=

# Neither another active environment nor its settings have a say. Bytecode is kept, or every process of the tests would
# compile anew what it imports.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

# A python3 that is too old is passed over for a newer one beside it; one that was asked for isn't.
ifeq ($(origin PYTHON),file)
pythons := $(PYTHON) python3.12 python3.11 python3.13
else
pythons := $(PYTHON)
endif

bin := $(VENV)/bin
# ccxt alone has a thousand modules, of which few are used: they are compiled when they are imported.
pip_install := $(bin)/python -m pip install --quiet --disable-pip-version-check --no-compile

# The oldest versions that pyproject.toml allows.
oldest := redis==5.0.1 krakenex==2.2.1 ccxt==4.4.85 python-kraken-sdk==3.0.0

.PHONY: help demo test test-all soak lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      eight processes on one API key: stock krakenex, then this library"
	@echo "make test      the tests to run before each commit; three minutes"
	@echo "make test-all  every test on every server, and with the oldest versions; longer"
	@echo "make soak      every test at full length; hours"
	@echo "make lint      ruff, mypy, pyright, luacheck"
	@echo "make bench     the benchmarks, beside their rivals; a few minutes"
	@echo "make clean     remove what the others made"
	@echo
	@echo "ARGS='...' goes to the demo or to pytest; PYTHON=... chooses the interpreter."

demo: $(VENV)/.demo-installed
	$(bin)/kraken-nonce demo $(ARGS)

pytest = $(bin)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test: $(VENV)/.test-installed
	KRAKEN_NONCE_TIER=test $(pytest)

test-all: $(VENV)/.test-installed
	KRAKEN_NONCE_TIER=all $(pytest)
	@echo "With the oldest versions: $(oldest)"
	@$(MAKE) test VENV=$(VENV)-oldest WITH="$(oldest)" ARGS="-m 'not once' $(ARGS)"

soak: $(VENV)/.test-installed
	KRAKEN_NONCE_TIER=soak $(pytest)

lint: $(VENV)/.lint-installed
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/pyright --pythonpath $(bin)/python
	@if command -v luacheck >/dev/null; then \
		echo luacheck lua && luacheck --quiet lua; \
	elif [ -n "$$CI" ]; then \
		echo "luacheck is required in CI (Debian and Ubuntu: lua-check)" >&2; exit 1; \
	else \
		echo "luacheck: skipped, not on this machine"; \
	fi

bench: $(VENV)/.test-installed
	@$(pip_install) -e '.[bench]'
	@for benchmark in free_section events contended nonces many distance; do \
		$(bin)/python benchmarks/$$benchmark.py $(ARGS) || exit; \
	done

clean:
	rm -rf .venv .venv-* build dist htmlcov .coverage
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv installs: without it, the environment is only half there.
$(bin)/pip:
	@for python in $(pythons); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$($$python --version)"; \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "No Python 3.11 or newer (tried: $(pythons)). Name one: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(VENV)/.demo-installed: pyproject.toml | $(bin)/pip
	@echo "Installing into $(VENV) what the demo needs"
	@$(pip_install) -e '.[krakenex,cli,embedded,testing]'
	@touch $@

# This includes what the demo needs.
$(VENV)/.test-installed: pyproject.toml | $(bin)/pip
	@echo "Installing into $(VENV) what the tests need"
	@$(pip_install) -e '.[test]' $(WITH)
	@touch $@ $(VENV)/.demo-installed

# The type checkers look at what the tests import.
$(VENV)/.lint-installed: $(VENV)/.test-installed
	@echo "Installing into $(VENV) what the linters need"
	@$(pip_install) -e '.[lint]'
	@touch $@
