# `make demo` shows pgset at work, `make test` tests it; `make` alone lists what else there is.
#
#   KUBECONFIG  cluster of install, uninstall and, with CLUSTER=current, of the demo; by default the lab's
#   CLUSTER     lab (a Kubernetes made on this machine, the default) or current (the one of KUBECONFIG)
#   IMAGE       name of pgset's image; for a cluster of your own, one in a registry that it reaches
#   PROFILE     release, or quick while working on pgset

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
TARGET := $(shell uname -m)-unknown-linux-gnu
PROFILE ?= release
CLUSTER ?= lab
IMAGE ?= pgset.dev/pgset:$(VERSION)
THREADS ?= 3
HOURS ?= 1
export IMAGE CLUSTER LAB

PROGRAM := target/$(TARGET)/$(PROFILE)/pgset
LAB := $(or $(PGSET_LAB),$(CURDIR)/target/lab)
# A cluster that somebody has in his environment is for install, which says so, not for tests.
LAB_ONLY = KUBECONFIG=$(LAB)/kubeconfig
export KUBECONFIG ?= $(LAB)/kubeconfig

# The lab builds a kubectl where the machine has none.
KUBERNETES := $(shell sed -n 's/^kubernetes_version=//p' tests/lab/common.sh)
export PATH := $(PATH):$(or $(PGSET_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pgset)/kubernetes/$(KUBERNETES)

.PHONY: help demo demo-down test lab lab-down binary image push install uninstall lint unit api test-versions fuzz e2e matrix stores postgres-18 moments faults soak bench bench-failover

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## a cluster, pgset, a set in it: everything happens before your eyes
	@tests/demo

demo-down: ## take the demo's set away again
	@tests/demo down

test: ## all tests, from a bare machine on
	@tests/run

lab: ## a real Kubernetes on this machine; kubeconfig in target/lab; NODES=3 for several nodes
	@PGSET_NODES=$(NODES) tests/lab/up

lab-down: ## stop it, and leave nothing behind
	@tests/lab/down

binary: ## the program, static
	RUSTFLAGS='-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs' cargo build --locked --profile $(PROFILE) --target $(TARGET) --bin pgset

image: binary ## the image, loaded into the lab if that is up
	@deploy/build-image $(PROGRAM) $(IMAGE)

push: image ## the image, to the registry that its name says
	@deploy/build-image --push $(IMAGE)

install: image ## pgset, into the cluster of KUBECONFIG, by default the lab
	@deploy/install-image $(PROGRAM) $(IMAGE)

uninstall: binary ## take pgset away; refused while sets depend on it, unless FORCE=yes
	@manifests=$$($(PROGRAM) uninstall $(if $(FORCE),--force)); \
	kubectl delete --ignore-not-found --timeout=120s -f - <<<"$$manifests"

lint: ## formatting, lints, licences, scripts
	cargo fmt --check
	cargo clippy --locked --all-targets --features lab -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; else echo 'lint: no cargo-deny on this machine, left out'; fi
	@if command -v shellcheck >/dev/null; then \
	  grep -rlE '^#!(/usr/bin/env bash|/bin/sh)' .ci deploy tests fuzz/run | xargs shellcheck -x; \
	else echo 'lint: no shellcheck on this machine, left out'; fi

unit: ## tests that need no cluster
	cargo test --locked

# Of its own: in the lab the installed controller would have a hand in what these tests look at.
api: ## tests against a control plane
	@tests/versions $(KUBERNETES)

test-versions: ## tests against control planes of other Kubernetes versions: VERSIONS="v1.30.14 v1.34.4 v1.37.2"
	@tests/versions $(VERSIONS)

fuzz: ## the fuzz targets, SECONDS_EACH each; needs a nightly compiler
	@fuzz/run

e2e: ## tests with PostgreSQL on the lab, where pgset is installed: ONLY=name for some of them
	$(LAB_ONLY) cargo test --locked --features lab --test e2e -- --test-threads=$(THREADS) $(ONLY)

matrix: ## what people do to a set, ordered and parallel, with each of its members as the master
	PGSET_MATRIX=1 $(MAKE) e2e ONLY=matrix

moments: ## random faults on a set with backups, and then twenty of its moments restored: PGSET_FAULTS=30 for five minutes of them
	$(LAB_ONLY) cargo test --locked --features lab --test faults -- --nocapture --ignored any_moment

# Of its own, and not in `make lab`: it is made from a Debian release that changes every day, and takes minutes.
LOAD_18 = images=$$(tests/lab/build-images 18) && tests/lab/load-image "$$images/forky.tar"

postgres-18: ## the image postgres:18, into the lab that is up
	@$(LOAD_18)

# A Node.js that is not Debian's has an npm of its own, and Debian's does not go beside it. On a day without an image of 18 the others are tried.
stores: ## backups to servers that speak as S3, Google and Azure do, and those of PostgreSQL 18, and back: ONLY=name for some of them
	@tests/lab/packages python3-venv $$(command -v npm >/dev/null || echo npm)
	@left_out=; { $(LOAD_18); } || left_out='--skip postgresql_18'; \
	$(LAB_ONLY) cargo test --locked --features lab --test e2e -- --test-threads=1 --ignored $(or $(ONLY),comes_back) $$left_out; \
	if [ -n "$$left_out" ]; then echo 'stores: there is no image of PostgreSQL 18 today (see above), and what comes back of it was not tried'; fi

faults: ## random faults on the lab while clients write: PGSET_FAULTS_SEED, PGSET_FAULTS
	$(LAB_ONLY) cargo test --locked --features lab --test faults -- --nocapture $(ONLY)

soak: ## the same with one seed after the other, for HOURS
	PGSET_FAULTS_HOURS=$(HOURS) $(MAKE) faults

bench-failover: ## how long clients can't write when a master goes, beside Patroni: REPEAT, CASES, CONTENDERS
	@$(LAB_ONLY) tests/bench/run failover

bench: ## figures, with what is aimed at beside them: ONLY=admission, wait, controller, postgres or backup for a part
	@$(LAB_ONLY) tests/bench/run $(ONLY)
