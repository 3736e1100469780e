# `make help` lists what there is. Everything that is made lies in .venv and build/; the machine's own state is `shoal up`'s.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

N ?= 16
PEERS ?=
ENGINE ?= oci
ONLY ?=
FUZZ ?= 30s
CORES := $(shell nproc)
WORKERS ?= $(CORES)
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
AGENT := shoal/images/agent
LAYERS := shoal/images/layers
GO_SOURCES := $(shell find $(AGENT) $(LAYERS) -name '*.go' -o -name '*.s' -o -name 'go.*' 2>/dev/null)
WEB := shoal/cluster/dashboard/web
WEB_SOURCES := $(shell find $(WEB) -name node_modules -prune -o -type f -print 2>/dev/null)
PYTEST := $(BIN)/python -m pytest
IN_GVISOR := $(patsubst %,tests/integration/test_%.py,lifecycle dial network tunnels disk_limit persistent idempotency pools memory safety)
# A worker for each core; one file's tests stay in one worker. One alone is this process itself.
PARALLEL := $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS) --dist loadfile)
BESIDE := $(shell echo $$(( $(CORES) > 2 ? $(CORES) - 1 : 1 ))) # workers beside test-cluster, which mostly waits
# The Go of the machine, or else the one that the `go` extra puts into .venv. Nothing here needs a C compiler.
GO := PATH="$$PATH:$(CURDIR)/$(BIN)" CGO_ENABLED=0 go

export PYTHONDONTWRITEBYTECODE := # what is compiled once need not be again in each of hundreds of processes

.PHONY: help venv lint format test-go test-parts test-cluster \
	test-fast test shown-cluster beside-cluster test-long test-gvisor demo docs notebooks bench simulate fuzz clean

help: ## This list
	@echo 'Shoal: sandboxes for untrusted code on your own machines.'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Start with `make demo`. It sets everything up (as root on Debian or Ubuntu it installs what is missing),'
	@echo 'and leaves nothing running. `$(BIN)/shoal doctor` tells what a machine lacks.'

venv: $(STAMP) ## Make .venv with Shoal in it (editable) and the tools of development

$(STAMP): pyproject.toml hatch_build.py $(GO_SOURCES) $(WEB_SOURCES)
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is missing: apt-get install python3 (or set PYTHON=…)' >&2; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "Installing $(notdir $(PYTHON))-venv …"; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get -qq update && apt-get -qq install -y --no-install-recommends $(notdir $(PYTHON))-venv; } >/dev/null \
			|| { echo "$(notdir $(PYTHON))-venv is missing: apt-get install $(notdir $(PYTHON))-venv (as root)" >&2; exit 1; }; \
	fi
	@echo 'Making $(VENV) (about a minute the first time) …'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable \
		".[dev$(shell command -v go >/dev/null || echo ,go)$(shell command -v npm >/dev/null || echo ,node)]"
	@touch $@

lint: venv ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python hatch_build.py --check-dashboard

format: venv ## Put the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-go: venv ## The Go programs' own tests
	for module in $(AGENT) $(LAYERS); do (cd $$module && $(GO) vet ./... && $(GO) test -timeout 5m ./...) || exit; done

test-parts: venv ## Unit and contract tests, on all cores (WORKERS=4)
	$(PYTEST) tests/unit tests/contract -m 'not engine and not long' $(PARALLEL)

test-cluster: venv ## What needs the container engine or the cluster, in one process: they share one of each
	$(PYTEST) tests/contract/engines tests/integration tests/chaos -m 'engine and not long'

test-fast: venv ## Unit tests only, under two minutes: no engine, no cluster
	@$(MAKE) test-go
	$(PYTEST) tests/unit -m 'not engine and not long' $(PARALLEL)

test: venv ## Everything but test-long, about 15 minutes; what the engine and the cluster need is installed first
	@$(MAKE) -k -j2 -Otarget shown-cluster beside-cluster

shown-cluster: # as it goes, not when it is done like the others
	@$(MAKE) -Onone test-cluster

beside-cluster:
	@$(MAKE) -k lint test-go test-parts WORKERS=$(BESIDE)

test-long: venv ## Long tests: soak, kills under load, bulk creates, nginx and Caddy in front, fuzzing (FUZZ=5m)
	@failed=0; \
	$(PYTEST) -m long -k 'not runsc' || failed=1; \
	SHOAL_TEST_EXAMPLES=100 $(PYTEST) tests/contract/api/test_schemathesis.py $(PARALLEL) || failed=1; \
	(cd $(AGENT) && SHOAL_SOAK_RUNS=20000 $(GO) test -timeout 20m -run Soak -count=1 ./e2e) || failed=1; \
	$(MAKE) docs || failed=1; \
	$(MAKE) fuzz || failed=1; \
	exit $$failed

test-gvisor: venv ## The engines' suite, and what of the cluster's own holds in gVisor too; builds gVisor the first time
	@failed=0; \
	$(PYTEST) tests/contract/engines -m long -k runsc || failed=1; \
	SHOAL_TEST_CLUSTER_ENGINE=oci SHOAL_TEST_RUNTIME=runsc $(PYTEST) -m 'engine and not long' $(IN_GVISOR) || failed=1; \
	exit $$failed

demo: venv ## Roll out N candidates on a real package, each in a sandbox of its own: make demo N=64
	@trap 's=$$?; $(BIN)/shoal down || s=1; exit $$s' EXIT; \
	$(BIN)/shoal up && $(BIN)/python -m examples.rollouts --candidates $(N)

docs: venv ## Build the documentation as a site, its links checked → build/docs/site/index.html
	$(BIN)/python docs/site/build.py

notebooks: venv ## Run the notebooks on a cluster of their own, and keep their outputs in the files
	@trap 's=$$?; $(BIN)/shoal down || s=1; exit $$s' EXIT; \
	$(BIN)/shoal up && $(BIN)/python -m tests.notebooks

bench: venv ## Measure against docker-py → build/bench.json (ENGINE=docker, ONLY=execs,creates; PEERS=1: and others)
	@mkdir -p build
	PEERS=$(PEERS) $(BIN)/python -m tests.bench --output build/bench.json --engine $(ENGINE) $(if $(ONLY),--only $(ONLY))

simulate: venv ## The real controller over pretend machines: 10,000 sandboxes, a day of bursts and losses → build/simulation.png
	$(BIN)/python -m tests.simulation

fuzz: venv ## Let random input loose on every decoder of the Go programs, 30 s each (FUZZ=5m)
	for module in $(AGENT) $(LAYERS); do cd $(CURDIR)/$$module && for file in $$(grep -rl '^func Fuzz' --include='*_test.go' .); do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' $$file); do \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZ) -fuzzminimizetime 1x ./$$(dirname $$file); \
		done; \
	done; done

clean: ## Take away all that was made here (a running cluster: `shoal down`)
	rm -rf $(VENV) build dist shoal/images/bin shoal/cluster/dashboard/static $(WEB)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
