# Everything a developer does daily. `make run` needs only make and Python 3.11 to 3.13.
PYTHON ?= python3
BIN := .venv/bin
UV ?= uv

.PHONY: run test check fmt bench bench-money bench-outbox bench-sync campaign docs lock fuzz model state-machine mutants \
	env env-dev node-sdk

run: env
	@HUB_PAYMENT_KIT=$(or $(PAYMENT_KIT),$(HUB_PAYMENT_KIT)) exec $(BIN)/hub up

test: env-dev node-sdk
	PYTHONHASHSEED=0 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: env-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! grep -n '://' requirements.lock requirements-dev.lock tests/journeys/node/package-lock.json
	$(if $(wildcard docs/generate.py),$(BIN)/python docs/generate.py --check)

fmt: env-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: env-dev
	PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

# How fast charges reach Payment Kit, and the CPU of each: ARGS="--events 20000 --meterings 2".
bench-outbox: env-dev
	PYTHONPATH=tests $(BIN)/python -m bench.outbox $(ARGS)

# Reserves and completions straight to metering: rates, latencies, a hot account, 100,000 queued completions.
bench-money: env-dev
	PYTHONPATH=tests $(BIN)/python -m bench.money $(ARGS)

# The property tests with new examples each time, and many of them; `make test` takes the same few each time.
fuzz: env-dev
	$(BIN)/pytest -q -o timeout=0 -n 2 -m hypothesis --hypothesis-profile=fuzz

# What it costs that NATS forces each message to disk.
bench-sync: env-dev
	PYTHONPATH=tests $(BIN)/python -m bench.sync_interval $(ARGS)

# Everything is killed under load, again and again; then every book is held against journals that the hub does not write.
campaign: env-dev
	PYTHONPATH=tests $(BIN)/python -m campaign --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Every interleaving of one call, and the shortest schedule that refutes each weaker protocol.
model: env-dev
	PYTHONPATH=tests $(BIN)/python -m model

# 5,000 random histories of 50 steps on the real SQL; `make test` runs a few.
state-machine: env-dev
	STATE_MACHINE_EXAMPLES=$(or $(EXAMPLES),5000) $(BIN)/pytest -q -o timeout=0 --hypothesis-profile=fuzz \
		services/metering/tests/store/test_state_machine.py

# Seeded bugs, each on a copy of the tree, and the test that catches each.
mutants: env-dev
	PYTHONPATH=tests $(BIN)/python -m mutants $(ARGS)

docs: env-dev
	$(BIN)/python docs/generate.py

# Host-free, hashed, for every platform and Python 3.11 to 3.13; nothing younger than a week gets in.
EXPORT := $(UV) export --quiet --exclude-newer "7 days" --all-packages --no-default-groups --group build \
	--no-emit-workspace --no-header --no-annotate
lock:
	rm -f uv.lock
	$(EXPORT) -o requirements.lock
	$(EXPORT) --group dev -o requirements-dev.lock
	rm -f uv.lock
	@! grep -n '://' requirements.lock requirements-dev.lock

env:
	@$(PYTHON) deploy/local/bootstrap.py

env-dev:
	@$(PYTHON) deploy/local/bootstrap.py --dev

# The Node SDK of the journeys; without Node its tests are skipped, with CI=true they fail.
NODE := tests/journeys/node
node-sdk:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(NODE)/node_modules/.package-lock.json; \
	else echo "node-sdk: npm is not installed, the Node SDK is not tested"; fi

$(NODE)/node_modules/.package-lock.json: $(NODE)/package-lock.json
	cd $(NODE) && npm ci --ignore-scripts --no-progress
	@touch $@
