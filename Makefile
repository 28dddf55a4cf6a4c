# The same short commands by hand and in CI. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help install serve doctor test test-fast format lint types lock engine-args request-fields docs advisories release-check bench killers fuzz verdicts sbom dist dist-check

BIN := .venv/bin
ENGINE := .venv-engine/bin/vllm
export SERVEKIT_ENGINE ?= $(CURDIR)/$(ENGINE)

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

install:  ## servekit into .venv, vLLM 0.20.2 for the CPU into .venv-engine and .venv-engine-patches
	@scripts/install.sh base engine

serve: install  ## serve the embedded demo checkpoint on the CPU (ARGS="--port 8001" and the like)
	@exec $(BIN)/servekit serve --target cpu $(ARGS)

doctor:  ## Docker, driver and Compose project of this host, before the first `docker compose up`
	@scripts/install.sh base
	@$(BIN)/servekit doctor $(ARGS)

test:  ## install what is needed, then all tests; the real engine included
	@scripts/install.sh dev engine clients scale eval tools
	$(BIN)/pytest -n 3 --dist loadgroup --cov --cov-report=term --durations 25 $(ARGS)

test-fast:  ## only the tests that start no engine
	@scripts/install.sh dev scale tools
	$(BIN)/pytest -n 4 --dist worksteal -m "not engine and not container" $(ARGS)

lint:  ## ruff and the formatter, hadolint, shellcheck
	@scripts/install.sh dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile deploy/router/Dockerfile
	$(BIN)/shellcheck scripts/*.sh .ci/run .ci/*.sh

format:  ## ruff: format every file, mend what it can mend
	@scripts/install.sh dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types:  ## mypy, strict
	@scripts/install.sh dev
	$(BIN)/mypy

lock:  ## resolve requirements/*.in again
	@scripts/lock.sh

engine-args:  ## read the table of arguments from the installed engine
	@scripts/install.sh base engine
	.venv-engine/bin/python scripts/engine_args.py

request-fields:  ## read the fields of requests from the installed engine
	@scripts/install.sh base engine
	.venv-engine/bin/python scripts/request_fields.py

docs:  ## write what is generated: two pages, the sample in README.md, the PrometheusRule for Kubernetes
	@scripts/install.sh dev
	$(BIN)/python scripts/configuration_page.py
	$(BIN)/python scripts/requests_page.py
	$(BIN)/python scripts/prometheus_rule.py
	$(BIN)/python scripts/readme_sample.py

advisories:  ## write the table of docs/security.md and docs/vex.cdx.json from docs/advisories.yaml and the tests
	@scripts/install.sh dev
	$(BIN)/python scripts/advisories.py

release-check:  ## what a release needs besides the tests: a list of advisories at most 60 days old
	@scripts/install.sh dev
	$(BIN)/python scripts/advisories.py --max-age-days 60

bench:  ## run the benchmarks that need no GPU
	@scripts/install.sh dev engine
	$(BIN)/python -m benchmarks

killers:  ## show that each rule of the guard is needed: a start of the engine without it, for each (ARGS="NAME")
	@scripts/install.sh dev engine
	$(BIN)/python -m benchmarks.killers $(ARGS)

fuzz:  ## a million inputs to the guard alone, then 20,000 requests to the real engine with each of two vocabularies
	@scripts/install.sh dev engine
	$(BIN)/python -m benchmarks.fuzz_guard
	$(BIN)/python -m benchmarks.fuzz_engine
	$(BIN)/python -m benchmarks.fuzz_engine --wide

verdicts:  ## hold `servekit check` to the engine's own verdict on 200 mutated checkpoints (ARGS="--seed 1")
	@scripts/install.sh dev engine
	$(BIN)/python -m benchmarks.verdicts $(ARGS)

sbom:  ## software bills of materials alone, into dist/
	@scripts/install.sh dev
	@scripts/sbom.sh

dist:  ## a release into dist/: wheel, software bills of materials, SHA256SUMS (REF=TAG; default: the tag of HEAD)
	@scripts/dist.sh $(REF)

dist-check:  ## build HEAD twice, under another umask and time zone, and compare the bytes
	@scripts/dist.sh HEAD build/dist-1
	@umask 077 && TZ=Pacific/Auckland scripts/dist.sh HEAD build/dist-2
	cmp build/dist-1/SHA256SUMS build/dist-2/SHA256SUMS
