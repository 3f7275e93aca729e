# make serve | test | check ... `make help` lists them. The environment lives in .venv and is made when it is needed.

CONFIG ?= config/serve.yaml
PORT ?=
DATA ?=
RAY_METRICS_PORT ?=
PYTEST_ARGS ?=
CHAOS_ROUNDS ?= 20
CHAOS_SEED ?= 7
MINUTES ?= 30
PIP_ARGS ?=
# npm comes with some builds of nodejs, and cannot be installed beside these
APT_PACKAGES := postgresql slapd prometheus chromium nginx-light redis-server haproxy $(shell command -v npm >/dev/null || echo nodejs npm)
NPM_PACKAGES := oidc-provider@9.13.3 axe-core@4.14.1

# of `make loadtest`
URL ?= http://127.0.0.1:$(or $(PORT),8000)
USERS ?= 20
RUN_TIME ?= 2m
LOCUST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCUST := .venv-loadtest
BASELINES := .venv-baselines
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# The first that runs: a name on the PATH may be a shim without a Python behind it.
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help serve test nightly chaos soak loadtest loadtest-deps check test-deps clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

serve: $(INSTALLED) ## start the service: PORT=8123 DATA=/some/dir CONFIG=config/serve.gpu.yaml RAY_METRICS_PORT=8080
	@exec $(BIN)/python -m deployments.run $(CONFIG) $(if $(PORT),--port $(PORT)) $(if $(DATA),--data '$(DATA)') $(if $(RAY_METRICS_PORT),--ray-metrics-port $(RAY_METRICS_PORT))

test: $(INSTALLED) ## every test that a machine without a GPU can run in minutes: PYTEST_ARGS="-k weights"
	$(BIN)/python -m pytest -m "not gpu and not nightly" $(PYTEST_ARGS)

nightly: $(INSTALLED) ## the long tests too, every fault three times, and exactness on hundreds of random crowds
	ZIMAGE_EXACTNESS_CROWDS=50 CHAOS_ROUNDS=3 $(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

chaos: $(INSTALLED) ## every fault on purpose, again and again: CHAOS_ROUNDS=20 CHAOS_SEED=7
	CHAOS_ROUNDS=$(CHAOS_ROUNDS) CHAOS_SEED=$(CHAOS_SEED) $(BIN)/python -m pytest -m chaos tests/chaos $(PYTEST_ARGS)

soak: $(INSTALLED) ## mixed load, while memory, file handles, threads and tasks must stay flat: MINUTES=30
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

check: $(INSTALLED) ## lint, format, types, import directions, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_docs.py

test-deps: ## what tests need beyond Python packages, from Debian and npm
ifneq ($(strip $(APT_PACKAGES)),)
	$(SUDO) apt-get update -q
	$(SUDO) apt-get -o DPkg::Lock::Timeout=300 install -qy --no-install-recommends $(APT_PACKAGES)
	npm install --prefix .npm --no-audit --no-fund $(NPM_PACKAGES)
else
	@echo "nothing is needed"
endif

loadtest: $(LOCUST)/.installed ## Locust users against a running service: URL=http://… USERS=20 RUN_TIME=2m LOCUST_ARGS="…"
	$(LOCUST)/bin/python -m locust -f loadtest/locustfile.py --host '$(URL)' --headless --only-summary \
		--users $(USERS) --spawn-rate 5 --run-time $(RUN_TIME) --stop-timeout 60 $(LOCUST_ARGS)

loadtest-deps: $(LOCUST)/.installed $(BASELINES)/.installed ## environments for Locust and for what loadtest.compare runs

clean: ## remove the environment and caches; data/ stays
	rm -rf $(VENV) $(LOCUST) $(BASELINES) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

# torch comes first and alone: whichever build its index gives satisfies all that follows.
$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
		echo "error: there is no Python 3.11 or 3.12 here" >&2; \
		echo "fix: apt-get install python3 python3-venv, or: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@

# Locust brings gevent, which replaces parts of Python's standard library.
$(LOCUST)/.installed: loadtest/requirements.txt
	test -x $(LOCUST)/bin/python || $(PYTHON) -m venv $(LOCUST)
	$(LOCUST)/bin/python -m pip install $(PIP_ARGS) -r loadtest/requirements.txt
	@touch $@

# Gradio wants an older Pillow. All else, torch and diffusers above all, is found in the project's own environment.
$(BASELINES)/.installed: loadtest/baselines/requirements.txt $(INSTALLED)
	test -x $(BASELINES)/bin/python || $(BIN)/python -m venv $(BASELINES)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(BASELINES)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(BASELINES)/bin/python -m pip install $(PIP_ARGS) -r loadtest/baselines/requirements.txt
	@touch $@
