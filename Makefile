# The verbs of the project. Each one installs what it needs and is missing, says what it does
# while it does it, and does nothing twice. Longer work lives in pgrx-tests/bin/.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

bin := pgrx-tests/bin
suites := lint unit pg stand-in e2e browser
e2e := pgrx-tests/harness/test pgrx-tests/e2e pgrx-tests/inventory
export PG_OUTBOX_STARTED_AT ?= $(shell date +%s)
# Where `setup node` puts a Node when the machine's own is too old.
export PATH := $(CURDIR)/.cache/node/bin:$(PATH)
unexport RUST_BACKTRACE
ifdef PG_CONFIG
export PG_CONFIG
endif

# One file after the other: the tests measure time, and two clusters on two cores would not.
# A test that fails may leave a connection open, and must not hold up the rest for it.
node_test := node --test --test-reporter=spec --test-concurrency=1 --test-timeout=300000 --test-force-exit

.PHONY: help
help: ## this list
	@echo 'make VERB, where VERB is one of:'
	@sed -n -E 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: demo
demo: ## the whole thing with a page to look at; Ctrl-C ends it
demo: $(if $(DATABASE_URL),,extension-dev) node
	@exec node demo/demo.mjs

.PHONY: test
test: ## every suite below, on Postgres 15
	@rm -rf .cache/results
	@$(MAKE) --keep-going $(addprefix test-,$(suites)); $(bin)/tally $(suites)

.PHONY: test-lint
test-lint: rust pgrx ## format, clippy, pgspot over the generated SQL
	@$(bin)/setup pgspot && $(bin)/suite lint $(bin)/lint

.PHONY: test-unit
test-unit: rust ## the core alone: no Postgres, a minute
	@STEPS=$(or $(STEPS),3000000) $(bin)/suite unit cargo test --no-default-features --profile checked

.PHONY: simulate
simulate: rust ## the core under simulation, HOURS=1 or more; stops at the first broken promise
	@HOURS=$(or $(HOURS),1) cargo test --no-default-features --profile checked \
	    --test model every_run -- --nocapture

.PHONY: mutants
mutants: rust ## bugs put into the core one by one: does the simulation find each?
	@$(bin)/mutants

.PHONY: test-pg
test-pg: rust pgrx ## the SQL surface inside a backend (#[pg_test])
	@$(bin)/suite pg $(bin)/backend_tests

.PHONY: test-stand-in
test-stand-in: node postgres ## the local Realtime against the unmodified supabase-js
	@$(bin)/suite stand-in $(node_test) demo/realtime/test/*.test.mjs

.PHONY: test-e2e
test-e2e: node extension-dev cron ## real servers from commit to subscriber; FILES=… for some of them
	@$(bin)/suite e2e $(node_test) \
	    $(or $(FILES),$(addsuffix /*.test.mjs,$(e2e)))

.PHONY: test-browser
test-browser: node extension-dev browser ## the demo's page in Chromium, as people of two organisations
	@$(bin)/suite browser $(node_test) demo/test/*.test.mjs

.PHONY: test-all
test-all: test ## test, then the smoke test on, and pg_upgrade to, Postgres 17 and 18
	@for major in 17 18; do $(MAKE) test-major-$$major || exit; done

.PHONY: test-major-%
test-major-%: node
	@export PG_CONFIG=$$($(bin)/major $*) && $(MAKE) extension-dev && \
	    $(bin)/suite smoke-$* $(node_test) pgrx-tests/e2e/smoke.test.mjs pgrx-tests/upgrade/*.test.mjs

.PHONY: bench
bench: node extension-release ## ratios, latencies, idle cost; ROUNDS= and SECONDS= are its budget
	@node bench/bench.mjs

.PHONY: lint
lint: test-lint

.PHONY: install
install: extension-release ## a release build into the server of PG_CONFIG=…

.PHONY: clean
clean: ## removes what was built and fetched; the server keeps the extension
	@rm -rf .cache target target-* node_modules
	@[ ! -d /var/cache/pg_outbox ] || $$([ $$(id -u) = 0 ] || echo sudo) rm -rf /var/cache/pg_outbox

# What the verbs stand on. Each checks in milliseconds what is there, and installs the rest.

.PHONY: postgres rust pgrx node browser cron extension-dev extension-release
postgres:
	@$(bin)/setup postgres

rust:
	@$(bin)/setup compiler rust

pgrx: rust postgres
	@$(bin)/setup pgrx

node:
	@$(bin)/setup node

browser:
	@$(bin)/setup browser

cron: postgres
	@$(bin)/setup cron

extension-dev: pgrx
	@$(bin)/extension dev

extension-release: pgrx
	@$(bin)/extension release
